"""Scores taken in the course of a training, the weights that scored best, perceptual losses."""

import os
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep import runs
from fewstep.assembly import assemble, read_data
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.recipe import read
from fewstep.run_folder import Run
from fewstep.runner import run_recipe

DEVICE = torch.device("cpu")
SMALL = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
    "fit.lr=0.01",
    "fit.ema_halflife=16",
    "fit.save_every=4",
    "evaluate.every=2",
    "evaluate.samples=100",
    'evaluate.extractor="pixels"',
    "evaluate.steps=[1,2]",
]


def recipe(*more):
    return read("digits-flow", [*SMALL, "fit.steps=12", *more])


def train(folder, *more, until=None):
    with closing(run_recipe(recipe(*more), folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


def scores(run, steps):
    logged = [line for line in run.progress() if "score" in line]
    return {p["step"]: p["score"] for p in logged if p["score"]["steps"] == steps}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment") / "run"
    train(folder, "evaluate.best=2")
    return Run(folder)


def test_scores_are_logged_with_all_they_depend_on(trained):
    for steps in (1, 2):
        told = scores(trained, steps)
        assert sorted(told) == [2, 4, 6, 8, 10, 12]
        assert all(s["extractor"] == "pixels" and s["samples"] == 100 for s in told.values())


def test_the_best_weights_are_those_of_the_best_score(trained):
    best = min(scores(trained, 2).values(), key=lambda s: s["frechet"])
    generator = runs.load(trained.folder, weights="best")
    told = recipe("evaluate.best=2")
    again = Evaluator(read_data(told), told.evaluate.evaluation_protocol).score(generator, steps=2)
    assert again.frechet == pytest.approx(best["frechet"], rel=1e-6)


@pytest.mark.slow
def test_a_best_that_is_not_the_last_stays(tmp_path, monkeypatch):
    """Were step 6 the best, its weights would be kept: those of a run that stopped there."""
    honest, asked = Evaluator.score, []

    def told(self, generator, *, steps, **more):
        asked.append(steps)
        real = honest(self, generator, steps=steps, **more)
        far = abs(asked.count(2) - 3) if steps == 2 else -asked.count(1)
        return replace(real, measures=replace(real.measures, frechet=float(far)))

    monkeypatch.setattr(Evaluator, "score", told)
    train(tmp_path / "run", "evaluate.best=2")
    train(tmp_path / "short", "evaluate.best=2", until=6)
    kept, last, sixth = (
        runs.weights_hash(runs.load(tmp_path / folder, weights=weights))
        for folder, weights in (("run", "best"), ("run", "ema"), ("short", "ema"))
    )
    assert kept == sixth != last


def test_a_stopped_run_resumes_to_the_same_scores_and_the_same_best(trained, tmp_path):
    folder = tmp_path / "run"
    train(folder, "evaluate.best=2", until=7)
    # what was written after the kept step is dropped: here, the scores of step 8
    Run(folder).log({"step": 8, "score": {"steps": 2, "frechet": -1.0}})
    train(folder, "evaluate.best=2")
    again = Run(folder)
    for steps in (1, 2):
        mine, theirs = scores(again, steps), scores(trained, steps)
        assert {k: v["frechet"] for k, v in mine.items()} == {
            k: v["frechet"] for k, v in theirs.items()
        }
    assert again.best_file.read_bytes() == trained.best_file.read_bytes()
    assert again.model_file.read_bytes() == trained.model_file.read_bytes()
    starts = [line["step"] for line in again.progress() if "hardware" in line]
    assert starts == [0, 7]


def test_players_that_move_now_and_then_are_logged_too(trained, tmp_path):
    """At steps 2, 4, … the student of every = 2 stands still; its last numbers are told."""
    load = f"teacher.load={trained.folder}"
    told = read("digits-dmd2", [load, "fit.steps=20", "fit.batch=4", "method.adversarial.weight=0"])
    for _ in run_recipe(told, tmp_path / "dmd", log_every=10):
        pass
    lines = [line for line in Run(tmp_path / "dmd").progress() if "images" in line]
    assert [line["step"] for line in lines] == [10, 20]
    assert all("student/loss" in line and "fake/loss" in line for line in lines)


def test_a_copied_students_dropout_may_be_changed(tmp_path):
    teacher = tmp_path / "teacher"
    train(teacher, "student.backbone.dropout=0.3", "evaluate.every=0", "fit.steps=1")
    told = read("digits-dmd2", [f"teacher.load={teacher}", "student.dropout=0.1"])
    method = assemble(told, DEVICE).method
    dropped = {m.p for m in method.student.modules() if isinstance(m, nn.Dropout)}
    assert dropped == {0.1} and method.student.backbone.config.dropout == 0.1
    kept = {m.p for m in method.teacher.modules() if isinstance(m, nn.Dropout)}
    assert kept == {0.3}
    with pytest.raises(InputError, match="from 0 to below 1"):
        assemble(read("digits-dmd2", [f"teacher.load={teacher}", "student.dropout=1.0"]), DEVICE)


def test_warnings_before_training_are_given_at_every_start(tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    train(teacher, "evaluate.every=0", "fit.steps=1", "student.backbone.pace=1.0")
    told = read("digits-scm", [f"teacher.load={teacher}", "fit.steps=2", "fit.batch=4"])
    with pytest.warns(UserWarning, match=r"^Scm learns from the network's derivative in time"):
        next(run_recipe(told, student))
    with pytest.warns(UserWarning, match=r"^Scm learns from the network's derivative in time"):
        for _ in run_recipe(told, student):
            pass
    assert not list(run_recipe(told, student))  # finished: nothing to warn of


def test_a_flow_maps_weights_in_another_method_are_asked_as_they_are_trained(tmp_path):
    """A MeanFlow's network can be told where to go; DMD never tells it, nor do its samples."""
    teacher, mean = tmp_path / "teacher", tmp_path / "meanflow"
    train(teacher, "evaluate.every=0", "fit.steps=1")
    told = read("digits-meanflow", [f"teacher.load={teacher}", "fit.steps=1", "fit.batch=4"])
    for _ in run_recipe(told, mean):
        pass
    assert runs.load(mean).denoiser.is_flow_map
    method = assemble(read("digits-dmd2", [f"teacher.load={mean}"]), DEVICE).method
    noise = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for p in method.student.backbone.time_embedding_s.parameters():
            p.add_(0.1)  # a destination would now be seen
        made = method.generator()(noise)
        wanted = method.student(noise, 1.0).x0
    torch.testing.assert_close(made, wanted)


def circuit(trained, *more):
    told = [
        "student.backbone.network.channels=[8]",
        "student.backbone.network.groups=4",
        "student.backbone.state={channels=8, groups=2}",
        f'teacher.load="{trained.folder}"',
        "method.phases=[]",
        "fit.batch=8",
        "fit.steps=2",
    ]
    return read("digits-circuit", [*told, *more])


def test_phases_divide_all_steps(trained):
    teacher = f'teacher.load="{trained.folder}"'
    for steps, stops in ((1000, [150, 350, 600, 1000]), (20, [3, 7, 12, 20]), (4, [1, 2, 3, 4])):
        assembly = assemble(read("digits-progressive", [teacher, f"fit.steps={steps}"]), DEVICE)
        assert [phase.stop for phase in assembly.method.phases] == stops
    with pytest.raises(InputError, match="fit.steps is 3, but the method has 4 phases"):
        assemble(read("digits-progressive", [teacher, "fit.steps=3"]), DEVICE)


def test_methods_have_the_length_of_their_training(trained):
    teacher = f'teacher.load="{trained.folder}"'
    told = ["fit.steps=25", 'student.parametrization="v"', teacher]
    assembly = assemble(read("digits-consistency", told), DEVICE)
    assert assembly.adaptation
    assert (assembly.method.steps, assembly.adaptation[0].steps) == (25, 3)
    assert assembly.rebuild().steps == 25


def test_only_a_fresh_circuit_takes_its_teachers_weights(trained, tmp_path):
    source = runs.load(trained.folder).denoiser.backbone
    adapted = circuit(trained, "student.backbone.lora=2")
    conv = lambda of: of.backbone.encoder.conv_in.weight  # noqa: E731
    assert conv(assemble(adapted, DEVICE).method.student).equal(source.conv_in.weight)
    with closing(run_recipe(adapted, tmp_path / "adapted")) as steps:
        list(steps)
    again = replace(adapted, student=replace(adapted.student, init=str(tmp_path / "adapted"),
                    backbone=None, process=None, parametrization=None))  # fmt: skip
    moved = runs.load(tmp_path / "adapted").denoiser
    assert not conv(moved).equal(source.conv_in.weight)
    assert conv(assemble(again, DEVICE).method.student).equal(conv(moved))


def test_without_evaluations_there_is_no_best(tmp_path):
    train(tmp_path / "run", "evaluate.every=0", until=4)
    with pytest.raises(runs.InputError, match="has no best.safetensors: set evaluate.every"):
        runs.load(tmp_path / "run", weights="best")


def test_a_features_loss_is_bound_to_the_classifier_of_the_runs_images(tmp_path, pairs_of):
    teacher, pairs = pairs_of
    told = read(
        "digits-regress",
        [
            f"teacher.load={teacher}",
            f"pairs.load={pairs}",
            'method.loss={name="features", mse=0.1}',
            "fit.steps=3",
            "fit.batch=8",
        ],
    )
    parts = assemble(told, torch.device("cpu"))
    assert parts.method.config.loss.weights.startswith(os.environ["FEWSTEP_CACHE"])
    folder = tmp_path / "student"
    losses = [p.numbers["student/loss"] for p in run_recipe(told, folder)]
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)
    # the recipe that is kept is everybody's, not this machine's
    assert os.environ["FEWSTEP_CACHE"] not in (folder / "recipe.toml").read_text()


@pytest.fixture
def pairs_of(tmp_path):
    from fewstep.cli import main

    teacher, pairs = tmp_path / "teacher", tmp_path / "pairs"
    train(teacher, "evaluate.every=0", until=4)
    told = ["-n", "16", "--steps", "2", "--allow-out-of-range"]
    assert main(["record", str(teacher), "--out", str(pairs), *told]) == 0
    return teacher, pairs
