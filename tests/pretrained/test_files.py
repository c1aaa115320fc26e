"""Files of others are read without running them: each pickle here would create a file."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep import runs
from fewstep.errors import InputError
from fewstep.pretrained.files import describe_file, read_weights, state_dict
from fewstep.pretrained.pickles import NetworkObject
from pretrained.snapshots import Module, dump

NAMES = {
    "lucidrains": ["init_conv.weight", "time_mlp.1.weight", "final_res_block.mlp.1.weight"],
    "openai": ["input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"],
    "diffusers": ["conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight"],
    "latent": ["first_stage_model.encoder.conv_in.weight"],
}


def tensors(layout, prefix=""):
    return {prefix + name: torch.zeros(2) for name in NAMES[layout]}


class Attack:
    """Creates a file when a pickle of it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def torch_bytes(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


class Storage:
    """A tensor whose nested bytes are those of an attack."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Nested(self.content), 0, (2,), (1,), False, {})


class Nested:
    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def attacks(target):
    attack = Attack(target)
    yield "pickle", pickle.dumps(attack)
    yield "protocol 2", pickle.dumps({"ema": attack}, protocol=2)
    yield "protocol 0", pickle.dumps(attack, protocol=0)
    yield "protocol 1", pickle.dumps({"ema": attack}, protocol=1)
    yield "archive", torch_bytes({"model": attack})
    yield "old torch", torch_bytes(attack, _use_new_zipfile_serialization=False)
    yield "snapshot", dump({"ema": Module("SongUNet", {"weight": torch.zeros(2)}, extra=attack)})
    yield (
        "source",
        dump({"ema": Module("SongUNet", source=f"open({str(target)!r}, 'w')", extra=attack)}),
    )
    for name, inner in (("zip", {}), ("old", {"_use_new_zipfile_serialization": False})):
        yield f"nested {name}", pickle.dumps({"ema": Storage(torch_bytes(attack, **inner))})
    yield "nested pickle", pickle.dumps({"ema": Storage(pickle.dumps(attack))})


@pytest.mark.parametrize("name", [name for name, _ in attacks("")])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, name):
    target, path = tmp_path / "created", tmp_path / "their.pkl"
    path.write_bytes(dict(attacks(target))[name])
    for read in (read_weights, runs.load):
        with pytest.raises(InputError) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert "their.pkl" in str(error.value)
        if name != "nested pickle":  # which torch refuses before it comes to the name
            assert "system" in str(error.value)
    assert not target.exists()


def test_the_attack_works():
    """What is refused above would run: this proves that the tests can fail."""
    with pytest.raises(ZeroDivisionError):
        pickle.loads(pickle.dumps(Raises()))


class Raises:
    def __reduce__(self):
        return divmod, (1, 0)


def test_source_code_in_a_snapshot_does_not_run(tmp_path):
    target, path = tmp_path / "created", tmp_path / "net.pkl"
    source = f"open({str(target)!r}, 'w').close()"
    path.write_bytes(dump({"ema": Module("SongUNet", {"w": torch.ones(2)}, source=source)}))
    assert torch.equal(read_weights(path)["ema"].tensors()["w"], torch.ones(2))
    assert not target.exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """State that is set on a class or a function, instead of an object, is refused."""
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00nameK\x01sb."
    (tmp_path / "x.pkl").write_bytes(code)
    with pytest.raises(InputError, match="damaged pickle"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_snapshot_becomes_its_tensors_and_attributes(tmp_path, protocol):
    inner = Module("Linear", {"weight": torch.randn(3, 2)}, {"steps": torch.arange(4)[1:]})
    net = Module("EDMPrecond", children={"model": inner}, extra=np.float64(0.25), sizes=(1, 2))
    path = tmp_path / "net.pkl"
    path.write_bytes(dump({"ema": net, "options": OrderedDict(a=1)}, protocol))
    content = read_weights(path)
    ema = content["ema"]
    assert isinstance(ema, NetworkObject)
    assert ema.class_name == "EDMPrecond"
    assert ema.children()["model"].class_name == "Linear"
    assert ema.attributes["extra"] == 0.25 and ema.attributes["sizes"] == [1, 2]
    assert content["options"] == {"a": 1}
    found = ema.tensors()
    assert found.keys() == {"model.weight", "model.steps"}
    assert torch.equal(found["model.weight"], inner.parameters["weight"])
    assert torch.equal(found["model.steps"], torch.tensor([1, 2, 3]))


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    content = torch.zeros(2).storage().__reduce__()[1][0]

    class Outside:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Nested(content), 1, (9,), (1,), False, {})

    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Outside()))
    with pytest.raises(InputError, match="damaged pickle"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"step": 5, "model": tensors("lucidrains", "model."), "ema": {}},
            "a PyTorch archive with keys step, model, ema, and looks like lucidrains' "
            "denoising-diffusion-pytorch: load it as lucidrains:",
        ),
        (
            {"ema": tensors("lucidrains", "ema_model.model.")},
            "load it as lucidrains:",
        ),
        (tensors("lucidrains"), "load it as lucidrains:"),
        (tensors("openai", "module."), "guided-diffusion: load it as openai:"),
        (tensors("diffusers"), "load the folder as diffusers:FOLDER"),
        ({"state_dict": tensors("diffusers", "net._orig_mod."), "epoch": 1}, "diffusers:FOLDER"),
        ({"map_layer0.weight": torch.zeros(2), "map_layer1.weight": torch.zeros(2)}, "as edm:"),
        (
            {"state_dict": {**tensors("latent"), **tensors("openai", "model.diffusion_model.")}},
            "latent diffusion",
        ),
        ({"a": 1, "b": {"c": torch.zeros(2)}}, "with keys a, b, and a layout that fewstep does"),
        ([torch.zeros(2)], "with keys none"),
    ],
)
def test_files_are_told_apart_by_their_keys(tmp_path, content, message):
    torch.save(content, tmp_path / "their.pt")
    assert message in describe_file(tmp_path / "their.pt")
    with pytest.raises(InputError) as error:
        runs.load(tmp_path / "their.pt")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_formats_are_told_apart(tmp_path):
    path = tmp_path / "their.bin"
    old = torch_bytes(tensors("openai"), _use_new_zipfile_serialization=False)
    snapshot = dump({"ema": Module("EDMPrecond", {"w": torch.zeros(2)})})
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    cases = [
        (old, "a PyTorch file with keys input_blocks.0.0.weight"),
        (snapshot, "a pickle with keys ema, and looks like NVIDIA's EDM: load it as edm:"),
        (pickle.dumps({"w": torch.zeros(2)})[:40], "is a damaged pickle"),
        (torch_bytes(tensors("openai"))[:200], "is damaged"),
        ((tmp_path / "other.zip").read_bytes(), "no archive of torch.save"),
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"hello", "neither a safetensors file, nor one of PyTorch, nor a pickle"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        for problem in (describe_file(path), str(pytest.raises(InputError, runs.load, path).value)):
            assert message in problem
            assert "\n" not in problem
    for content, message in cases[5:8]:  # also under the name of another kind
        (tmp_path / "their.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=message):
            runs.load(tmp_path / "their.safetensors")
    save_file(tensors("openai"), tmp_path / "their.safetensors")
    with pytest.raises(InputError, match="a safetensors file with keys .* load it as openai:"):
        runs.load(tmp_path / "their.safetensors")
    with pytest.raises(InputError, match="cannot read .*nowhere.pt"):
        read_weights(tmp_path / "nowhere.pt")


def test_the_entry_with_most_tensors_is_the_network():
    network = {"a": torch.zeros(2), "b": torch.ones(2)}
    for content in (network, {"step": torch.tensor(1), "state_dict": network, "opt": {0: 1}}):
        assert state_dict(content).keys() == network.keys()
    assert state_dict({0: torch.zeros(2)}) == state_dict([torch.zeros(2)]) == state_dict({}) == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_archives_of_new_pickle_protocols(tmp_path, protocol):
    path = tmp_path / "their.pt"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol)
    if protocol == 3:
        assert torch.equal(read_weights(path)["w"], torch.ones(2))
        return
    with pytest.raises(InputError, match="protocol 4 or newer.*save it again by torch.save"):
        read_weights(path)


def test_archives_and_old_files_give_their_tensors(tmp_path):
    path = tmp_path / "their.pt"
    content = {"model": {"w": torch.randn(2, 3)}, "step": 3}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path.write_bytes(torch_bytes(content, **options))
        found = read_weights(path)
        assert torch.equal(found["model"]["w"], content["model"]["w"])
        assert found["step"] == 3


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """The first byte of a safetensors file is that of its header's length, and can be 0x80."""
    tensors, path = {"weight": torch.ones(2)}, tmp_path / "weights.safetensors"
    for padding in range(0, 256, 8):
        save_file(tensors, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(read_weights(path)["weight"], torch.ones(2))
