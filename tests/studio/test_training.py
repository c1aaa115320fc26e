"""What the page says of a training: steps, rate, time left, curves."""

import pytest

from fewstep.checksums import json_line
from fewstep.run_folder import Run
from fewstep.studio.training import MAX_POINTS, view_training


@pytest.fixture
def log(tmp_path):
    """Write the log of a run with this recipe, and view it."""

    def write(lines, recipe="[fit]\nsteps = 100\n", tail=""):
        (tmp_path / "recipe.toml").write_text(recipe)
        text = b"".join(map(json_line, lines))
        (tmp_path / "progress.jsonl").write_bytes(text + tail.encode())
        return view_training(Run(tmp_path))

    return write


def steps(*pairs):
    return [{"step": step, "images": step, "seconds": seconds} for step, seconds in pairs]


def test_the_time_left_follows_the_latest_rate(log):
    view = log(steps((10, 100.0), *((10 + i, 100 + i / 2) for i in range(1, 31))))
    assert (view.step, view.total, view.finished) == (40, 100, False)
    assert view.steps_per_second == pytest.approx(2) and view.seconds_left == pytest.approx(30)


def test_a_resumed_training_counts_its_own_time_only(log):
    view = log(steps((10, 90.0), (20, 99.0), (30, 1.0), (40, 3.0)))
    assert view.steps_per_second == pytest.approx(5)


@pytest.mark.parametrize("lines", [[], [{"step": 0, "hardware": "a CPU"}], steps((10, 1.0))])
def test_without_a_rate_the_time_left_is_unknown(log, lines):
    view = log(lines)
    assert view.seconds_left is None and view.steps_per_second is None


def test_a_finished_training_has_no_time_left(log):
    view = log(steps((90, 1.0), (100, 2.0)))
    assert view.finished and view.seconds_left is None


@pytest.mark.parametrize("recipe", ["", "[fit]", "fit = 3", "[fit]\nsteps = 'x'", "garbage ]["])
def test_an_unreadable_recipe_leaves_the_total_unknown(log, recipe):
    view = log(steps((10, 1.0), (20, 2.0)), recipe)
    assert view.total is None and view.seconds_left is None and not view.finished


def test_curves_are_the_numbers_of_the_log_without_an_incomplete_line(log):
    lines = [{"step": s, "images": s, "seconds": s, "student/loss": 1 / s} for s in (1, 2)]
    lines.append({"step": 2, "score": {"steps": 1, "frechet": 4.0}})
    view = log(lines, tail='{"step": 3, "student/lo')
    assert view.curves["student/loss"] == {1: 1.0, 2: 0.5}
    assert view.curves["score/1-step/frechet"] == {2: 4.0}
    assert not {"seconds", "images", "memory", "total"} & {*view.curves}


def test_long_curves_are_thinned_and_keep_their_end(log):
    view = log([{"step": s, "images": s, "seconds": s, "loss": s} for s in range(1, 3001)])
    curve = view.curves["loss"]
    assert MAX_POINTS / 2 < len(curve) <= MAX_POINTS + 1 and curve[3000] == 3000 and 1 in curve
