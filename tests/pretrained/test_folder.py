"""Forms in which a network is published: folders, variants, shards, pickles."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from damage import flip
from ddpm_folders import edit, inputs, network
from fewstep.checksums import with_check
from fewstep.errors import InputError
from fewstep.files import file_digest
from fewstep.parametrization import Eps, V, Velocity
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.pretrained.hub import EMA
from fewstep.process import Flow, LinearBetas
from fewstep.sampling import Transfer

NAME = "diffusion_pytorch_model"


@torch.no_grad()
def gap(generator, net):
    """The largest difference between outputs in the middle of the table."""
    ours = generator.denoiser(inputs(), 500 / 999).output
    return float((ours - net(inputs(), 500).sample).abs().max())


def refusal(address):
    with pytest.raises(InputError) as error:
        read_diffusers(str(address))
    assert "\n" not in str(error.value)
    return str(error.value)


def flat(folder):
    """As google/ddpm-cifar10-32: everything in one folder."""
    for path in [*(folder / "unet").iterdir(), folder / "scheduler" / "scheduler_config.json"]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    return folder


def bare(folder):
    """As `UNet2DModel.save_pretrained`, with the scheduler's folder beside."""
    flat(folder)
    (folder / "scheduler_config.json").rename(folder / "scheduler" / "scheduler_config.json")
    return folder


def inner(folder):
    return folder / "unet"


