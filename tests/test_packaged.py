"""Models that come with a package: `fewstep:digits` stands wherever a run does."""

import json

import pytest
import torch

import fewstep
from exporting import unet_generator
from fewstep import models, plugins, runs
from fewstep.cli import main
from fewstep.data.digits import read_digits
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.export.precision import round_weights
from fewstep.export.source import load_source
from fewstep.loading import load_run
from fewstep.sampling import Renoise
from fewstep.times import FixedGrid
from fewstep.weights_file import read_weights_file, write_weights_file

DIGITS_LICENSE = "MIT; data: somebody's, CC BY 4.0"
RECIPE = {"about": {"title": "One step"}}


@pytest.fixture
def generator():
    grid = FixedGrid(((1.0,), (1.0, 0.5)))
    return unet_generator(classes=10, grid=grid, step=Renoise())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The models of a package `acme`: none yet."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(models, "ACME", folder, raising=False)
    monkeypatch.setitem(plugins.REGISTRY["models"], "acme", "fewstep.models:ACME")
    return folder


@pytest.fixture
def model(folder, generator):
    """The model `acme:small`, in half precision."""
    path = folder / "small.safetensors"
    options = {"license": DIGITS_LICENSE, "dtype": "f16"}
    runs.save_generator(path, generator, RECIPE, {"data": "abc"}, **options)
    return path


def test_a_checkout_has_more_models_than_the_package(generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "CHECKOUT_FOLDER", tmp_path)
    runs.save_generator(tmp_path / "large.safetensors", generator, RECIPE, {})
    assert {"fewstep:digits", "fewstep:large"} <= set(models.model_addresses())
    assert fewstep.load("fewstep:large").spec.classes == 10
    monkeypatch.setattr(models, "CHECKOUT_FOLDER", None)
    assert "fewstep:large" not in models.model_addresses()
    with pytest.raises(InputError, match="fewstep has no model 'large'.*a checkout of fewstep has"):
        fewstep.load("fewstep:large")


def test_a_model_is_loaded_and_described_by_its_address(model, generator):
    loaded, rounded = fewstep.load("acme:small"), round_weights(generator, "f16")
    assert runs.weights_hash(loaded) == runs.weights_hash(rounded) != runs.weights_hash(generator)
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    note = runs.describe("acme:small")
    assert note == runs.describe(model)
    assert (note["license"], note["pins"], note["recipe"]) == (
        DIGITS_LICENSE, {"data": "abc"}, RECIPE
    )  # fmt: skip
    noise = fewstep.noise_from_seeds(range(3), (1, 8, 8))
    assert torch.equal(loaded(noise, steps=2), rounded(noise, steps=2))


def test_half_precision_halves_the_file(model, generator, tmp_path):
    runs.save_generator(tmp_path / "full.safetensors", generator, RECIPE, {"data": "abc"})
    halves = generator.state_dict().values()
    saving = (tmp_path / "full.safetensors").stat().st_size - model.stat().st_size
    assert abs(saving - sum(2 * value.numel() for value in halves)) < 300  # the note differs


def test_int8_is_what_the_export_rounds_to(tmp_path):
    """The weights that `round_weights` chooses survive the file, and are a quarter of its size."""
    generator = fewstep.load("fewstep:digits")
    rounded, path = round_weights(generator, "int8"), tmp_path / "m.safetensors"
    runs.save_generator(path, rounded, RECIPE, {}, dtype="int8")
    weights, expected = fewstep.load(path).state_dict(), rounded.state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=0)
    runs.save_generator(tmp_path / "full.safetensors", generator, RECIPE, {})
    assert path.stat().st_size < 0.32 * (tmp_path / "full.safetensors").stat().st_size


def test_a_scale_without_its_weight_is_refused(tmp_path):
    path, generator = tmp_path / "m.safetensors", fewstep.load("fewstep:digits")
    runs.save_generator(path, generator, None, {}, dtype="int8")
    tensors, note = read_weights_file(path)
    name = next(name for name in tensors if name.endswith(":scale"))
    weight = name.removesuffix(":scale")
    for wrong in (
        {key: value for key, value in tensors.items() if key != weight},
        tensors | {name: tensors[name][:-1]},
        tensors | {weight: tensors[weight].float()},
    ):
        write_weights_file(path, wrong, note)
        with pytest.raises(InputError, match=f"{name}' is not the scale of an int8 weight"):
            fewstep.load(path)


