"""Averages of weights whose length is chosen after training.

A run with `fit.ema_lengths` saves snapshots of averages with power profiles. An average of another
length is a sum of the snapshots, whose coefficients bring the sum of their profiles closest to its
profile, in the mean square. Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.ema import power_exponent
from fewstep.errors import InputError
from fewstep.run_folder import Run
from fewstep.trainer import Training
from fewstep.weights_file import (
    AVERAGES,
    read_description,
    read_weights_file,
    write_weights_file,
)

SNAPSHOTS = 16
"""Number of snapshots of a training by default."""


@dataclass(frozen=True)
class Profile:
    """A power profile: at time tau up to `time`, its weight is proportional to tau**exponent."""

    exponent: float
    time: float

    def dot(self, other: "Profile") -> float:
        """The integral of the product of two profiles, whose own integrals are 1."""
        a, b, end = self.exponent, other.exponent, min(self.time, other.time)
        shares = (end / self.time) ** a * (end / other.time) ** b
        return (a + 1) * (b + 1) / (a + b + 1) * shares * end / (self.time * other.time)


def combine(profiles: list[Profile], target: Profile) -> tuple[list[float], float]:
    """The factors with which `profiles` sum to `target`, as well as they can, and how badly.

    The second number is the distance of the sum from the target, relative to the length of the
    target, both in the mean square: 0 for an exact sum. The factors sum to 1. Profiles that are
    equal, or nearly, share a factor: large ones of opposite signs would magnify rounding errors.
    """
    pairs = [[a.dot(b) for b in profiles] for a in profiles]
    matrix = torch.tensor(pairs, dtype=torch.float64)
    vector = torch.tensor([each.dot(target) for each in profiles], dtype=torch.float64)
    norms = matrix.diagonal().sqrt()
    inverse = torch.linalg.pinv(matrix / norms.outer(norms), rtol=1e-12, hermitian=True)
    factors = inverse @ (vector / norms) / norms
    factors = factors / factors.sum()
    square = target.dot(target)
    rest = square - 2 * float(factors @ vector) + float(factors @ matrix @ factors)
    return factors.tolist(), math.sqrt(max(rest, 0.0) / square)


def is_due(step: int, steps: int, count: int) -> bool:
    """Whether one of `count` snapshots at even distances in a training is of this step."""
    return step * count // steps > (step - 1) * count // steps


def save_snapshot(run: Run, training: Training) -> None:
    """Write the averages with power profiles, if they are due at this step and not yet there."""
    config = training.config
    path = run.snapshot_file(training.run_step)
    count = config.ema_snapshots or SNAPSHOTS
    due = config.ema_lengths and training.step and is_due(training.step, config.steps, count)
    if not due or path.exists():
        return
    names = [name for name, _ in training.method.result().named_parameters()]
    tensors = {
        f"{index}.{name}": value
        for index, average in enumerate(training.power_averages.values)
        for name, value in zip(names, average, strict=True)
    }
    note = {"kind": AVERAGES, "lengths": list(config.ema_lengths or ()), "step": training.step}
    write_weights_file(path, tensors, note)


@dataclass(frozen=True)
class Average:
    """Weights averaged with a power profile."""

    weights: dict[str, Tensor]
    """Parameters by their names in the generator."""
    snapshots: int
    """Number of snapshots of which it is the sum."""
    error: float
    """Distance of its profile from the one asked for; see `combine`."""


def reconstruct(
    run: Run, length: float, *, update: Callable[[int], object] = lambda done: None
) -> Average:
    """The average of a run's weights whose profile has the standard deviation `length`, as a share
    of the training up to the last snapshot.

    Snapshots are read one after another; `update` is called with the number of those done.

    Raises: InputError for a run without snapshots, or with damaged ones, or of several networks.
    """
    files = [*run.snapshots().values()]
    if not files:
        raise InputError(
            f"{run.folder} has no snapshots of averages: train with fit.ema_lengths=[0.05, 0.1]"
        )
    notes = [read_note(path) for path in files]
    profiles = [
        [Profile(power_exponent(own), note["step"]) for own in note["lengths"]] for note in notes
    ]
    target = Profile(power_exponent(length), max(note["step"] for note in notes))
    factors, error = combine([each for row in profiles for each in row], target)
    sums: dict[str, Tensor] = {}
    place = 0
    for done, (path, row) in enumerate(zip(files, profiles, strict=True), 1):
        tensors, _ = read_weights_file(path)
        own = factors[place : place + len(row)]
        place += len(row)
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            term = own[int(index)] * value.double()
            if sums.setdefault(name, torch.zeros_like(term)).shape != term.shape:
                raise InputError(
                    f"{path} is of another network than the snapshots before: remove it"
                )
            sums[name] += term
        update(done)
    weights = {name: value.float() for name, value in sums.items()}
    return Average(weights, len(files), error)


def read_note(path: Path) -> dict[str, Any]:
    """The lengths and the step of a snapshot.  Raises: InputError for another file."""
    note = read_description(path)
    lengths, step = note.get("lengths"), note.get("step")
    numbers = [step, *lengths] if isinstance(lengths, list) else [None]
    sound = all(isinstance(each, int | float) and each > 0 for each in numbers)
    if note.get("kind") != AVERAGES or not sound:
        raise InputError(f"{path} is no snapshot of averages: remove it from the run's averages/")
    return note
