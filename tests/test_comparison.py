"""Comparisons as a library: baseline, shared reference sets, progress, and nothing printed."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from analytic import exact
from fewstep import runs
from fewstep.checksums import json_line
from fewstep.comparison import (
    compare,
    find_baseline,
    make_evaluators,
    make_exhibit,
)
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.loading import LoadedRun, load_run, load_runs, reference_images
from fewstep.metrics import EvalProtocol
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.recipe import parse, read
from fewstep.sample_spec import SampleSpec

SHAPE = (1, 8, 8)
PROTOCOL = EvalProtocol(20, "pixels")


def recipe(teacher=None, **data):
    table = {"data": {"name": "digits", **data}, "method": {"name": "denoise"}}
    return parse(table | ({"teacher": {"load": teacher}} if teacher else {}))


def loaded(name, by=None):
    generator = Generator(exact(Flow(), Velocity(), SHAPE), SampleSpec(SHAPE))
    return LoadedRun(name, f"runs/{name}", generator, by, None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A weights file of a small untrained network, with its recipe."""
    from fewstep.denoiser import Denoiser

    by = read("digits-flow", ["student.backbone.channels=[8]", "student.backbone.groups=4"])
    backbone = by.student.backbone.build(shape=SHAPE, classes=10)
    generator = Generator(Denoiser(backbone, Flow(), Velocity()), SampleSpec(SHAPE, 10))
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    runs.save_generator(path, generator, by.table(), {}, step=7)
    return path


def test_the_baseline_is_the_first_in_the_line_of_teachers():
    first, second = loaded("first", recipe()), loaded("second", recipe("runs/first"))
    third = loaded("third", recipe("runs/second"))
    assert find_baseline([third, second, first]) is first
    assert find_baseline([third, second]) is second  # its own teacher is not among them
    assert find_baseline([third, first]) is None  # nobody's teacher is among them
    assert find_baseline([loaded("foreign")]) is None
    spaced = loaded("first?timestep_spacing=trailing")
    assert find_baseline([second, spaced]) is spaced  # options change no weights


def test_a_baseline_may_be_named_by_name_or_address():
    entries = [loaded("first"), loaded("second")]
    assert find_baseline(entries, "second") is find_baseline(entries, "runs/second") is entries[1]
    with pytest.raises(InputError, match="fist is not one of the runs; did you mean first"):
        find_baseline(entries, "fist")


def test_runs_of_one_set_share_an_evaluator():
    entries = [loaded("a", recipe()), loaded("foreign"), loaded("b", recipe())]
    a, foreign, b = make_evaluators(entries, PROTOCOL)
    assert a is foreign is b  # a run without a recipe takes the set of the others
    a, b = make_evaluators([entries[0], loaded("c", recipe(split="train"))], PROTOCOL)
    assert a is b  # other settings, equal images
    a, b = make_evaluators([entries[0], loaded("large", recipe(size=16))], PROTOCOL)
    assert a is not b


def test_a_run_without_a_recipe_needs_the_name_of_a_set():
    assert reference_images(loaded("foreign"), "digits").shape == SHAPE
    with pytest.raises(InputError, match="its training data are unknown"):
        reference_images(loaded("foreign"))
    settings = (recipe(), recipe(size=16))
    entries = [loaded(str(i), by) for i, by in enumerate(settings)]
    with pytest.raises(InputError, match="its training data are unknown"):
        make_evaluators([*entries, loaded("foreign")], PROTOCOL)


def test_a_comparison_prints_nothing_and_reports_its_progress(saved, capfd):
    updates = []

    @contextmanager
    def bar(description, total):
        yield lambda done: updates.append((description, done, total))

    comparison = compare([str(saved)], PROTOCOL, [1, 2], bar=bar)
    assert capfd.readouterr() == ("", "")
    (exhibit,) = comparison.exhibits
    assert exhibit.name == "model.safetensors (best, step 7)" and not exhibit.baseline
    assert [score.steps for score in exhibit.scores] == [1, 2]
    assert comparison.title == f"{exhibit.name} against digits"
    assert comparison.evaluator and comparison.evaluator.images.name == "digits"
    assert updates[0][0] == "digits, real"
    assert updates[-1] == (f"{saved}, 2 steps", 20, 20)
    again = compare([str(saved)], PROTOCOL, [2])
    assert again.exhibits[0].scores[0].measures == exhibit.scores[1].measures


def test_an_exhibit_shows_progress_up_to_the_step_of_its_weights(saved):
    run = replace(load_run(saved), address=str(saved.parent))
    lines = (json_line({"step": step}) for step in (6, 7, 8))
    (saved.parent / "progress.jsonl").write_bytes(b"".join(lines))
    (saved.parent / "recipe.toml").write_text(run.recipe.toml())
    exhibit = make_exhibit(run, [])
    assert [line["step"] for line in exhibit.progress] == [6, 7]
    recipe_file = Path(saved.parent / "recipe.toml")
    assert exhibit.commands == [f"fewstep train {recipe_file} --out {saved.parent}"]
    assert make_exhibit(run, [], commands=["mine"]).commands == ["mine"]


def test_equal_names_are_told_apart_by_address(saved, tmp_path):
    other = tmp_path / saved.name
    other.write_bytes(saved.read_bytes())
    names = [run.name for run in load_runs([str(saved), str(other)])]
    assert names == [f"{path} (best, step 7)" for path in (saved, other)]
