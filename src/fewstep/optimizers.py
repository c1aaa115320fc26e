"""Settings of a training: its length, batches, optimisers and learning rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

import torch
from torch import nn

from fewstep.errors import InputError
from fewstep.methods.schedule import check_steps, count_steps
from fewstep.muon import Muon
from fewstep.precision import slow_precision
from fewstep.ranges import (
    NONEMPTY,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Precision,
    ProbabilityBelowOne,
    ProfileLength,
    Rows,
    RowsOrZero,
    Seed,
    Snapshots,
)
from fewstep.tables import check_fields

MAX_INITIAL_SHARE = 0.1
"""Largest share of the initial weights in the last average without a warning."""


@dataclass(frozen=True)
class PlayerConfig:
    """Optimiser settings of one player; None means the value of the same key in [fit]."""

    optimizer: Literal["adamw", "adam", "radam", "muon"] | None = None
    """Optimiser: adamw, adam, radam or muon."""
    lr: Positive | None = None
    """Learning rate after the warm-up."""
    betas: tuple[ProbabilityBelowOne, ProbabilityBelowOne] | None = None
    """Adam's decay rates of the first and second moment."""
    weight_decay: NonNegative | None = None
    """Decoupled weight decay of adamw and muon."""
    warmup: NonNegative | None = None
    """Steps over which the learning rate rises from 0, or, below 1, a share of the training."""
    schedule: Literal["constant", "cosine", "linear", "step"] | None = None
    """Learning rate after the warm-up: constant, a cosine or linear decay to 0, or one step to a
    tenth after half of the training."""
    clip: NonNegative | None = None
    """Gradients with a larger norm are scaled to this norm; 0 means no clipping."""