def pickled(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def rewritten(folder, net, **options):
    shutil.rmtree(folder / "unet")
    net.save_pretrained(folder / "unet", **options)
    return folder


SHARDED = {"max_shard_size": "40KB"}
FORMS = {
    "halved": (lambda f, net: rewritten(f, net.half()), f"{NAME}.safetensors"),
    "fp16": (lambda f, net: rewritten(f, net.half(), variant="fp16"), f"{NAME}.fp16.safetensors"),
    "bf16": (lambda f, net: rewritten(f, net, variant="bf16"), f"{NAME}.bf16.safetensors"),
    "fp16 bin": (
        lambda f, net: rewritten(f, net, variant="fp16", safe_serialization=False),
        f"{NAME}.fp16.bin",
    ),
    "shards": (lambda f, net: rewritten(f, net, **SHARDED), f"{NAME}.safetensors.index.json"),
    "bin shards": (
        lambda f, net: rewritten(f, net, safe_serialization=False, **SHARDED),
        f"{NAME}.bin.index.json",
    ),
    "fp16 shards": (
        lambda f, net: rewritten(f, net.half(), variant="fp16", **SHARDED),
        f"{NAME}.safetensors.index.fp16.json",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_is_read(folder, capsys, form):
    """Written by diffusers: variants, shards and pickles; half precision is read as float32."""
    write, name = FORMS[form]
    write(folder, network())
    assert (folder / "unet" / name).is_file()
    assert ("shards" in form) == (len(list((folder / "unet").glob(f"{NAME}*-of-*"))) > 1)
    generator = read_diffusers(str(folder))
    assert gap(generator, network()) < (1e-2 if "fp16" in form or form == "halved" else 1e-5)
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    line = f"{folder / 'unet'}: using {name}: there are no weights without a variant"
    assert (line in capsys.readouterr().err) == ("16" in form)


def test_full_precision_comes_before_a_variant(folder, capsys):
    weights = folder / "unet" / f"{NAME}.safetensors"
    halves = {name: value.half() for name, value in load_file(weights).items()}
    save_file(halves, folder / "unet" / f"{NAME}.fp16.safetensors")
    assert gap(read_diffusers(str(folder)), network()) < 1e-5
    assert not capsys.readouterr().err


def test_a_missing_shard_and_a_damaged_list_are_named(folder):
    rewritten(folder, network(), **SHARDED)
    index = folder / "unet" / f"{NAME}.safetensors.index.json"
    shards = sorted((folder / "unet").glob("*-of-*"))
    shards[1].unlink()
    assert refusal(folder) == f"{shards[1]} is missing: {index.name} lists {len(shards)} files"
    index.write_text('{"metadata": {}}')
    assert f"{index} is damaged: it has no weight_map" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["../../{}", "../unet/{}", "/etc/passwd", "sub/{}", "..", "", "a\0b", "{}\\x", 3, None, [], {}],
)
def test_a_list_cannot_name_files_elsewhere(folder, name):
    rewritten(folder, network(), **SHARDED)
    index = folder / "unet" / f"{NAME}.safetensors.index.json"
    names = json.loads(index.read_text())
    for key, file in names["weight_map"].items():
        names["weight_map"][key] = name.replace("{}", file) if isinstance(name, str) else name
    index.write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"index.json lists the file '.*', but it can only name"):
        read_diffusers(str(folder))


def test_averaged_weights_are_preferred(folder, capsys):
    """As a training with `--use_ema` of diffusers' example leaves its checkpoints."""
    from diffusers.training_utils import EMAModel

    net = network(layers_per_block=2)
    average = EMAModel(net.parameters(), model_cls=type(net), model_config=net.config)
    average.save_pretrained(folder / "unet_ema")
    assert gap(read_diffusers(str(folder)), net) < 1e-5
    assert capsys.readouterr().err == (
        f"fewstep: {folder}: using the averaged weights in unet_ema\n"
    )
    assert gap(read_diffusers(str(folder / "unet_ema")), net) < 1e-5
    assert gap(read_diffusers(str(folder / "unet")), network()) < 1e-5
    assert not capsys.readouterr().err


def test_a_checkpoint_of_a_training_has_its_scheduler_above(folder):
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    checkpoint = folder / "checkpoint-500"
    shutil.copytree(folder / "unet", checkpoint / "unet")
    for place in (checkpoint, checkpoint / "unet"):
        assert isinstance(read_diffusers(str(place)).denoiser.parametrization, V)
    shutil.rmtree(folder / "unet")
    assert refusal(folder) == (
        f"{folder} holds no finished network, but checkpoints of a training: choose one, such as "
        f"{checkpoint}"
    )


def test_without_a_scheduler_the_address_says_what_is_predicted(folder):
    shutil.rmtree(folder / "scheduler")
    assert refusal(folder) == (
        f"{folder} holds a network without a scheduler_config.json, so what it predicts is "
        f"unknown: add the file, or write diffusers:{folder}?prediction_type=epsilon (or "
        "v_prediction, or sample)"
    )
    assert refusal(folder / "unet").startswith(f"{folder / 'unet'} holds a network without")
    assert "prediction_type=epsilon" in refusal(f"{folder}?beta_schedule=linear")
    generator = read_diffusers(f"{folder}?prediction_type=epsilon")
    assert generator.denoiser.parametrization == Eps(LinearBetas())
    assert generator.step == Transfer(clip=1.0)
    generator = read_diffusers(
        f"{folder}?prediction_type=v_prediction&beta_schedule=squaredcos_cap_v2"
    )
    assert isinstance(generator.denoiser.parametrization, V)
    assert generator.denoiser.process.ratio(torch.tensor(1.0)) > 1e4
    generator = read_diffusers(f"{folder}?prediction_type=flow_prediction")
    assert generator.denoiser.process == Flow()
    assert generator.denoiser.parametrization == Velocity(Flow())


def test_the_published_averaged_weights_need_no_scheduler(folder, home):
    """As `ddpm_ema_cifar10/unet` in the original of the denoising circuits."""
    shutil.rmtree(folder / "scheduler")
    place = home / "weights" / EMA
    place.parent.mkdir(parents=True)
    folder.rename(place)
    for name in (EMA, str(place), str(place / "unet")):
        assert read_diffusers(name).denoiser.parametrization == Eps(LinearBetas())
    generator = read_diffusers(f"{EMA}?beta_schedule=squaredcos_cap_v2")
    assert generator.denoiser.process != LinearBetas()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "unet._orig_mod."])
