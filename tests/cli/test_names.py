"""A name that the file system holds is one for data, runs and outputs; modes follow the umask."""

import io
import os
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

from fewstep import runs
from fewstep.cli import main
from fewstep.recipe import read
from fewstep.run_folder import Run

RECIPE = """
[data]
name = "folder"
[student]
init = "scratch"
process = "flow"
parametrization = "velocity"
[student.backbone]
name = "unet"
channels = [8]
groups = 4
attention = []
[method]
name = "denoise"
[fit]
steps = 2
batch = 4
"""
PIXELS = ["--samples", "4", "--extractor", "pixels", "--steps", "1"]
SLOW = [
    "my set (1)", "кот, [a]=b", "a:b", "~t", "10", "a?b=c&d=1", "[bold]x[/bold]", "<b>&amp;",
    "%41", "a\nb", "*", "'", '"', "$HOME", " ", ".hidden", "手書き", "\u202e", "-n", "#1",
]  # fmt: skip


def check_name(name, tmp_path, monkeypatch):
    """Everything that takes a path, for one name of the data, the run and what is made of it."""
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(RECIPE)
    for label in ("a", "b"):
        Path(name, label).mkdir(parents=True)
        Image.new("L", (8, 8), 200).save(Path(name, label, "x.png"))
    run = f"out/{name}"
    before = os.umask(0o027)
    try:
        train = ["train", "r.toml", f"data.path={name}", "--out", run]
        pairs = [f"teacher.load={run}", f"pairs.load={run}.pairs", "data.name=folder"]
        small = [f"data.path={name}", "data.labels=true", "fit.steps=1", "fit.batch=4"]
        for argv in (
            train,
            train,  # which says that it is finished
            ["sample", run, "-n", "2", f"-o={run}.png"],
            ["sample", run, "-n", "2", f"--each={run}.each"],
            ["sample", run, "-n", "2", f"--npz={run}.npz"],
            ["record", run, "-n", "4", "--steps=2", f"--out={run}.pairs", "--allow-out-of-range"],
            ["record", f"--verify={run}.pairs"],
            ["convert", run, f"--out={run}.safetensors"],
            ["evaluate", f"{run}.safetensors", "--data", f"folder:{name}", *PIXELS],
            ["compare", run, "--data", f"folder:{name}", *PIXELS, f"--out={run}.html"],
            ["progress", run, f"--out={run}.csv"],
            ["doctor", run],
            ["doctor", f"folder:{name}"],
            ["train", "digits-regress", *pairs, *small, "fit.warmup=0", "--out", f"{run}.student"],
        ):
            assert main(argv) == 0, argv
    finally:
        os.umask(before)
    assert Run(run).recipe() == read("r.toml", [f"data.path={name}"]).table()
    assert runs.describe(run)["recipe"]["data"]["path"] == name
    files = list(Path("out").rglob("*"))
    assert len(files) > 20
    for path in files:
        assert stat.S_IMODE(path.lstat().st_mode) == (0o750 if path.is_dir() else 0o640), path


@pytest.mark.parametrize("name", ["caf\udce9 кот, [a]=b (1)"], ids=ascii)
def test_any_name_is_taken(name, tmp_path, monkeypatch):
    check_name(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW, ids=ascii)
def test_each_such_name_is_taken(name, tmp_path, monkeypatch):
    check_name(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["кот", "caf\udce9", "a\x1b[31m", "手書き", "é"], ids=ascii)
def test_names_are_printed_in_any_encoding(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    (folder / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "a" / "x.png")
    for stream in ("stdout", "stderr"):
        text = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        monkeypatch.setattr(sys, stream, text)
    assert main(["doctor", f"folder:{folder}"]) == 0
    assert main(["doctor", f"folder:{folder}-missing"]) == 2
