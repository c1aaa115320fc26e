"""The command line as a person meets it: exit codes, one-line errors, files left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep.cli import VERBS, main
from fewstep.data import ImageSet, load

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def teacher(folder):
    out = folder / "teacher"
    assert main(["train", "digits-flow", *TINY, "fit.steps=4", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pairs(folder, teacher):
    out = folder / "pairs"
    told = ["-n", "40", "--steps", "2", "--allow-out-of-range"]
    assert main(["record", str(teacher), "--out", str(out), *told]) == 0
    return out


def fails(capsys, *argv):
    """The one line of an error: exit code 2, nothing else on stderr."""
    capsys.readouterr()
    assert main(list(map(str, argv))) == 2
    told = capsys.readouterr().err.strip()
    *before, line = told.splitlines()
    assert line.startswith("fewstep: ") and "Traceback" not in told
    assert not [other for other in before if other.startswith("fewstep: cannot")]
    return line


def test_a_run_folder_holds_everything_about_a_run(teacher):
    there = {path.name for path in teacher.iterdir()}
    assert there == {
        "recipe.toml", "progress.jsonl", "samples", "model.safetensors", "state", "report.html"
    }  # fmt: skip
    lines = [json.loads(line) for line in (teacher / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and "student/loss" in lines[-1]
    assert [path.name for path in sorted((teacher / "samples").iterdir())] == [
        "step-0000000.png",
        "step-0000004.png",
    ]
    assert "before training" in (teacher / "report.html").read_text()


def test_the_same_command_again_is_finished_and_another_recipe_is_refused(teacher, capsys):
    again = ["train", "digits-flow", *TINY, "fit.steps=4", "--out", str(teacher)]
    assert main(again) == 0
    assert "is finished" in capsys.readouterr().out
    line = fails(capsys, "train", "digits-flow", *TINY, "fit.steps=5", "--out", teacher)
    assert (
        "belongs to another recipe: fit.steps is 4 in its recipe.toml and 5 in this recipe" in line
    )


def test_students_from_the_teacher_and_its_pairs(folder, teacher, pairs, capsys):
    small = ["fit.steps=2", "fit.batch=8", f"teacher.load={teacher}"]
    for recipe, more in (
        ("digits-regress", [f"pairs.load={pairs}"]),
        ("digits-consistency", []),
    ):
        out = folder / recipe
        assert main(["distill", recipe, *small, *more, "--out", str(out)]) == 0
        grid = out / "grid.png"
        assert main(["sample", str(out), "-o", str(grid), "-n", "20", "--steps", "1"]) == 0
        with Image.open(grid) as image:
            assert image.size[0] > 600  # ten classes side by side
    capsys.readouterr()


def test_sampling_takes_seed_labels_and_either_weights(teacher, tmp_path):
    def draw(name, *more):
        out = tmp_path / name
        argv = ["sample", str(teacher), "-o", str(out), "-n", "4", "--steps", "2", *more]
        assert main(argv) == 0
        return np.asarray(Image.open(out))

    plain = draw("a.png")
    assert np.array_equal(plain, draw("b.png"))
    assert not np.array_equal(plain, draw("c.png", "--seed", "1"))
    assert not np.array_equal(plain, draw("d.png", "--label", "3"))
    assert not np.array_equal(plain, draw("e.png", "--weights", "raw"))
    assert not np.array_equal(plain, draw("f.png", "--sampler", "ancestral"))
    chosen = draw("g.png", "--sampler", '{name="multistep", order=3}', "--grid", "log-snr")
    assert not np.array_equal(chosen, draw("h.png", "--sampler", '{name="multistep", order=3}'))
    assert np.array_equal(plain, draw("g.png", "--times", "1.0,0.5"))


def test_evaluate_prints_a_json_list(teacher, capsys):
    capsys.readouterr()
    argv = ["evaluate", str(teacher), "--steps", "1,2", "--samples", "60", "--extractor", "pixels"]
    assert main([*argv, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["steps"] for entry in entries] == [1, 2]
    for entry in entries:
        assert entry["evaluations"] == entry["steps"] and entry["samples"] == 60
        assert entry["extractor"] == "pixels" and entry["accuracy"] is None
        assert entry["reference"].startswith("digits (1797")
        assert entry["frechet"] > 0 and entry["seconds_per_image"] > 0
    assert main([*argv, "--sampler", "heun", "--json"]) == 0
    assert [e["evaluations"] for e in json.loads(capsys.readouterr().out)] == [1, 3]
    assert main(argv) == 0
    assert "Fréchet" in capsys.readouterr().out


def test_record_tells_and_verifies(pairs, tmp_path, capsys):
    import shutil

    capsys.readouterr()
    assert main(["record", "--info", str(pairs)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == 40 and told["provenance"]["sampler"] == {"name": "heun", "clip": None}
    assert main(["record", "--verify", str(pairs)]) == 0
    broken = tmp_path / "broken"
    shutil.copytree(pairs, broken)
    shard = next(broken.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["record", "--verify", str(broken)]) == 2
    assert "shard" in capsys.readouterr().err


def test_bad_input_is_one_line_that_says_what_to_do(
    teacher, folder, home, tmp_path, capsys, monkeypatch
):
    """Every mistake of the issue's list."""
    monkeypatch.chdir(tmp_path)  # away from the runs of whoever develops here
    whole = (teacher / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "fine.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    png = ["-o", tmp_path / "x.png"]
    sample = ["sample", teacher, *png]
    cases = [
        (
            ["train", "digits-flow", "fit.stepz=3"],
            "key fit.stepz; did you mean fit.steps",
        ),
        (["train", "digits-flo"], "did you mean digits-flow"),
        (["sample", tmp_path / "cut.safetensors", *png], "cut.safetensors is damaged"),
        (["sample", tmp_path / "foreign.safetensors", *png], "was not written by fewstep"),
        (
            ["sample", tmp_path / "nowhere", *png],
            "does not exist: give a run folder or a weights file",
        ),
        ([*sample, "--label", "10"], "label 10 is out of range; the classes are 0 to 9"),
        ([*sample, "--times", "1.5,0.5"], "--times is 1.5; it must be a number from 0 to 1"),
        ([*sample, "--steps", "0"], "--steps is 0; it must be an integer"),
        ([*sample, "--times", "0.9", "--grid", "uniform"], "--times replaces --grid"),
        ([*sample, "--sampler", "huen"], "unknown sampler 'huen'; did you mean heun?"),
        ([*sample, "-n", "0"], "--count is 0; it must be an integer from 1"),
        ([*sample, "--seed", "-1"], "seed"),
        (["evaluate", teacher, "--steps", "two"], "separate them by commas"),
        ([*sample, "--label", "3 4"], "separate them by commas"),
        (["evaluate", teacher, "--extractor", "inceptoin"], "unknown extractor"),
        (
            ["train", "digits-flow", "data.name=folder", f"data.path={pictures}"],
            "broken.png",
        ),
        (["record", teacher, "--out", tmp_path / "p", "--sampler", "ancestral"], "no function"),
        (["record", teacher], "--out DIR"),
        (["distill", "digits-regress", f"teacher.load={teacher}"], "runs/digits-pairs"),
        (["distill", "digits-consistency"], "runs/digits-flow"),
        (["tarin"], "did you mean train"),
    ]
    for argv, wanted in cases:
        assert wanted in fails(capsys, *argv), argv


def test_a_missing_data_set_says_which_files_go_where(home, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    line = fails(capsys, "train", "digits-flow", "data.name=mnist")
    assert "train-images-idx3-ubyte.gz" in line and str(home) in line


def refuse(*_, **__):
    raise OSError("no network")


def test_help_lists_every_verb_and_each_has_its_own(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "usage" in capsys.readouterr().out


def test_help_of_a_recipe_lists_the_methods_own_keys(capsys):
    assert main(["train", "digits-consistency", "--help"]) == 0
    told = capsys.readouterr().out
    assert "method.levels" in told and "fit.lr" in told and "student.init" in told


def test_doctor_tells_of_this_machine(home, capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert torch.__version__ in told and str(home) in told and "mnist" in told
    assert "lpips-squeeze" in told and f"{home}/weights" in told


def test_doctor_counts_the_files_of_a_set(home, capsys):
    from fewstep.data.cifar10 import FILES

    folder = home / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for file in FILES["train"]:
        (folder / file).touch()
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("cifar10")] == [
        "cifar10           1 of 6 files (test_batch.bin) missing; downloaded to "
        f"{home}/data at its first use"
    ]
    assert any(line.startswith("celeba ") and f"{home}/data/celeba" in line for line in lines)


def test_doctor_describes_a_set(tmp_path, capsys):
    for name in ("b/0", "b/1", "a/0"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 5), (0, 0, 9 * int(name[-1]))).save(path)
    assert main(["doctor", f"folder:{tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fingerprint = load("folder", path=tmp_path).fingerprint
    assert [line.split(maxsplit=1) for line in lines] == [
        ["set", f"{tmp_path.name}, train, of {tmp_path}"],
        ["images", "3"],
        ["shape", "3 x 5 x 4 (channels, height, width)"],
        ["classes", "2: a (1) and b (2)"],
        ["column", "file_name"],
        ["files", "3: 3 in the set"],
        ["fingerprint", fingerprint],
        ["problem", "only one image has the class a: add images, or merge classes"],
        ["problem", "1 image too many: exact copies of others"],
        ["problem", "1 image with two labels: exact copies in another class"],
    ]
    assert main(["doctor", "digits", "--size", "4"]) == 0
    assert "1 x 4 x 4" in capsys.readouterr().out
    assert main(["doctor", f"folder:{tmp_path}", "--split", "test"]) == 2
    assert capsys.readouterr().err == "fewstep: folder has no split 'test'; choose train\n"


PROBLEMS = {
    (3, 1): "only one image has the class b: add images, or merge classes",
    (1, 1): "each image has a class of its own: are the labels names of files?",
    (4,): "there is only one class: train with data.labels=false",
    (
        42,
        2,
    ): "the classes are very unequal: a has 42 images, b has 2; rare classes are learned badly",
    (2, 0, 2): "no image has the class b: remove it, or add images",
}


@pytest.mark.parametrize("counts", PROBLEMS)
def test_doctor_finds_classes_with_few_images(counts, monkeypatch, capsys):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    images = ImageSet("pets", pixels, labels, tuple("abc"[: len(counts)]))
    monkeypatch.setattr("fewstep.data.load", lambda *_, **__: images)
    assert main(["doctor", "digits"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == [
        "problem",
        PROBLEMS[counts],
    ]


def run_cli(*argv, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep", *map(str, argv)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def wait_for_step(folder: Path, step: int, process):
    for _ in range(1200):
        log = folder / "progress.jsonl"
        if log.exists() and any(
            json.loads(line)["step"] >= step for line in log.read_text().splitlines()[:-1]
        ):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the training does not get there")


LONG = [*TINY, "fit.steps=120", "fit.save_every=20", "fit.lr=1e-3"]


@pytest.fixture(scope="module")
def undisturbed(folder):
    out = folder / "undisturbed"
    _, errors = (process := run_cli("train", "digits-flow", *LONG, "--out", out)).communicate()
    assert process.returncode == 0, errors
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_interrupted_and_a_killed_run_end_in_the_same_bytes(folder, undisturbed):
    """Stopped by Ctrl-C, then killed in mid-training, and started again after each."""
    out = folder / "stopped"
    process = run_cli("train", "digits-flow", *LONG, "--out", out)
    wait_for_step(out, 20, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "to resume: fewstep train digits-flow" in " ".join(output.split())
    process = run_cli("train", "digits-flow", *LONG, "--out", out)
    wait_for_step(out, 50, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    _, errors = (again := run_cli("train", "digits-flow", *LONG, "--out", out)).communicate()
    assert again.returncode == 0, errors
    assert (out / "model.safetensors").read_bytes() == undisturbed
    lines = (out / "progress.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    steps = [line["step"] for line in logged if "hardware" not in line]
    assert steps == sorted(set(steps))


def test_a_loss_that_explodes_ends_in_one_line(folder, capsys):
    out = folder / "exploded"
    line = fails(
        capsys, "train", "digits-flow", *TINY, "fit.steps=50", "fit.lr=1e18", "fit.clip=0",
        "fit.save_every=1", "--out", out,
    )  # fmt: skip
    assert "lower fit.lr" in line and line.endswith(" fit.lr=1e+17")
