"""Latent diffusion from end to end: encoded data, a teacher, a student, and what they generate."""

import json
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep import runs, store
from fewstep.assembly import assemble
from fewstep.autoencoder_files import load_autoencoder, save_autoencoder
from fewstep.cli import main
from fewstep.data import load
from fewstep.drawing import conditions
from fewstep.errors import InputError
from fewstep.images import from_uint8, to_uint8
from fewstep.latents import batch_size, encode_images, encode_set, read_latents
from fewstep.losses import Features, bind_decoder
from fewstep.methods.regress import RegressConfig
from fewstep.noise import noise_from_seeds
from fewstep.planning import plan_recipe
from fewstep.recipe import parse, read
from fewstep.reconstruction import peak_ratio
from fewstep.runner import run_recipe
from fewstep.sampler_choices import convert_step
from fewstep.tensor_file import read_tensor_file, write_tensor_file
from fewstep.trainer import Training
from stripes import autoencoder

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NETWORK = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "student.backbone.middle_attention=false",
]
FIT = ["fit.steps=3", "fit.batch=8", "fit.save_every=1", "fit.ema_halflife=0.2", "fit.warmup=0"]


def train(recipe, folder, until=None):
    with closing(run_recipe(recipe, folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


def randomised(module, seed=0):
    """The last layers of new networks are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in module.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an autoencoder, latents, a teacher of latents, pairs of it and a student."""
    folder = tmp_path_factory.mktemp("latents")
    network = randomised(autoencoder())
    network.set_moments(torch.tensor([0.5, -1.0]), torch.tensor([4.0, 0.25]))
    save_autoencoder(folder / "ae.safetensors", network, None, {})
    ae = f"{folder}/ae.safetensors"
    assert main(["encode", "digits", "--autoencoder", ae, "--flip", "--out", f"{folder}/lat"]) == 0
    train(flow(folder, "data.flip=true", f"data.latents={folder}/lat"), folder / "flow")
    pairs = ["--out", f"{folder}/pairs", "-n", "24", "--steps", "2"]
    assert main(["record", f"{folder}/flow", *pairs]) == 0
    train(student(folder), folder / "student")
    return folder


def flow(folder, *settings):
    return read(
        "digits-flow", [*NETWORK, *FIT, f"data.autoencoder={folder}/ae.safetensors", *settings]
    )


def student(folder, *settings):
    addresses = [f"teacher.load={folder}/flow", f"pairs.load={folder}/pairs"]
    return read("digits-regress", [*addresses, *FIT, *settings])


def test_latents_in_a_store_are_those_of_the_images(place):
    network, images = load_autoencoder(place / "ae.safetensors"), load("digits")
    reader = store.Reader(place / "lat")
    expected = network.encode(from_uint8(images.images[:300]))
    found = reader[:300]
    torch.testing.assert_close(found["latent"], expected, rtol=1e-3, atol=1e-3)  # in 16 bits
    mirrored = network.encode(from_uint8(images.images[:300].flip(-1)))
    torch.testing.assert_close(found["mirrored"], mirrored, rtol=1e-3, atol=1e-3)
    assert reader.provenance["data"] == images.fingerprint
    whole = encode_set(network, images, flip=True)
    part = torch.cat([*encode_images(network, images.images[:10])])
    assert whole.rows[torch.arange(10)].equal(part) and len(whole.rows) == len(images)


def test_batches_are_latents_and_the_coin_chooses_the_mirrored_ones(place):
    batches = assemble(flow(place, "data.flip=true"), CPU).batches
    stream = batches.streams["images"]
    coin, index = torch.tensor([0.1, 0.9]), torch.tensor([3, 3])
    x0 = stream.rows(index, coin, CPU).x0
    network, image = load_autoencoder(place / "ae.safetensors"), load("digits").images[3:4]
    torch.testing.assert_close(x0[:1], network.encode(from_uint8(image.flip(-1))))
    torch.testing.assert_close(x0[1:], network.encode(from_uint8(image)))


def test_a_run_of_latents_loads_alone_and_generates_images(place, tmp_path):
    shutil.copy(place / "flow" / "model.safetensors", tmp_path / "alone.safetensors")
    generator = runs.load(tmp_path / "alone.safetensors")
    network = load_autoencoder(place / "ae.safetensors")
    noise = noise_from_seeds(range(4), (2, 2, 2))
    assert generator.spec.shape == (2, 2, 2) and generator.image_shape == (1, 8, 8)
    *_, latents = generator.path(noise, steps=3)
    images = generator(noise, steps=3)
    torch.testing.assert_close(images, network.decode(latents))
    assert images.shape == (4, 1, 8, 8) and images.std() > 0
    raw = runs.load(place / "flow", weights="raw")
    assert raw.decoder.autoencoder == generator.decoder.autoencoder == network.hash
    for changed in (generator.with_sampler(), generator.with_precision("f32")):
        assert changed(noise, steps=3).equal(images)
    assert runs.network_hash(generator) == runs.network_hash(generator.replace(decoder=None))


def test_records_are_latents_and_a_student_decodes_them(place):
    teacher, reader = runs.load(place / "flow"), store.Reader(place / "pairs")
    assert str(reader.schema["x0"]) == "F16(shape=(2, 2, 2))"
    records = reader[:4]
    noise = noise_from_seeds(records["seed"].tolist(), (2, 2, 2))
    exact = teacher.with_sampler(step=convert_step(teacher.step, "heun"))
    *_, x0 = exact.path(noise, steps=2, cond=conditions(teacher.spec, range(4)))
    torch.testing.assert_close(records["x0"], x0, rtol=1e-3, atol=1e-3)
    assert runs.load(place / "student").image_shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["flow", "student"])
def test_resume_is_bit_identical(place, tmp_path, name):
    recipe = flow(place, "data.flip=true", f"data.latents={place}/lat")
    recipe = recipe if name == "flow" else student(place)
    train(recipe, tmp_path / "run", until=1)
    train(recipe, tmp_path / "run")
    again = tmp_path / "run" / "model.safetensors"
    assert again.read_bytes() == (place / name / "model.safetensors").read_bytes()


def test_micro_batches_give_the_gradients_of_one_batch(place):
    gradients = []
    for micro in (0, 3):
        assembly = assemble(flow(place, f"fit.micro_batch={micro}", "fit.clip=0"), CPU)
        training = Training(assembly.method, assembly.batches, flow(place).fit)
        training.config = replace(training.config, micro_batch=micro, clip=0.0)
        training.advance()
        gradients.append([p.grad for p in assembly.method.student.parameters()])
    for one, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-3, atol=1e-5)


