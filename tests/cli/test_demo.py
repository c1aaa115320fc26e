"""The demo from end to end, each training cut to two steps, and its jobs."""

import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from fewstep import store
from fewstep.cli import demo, main
from fewstep.metrics import EvalProtocol
from fewstep.optimizers import average_problems, warmup_problem
from fewstep.recipe import read
from fewstep.schema import preset_names

PRESETS = resources.files("fewstep") / "presets"
SMALL = ("fit.steps=2", "fit.batch=4", "fit.warmup=0", "fit.ema_halflife=0.05")
BACKBONE = ("student.backbone.channels=[8]", "student.backbone.groups=4")


def set_plan(monkeypatch, option, **changes):
    monkeypatch.setitem(demo.PLANS, option, replace(demo.PLANS[option], **changes))


@pytest.fixture
def short(monkeypatch):
    # a student of pairs and one of images: each is a process of its own
    set_plan(
        monkeypatch,
        "",
        students=("regress", "meanflow"),
        overrides={"teacher": (*SMALL, *BACKBONE), "regress": SMALL, "meanflow": SMALL},
        stores={"pairs": demo.StoreSpec("teacher", 16, 8, "multistep", guidance=2.0)},
        samples=20,
    )
    monkeypatch.setattr("fewstep.metrics.protocol", lambda _: EvalProtocol(20, "pixels"))


def test_it_resumes_after_a_failure_and_ends_in_a_report(short, tmp_path, monkeypatch, capsys):
    out, overrides = tmp_path / "demo", demo.PLANS[""].overrides
    broken = (*SMALL, "fit.steps=9", "fit.lr=1e18", "fit.clip=0")
    set_plan(monkeypatch, "", overrides={**overrides, "meanflow": broken})
    assert main(["demo", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fewstep: meanflow: ") and "lower fit.lr" in error
    assert (out / "teacher" / "model.safetensors").exists()
    shutil.rmtree(out / "meanflow")
    set_plan(monkeypatch, "", overrides=overrides)
    assert main(["demo", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "fewstep demo --all" in output and "report.html" in output
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["teacher", "regress", "meanflow"]
    assert {score["guidance"] for score in results["teacher"]} == {2.0}
    assert [score["steps"] for score in results["regress"]] == [1]
    assert [score["steps"] for score in results["meanflow"]] == [1, 2, 4]
    page = (out / "report.html").read_text()
    assert "fewstep demo --all" in page and "before training" in page
    assert f"fewstep evaluate {out}/regress --steps 1 --protocol quick --samples 20</pre>" in page
    assert (
        "--sampler multistep --guidance 2" in page
        and "--steps 1,2,4,16 --protocol quick --samples 20 --guidance 2" in page
    )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert main(["demo", "--out", str(out)]) == 0  # nothing is done again
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}


@pytest.mark.slow
def test_its_processes_train_what_the_commands_train_by_hand(short, tmp_path):
    """The same bytes side by side, in processes of one thread, as one after the other."""
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    setup, alone = demo.Demo(out, demo.PLANS[""]), tmp_path / "alone"
    for name in ("teacher", "meanflow"):
        words = ["train", setup.preset(name), *setup.overrides(name), "--out", str(alone / name)]
        assert main(words) == 0
        model = Path(name) / "model.safetensors"
        assert (out / model).read_bytes() == (alone / model).read_bytes()


def test_its_trainings_begin_without_a_warning():
    quick = demo.Demo(Path("x"), demo.PLANS[""])
    for name in quick.plan.overrides:
        fit = read(quick.preset(name), quick.overrides(name)).fit
        assert average_problems(fit) == [] and warmup_problem(fit, "fit", fit.steps) is None


def test_two_demos_at_once_are_refused(capsys):
    assert main(["demo", "--all", "--cifar10"]) == 2
    assert "--all and --cifar10 are two demos" in capsys.readouterr().err


def test_the_demo_of_cifar10_reads_its_own_runs():
    plan = demo.PLANS["--cifar10"]
    small = demo.Demo(Path("x"), plan)
    recipe = read(small.preset("regress"), small.overrides("regress"))
    assert recipe.teacher and recipe.teacher.load == "x/teacher"
    assert recipe.pairs and recipe.pairs.load == "x/pairs"
    # the command in the preset records the same pairs
    text = (PRESETS / "cifar10-cpu-regress.toml").read_text()
    comment = next(line for line in text.splitlines() if line.startswith("# recorded by: "))
    assert comment.endswith(" ".join(plan.stores["pairs"].options))


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*bf16, for which this CPU")
def test_the_demo_computes_in_the_number_format(short, tmp_path):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--precision", "bf16"]) == 0
    assert store.Reader(out / "pairs").provenance["precision"] == "bf16"
    for name in ("teacher", "regress"):
        assert read(str(out / name / "recipe.toml")).fit.precision == "bf16"
    page = (out / "report.html").read_text()
    assert "--guidance 2 --precision bf16" in page and page.count("fit.precision=bf16") > 1


def test_every_method_of_it_is_a_preset_that_reads_the_demos_own_runs():
    whole = demo.Demo(Path("x"), demo.PLANS["--all"])
    students = {n.removeprefix("digits-") for n in preset_names() if n.startswith("digits-")}
    assert set(whole.plan.students) == students - {"flow", "edm"}
    for name in whole.plan.students:
        recipe = read(whole.preset(name), whole.overrides(name))
        if name == "circuit":  # a teacher of its own kind
            assert recipe.teacher is None
            continue
        sums = name == "residual-sum"
        assert recipe.teacher and recipe.teacher.load == ("x/circuit" if sums else "x/teacher")
        assert recipe.pairs is None or recipe.pairs.load == ("x/rings" if sums else "x/pairs")
        assert recipe.student.init in ("teacher", "scratch", "x/sfd")
        after = whole.plan.students.index(name)
        assert recipe.student.init != "x/sfd" or "sfd" in whole.plan.students[:after]
