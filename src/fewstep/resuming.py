"""How a training starts in a run folder: from the beginning, or from the state saved there.

A run folder belongs to one recipe, of which some settings may change when the training resumes:
those that have no effect on the weights, the addresses of data and weights whose hashes are equal,
and those of the optimisers after a loss that was not finite. `fit.steps` may grow if the result is
that of a training of this length from the start.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.optimizers import FitConfig
from fewstep.recipe import Recipe
from fewstep.run_folder import Run, flatten
from fewstep.trainer import Training

State = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors and JSON object of a saved state."""
Changes = Mapping[str, tuple[Any, Any]]
"""Earlier and new value of each setting that differs; None if it is not set."""

PINS = {
    "data.path": "data",
    "data.prompts": "data.prompts",
    "data.autoencoder": "autoencoder",
    "data.latents": "latents",
    "text.model": "text",
    "teacher.load": "teacher",
    "teacher.autoguidance": "teacher",
    "pairs.load": "pairs",
    "student.init": "student.init",
}
"""Addresses whose contents are compared by the hash of this name, wherever they are."""
_NO_EFFECT = re.compile(r"about\..*|evaluate\..*|fit\.save_every")
_ROUNDING = re.compile(r"fit\.(micro_batch|channels_last|compile)")
_OPTIMIZER = re.compile(r"fit\.(players\..*|lr|warmup|clip|betas|optimizer|weight_decay|nonfinite)")
MAX_GROWTH = 30
"""A state whose weights have grown by this factor since the start of the training has diverged."""


@dataclass(frozen=True)
class Start:
    """Where a training starts."""

    state: State | None = None
    """The state that it resumes; None if it starts from the beginning."""
    changes: Changes = field(default_factory=dict[str, tuple[Any, Any]])
    clears: bool = False
    """Whether an earlier training in the folder is discarded."""
    messages: tuple[str, ...] = ()
    """What the user should know, one line each."""

    @property
    def changes_result(self) -> bool:
        """Whether a setting of the optimisers has changed since the saved step."""
        return any(map(_OPTIMIZER.fullmatch, self.changes))

    @property
    def step(self) -> int:
        """The number of finished steps."""
        return self.state[1]["step"] if self.state else 0


def find_start(
    run: Run, recipe: Recipe, pins: Mapping[str, str], hardware: str, *, extend: bool = False
) -> Start:
    """How a training of the recipe starts in this folder.

    `pins` are the hashes of its data and weights, and `hardware` describes the machine. Raises:
    InputError as `check_changes`, or if the data or weights of the saved state were others.
    """
    changes, state = check_changes(run, recipe, extend=extend), run.state()
    if state is None:
        clears = not all(_keeps_result(key, *values) for key, values in changes.items())
        return Start(changes=changes, clears=clears)
    note = state[1]
    _check_pins(run, note["pins"], pins)
    optimizer = [key for key in changes if _OPTIMIZER.fullmatch(key)]
    if optimizer and note["growth"] > MAX_GROWTH:
        message = (
            f"the weights of the saved step {note['step']:,} are {note['growth']:.2g} times as "
            "large as at the start, so that the training starts from the beginning"
        )
        return Start(changes=changes, clears=True, messages=(message,))
    messages = [
        f"from step {note['step'] + 1:,} on, {key} is {_text(changes[key][1])} instead of "
        f"{_text(changes[key][0])}"
        for key in optimizer
    ]
    if note["step"] < note["total"] or "fit.steps" in changes:
        messages += _rounding(note["hardware"], hardware, changes)
    return Start(state, changes, messages=tuple(messages))


def restore(training: Training, state: State, run: Run) -> None:
    """Set a training to the saved state of its run.  Raises: InputError if it does not fit."""
    try:
        training.restore(*state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{run.state_file} does not fit this training ({problem}): give another --out"
        ) from error