def test_two_ranks_of_half_the_rows_read_what_one_reads(place, monkeypatch):
    whole = assemble(flow(place), CPU).batches.step(0)[0].images.x0
    parts = []
    for rank in range(2):
        monkeypatch.setattr("fewstep.distributed.world", lambda rank=rank: (rank, 2))
        parts.append(assemble(flow(place), CPU).batches.step(0)[0].images.x0)
    assert torch.cat(parts).equal(whole)


def test_distances_of_images_see_decoded_latents(place):
    decoder = runs.load(place / "flow").decoder
    weights = nn.Linear(1, 1)  # any object that is not called
    assert bind_decoder(weights, None) is weights
    bound = bind_decoder(RegressConfig(loss=Features(extractor="pixels", mse=1.0)), decoder)
    with pytest.raises(InputError, match=r"method\.clip clamps images.* latents: remove it"):
        bind_decoder(RegressConfig(clip=1.0), decoder)
    plain = bind_decoder(RegressConfig(), decoder)
    assert plain == RegressConfig()  # which is not of images
    a, b = torch.randn(2, 3, 2, 2, 2).unbind()
    seen = []
    spy = lambda *images: seen.extend(images) or images[0].flatten(1).mean(1)  # noqa: E731
    object.__setattr__(bound.loss, "distance", spy)
    bound.loss(a, b)
    assert seen[0].equal(decoder(a)) and seen[1].equal(decoder(b))


