"""Other people's checkpoints, wherever a run may stand on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep import data, recipe, runs
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.metrics import train_classifier
from fewstep.run_folder import Run
from fewstep.sampling import Ancestral, Heun, Multistep, Transfer

QUICK = ["--extractor", "pixels", "--samples", "90", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DDPM of digits as diffusers writes it, with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("addresses") / "their-ddpm"
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    return f"diffusers:{folder}"


@pytest.fixture(scope="module")
def pairs(folder, address):
    out = folder.parent / "pairs"
    told = ["--out", str(out), "-n", "20", "--steps", "3", "--sampler", "transfer"]
    assert main(["record", address, *told]) == 0
    return out


@pytest.fixture(scope="module")
def student(folder, address, pairs):
    out = folder.parent / "student"
    told = [f"teacher.load={address}", f"pairs.load={pairs}", "data.labels=false"]
    told += ["student.start=0.4", "fit.steps=3", "fit.batch=8", "--out", str(out)]
    assert main(["distill", "digits-regress", *told]) == 0
    return out


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(list(map(str, argv))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fewstep: ")
    return line


def scores(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv), *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_samples_are_drawn(address, tmp_path):
    for name, more in (("a", []), ("b", ["--sampler", "ancestral"]), ("c", ["--seed", "1"])):
        out = tmp_path / f"{name}.png"
        assert main(["sample", address, "-o", str(out), "-n", "4", "--steps", "3", *more]) == 0
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in "abc"}) == 3


def test_another_sampler_clips_as_the_checkpoint_asks(address, tmp_path, monkeypatch):
    seen = []
    real = fewstep.Generator.forward

    def forward(self, *args, **kwargs):
        seen.append(self.step)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(fewstep.Generator, "forward", forward)
    for name in ("ancestral", "transfer", "heun", "multistep"):
        out = str(tmp_path / "x.png")
        assert main(["sample", address, "-o", out, "-n", "1", "--sampler", name]) == 0
    assert seen == [Ancestral(clip=1.0), Transfer(clip=1.0), Heun(clip=1.0), Multistep(clip=1.0)]


def test_pairs_are_recorded_as_it_samples(address, pairs, capsys):
    capsys.readouterr()
    assert main(["record", "--info", str(pairs)]) == 0
    told = json.loads(capsys.readouterr().out)["provenance"]
    assert told["sampler"] == {"name": "transfer", "clip": 1.0}
    assert told["teacher"] == runs.network_hash(fewstep.load(address))


def test_a_student_learns_from_it_and_begins_as_it(folder, address, student):
    kept = recipe.parse(runs.describe(student)["recipe"])
    assert kept.teacher and kept.teacher.load == address
    assert runs.describe(student)["pins"]["teacher"] == runs.weights_hash(fewstep.load(address))
    made, taught = fewstep.load(student).denoiser, fewstep.load(address).denoiser
    assert made.parametrization == taught.parametrization and made.process == taught.process
    before, after = taught.backbone.state_dict(), made.backbone.state_dict()
    moved = [float((before[name] - after[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 0.1


def test_it_is_measured_against_the_set_that_is_named(address, capsys):
    (score,) = scores(capsys, "evaluate", address, "--data", "digits")
    assert score["reference"].startswith("digits (1797") and score["labels"] == "none"
    (again,) = scores(capsys, "evaluate", address, "--data", "digits", "--sampler", "ancestral")
    assert again["sampler"] == "ancestral" and again["frechet"] != score["frechet"]
    line = fails(capsys, "evaluate", address, *QUICK)
    assert (
        f"{address} contains no recipe, so its training data are unknown; give --data NAME, or "
        "--data folder:PATH for a folder of images"
    ) in line


def test_the_named_set_is_brought_to_its_size(address, monkeypatch, capsys):
    digits, asked = data.load("digits"), []

    def load(name, **told):
        asked.append((name, told))
        return digits

    monkeypatch.setattr(data, "load", load)
    scores(capsys, "evaluate", address, "--data", "fashion-mnist")
    assert asked == [("fashion-mnist", {"split": "train", "size": 8, "path": None})]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of photographs of several sizes, in colour."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for i in range(40):
        pixels = draws.integers(0, 256, (9 + i % 3, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_it_is_measured_against_a_folder_of_images(address, student, photos, tmp_path, capsys):
    told = ["--data", f"folder:{photos}"]
    (score,) = scores(capsys, "evaluate", address, *told)
    real = data.load("folder", size=8, path=photos).with_channels(1)
    assert score["reference"] == f"{photos.name} (40, {real.fingerprint[:12]})"
    out = tmp_path / "report.html"
    both = scores(capsys, "compare", address, student, *told, "--out", out)
    assert {row["reference"] for rows in both.values() for row in rows} == {score["reference"]}
    assert both["their-ddpm"][0]["frechet"] == score["frechet"]


def test_a_flat_folder_has_a_score_without_an_extractor(
    address, student, photos, tmp_path, capsys, monkeypatch
):
    """evaluate, compare, and the evaluation during a training."""
    monkeypatch.setattr(
        "fewstep.metrics.extractors.classifier.train_classifier",
        lambda images, labels: train_classifier(images, labels, steps=4),
    )
    line = (
        f"fewstep: {photos.name} has no labels, and the extractor classifier learns classes: its "
        "scores use the extractor rotations, unless another is set"
    )
    told = ["--data", f"folder:{photos}", "--samples", "70", "--steps", "1"]
    capsys.readouterr()
    assert main(["evaluate", address, *told]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines().count(line) == 1
    assert "Fréchet distance (rotations)" in output.out and "trained without labels" in output.out
    out = tmp_path / "report.html"
    assert main(["compare", address, str(student), *told, "--out", str(out)]) == 0
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert "trained without labels" in out.read_text()
    changes = ["data.name=folder", f"data.path={photos}", "data.size=8", "fit.steps=2"]
    changes += ["student.backbone.channels=[8]", "student.backbone.attention=[]", "fit.batch=8"]
    changes += ["student.backbone.groups=4", "evaluate.every=2", "evaluate.samples=70"]
    assert main(["train", "digits-flow", *changes, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.splitlines().count(line) == 1
    scores = [line["score"] for line in Run(tmp_path / "run").progress() if "score" in line]
    assert scores and {score["extractor"] for score in scores} == {"rotations"}


def test_it_is_compared_with_its_student_as_the_student_is_measured(
    folder, address, student, tmp_path, capsys
):
    out = tmp_path / "report.html"
    told = scores(capsys, "compare", address, student, "--out", out)
    assert list(told) == ["their-ddpm", "student"]
    assert told["their-ddpm"][0]["reference"] == told["student"][0]["reference"]
    html = out.read_text()
    assert "their-ddpm" in html and "student" in html
    told = scores(capsys, "compare", address, "--data", "digits", "--out", out)
    assert told["their-ddpm"][0]["reference"].startswith("digits")
    assert "give --data NAME" in fails(capsys, "compare", address, *QUICK, "--out", out)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["evaluate", "{address}", "--weights", "best"], 'weights="best" needs a run folder'),
        (
            ["sample", "{address}", "--weights", "raw", "-o", "x.png"],
            'weights="raw" needs a run folder',
        ),
        (["sample", "{address}", "--label", "1", "-o", "x.png"], "unconditional"),
        (["sample", "{address}x", "-o", "x.png"], "their-ddpmx"),
        (["sample", "gopher:x", "-o", "x.png"], "'gopher' is not a known source; known: diffusers"),
        (["distill", "digits-regress", "teacher.load={address}"], "with 0 classes"),
    ],
)
def test_mistakes_are_one_line(address, capsys, tmp_path, monkeypatch, argv, told):
    monkeypatch.chdir(tmp_path)  # whatever runs there are here
    assert told in fails(capsys, *(part.format(address=address) for part in argv))


def test_a_checkpoint_says_nothing_of_itself(address):
    assert runs.describe(address) == {}
    with pytest.raises(InputError, match="raw"):
        runs.load(address, weights="raw")
