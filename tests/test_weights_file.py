"""Weights files that are damaged, that others made, or that a newer version wrote, get one line."""

import json
import os
import random
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

from damage import unnoticed
from exporting import unet_generator
from fewstep import __version__, runs
from fewstep.backbones import MLPConfig
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.export.source import load_source
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.weights_file import read_weights_file, write_weights_file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    runs.save_generator(path, unet_generator(), None, {})
    return path


def edited(weights, folder, text=None, **changes):
    """The file with another text as its metadata, or with other values in it and new digests."""
    tensors, note = read_weights_file(weights)
    if text is None:
        write_weights_file(folder / "edited.safetensors", tensors, {**note, **changes})
    else:
        save_file(tensors, folder / "edited.safetensors", metadata={"fewstep": text})
    return folder / "edited.safetensors"


@pytest.mark.parametrize("text", ["{nope", "[1]", "null", "3", "[" * 9999])
def test_metadata_that_describe_nothing_are_damage(weights, tmp_path, text):
    path = edited(weights, tmp_path, text)
    for verify in (True, False):
        with pytest.raises(InputError, match=r"edited.safetensors is damaged: its metadata .*"):
            runs.load(path, verify=verify)


@pytest.mark.parametrize("key", ["pins", "scores", "license", "recipe", "description"])
def test_values_of_another_type_are_damage(weights, tmp_path, key):
    with pytest.raises(InputError, match=f"is damaged: {key} in its metadata is 3$"):
        runs.load(edited(weights, tmp_path, **{key: 3}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("pins", {"data": {}}), ("pins", {"data": None}), ("scores", [3]), ("scores", [{}, "x"]),
     ("step", "x"), ("step", True), ("step", 1.5)],
)  # fmt: skip
def test_items_of_another_type_are_damage(weights, tmp_path, key, value):
    for use in (runs.load, runs.describe):
        with pytest.raises(InputError, match=f"is damaged: {key} in its metadata is "):
            use(edited(weights, tmp_path, **{key: value}))


def newer_descriptions():
    table = unet_generator().describe()
    backbone, spec = table["backbone"], table["spec"]
    return [
        {**table, "memory": 3},
        {**table, "backbone": {**backbone, "memory": 3}},
        {**table, "backbone": {"name": "mamba"}},
        {**table, "spec": {**spec, "classes": 9}},
        {"network": {}},
        "3",
    ]


@pytest.mark.parametrize("description", newer_descriptions())
def test_a_file_of_a_newer_version_says_so(weights, tmp_path, description):
    for version in ("99.0", "99.0.0.dev3+abc", "0.100"):
        file = edited(weights, tmp_path, description=description, version=version)
        with pytest.raises(InputError) as error:
            runs.load(file)
        remedy = f"made by a newer version, fewstep {version}: pip install --upgrade fewstep"
        assert str(error.value).endswith(remedy) and "\n" not in str(error.value)
    for version in (__version__, "0.0.9", "unknown", None):
        file = edited(weights, tmp_path, description=description, version=version)
        with pytest.raises(InputError) as error:
            runs.load(file)
        assert "newer version," not in str(error.value)


def test_a_file_of_a_newer_version_loads_if_it_can(weights, tmp_path):
    file = edited(weights, tmp_path, version="99.0", colour="red")
    assert runs.weights_hash(runs.load(file)) == runs.weights_hash(runs.load(weights))


def test_scores_of_another_form_are_left_out(weights, tmp_path):
    assert load_source(edited(weights, tmp_path, scores=[{"fid": 3.0}])).scores == []