def test_commands_show_and_measure_images(place, tmp_path, capsys):
    run = f"{place}/flow"
    pixels = ["--extractor", "pixels", "--samples", "64"]
    assert main(["sample", run, "-o", f"{tmp_path}/a.png", "-n", "4", "--steps", "2"]) == 0
    assert main(["evaluate", run, "--steps", "2", *pixels, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("\n")[2] or "[]")
    assert found[0]["frechet"] > 0
    ae = f"{place}/ae.safetensors"
    capsys.readouterr()
    measure = ["encode", "digits", "--autoencoder", ae, "--measure", "--extractor", "pixels"]
    assert main(measure) == 0
    measures = json.loads(capsys.readouterr().out)
    images, network = load("digits").images, load_autoencoder(ae)
    again = to_uint8(network(from_uint8(images)))
    for nowhere in (["--out", ""], [], [*measure[4:], "--out", ""]):
        assert main([*measure[:4], *nowhere]) == 2
        assert "encode needs --out STORE, or --measure" in capsys.readouterr().err
    assert measures["psnr"] == pytest.approx(peak_ratio(images, again).mean().item(), rel=1e-3)
    assert measures["images"] == len(images) and measures["frechet"] > measures["frechet_of_images"]


@pytest.mark.slow
def test_a_report_compares_runs_of_latents(place, tmp_path):
    pixels = ["--extractor", "pixels", "--samples", "64", "--steps", "1"]
    out = tmp_path / "c.html"
    assert main(["compare", f"{place}/flow", f"{place}/student", *pixels, "--out", str(out)]) == 0
    assert out.read_text().count("<img") > 4


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_programs_contain_the_decoder(place, tmp_path, target):
    """The export compares the program's images with ours."""
    out = ["--steps", "2", "--out", f"{tmp_path}/export"]
    assert main(["export", f"{place}/flow", "--to", target, *out]) == 0
    for other in ("diffusers", "browser"):
        assert main(["export", f"{place}/flow", "--to", other, "--out", f"{tmp_path}/{other}"]) == 2


def test_peak_ratio_is_that_of_the_definition():
    black = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    other = black.clone()
    other[1] = 16
    ratio = peak_ratio(black, other)
    assert ratio[1].item() == pytest.approx(24.0484, abs=1e-4)  # 10 log10(255²/16²)
    assert ratio[0].item() == pytest.approx(
        48.1308 + 10 * torch.tensor(64.0).log10().item(), abs=1e-3
    )


def refused(recipe):
    with pytest.raises(InputError) as refusal:
        assemble(recipe, CPU)
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_what_does_not_fit_is_refused_in_one_line(place, tmp_path):
    other = autoencoder(seed=1)
    save_autoencoder(tmp_path / "other.safetensors", other, None, {})
    latents = f"data.latents={place}/lat"
    theirs = f"data.autoencoder={tmp_path}/other.safetensors"
    assert "encode them again" in refused(flow(place, latents, theirs))
    images = load("digits")
    others = replace(images, images=images.images.flip(0))
    with pytest.raises(InputError, match="encode them again"):
        read_latents(
            place / "lat", load_autoencoder(place / "ae.safetensors").hash, others, flip=False
        )
    assert "needs data.autoencoder" in refused(read("digits-flow", [*NETWORK, latents]))
    assert "cannot be augmented" in refused(flow(place, "data.augment=0.1"))
    assert "was trained on images of shape" in refused(flow(place, "data.size=4"))
    assert "not latents" in refused(flow(place, f"data.latents={place}/pairs"))
    missing = [f"data.latents={tmp_path}/none", "data.flip=true"]
    command = f"encode digits --autoencoder {place}/ae.safetensors --flip --out {tmp_path}/none"
    assert command in refused(flow(place, *missing))
    assert "trains on no images" in refused(student(place, latents))
    assert "but its teacher" in refused(student(place, theirs))
    assert main(["encode", "digits", "--autoencoder", f"{place}/ae.safetensors", "--out",
                 f"{tmp_path}/flat"]) == 0  # fmt: skip
    plain = f"data.latents={tmp_path}/flat"
    assert "--flip" in refused(flow(place, plain, "data.flip=true"))
    reads_images = read("digits-cd", [f"teacher.load={place}/flow"])
    assert "set data.autoencoder to the autoencoder" in refused(reads_images)
    with pytest.raises(InputError, match="is no autoencoder"):
        load_autoencoder(place / "flow")
    with pytest.raises(InputError, match="none does not exist: give a run of autoencode"):
        load_autoencoder(tmp_path / "none")


def test_a_run_without_its_decoder_is_refused_in_one_line(place, tmp_path):
    tensors, note = read_tensor_file(place / "flow" / "model.safetensors")
    lost = {name: value for name, value in tensors.items() if not name.startswith("decoder.")}
    write_tensor_file(tmp_path / "lost.safetensors", lost, note)
    with pytest.raises(InputError, match="'decoder.mean' is missing in the file"):
        runs.load(tmp_path / "lost.safetensors")
    damaged = {**tensors, "decoder.mean": torch.zeros(3, 1, 1)}
    write_tensor_file(tmp_path / "damaged.safetensors", damaged, note)
    with pytest.raises(InputError, match="decoder.mean"):
        runs.load(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cifar10-autoencoder", (3, 32, 32)),
        pytest.param("cifar10-latent-flow", (8, 8, 8), marks=pytest.mark.slow),
        ("cifar10-latent-regress", (8, 8, 8)),
        pytest.param("celeba-autoencoder", (3, 64, 64), marks=pytest.mark.slow),
        pytest.param("celeba-latent-flow", (4, 16, 16), marks=pytest.mark.slow),
    ],
)
def test_plans_know_the_shape_before_anything_was_trained(name, shape):
    plan = plan_recipe(read(name))
    assert plan.spec and plan.spec.shape == shape and not plan.problems and plan.trained


def test_large_images_are_encoded_in_smaller_batches():
    sizes = [batch_size((3, side, side)) for side in (8, 32, 64, 65, 256, 512, 9000)]
    assert sizes == [256, 256, 256, 128, 16, 4, 1]


def test_plans_of_latents_have_the_problems_of_the_training(place):
    plan = plan_recipe(flow(place))
    assert plan.spec.shape == (2, 2, 2) and not plan.problems
    model = runs.load(place / "flow")
    values = sum(p.numel() for part in (model.denoiser, model.decoder) for p in part.parameters())
    assert plan.disk["model.safetensors"] == pytest.approx(4 * values, rel=0.01)
    plan = plan_recipe(flow(place, "data.augment=0.1"))
    assert ["cannot be augmented" in problem for problem in plan.problems] == [True]


def test_a_recipe_of_latents_survives_its_table(place):
    recipe = flow(place)
    assert parse(recipe.table()) == recipe