@dataclass(frozen=True)
class FitConfig:
    """Length, batch size and optimiser of a training."""

    steps: Count = 10_000
    """Number of training steps, each on a new global batch."""
    batch: Rows = 128
    """Rows of a global batch, over all micro-batches and ranks."""
    micro_batch: RowsOrZero = 0
    """Rows of the batch computed at once on each rank; 0 means all of the rank's rows."""
    optimizer: Literal["adamw", "adam", "radam", "muon"] = "adamw"
    """Optimiser: adamw, adam, radam, or muon, which is Muon for the matrices and kernels inside
    a network and adamw for its other weights, at the same rate."""
    lr: Positive = 2e-4
    """Learning rate after the warm-up."""
    betas: tuple[ProbabilityBelowOne, ProbabilityBelowOne] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of adamw and muon."""
    warmup: NonNegative = 0
    """Steps over which the learning rate rises from 0, or, below 1, a share of the training (of the
    phase, where a method trains in phases)."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    """Learning rate after the warm-up: constant, a cosine or linear decay to 0, or one step to a
    tenth after half of the training."""
    clip: NonNegative = 1.0
    """Gradients with a larger norm are scaled to this norm; 0 means no clipping."""
    ema_halflife: Positive | Annotated[tuple[Positive, ...], NONEMPTY] = 0.05
    """Half-life of the student's weight average, in images, or, below 1, as a share of all images
    of the training. Of several averages, the first is saved as the model."""
    ema_rampup: NonNegative = 0.05
    """The half-life is at most this fraction of the images trained on so far; 0 means no limit."""
    ema_lengths: Annotated[tuple[ProfileLength, ...], NONEMPTY] | None = None
    """Lengths of averages with a power profile, such as [0.05, 0.1]: their standard deviations as
    shares of the training. `fewstep average` makes averages of other lengths of their snapshots."""
    ema_snapshots: Snapshots | None = None
    """Snapshots of these averages, at even distances in the training; by default 16."""
    precision: Precision = "f32"
    """Number format of the training: f32, tf32 (f32 whose products a GPU rounds to TF32) or bf16
    (networks compute in bfloat16). Weights stay f32, and samples and scores are computed in f32."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is NaN or infinite does: stop ends the run; skip leaves out this
    update, and ends the run after 100 of them in a row."""
    channels_last: bool = False
    """Store weights in the channels-last layout, often faster for large images and on GPUs."""
    compile: bool = False
    """Compile the backbones with torch.compile, which takes minutes and then makes steps faster."""
    seed: Seed = 0
    """Seed of all random numbers of the run."""
    adapt: CountOrZero | None = None
    """Steps before the others that adapt a copied network to student.parametrization, if it differs
    from the network's; by default a tenth of `steps`. [fit.players.adapt] replaces optimiser
    settings of [fit] there, such as a long warm-up."""
    save_every: Count = 1000
    """Training steps between two checkpoints."""
    players: dict[str, PlayerConfig] = field(default_factory=dict[str, PlayerConfig])
    """Optimiser settings of individual players, such as [fit.players.fake]."""

    def __post_init__(self) -> None:
        check_fields(self, "fit")
        check_steps(self.warmup, "fit.warmup")
        if self.ema_snapshots and not self.ema_lengths:
            raise InputError(
                f"fit.ema_snapshots = {self.ema_snapshots} has no effect without fit.ema_lengths: "
                "set that to [0.05, 0.1], or leave it out"
            )
        for name, player in self.players.items():
            check_fields(player, f"fit.players.{name}")
            check_steps(player.warmup or 0, f"fit.players.{name}.warmup")

    @property
    def halflives(self) -> tuple[float, ...]:
        """`ema_halflife` as a tuple, also if it is one number."""
        halflife = self.ema_halflife
        return halflife if isinstance(halflife, tuple) else (halflife,)

    def player(self, name: str) -> "FitConfig":
        """This configuration with the settings of one player from `players`."""
        overrides = self.players.get(name, PlayerConfig())
        settings = {f.name: getattr(overrides, f.name) for f in fields(overrides)}
        return replace(self, **{key: value for key, value in settings.items() if value is not None})

    def halflife_images(self, halflife: float) -> float:
        """One of `halflives` in images."""
        return halflife if halflife >= 1 else halflife * self.steps * self.batch


def adapt_steps(fit: FitConfig) -> int:
    """The steps of an adaptation: `fit.adapt`, by default a tenth of the method's."""
    return -(-fit.steps // 10) if fit.adapt is None else fit.adapt


def main_config(fit: FitConfig) -> FitConfig:
    """The settings of the method's training, without those of an adaptation."""
    players = {name: player for name, player in fit.players.items() if name != "adapt"}
    return replace(fit, players=players)


def adapt_config(fit: FitConfig) -> FitConfig:
    """The settings of the training that adapts a copied student."""
    players = {name: player for name, player in fit.players.items() if name == "adapt"}
    return replace(
        fit,
        steps=adapt_steps(fit),
        schedule="cosine",
        ema_lengths=None,
        ema_snapshots=None,
        players=players,
    )


def learning_rate(config: FitConfig, done: int, length: int) -> float:
    """Learning rate after `done` of `length` steps: warm-up from 0, then the schedule."""
    rise = count_steps(config.warmup, length)
    warmup = min((done + 1) / rise, 1.0) if rise else 1.0
    x = min(max(done - rise, 0) / max(length - rise, 1), 1.0)
    decay = {
        "constant": 1.0,
        "linear": 1 - x,
        "cosine": 0.5 * (1 + math.cos(math.pi * x)),
        "step": 1.0 if x < 0.5 else 0.1,
    }
    return config.lr * warmup * decay[config.schedule]


def warmup_problem(config: FitConfig, key: str, length: int, noun: str = "training") -> str | None:
    """Why the learning rate never rises to its value in `length` steps; None if it does."""
    if config.warmup < max(length, 1):
        return None
    return (
        f"{key}.warmup is {config.warmup:,.0f} steps, but this {noun} has {length:,}: the learning "
        f"rate stays below {config.lr:g}; set it to a share of the {noun}, such as 0.05"
    )


def average_problems(config: FitConfig) -> list[str]:
    """Why averages do not reach their half-life in this training, one line each."""
    images, problems = config.steps * config.batch, list[str]()
    for halflife in map(config.halflife_images, config.halflives):
        start = f"fit.ema_halflife is {halflife:,.0f} images, but "
        remedy = "set fit.ema_halflife to a share of the training, such as 0.05"
        if config.ema_rampup and halflife > config.ema_rampup * images * (1 + 1e-9):
            problems.append(
                f"{start}fit.ema_rampup = {config.ema_rampup:g} limits it to "
                f"{config.ema_rampup * images:,.0f} at the end of this training: {remedy}, or "
                "fit.ema_rampup = 0 for no limit"
            )
        share = 0.5 ** (images / halflife)
        if not config.ema_rampup and share > MAX_INITIAL_SHARE:
            problems.append(
                f"{start}this training has {images:,}: {share:.0%} of the average will be the "
                f"initial weights; {remedy}, or fit.ema_rampup = 0.05"
            )
    return problems


def fit_problems(
    players: Iterable[str],
    config: FitConfig,
    device: torch.device,
    *,
    is_adaptation: bool = False,
) -> list[str]:
    """Settings that the training is too short for, or the device too slow, one line each.

    `players` are their names. The averages of an adaptation do not matter, because the method
    starts from the weights themselves.
    """
    problems: list[str | None] = [] if is_adaptation else [*average_problems(config)]
    noun = "adaptation" if is_adaptation else "training"
    for name in players:
        key = f"fit.players.{name}" if name in config.players else "fit"
        problems.append(warmup_problem(config.player(name), key, config.steps, noun))
    problems.append(slow_precision(config.precision, device.type, "fit.precision", "training"))
    return list(dict.fromkeys(filter(None, problems)))


def make_optimizer(player: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser of a player's weights."""
    if config.optimizer == "muon":
        return Muon(player, config.lr, betas=config.betas, weight_decay=config.weight_decay)
    weights = list(player.parameters())
    if config.optimizer == "radam":
        return torch.optim.RAdam(
            weights, config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        weights, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
