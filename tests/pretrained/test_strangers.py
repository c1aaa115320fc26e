"""Files that ask for more memory or time than they have bytes, or that are no files."""

import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from contextlib import contextmanager

import pytest
import torch

from ddpm_folders import edit
from fewstep import runs
from fewstep.errors import InputError
from fewstep.pretrained.files import describe_file, read_weights

GIB = 2**30


@contextmanager
def bounded(seconds=5.0, memory=GIB):
    """Check that the block takes little time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < memory


def refusal(use, *arguments):
    with bounded(), pytest.raises(InputError) as error:
        use(*arguments)
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000, text
    return text


def laughs(levels=100, width=2):
    """A list that contains the one before several times, and so on."""
    item = ["ha"]
    for _ in range(levels):
        item = [item] * width
    return item


def endless():
    item = []
    item.append(item)
    return item


class Module:
    """Pickled as a layer of torch."""

    def __init__(self, **attributes):
        self.attributes = attributes

    def __reduce__(self):
        return object.__new__, (type(self),), self.attributes


def modules(levels):
    """The pickle of layers that each contain the one before twice."""
    pieces = [b"ctorch.nn.modules.linear\nLinear\n)\x81}b"]
    for level in range(levels):
        pieces.append(
            b"q" + bytes([level]) + b"0ctorch.nn.modules.linear\nLinear\n)\x81}"
            b"(X\x08\0\0\0_modules}(X\x01\0\0\0ah" + bytes([level]) + b"X\x01\0\0\0bh"
            + bytes([level]) + b"uub"
        )  # fmt: skip
    return b"\x80\x02" + b"".join(pieces) + b"."


def edm(network):
    """A pickle's dict with this network as its average."""
    return b"\x80\x02}X\x03\0\0\0ema" + network[2:-1] + b"s."