def test_state_dicts_of_wrapped_networks(folder, published, wrapper):
    """As a training saves them by hand: within a checkpoint, with a wrapper's name before each."""
    weights = pickled(folder) / "unet" / f"{NAME}.bin"
    state = {wrapper + name: value for name, value in torch.load(weights).items()}
    torch.save({"epoch": 1, "step": torch.tensor(2), "state_dict": state}, weights)
    assert gap(read_diffusers(str(folder)), published[1]) < 1e-5


def test_a_file_is_answered_with_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for file in ("unet/config.json", folder / "unet" / f"{NAME}.safetensors"):
        assert refusal(file) == (
            f"{file} is a file, but diffusers: takes the folder with the network's config.json and "
            f"weights: write diffusers:{file.parent if file != 'unet/config.json' else 'unet'}"
        )


def test_the_last_checkpoint_of_a_training_is_suggested(folder):
    for step in (500, 1500, 1000):
        (folder / f"checkpoint-{step}").mkdir()
    shutil.rmtree(folder / "unet")
    assert refusal(folder).endswith(f"such as {folder / 'checkpoint-1500'}")


def test_the_network_of_a_latent_pipeline_is_refused_too(folder):
    edit(folder / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])
    for place in (folder, folder / "unet"):
        assert "is a LDMPipeline: its network works on the latents" in refusal(place)


@pytest.mark.parametrize("layout", [flat, bare, inner, pickled])
def test_every_layout_is_read(folder, published, layout):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit(scheduler, prediction_type="v_prediction")  # not what would be taken without the file
    generator = read_diffusers(str(layout(folder)))
    assert isinstance(generator.denoiser.parametrization, V)
    assert gap(generator, published[1]) < 1e-5


def test_damaged_and_missing_files_are_named(folder):
    config = folder / "unet" / "config.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:3000])
    assert f"{weights} is a damaged safetensors file" in refusal(folder)
    weights.unlink()
    assert f"{folder / 'unet'} has no weights: it needs {NAME}.safetensors or .bin" in refusal(
        folder
    )
    pickled = weights.with_suffix(".bin")
    for content, line in ((b"", "an empty file"), (b"nonsense", "neither a safetensors file")):
        pickled.write_bytes(content)
        assert f"{pickled} is {line}" in refusal(folder)
    pickled.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert f"{pickled} is a pointer of Git LFS" in refusal(folder)
    torch.save([1, 2], pickled)
    assert f"{pickled} is not a weights file: it holds no tensors by name" in refusal(folder)
    torch.save(Spoiler(), pickled)
    assert f"{pickled} is a PyTorch archive that would run" in refusal(folder)
    pickled.unlink()
    weights.write_bytes(whole)
    for content, line in (("{", "damaged or is not JSON"), ("[]", "is not a JSON object")):
        config.write_text(content)
        assert line in refusal(folder)
    config.unlink()
    assert "is no diffusers checkpoint: it lacks config.json" in refusal(folder)


class Spoiler:
    """A pickle that would run code."""

    def __reduce__(self):
        return (pytest.fail, ("it ran",))


def test_files_that_changed_since_their_export_are_named(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    record = folder / "export.json"
    record.write_text(json.dumps(with_check({"files": {}, "sha256": digests})))
    assert gap(read_diffusers(str(folder)), network()) < 1e-5
    for name in ("unet/config.json", "scheduler/scheduler_config.json", f"unet/{NAME}.safetensors"):
        size = (folder / name).stat().st_size
        for position in (size // 3, size // 2, size - 2):
            flip(folder / name, position, 0x01)
            assert "has changed since it was exported: export again, or del" in refusal(folder)
            flip(folder / name, position, 0x01)
    flip(record, 30, 0x01)
    assert "export.json is damaged" in refusal(folder)
    record.write_text(json.dumps(with_check({"files": {}})))  # of another version
    assert read_diffusers(str(folder))