def test_a_weight_that_float16_lacks_is_refused(generator, tmp_path):
    generator.denoiser.backbone.conv_in.bias.fill_(7e4)
    path = tmp_path / "m.safetensors"
    with pytest.raises(
        InputError, match=r"conv_in\.bias has a weight of 70000, outside .* float16"
    ):
        runs.save_generator(path, generator, None, {}, dtype="f16")
    assert not path.exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("acme:smal", r"^acme has no model 'smal'; did you mean small\? \(choose one of acme:sm"),
        ("acme:", "^acme has no model ''"),
        ("acme:../models/small", r"^acme has no model '\.\./models/small'"),
        ("acm:small", "'acm' is not a known source; known: .*, fewstep, acme"),
    ],
)
def test_unknown_models_are_refused_with_the_choices(model, address, message):
    for use in (fewstep.load, runs.describe):
        with pytest.raises(InputError, match=message):
            use(address)


def test_a_package_without_its_models_is_refused(folder):
    with pytest.raises(InputError, match="acme has no model 'small', nor any other"):
        fewstep.load("acme:small")


def test_a_model_has_one_kind_of_weights(model):
    for use in (fewstep.load, runs.describe):
        with pytest.raises(InputError, match='"best" needs a run folder; acme:small is'):
            use("acme:small", weights="best")


def test_a_file_of_that_name_comes_first(model, generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.save_generator(tmp_path / "acme:small", generator, None, {})
    assert runs.weights_hash(fewstep.load("acme:small")) == runs.weights_hash(generator)


def test_commands_take_a_model(model, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(["sample", "acme:small", "--label", "3", "-n", "2", "-o", str(out)]) == 0
    pairs = tmp_path / "pairs"
    words = ["-n", "4", "--steps", "2", "--allow-out-of-range"]  # its weights are random
    assert main(["record", "acme:small", "--out", str(pairs), *words]) == 0
    assert out.stat().st_size and "2 images, 1 step" in (text := capsys.readouterr().out)
    assert f"{pairs}: 4 pairs" in text
    assert main(["sample", "acme:big", "-o", str(out)]) == 2


def test_models_are_listed(model, capsys):
    assert main(["list", "models"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "acme:small" in line)
    assert line.split(maxsplit=1)[1] == f"One step; {DIGITS_LICENSE}"
    assert main(["list"]) == 0
    assert "acme:small" in capsys.readouterr().out


def test_an_export_knows_licence_and_scores(model, generator, folder):
    score = {"steps": 1, "extractor": "x", "samples": 9, "weights": "0" * 16}
    own = score | {"weights": runs.weights_hash(generator)[:16]}
    path = folder / "scored.safetensors"
    runs.save_generator(path, generator, RECIPE, {}, license="MIT", scores=[score, own])
    source = load_source("acme:scored")
    assert (source.license, source.scores) == ("MIT", [own])  # those of other weights are left out
    assert (source.name, source.recipe, source.steps) == ("acme:scored", RECIPE, (1, 2))
    assert json.loads(json.dumps(source.about()))["license"] == "MIT"


@pytest.mark.parametrize("address", models.model_addresses())
def test_each_model_says_what_it_is(address):
    generator, note = fewstep.load(address), runs.describe(address)
    assert note["license"] and note["recipe"]["method"]["name"] and note["pins"]["data"]
    hash = runs.weights_hash(generator)
    assert note["scores"] and all(hash.startswith(score["weights"]) for score in note["scores"])
    file = models.find_model(address)
    assert file.stat().st_size < (3e6 if file.parent == models.FOLDER else 7e6)
    readme = (file.parent / "README.md").read_text()
    assert f"## `{address}`" in readme


def test_the_digits_of_the_package(tmp_path, capsys):
    assert "fewstep:digits" in models.model_addresses()
    out = tmp_path / "x.png"
    words = ["--label", "3", "--steps", "1", "-n", "20"]
    assert main(["sample", "fewstep:digits", *words, "-o", str(out)]) == 0
    assert main(["list", "models"]) == 0
    line = capsys.readouterr().out
    assert "E. Alpaydin and C. Kaynak, 1998" in line and "CC BY 4.0" in line
    generator, classifier = fewstep.load("fewstep:digits"), digits_classifier()
    ((_, images),) = generate(generator, 20, steps=1, labels=[3])
    assert (classifier(images).argmax(1) == 3).float().mean() > 0.8


def digits_classifier():
    """Nearest class by the mean images of scikit-learn's digits."""
    digits = read_digits("train")
    pixels, labels = digits.images.flatten(1).float(), digits.labels
    means = torch.stack([pixels[labels == k].mean(0) for k in range(10)])
    return lambda images: -torch.cdist(images.flatten(1).float(), means)


@pytest.mark.parametrize("address", models.model_addresses())
def test_the_recipe_of_a_packaged_model_is_one_of_this_version(address):
    """So that `fewstep evaluate fewstep:digits` finds its data. A recipe that is not warns."""
    run = load_run(address)
    assert run.recipe and run.recipe.table() == runs.describe(address)["recipe"]
