"""`fewstep doctor RUN`: every file of a run is checked, and what it owes is said."""

import shutil

import pytest
import torch

from damage import flip
from exporting import unet_generator
from fewstep import recipe, runs
from fewstep.checksums import append_json_line
from fewstep.cli import main
from fewstep.images import save_grid
from fewstep.run_folder import Run
from fewstep.weights_file import write_weights_file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder with every file, made without a training."""
    run = Run(tmp_path_factory.mktemp("doctor") / "run")
    generator, table = unet_generator(), recipe.read("digits-flow").table()
    run.claim(table)
    note = {"step": 20, "total": 20, "files": ["model.safetensors"], "unscored": False}
    note |= {"players": ["student"], "skips": {}, "pins": {"data": "x"}, "latest": {}}
    note |= {"norm": 1.0, "growth": 1.0, "hardware": "1 CPU thread"}
    write_weights_file(run.state_file, generator.state_dict(), note)
    for file, step in ((run.model_file, None), (run.best_file, 10)):
        runs.save_generator(file, generator, table, {"data": "x"}, step=step)
    for step in (10, 20):
        run.log({"step": step, "loss": 0.5})
        save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), run.grid_file(step), columns=2)
    run.report_file.write_text("<html>")
    return run.folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def examined(capsys, *words):
    code = main(["doctor", *map(str, words)])
    text = capsys.readouterr().out
    lines = [(line[:17].strip(), line[18:]) for line in text.splitlines()]
    return code, lines


def test_a_whole_run(folder, capsys):
    code, lines = examined(capsys, folder)
    told = dict(lines)
    assert code == 0 and told["run"] == str(folder)
    assert told["lock"].startswith("free") and told["owes"] == "nothing"
    assert told["recipe"].startswith("checksum matches; method denoise, ")
    assert told["state"].startswith("SHA-256 matches; step 20 of 20")
    assert told["model"].startswith("SHA-256 matches; ") and told["best"].endswith("step 10")
    assert told["log"] == "checksums match; 2 lines, the last of step 20"
    assert told["scores"] == "none: there is no scores.jsonl" and told["samples"] == "2 pictures"


@pytest.mark.parametrize(
    "name",
    ["recipe.toml", "state/state.safetensors", "model.safetensors", "best.safetensors",
     "progress.jsonl", "scores.jsonl", "samples/step-0000010.png"],
)  # fmt: skip
def test_a_damaged_file_is_named(folder, capsys, name):
    path = folder / name
    if name == "scores.jsonl":
        append_json_line(path, {"version": 1})
    flip(path, path.stat().st_size - 30, 0x01)
    code, lines = examined(capsys, folder)
    (line,) = [text for kind, text in lines if kind == "damaged"]
    assert code == 2 and path.name in line
    if name == "state/state.safetensors":
        assert ("owes", "unknown, because the state is damaged") in lines


def test_what_is_missing_is_owed(folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "report.html").unlink()
    code, lines = examined(capsys, folder)
    told = dict(lines)
    assert code == 0 and told["model"] == "none: there is no model.safetensors"
    assert told["owes"].startswith("model.safetensors, report.html: the same `fewstep train` comm")
    (folder / "state" / "state.safetensors").unlink()
    assert dict(examined(capsys, folder)[1])["owes"] == "unknown, because there is no state"


def test_a_weights_file_and_a_model_of_a_package(folder, capsys):
    path = folder / "model.safetensors"
    code, ((name, text),) = examined(capsys, path)
    assert (code, name) == (0, "model.safetensors") and "SHA-256 matches" in text
    assert examined(capsys, "fewstep:digits")[0] == 0
    flip(path, path.stat().st_size - 30)
    code, ((name, text),) = examined(capsys, path)
    assert (code, name) == (2, "damaged") and text.startswith(f"{path} is damaged")
