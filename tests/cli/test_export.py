"""`fewstep export`: the folder, its record, and everything that is refused in one line."""

import json
from dataclasses import dataclass

import pytest

from exporting import unet_generator
from fewstep import runs
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.export.base import Exporter
from fewstep.sampling import Renoise
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class Note(Exporter):
    """Writes what it gets."""

    def write(self, source, folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "note.txt").write_text(source.name)
        return {"steps": list(source.steps), "difference": 0.25}


class Broken(Note):
    def write(self, source, folder):
        (folder / "half.txt").write_text("half")
        raise InputError("the check failed")


class Needy(Note):
    extra = ("a_module_that_nobody_has",)


HERE = f"{__name__}:"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    grid = FixedGrid(((1.0,), (1.0, 0.7, 0.4)))
    runs.save_generator(path, unet_generator(grid=grid, step=Renoise()), None, {"data": "abc"})
    return path


def run(*words):
    return main(["export", *map(str, words)])


def test_a_folder_with_its_record(weights, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run(weights, "--to", f"{HERE}Note", "--out", out, "--license", "MIT") == 0
    assert "1 file" in (text := capsys.readouterr().out) and "difference: 0.25" in text
    record = json.loads((out / "export.json").read_text())
    generator = runs.load(weights)
    assert record["weights"] == runs.weights_hash(generator)
    assert record["checks"] == {"steps": [1, 3], "difference": 0.25}
    assert record["class_names"] == ["zero", "one", "<b>two</b>"]
    assert (record["license"], record["dtype"], record["pins"]) == ("MIT", "f32", {"data": "abc"})
    assert record["files"] == {"sub/note.txt": len("weights.safetensors")}
    # an export takes the place of an earlier one, but of nothing else
    (out / "old.txt").touch()
    assert run(weights, "--to", f"{HERE}Note", "--out", out, "--steps", "3", "--dtype", "f16") == 0
    record = json.loads((out / "export.json").read_text())
    assert record["steps"] == [3] and 0 < record["rounding"]["largest"] < 0.05
    assert not (out / "old.txt").exists()


def test_a_failed_check_leaves_the_earlier_export(weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(weights, "--to", f"{HERE}Note", "--out", out) == 0
    assert run(weights, "--to", f"{HERE}Broken", "--out", out) == 2
    assert capsys.readouterr().err == "fewstep: the check failed\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights.safetensors"]
    assert (out / "sub" / "note.txt").exists() and not (out / "half.txt").exists()


def test_wrong_input_gets_one_line(weights, tmp_path, capsys):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "thesis.tex").touch()
    short = tmp_path / "short.safetensors"
    short.write_bytes(weights.read_bytes()[:2000])
    to, out = ["--to", f"{HERE}Note"], ["--out", tmp_path / "x"]
    cases = [
        ((weights, "--to", "troch", *out), "did you mean torch"),
        ((weights, "--to", "os.path:join", *out), "not a subclass"),
        ((weights, *to, "--out", file), "is a file; give a folder"),
        ((weights, *to, "--out", full), "not empty and is no earlier export"),
        ((weights, *to, "--out", file / "below"), "cannot write"),
        ((weights, *to, *out, "--single-file"), "--single-file is not an option of --to"),
        ((weights, *to, *out, "--steps", "0"), "at least 1 step"),
        ((weights, *to, *out, "--steps", "one"), "not a list of numbers"),
        ((weights, *to, *out, "--sampler", "eular"), "unknown sampler"),
        ((weights, "--to", f"{HERE}Needy", *out), "pip install 'fewstep[export]'"),
        ((short, *to, *out), "damaged"),
        ((tmp_path / "nothing", *to, *out), "does not exist"),
        ((tmp_path / "full", *to, *out), "no model.safetensors"),
    ]
    for words, message in cases:
        assert run(*words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert (full / "thesis.tex").exists() and not (tmp_path / "x").exists()