def check_changes(run: Run, recipe: Recipe, *, extend: bool = False) -> Changes:
    """The settings that differ from the recipe of a run folder.

    Raises: InputError if the folder is no run folder, or for a setting that may not change.
    """
    run.check_folder()
    table = run.recipe()
    if table is None:
        return {}
    old, new = flatten(table), flatten(recipe.table())
    changes: dict[str, tuple[Any, Any]] = {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    if not any(file.exists() for file in (run.state_file, run.model_file, run.best_file)):
        return changes  # nothing has been saved yet
    has_failed = run.nonfinite_step() is not None
    for key, values in changes.items():
        if _keeps_result(key, *values) or (has_failed and _OPTIMIZER.fullmatch(key)):
            continue
        if key == "fit.steps" and extend:
            _check_longer(run, recipe, *values)
            continue
        raise InputError(_refusal(run, recipe, key, *values))
    return changes


def _keeps_result(key: str, old: Any, new: Any) -> bool:
    """Whether a run has the same result with the new value of a setting, but for rounding."""
    if key in PINS:
        # an address may change, but not appear or vanish, unless its contents are the same without
        return key in ("data.path", "data.latents") or bool(old) == bool(new)
    return bool(_NO_EFFECT.fullmatch(key) or _ROUNDING.fullmatch(key))


def _refusal(run: Run, recipe: Recipe, key: str, old: Any, new: Any) -> str:
    remedy = ""
    if key == "fit.steps" and new > old:
        can_grow = not any(length_settings(recipe))
        remedy = "add --extend to train this run further" if can_grow else _further(run)
        remedy += ", or "
    return (
        f"{run.folder} belongs to another recipe: {key} is {_text(old)} in its recipe.toml and "
        f"{_text(new)} in this recipe; {remedy}give another --out, or delete that folder"
    )


def _check_longer(run: Run, recipe: Recipe, old: int, new: int) -> None:
    """Raise InputError unless a run can be extended from `old` to `new` steps."""
    if new < old:
        raise InputError(
            f"--extend makes a run longer, and fit.steps is {new} here but {old} in "
            f"{run.recipe_file}: set fit.steps to more"
        )
    settings = list(length_settings(recipe))
    if settings:
        raise InputError(
            f"{run.folder} cannot be extended, because {', '.join(settings)} "
            f"follow{'s' * (len(settings) == 1)} the number of steps: {new:,} steps from the start "
            f"would be another training; {_further(run)}"
        )


def _further(run: Run) -> str:
    """How to train on from a run that cannot be extended."""
    return (
        f"train a new run that starts with its weights, by student.init={run.folder} without "
        "student.backbone and student.process"
    )


def length_settings(recipe: Recipe) -> Iterator[str]:
    """The settings whose effect at a training step depends on `fit.steps`."""
    fit, student = recipe.fit, recipe.student
    for prefix, config in (("fit", fit), *_players(fit)):
        if config.schedule != "constant":
            yield f"{prefix}.schedule"
        if 0 < config.warmup < 1:
            yield f"{prefix}.warmup"
    if min(fit.halflives) < 1:
        yield "fit.ema_halflife"
    if fit.ema_lengths:  # snapshots are at even distances
        yield "fit.ema_lengths"
    if student.parametrization and student.init != "scratch" and fit.adapt is None:
        yield "fit.adapt"
    yield from plugins.resolve("method", recipe.method_name).length_settings(recipe.method)


def _players(fit: FitConfig) -> Iterator[tuple[str, FitConfig]]:
    for name in fit.players:
        yield f"fit.players.{name}", fit.player(name)


def _check_pins(run: Run, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in (*new, *old):
        if old.get(name) != new.get(name):
            raise InputError(
                f"{run.folder} was trained with another {name} than this recipe loads now: the "
                "hashes differ; give another --out, or restore the earlier one"
            )


def _rounding(old: str, new: str, changes: Changes) -> Iterator[str]:
    """Why results will differ in their last digits from those of an undisturbed training."""
    effect = "which rounds differently: the result will not be bit for bit that of one training"
    if old != new:
        yield f"the training resumes on {new}, and was on {old}, {effect}"
    for key in filter(_ROUNDING.fullmatch, changes):
        yield f"{key} is {_text(changes[key][1])}, and was {_text(changes[key][0])}, {effect}"


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)