PICKLES = {
    "numbers beyond the objects": b"\x80\x02]r\xff\xff\xff\x7f.",
    "more of them": b"\x80\x02]r\xff\xff\xff\x0f.",
    "a number in text": b"]p2000000000\n.",
    "endless": pickle.dumps(endless()),
    "a text of 4 GiB": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100 + b".",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"a.",
    "a text of 10 GiB": b"\x80\x04\x8d" + struct.pack("<Q", 10 * GIB) + b"a.",
    "a frame of 10 GiB": b"\x80\x04\x95" + struct.pack("<Q", 10 * GIB) + b"N.",
    "an integer of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"a.",
    "nothing but a stop": b"\x80\x02.",
    "many marks": b"\x80\x02" + b"(" * 200_000,
    "deep": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_pickles_are_bounded_by_their_file(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    assert "x.pkl" in refusal(read_weights, path)
    assert "x.pkl" in refusal(runs.load, f"edm:{path}")
    with bounded():
        assert "x.pkl" in describe_file(path)


def test_an_object_is_read_once_however_often_it_is_used(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(laughs()))
    with bounded():
        assert len(read_weights(path)) == 2
    path.write_bytes(edm(modules(25)))
    network = read_weights(path)["ema"]
    with bounded(), pytest.raises(ValueError, match="has more than 100,000 modules"):
        network.tensors()
    assert "x.pkl" in refusal(runs.load, f"edm:{path}")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(1).expand(2**33),
        torch.zeros(3, 1).expand(3, 2**31),
        torch.arange(100.0).as_strided((90, 10), (1, 1)),
        torch.arange(100.0).as_strided((10**5, 10**5), (0, 0)),
    ],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_claim_no_more_than_is_stored_for_them(tmp_path, tensor, zipped):
    path = tmp_path / "x.pt"
    torch.save({"a": {"init_conv.weight": tensor}}, path, _use_new_zipfile_serialization=zipped)
    assert "claims more bytes than are stored for it" in refusal(read_weights, path)
    for source in ("lucidrains", "openai", "edm"):
        assert "x.pt" in refusal(runs.load, f"{source}:{path}")
    path.write_bytes(pickle.dumps({"a": tensor}, protocol=2))
    assert "claims more bytes than are stored for it" in refusal(read_weights, path)


def test_tensors_that_share_a_storage_claim_no_more_than_the_file(tmp_path):
    path, weight = tmp_path / "x.pt", torch.zeros(10**6)
    torch.save({"a": weight, "b": weight[:10], "c": weight.view(1000, 1000)}, path)
    assert len(read_weights(path)) == 3  # as tied weights do
    torch.save({str(i): weight.view(1000, 1000) for i in range(100)}, path)
    assert "its tensors claim more bytes than the file has" in refusal(read_weights, path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_archive_is_refused(tmp_path, compression):
    path, bomb = tmp_path / "x.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(4 * 10**6)}, path)
    with zipfile.ZipFile(path) as intact, zipfile.ZipFile(bomb, "w", compression) as archive:
        for name in intact.namelist():
            archive.writestr(name, intact.read(name))
    assert bomb.stat().st_size < 10**6
    assert "its entries are compressed" in refusal(read_weights, bomb)


NAMES = {
    "openai": [
        "output_blocks.999999999.0.in_layers.2.weight",
        "output_blocks.999999.0.in_layers.2.weight",
        f"output_blocks.{'9' * 5000}.0.in_layers.2.weight",
        "output_blocks.5.0.in_layers.2.weight",
        "input_blocks.0.0.weight\0",
    ],
    "lucidrains": [
        "downs.999999999.0.block1.proj.weight",
        f"downs.{'9' * 5000}.0.block1.proj.weight",
        "downs.-1.x",
        "downs.x",
        "downs.",
    ],
}
FIRST = {
    "openai": {"input_blocks.0.0.weight": (8, 3, 3, 3), "out.2.weight": (3, 8, 3, 3)},
    "lucidrains": {"init_conv.weight": (8, 3, 7, 7), "final_conv.weight": (3, 8, 1, 1)},
}


@pytest.mark.parametrize(("source", "name"), [(s, n) for s in NAMES for n in NAMES[s]])
def test_numbers_in_names_are_bounded_by_the_tensors(tmp_path, source, name):
    path = tmp_path / "x.pt"
    state = {key: torch.zeros(shape) for key, shape in FIRST[source].items()}
    torch.save({**state, name: torch.zeros(8)}, path)
    options = "image_size=8&noise_schedule=linear" if source == "openai" else "image_size=8"
    refusal(runs.load, f"{source}:{path}?{options}")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": 60_000}),
        ("unet/config.json", {"block_out_channels": [10**9, 10**9]}),
        ("unet/config.json", {"sample_size": 10**9}),
        ("unet/config.json", {"num_class_embeds": 10**12}),
        ("unet/config.json", {"norm_num_groups": 10**30}),
        ("unet/config.json", {"norm_eps": -1.0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 2**33}),
        ("scheduler/scheduler_config.json", {"beta_start": -0.5}),
        ("scheduler/scheduler_config.json", {"beta_end": 1e300}),
        ("scheduler/scheduler_config.json", {"clip_sample": True, "clip_sample_range": -1.0}),
    ],
    ids=str,
)
def test_settings_are_bounded(folder, file, changes):
    edit(folder / file, **changes)
    assert re.search("/ddpm/|the checkpoint's", refusal(runs.load, f"diffusers:{folder}"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, "\0", "[]", ""])
def test_json_of_any_form_gets_one_line(folder, text):
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        content = (folder / name).read_text()
        (folder / name).write_text(text)
        assert name.rpartition("/")[2] in refusal(runs.load, f"diffusers:{folder}")
        (folder / name).write_text(content)


def test_json_is_bounded(folder):
    path = folder / "unet" / "config.json"
    os.truncate(path, 2**40)  # a sparse file
    assert "has 1,099,511,627,776 bytes" in refusal(runs.load, f"diffusers:{folder}")
    assert json.loads("{}") == {}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_without_waiting(folder, tmp_path, kind):
    other = tmp_path / f"x.{kind}"
    if kind == "pipe":
        os.mkfifo(other)
    elif kind == "device":
        other.symlink_to("/dev/zero")
    else:
        other.mkdir()
    for source in ("edm", "openai", "lucidrains"):
        assert f"x.{kind}" in refusal(runs.load, f"{source}:{other}")
    for file in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json",
                 "scheduler/scheduler_config.json", "model_index.json"):  # fmt: skip
        (folder / file).unlink()
        other.rename(folder / file)
        refusal(runs.load, f"diffusers:{folder}")
        (folder / file).rename(other)
