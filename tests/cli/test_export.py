"""`fewstep export`: the folder, its record, and everything that is refused in one line."""

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporting import text_generator, unet_generator
from fewstep import runs
from fewstep.checksums import with_check
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.export.base import Exporter
from fewstep.export.source import load_source
from fewstep.guidance import negative_prompt
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
    assert record["sha256"] == {"sub/note.txt": hashlib.sha256(b"weights.safetensors").hexdigest()}
    # an export takes the place of an earlier one, but of nothing else
    (out / "old.txt").touch()
    assert run(weights, "--to", f"{HERE}Note", "--out", out, "--steps", "3", "--dtype", "f16") == 0
    record = json.loads((out / "export.json").read_text())
    assert record["steps"] == [3] and 0 < record["rounding"]["largest"] < 0.05
    assert (out / "old.txt").exists()


def test_a_negative_prompt_is_exported_with_its_guidance(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "text.safetensors", tmp_path / "out"
    runs.save_generator(path, text_generator(), None, {})
    prompts = []
    monkeypatch.setattr(
        Note,
        "write",
        lambda _, source, folder: (
            prompts.append(negative_prompt(source.generator.denoiser.backbone)) or {}
        ),
    )
    words = (path, "--to", f"{HERE}Note", "--out", out, "--negative", "the hat xylophone")
    assert run(*words) == 2 and "no effect without guidance" in capsys.readouterr().err
    assert run(*words, "--guidance", "2") == 0 and prompts == ["the hat xylophone"]
    assert "unknown words" in capsys.readouterr().err


class Other(Exporter):
    """Writes files of other names, one of them that of a run."""

    def write(self, source, folder):
        (folder / "model.safetensors").write_text("")
        return {}


def test_files_of_others_in_an_earlier_export_survive(weights, tmp_path, capsys):
    out = tmp_path / "out"
    run_folder = out / "sub" / "run"
    assert run(weights, "--to", f"{HERE}Note", "--out", out) == 0
    run_folder.mkdir()
    for path in (out, run_folder):
        (path / "model.safetensors").write_bytes(weights.read_bytes())
    assert run(out, "--to", f"{HERE}Note", "--out", out) == 0
    assert run(out, "--to", f"{HERE}Other", "--out", out) == 2
    assert "would be overwritten" in capsys.readouterr().err
    # only the files in the record are of the earlier export, and only if they are inside
    names = ["sub", "sub/note.txt", "../weights.safetensors", str(weights)]
    forged = json.dumps(with_check({"files": names}))
    wrong = json.dumps(with_check({"files": 3}))
    for text in ("{}", "[]", "", '{"files": []}', wrong, json.dumps(with_check({})), forged):
        (out / "export.json").write_text(text)
        assert run(out, "--to", f"{HERE}Note", "--out", out) == (0 if text == forged else 2)
    for path in (weights, out / "model.safetensors", run_folder / "model.safetensors"):
        assert path.stat().st_size > 1000
    (out / "model.safetensors").unlink()
    assert run(weights, "--to", f"{HERE}Other", "--out", out) == 0
    assert not (out / "sub" / "note.txt").exists() and run_folder.exists()


def test_a_folder_that_exists_keeps_its_place(weights, tmp_path, monkeypatch, capsys):
    """Such as the current folder, a disk of its own, or the target of a link."""
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    for out in (".", link, "."):
        assert run(weights, "--to", f"{HERE}Note", "--out", out) == 0
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        assert names == ["export.json", "sub", "sub/note.txt"]
    assert folder.stat().st_ino == inode and link.is_symlink()
    monkeypatch.setattr(Path, "rename", full_disk)
    assert run(weights, "--to", f"{HERE}Note", "--out", "..//new") == 2
    assert capsys.readouterr().err.endswith("No space left on device; give another --out\n")


def full_disk(*words):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_name_is_that_of_the_folder(weights, tmp_path, monkeypatch):
    folder = tmp_path / "why? <b>"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.chdir(folder)
    for address in (".", folder):
        assert load_source(address).name == "why? <b>"
    assert load_source("fewstep:digits").name == "fewstep:digits"


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_must_be_finite(tmp_path, value):
    generator = unet_generator()
    with pytest.raises(InputError, match="must be"):
        generator.with_guidance(float(value))
    next(generator.parameters()).flatten()[0] = float(value)
    runs.save_generator(tmp_path / "w.safetensors", generator, None, {})
    with pytest.raises(InputError, match=r"time_embedding.* has weights that are infinite or not"):
        load_source(tmp_path / "w.safetensors")


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
        ((weights, *to, "--out", file), "is a file, not a folder"),
        ((weights, *to, "--out", full), "not empty and is no earlier export"),
        ((weights, *to, "--out", file / "below"), "is a file, not a folder"),
        ((weights, *to, *out, "--single-file"), "--single-file is not an option of --to"),
        ((weights, *to, *out, "--steps", "0"), "--steps is 0; it must be an integer from 1"),
        ((weights, *to, *out, "--steps", "one"), "not a list of numbers"),
        ((weights, *to, *out, "--steps", ""), "not a list of numbers"),
        ((weights, *to, *out, "--guidance", "nan"), "must be a number from 0"),
        ((weights, *to, *out, "--guidance", "2", "--negative", "a cat"), "no text"),
        ((weights, *to, *out, "--score"), "fewstep evaluate"),
        ((weights, *to, *out, "--sampler", "eular"), "unknown sampler"),
        ((weights, "--to", f"{HERE}Needy", *out), "pip install 'fewstep[export]'"),
        ((short, *to, *out), "damaged"),
        ((tmp_path / "nothing", *to, *out), "does not exist"),
        ((tmp_path / "full", *to, *out), "no model.safetensors"),
    ]
    cases += [
        (("x" * 300, *to, *out), "File name too long: give a shorter name"),
        ((weights, *to, "--out", "x" * 300), "File name too long: give a shorter name"),
        ((weights, *to, "--out", "x" * 250), "File name too long; give another --out"),
    ]
    for words, message in cases:
        assert run(*words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert (full / "thesis.tex").exists() and not (tmp_path / "x").exists()


def test_a_record_names_no_folder_of_the_author(tmp_path):
    path = tmp_path / "weights.safetensors"
    recipe = {
        "method": {"name": "dmd"},
        "teacher": {"load": "/home/ada/secret/teacher"},
        "list": ["/home/ada/x", "runs/y", 1],
    }
    runs.save_generator(path, unet_generator(grid=FixedGrid(((1.0,),))), recipe, {})
    assert run(path, "--to", f"{HERE}Note", "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "export.json").read_text()
    assert "ada" not in text
    assert json.loads(text)["recipe"]["teacher"] == {"load": "teacher"}
    assert json.loads(text)["recipe"]["list"] == ["x", "runs/y", 1]
