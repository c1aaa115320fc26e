"""The log of a training as curves, with the time that is left."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.run_folder import Run
from fewstep.trackers import numbers

LAST = 10
"""Number of the latest log lines that the rate is computed from."""
MAX_POINTS = 500
"""Points of a curve that are shown; of a longer one, every n-th."""
_NO_CURVES = frozenset({"step", "images", "seconds", "memory", "total"})


@dataclass(frozen=True)
class TrainingView:
    """What the page shows of a training."""

    step: int
    total: int | None
    """Training steps of the recipe; None if it cannot be read."""
    seconds_left: float | None
    """None if the training is finished, or its rate is not known yet."""
    steps_per_second: float | None
    curves: Mapping[str, Mapping[int, float]]
    """Values by training step, of each number in the log."""

    @property
    def finished(self) -> bool:
        """Whether the last step of the recipe is in the log."""
        return self.total is not None and self.step >= self.total


def view_training(run: Run) -> TrainingView:
    """Read the log of a run."""
    lines = run.progress()
    timed = [line for line in lines if isinstance(line.get("seconds"), (int, float))]
    step = max((line["step"] for line in lines), default=0)
    total, rate = _total_steps(run, lines), _rate(timed)
    left = None if not total or not rate or step >= total else (total - step) / rate
    return TrainingView(step, total, left, rate, _curves(lines))


def _total_steps(run: Run, lines: Sequence[Mapping[str, Any]]) -> int | None:
    logged = max((line.get("total", 0) for line in lines), default=0)
    if logged:
        return int(logged)
    try:
        return int(tomllib.loads(run.recipe_file.read_text())["fit"]["steps"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError):
        return None


def _rate(timed: Sequence[Mapping[str, Any]]) -> float | None:
    """Steps per second of the latest lines; the logged time restarts when a run resumes."""
    recent = list(timed[-LAST:])
    for i in range(len(recent) - 1, 0, -1):
        if recent[i]["seconds"] < recent[i - 1]["seconds"]:
            recent = recent[i:]
            break
    if len(recent) < 2:
        return None
    elapsed = recent[-1]["seconds"] - recent[0]["seconds"]
    steps = recent[-1]["step"] - recent[0]["step"]
    return steps / elapsed if elapsed > 0 and steps > 0 else None


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in numbers(line).items():
            if name not in _NO_CURVES:
                curves.setdefault(name, {})[line["step"]] = value
    return {name: _thin(curve) for name, curve in curves.items()}


def _thin(curve: dict[int, float]) -> dict[int, float]:
    """Every n-th point, and the last."""
    stride = -(-len(curve) // MAX_POINTS)
    steps = list(curve)
    return {step: curve[step] for step in dict.fromkeys([*steps[::stride], steps[-1]])}
