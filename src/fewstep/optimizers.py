"""Settings of a training: its length, batches, optimisers and learning rates."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import nn

from fewstep.errors import InputError


@dataclass(frozen=True)
class PlayerConfig:
    """Optimiser settings of one player; None means the value of the same key in [fit]."""

    optimizer: Literal["adamw", "adam", "radam"] | None = None
    """Optimiser: adamw, adam or radam."""
    lr: float | None = None
    """Learning rate after the warm-up."""
    betas: tuple[float, float] | None = None
    """Adam's decay rates of the first and second moment."""
    weight_decay: float | None = None
    """Decoupled weight decay of adamw."""
    warmup: int | None = None
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] | None = None
    """Learning rate after the warm-up: constant, or a cosine or linear decay to 0."""
    clip: float | None = None
    """Gradients with a larger norm are scaled to this norm; 0 means no clipping."""


@dataclass(frozen=True)
class FitConfig:
    """Length, batch size and optimiser of a training."""

    steps: int = 10_000
    """Number of training steps, each on a new global batch."""
    batch: int = 128
    """Rows of a global batch, over all micro-batches and ranks."""
    micro_batch: int = 0
    """Rows of the batch computed at once on each rank; 0 means all of the rank's rows."""
    optimizer: Literal["adamw", "adam", "radam"] = "adamw"
    """Optimiser: adamw, adam or radam."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine or linear decay to 0."""
    clip: float = 1.0
    """Gradients with a larger norm are scaled to this norm; 0 means no clipping."""
    ema_halflife: float | tuple[float, ...] = 500_000
    """Half-life of the student's weight average, in images. Of several averages, the first is saved
    as the model."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images trained on so far."""
    precision: Literal["f32", "bf16"] = "f32"
    """Number format of the computation; weights stay f32."""
    channels_last: bool = False
    """Store weights in the channels-last layout, often faster for large images and on GPUs."""
    compile: bool = False
    """Compile the backbones with torch.compile, which takes minutes and then makes steps faster."""
    seed: int = 0
    """Seed of all random numbers of the run."""
    adapt: int | None = None
    """Steps before the others that adapt a copied network to student.parametrization, if it differs
    from the network's; by default a tenth of `steps`. [fit.players.adapt] replaces optimiser
    settings of [fit] there, such as a long warm-up."""
    save_every: int = 1000
    """Training steps between two checkpoints."""
    players: dict[str, PlayerConfig] = field(default_factory=dict[str, PlayerConfig])
    """Optimiser settings of individual players, such as [fit.players.fake]."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lr > 0:
            raise InputError(f"fit.lr is {self.lr}; it must be above 0")
        if (self.adapt or 0) < 0:
            raise InputError(f"fit.adapt is {self.adapt}; it must be at least 0")
        if self.micro_batch < 0 or self.warmup < 0 or self.clip < 0:
            raise InputError(
                f"fit.micro_batch is {self.micro_batch}, fit.warmup {self.warmup} and fit.clip "
                f"{self.clip}; all three must be 0 or more"
            )

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


def learning_rate(config: FitConfig, done: int, length: int) -> float:
    """Learning rate after `done` of `length` steps: warm-up from 0, then the schedule."""
    warmup = min((done + 1) / config.warmup, 1.0) if config.warmup else 1.0
    x = min(max(done - config.warmup, 0) / max(length - config.warmup, 1), 1.0)
    decay = {"constant": 1.0, "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}
    return config.lr * warmup * decay[config.schedule]


def make_optimizer(player: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser of a player's weights."""
    weights = list(player.parameters())
    if config.optimizer == "radam":
        return torch.optim.RAdam(
            weights, config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        weights, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
