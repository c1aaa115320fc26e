"""Images that have moved since a run was trained on them are found again by their fingerprint."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.run_folder import Run

TINY = """
[data]
name = "folder"
path = "images"
[student]
init = "scratch"
process = { name = "flow" }
parametrization = { name = "velocity" }
backbone = { name = "unet", channels = [8], attention = [], groups = 4 }
[method]
name = "denoise"
[fit]
steps = 4
batch = 4
save_every = 2
ema_halflife = 8
ema_rampup = 0
[evaluate]
steps = [1]
"""
SCORE = ["--steps", "1", "--samples", "8", "--extractor", "pixels", "--json"]


def write_images(folder, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and a run of them, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    (tmp_path / "tiny.toml").write_text(TINY)
    assert main(["train", "tiny.toml", "--out", "run"]) == 0
    return tmp_path


def scores(capsys, *argv):
    capsys.readouterr()
    assert main(list(argv)) == 0
    tables = json.loads(capsys.readouterr().out)
    tables = tables if isinstance(tables, list) else next(iter(tables.values()))
    return [{k: v for k, v in table.items() if k != "seconds_per_image"} for table in tables]


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(list(argv)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_verb_takes_the_new_place(place, capsys):
    before = scores(capsys, "evaluate", "run", *SCORE)
    Run("run").scores_file.unlink()
    shutil.move("images", "disk/pictures")
    moved = ["--data", "folder:disk/pictures"]
    for argv in (["evaluate", "run", *SCORE], ["compare", "run", *SCORE]):
        line = fails(capsys, *argv)
        assert "images, with the images that run was trained on, does not exist" in line
        assert "--data folder:PATH" in line and "data.path=PATH" in line
        assert scores(capsys, *argv, *moved) == before
    # once only: the cached score is found under the new path
    assert len(Run("run").scores()) == 1
    for verb, out, more in (("export", "e", ["--to", "torch"]), ("convert", "c.safetensors", [])):
        argv = [verb, "run", *more, "-o", out, "--score", "--steps", "1"]
        assert "--data folder:PATH" in fails(capsys, *argv)
    argv = ["convert", "run", "-o", "c.safetensors", "--score", "--steps", "1", *moved]
    assert main(argv) == 0


def test_a_training_resumes_with_the_new_path(place, capsys):
    shutil.move("images", "pictures")
    train = ["train", "tiny.toml", "fit.steps=6", "--extend", "--out", "run"]
    assert "images does not exist" in fails(capsys, *train)
    assert main([*train, "data.path=pictures"]) == 0
    assert Run("run").recipe()["data"]["path"] == "pictures"
    assert len(scores(capsys, "evaluate", "run", *SCORE)) == 1
    write_images(place / "others", seed=1)
    more = ["data.path=others", "fit.steps=8"]
    assert "was trained with another data" in fails(capsys, *train, *more)


@pytest.mark.parametrize("below", ["a", "a/b", "run", "run/samples"])
def test_relative_paths_are_found_from_other_folders(place, capsys, monkeypatch, below):
    (place / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(place / below)
    address = str(place / "run")
    assert len(scores(capsys, "evaluate", address, *SCORE)) == 1


@pytest.mark.parametrize("change", ["other", "fewer", "label"])
def test_images_that_changed_are_not_scored_against_silently(place, capsys, change):
    if change == "other":
        write_images(place / "images", seed=1)
    elif change == "fewer":
        (place / "images" / "a" / "0.png").unlink()
    else:
        shutil.move("images/a/0.png", "images/b/0.png")
    line = fails(capsys, "evaluate", "run", *SCORE)
    assert "are not those that run was trained on (fingerprints" in line and "--data" in line
    assert len(scores(capsys, "evaluate", "run", *SCORE, "--data", "folder:images")) == 1