@pytest.mark.parametrize("recipe", [{}, {"method": "other"}, {"method": {}}])
def test_any_table_can_be_the_recipe(weights, tmp_path, recipe):
    assert load_source(edited(weights, tmp_path, recipe=recipe)).steps == (1, 2, 4)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A file of about 6 kB: a network for points."""
    network = MLPConfig(width=8, depth=1).build(shape=(2,), classes=2)
    generator = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((2,), 2, ("a", "b")))
    path = tmp_path_factory.mktemp("points") / "points.safetensors"
    runs.save_generator(path, generator, {"method": {"name": "dmd"}}, {"data": "x"}, license="MIT")
    return path


def used(path):
    """What is used of a weights file."""
    note, generator = runs.describe(path), runs.load(path)
    return note, runs.weights_hash(generator), generator.spec


def test_a_flipped_byte_is_found(points):
    size = points.stat().st_size
    positions = [*range(16), *random.Random(0).sample(range(size), 150), size - 1]
    assert unnoticed(points, lambda: used(points), positions, masks=(0x01, 0x20)) == []


@pytest.mark.slow
def test_any_flipped_byte_is_found(points):
    size = points.stat().st_size
    assert unnoticed(points, lambda: used(points), range(size)) == []


def test_the_message_names_the_file_and_what_to_do(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(InputError, match=r"w\.safetensors is damaged: its tensors do not match .*SH"
                       "A-256: copy the file again"):  # fmt: skip
        runs.load(path)
    assert runs.load(path, verify=False)
    assert runs.describe(path) == runs.describe(weights)  # which needs no tensors
    tensors, note = read_weights_file(weights)
    save_file(tensors, path, metadata={"fewstep": json.dumps(note)})
    with pytest.raises(InputError, match=r"has no digest .*load\(…, verify=False\) reads it"):
        runs.load(path)
    assert runs.weights_hash(runs.load(path, verify=False)) == runs.weights_hash(runs.load(weights))


def changed(table, key, value):
    """The nested table with another value at a dotted key."""
    head, _, rest = key.partition(".")
    return {**table, head: changed(table[head], rest, value) if rest else value}


def nested(depth):
    table = {"name": "velocity"}
    for _ in range(depth):
        table = {"name": "mixed", "inputs": table, "outputs": {"name": "eps"}}
    return table


GIGANTIC = [
    ("backbone.channels", [10**9, 10**9]),
    ("backbone.channels", [8] * 5000),
    ("backbone.layers", 10**7),
    ("backbone.layers", 60_000),
    ("backbone.layers", -(10**12)),
    ("backbone.groups", 2**70),
    ("backbone", {"name": "mlp", "depth": 10**8}),
    ("backbone", {"name": "mlp", "width": 60_000, "depth": 50_000}),
    ("backbone", {"name": "circuit", "blocks": 50_000}),
    ("backbone", {"name": "residuals", "chunks": 60_000}),
    ("backbone", {"name": "edm-unet", "layers": 30_000}),
    ("spec.shape", [1, 10**9, 10**9]),
    ("spec.shape", [8] * 100_000),
    ("spec.classes", 10**12),
    ("spec.classes", 60_000),
    ("parametrization", nested(300)),
]


@pytest.mark.parametrize(("key", "value"), GIGANTIC, ids=lambda value: str(value)[:40])
def test_a_gigantic_network_is_refused_before_it_is_built(weights, tmp_path, key, value):
    _, note = read_weights_file(weights)
    file = edited(weights, tmp_path, description=changed(note["description"], key, value))
    start = time.process_time()
    for verify in (True, False):
        with pytest.raises(InputError) as error:
            runs.load(file, verify=verify)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert time.process_time() - start < 10  # building it would take minutes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("guidance", -1.0),
        ("guidance", 1e300),
        ("span", [0.5, 0.2]),
        ("span", [-1.0, 1.0]),
        ("spec.classes", -3),
        ("spec.shape", []),
        ("spec.shape", [1, 0, 8]),
        ("spec.shape", [-1, 8, 8]),
        ("spec.class_names", ["a", "b", "c", "d"]),
        ("spec.class_names", ["a", 1]),
        ("grid", {"name": "fixed", "times": []}),
        ("grid", {"name": "fixed", "times": [[]]}),
        ("grid", {"name": "fixed", "times": [[0.2, 0.5]]}),
        ("grid", {"name": "fixed", "times": [[1.0], [0.5]]}),
        ("grid", {"name": "fixed", "times": [[7.0]]}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(weights, tmp_path, key, value):
    _, note = read_weights_file(weights)
    description = {**note["description"], "span": [0.0, 1.0]}
    assert runs.load(edited(weights, tmp_path, description=description))
    with pytest.raises(InputError, match=key.partition(".")[2] or key):
        runs.load(edited(weights, tmp_path, description=changed(description, key, value)))


def test_a_part_that_a_network_lacks_may_be_left_out(tmp_path):
    """Networks whose parts are replaced after they are built count more weights than they have."""
    state = StateConfig(channels=8, groups=4)
    unet = unet_generator().denoiser.backbone.config
    network = CircuitConfig(network=unet, state=state, lora=2).build(shape=(1, 8, 8))
    generator = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((1, 8, 8)))
    runs.save_generator(tmp_path / "c.safetensors", generator, None, {})
    loaded = runs.load(tmp_path / "c.safetensors")
    assert runs.weights_hash(loaded) == runs.weights_hash(generator)


def test_what_is_no_file_is_refused_without_waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe.safetensors")
    os.mkdir("folder.safetensors")
    os.symlink("/dev/zero", "device.safetensors")
    os.symlink("loop.safetensors", "loop.safetensors")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind("socket.safetensors")
        for name, text in (
            ("pipe", "is a named pipe"),
            ("device", "is a device"),
            ("socket", "is a socket"),
            ("folder", "has no model.safetensors"),
            ("loop", "does not exist"),
            ("nul\0l", "does not exist"),
        ):
            for use in (runs.load, runs.describe):
                with pytest.raises(InputError, match=text):
                    use(f"{name}.safetensors")


@pytest.mark.parametrize("header", [2**62, 10**8, 2**31, 17 * 2**20, 1000])
def test_a_header_is_bounded_by_the_file(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + b'{"__metadata__":{"fewstep":"{}"}}')
    os.truncate(path, 900 if header == 1000 else 2**27)
    with pytest.raises(InputError, match="w.safetensors is damaged or not a safetensors file"):
        runs.load(path)


def test_integers_and_double_precision_are_loaded(points, tmp_path):
    tensors, note = read_weights_file(points)
    widened = {name: value.double() for name, value in tensors.items()}
    write_weights_file(tmp_path / "w.safetensors", widened, note)
    loaded = runs.load(tmp_path / "w.safetensors").state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
