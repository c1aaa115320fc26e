"""The only loop that trains generators: `for progress in fit(method, batches, config)`.

A step is one fresh global batch. The method's turns say whose optimiser moves; the trainer computes
that turn's loss on each micro-batch, averages gradients, clips, steps, and resumes the method.
Randomness is a function of (seed, step, ...), so a run's random state is its step number.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep import distributed, ema
from fewstep.batching import Batches
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Batch, Loss, Method, Turn


@dataclass(frozen=True)
class PlayerConfig:
    """One player's optimiser, where it differs from the run's."""

    optimizer: Literal["adamw", "adam", "radam"] | None = None
    """adamw, adam or radam."""
    lr: float | None = None
    """Learning rate after the warm-up."""
    betas: tuple[float, float] | None = None
    """Adam's decay rates of the first and second moment."""
    weight_decay: float | None = None
    """Of adamw: decoupled from the gradient."""
    warmup: int | None = None
    """Steps over which lr rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] | None = None
    """After the warm-up: constant, or a cosine or a line down to 0 at the last step."""
    clip: float | None = None
    """Largest norm of the gradient; 0: no clipping."""


@dataclass(frozen=True)
class FitConfig:
    """How long, on how many images at a time, by which optimiser."""

    steps: int = 10_000
    """Fresh global batches to train on."""
    batch: int = 128
    """Rows of a global batch, over all micro-batches and ranks."""
    micro_batch: int = 0
    """Rows computed at once on each rank; 0: all."""
    optimizer: Literal["adamw", "adam", "radam"] = "adamw"
    """adamw, adam or radam."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Of adamw: decoupled from the gradient."""
    warmup: int = 0
    """Steps over which lr rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """After the warm-up: constant, or a cosine or a line down to 0 at the last step."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    ema_halflife: float | tuple[float, ...] = 500_000
    """Half-life of the student's weight average, in images; several: the first is the result."""
    ema_rampup: float = 0.05
    """The half-life is at most this share of the images seen so far."""
    precision: Literal["f32", "bf16"] = "f32"
    """What networks compute in; weights stay f32."""
    channels_last: bool = False
    """Keep weights in the channels-last layout: often faster on large images and on GPUs."""
    compile: bool = False
    """Compile the backbones with torch.compile: minutes of start, then faster steps."""
    seed: int = 0
    """Of all randomness of the run."""
    save_every: int = 1000
    """Steps between checkpoints to resume from."""
    players: dict[str, PlayerConfig] = field(default_factory=dict[str, PlayerConfig])
    """Optimiser settings of single players, such as [fit.players.fake]."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lr > 0:
            raise InputError(f"fit.lr is {self.lr}; it must be above 0")
        if self.micro_batch < 0 or self.warmup < 0 or self.clip < 0:
            raise InputError("fit.micro_batch, fit.warmup and fit.clip must be 0 or more")

    @property
    def halflives(self) -> tuple[float, ...]:
        one = self.ema_halflife
        return one if isinstance(one, tuple) else (one,)

    def player(self, name: str) -> "FitConfig":
        """This configuration with one player's overrides."""
        own = self.players.get(name, PlayerConfig())
        told = {f.name: getattr(own, f.name) for f in fields(own)}
        return replace(self, **{key: value for key, value in told.items() if value is not None})


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient became NaN or infinite; nothing of that step was kept."""


@dataclass(frozen=True)
class Progress:
    """One finished step: its number (from 1), the images seen so far, and numbers to log."""

    step: int
    images: int
    numbers: Mapping[str, float]
    training: "Training"


def fit(method: Method, batches: Batches, config: FitConfig) -> Iterator[Progress]:
    """Train from the first step to `config.steps`, yielding after each.

    Raises: NonFiniteLoss; the method then holds the weights of the last good step.
    """
    yield from Training(method, batches, config)


class Training:
    """The state of a run: method, optimisers, averages and the number of steps done."""

    def __init__(self, method: Method, batches: Batches, config: FitConfig) -> None:
        self.method = method
        self.batches = batches
        self.config = config
        self.step = 0
        unknown = set(config.players) - set(method.players)
        if unknown:
            raise InputError(
                f"fit.players.{sorted(unknown)[0]} is no player of this method; "
                f"its players are: {', '.join(method.players)}"
            )
        _prepare(method, config)
        self.optimizers = {
            name: _optimizer(player, config.player(name)) for name, player in method.players.items()
        }
        self.averages = [
            [p.detach().clone() for p in method.players["student"].parameters()]
            for _ in config.halflives
        ]
        self._moving: str | None = None
        self._between_steps = True

    def __iter__(self) -> Iterator[Progress]:
        while self.step < self.config.steps:
            yield self.advance()

    def advance(self) -> Progress:
        """One step: every turn of the method on one fresh global batch."""
        micros = self.batches.step(self.step, self.config.micro_batch)
        taken: dict[str, int] = {}
        numbers: dict[str, float] = {}
        for turn in self.method.turns(self.step):
            occurrence = taken.get(turn.player, 0)
            taken[turn.player] = occurrence + 1
            numbers |= self._take(turn, occurrence, micros)
        self._average()
        self.step += 1
        self._between_steps = True
        images = self.step * self.config.batch
        return Progress(step=self.step, images=images, numbers=numbers, training=self)

    def _take(self, turn: Turn, occurrence: int, micros: list[Batch]) -> dict[str, float]:
        self._give_turn(turn.player)
        optimizer = self.optimizers[turn.player]
        config = self.config.player(turn.player)
        first, stop = turn.phase or (0, config.steps)
        if turn.phase and self.step == first and occurrence == 0:
            optimizer.state.clear()
        rate = learning_rate(config, self.step - first, stop - first)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro in micros:
            micro.begin(turn.player, occurrence)
            loss = self._loss(turn, micro)
            share = micro.rows / micro.total
            (loss.value * share).backward()
            for name, value in {"loss": loss.value, **loss.numbers}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * share
        numbers = self._numbers(turn.player, sums, rate)
        self._update(turn.player, optimizer, config.clip, numbers)
        return numbers

    def _loss(self, turn: Turn, micro: Batch) -> Loss:
        with torch.random.fork_rng(
            [micro.device] if micro.device.type == "cuda" else [], device_type=micro.device.type
        ):
            torch.manual_seed(micro.dropout_seed)
            return turn.loss(micro)

    def _update(
        self,
        player: str,
        optimizer: torch.optim.Optimizer,
        clip: float,
        numbers: dict[str, float],
    ) -> None:
        parameters = [p for p in self.method.players[player].parameters() if p.grad is not None]
        distributed.sum_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(numbers[f"{player}/loss"]) or not math.isfinite(float(norm)):
            raise NonFiniteLoss(
                f"{player}'s loss is {numbers[f'{player}/loss']:.4g} and its gradient's norm "
                f"{float(norm):.4g} at step {self.step + 1}"
            )
        if 0 < clip < float(norm):
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        self._between_steps = False
        optimizer.step()
        numbers[f"{player}/gradient"] = float(norm)

    def _numbers(self, player: str, sums: dict[str, Tensor], rate: float) -> dict[str, float]:
        values = distributed.sum_numbers(torch.stack(list(sums.values()))).tolist()
        named = {f"{player}/{name}": value for name, value in zip(sums, values, strict=True)}
        return {**named, f"{player}/lr": rate}

    def _give_turn(self, player: str) -> None:
        if self._moving == player:
            return
        self.method.requires_grad_(False).eval()
        self.method.players[player].requires_grad_(True).train()
        self._moving = player

    def _average(self) -> None:
        weights = [p.detach() for p in self.method.players["student"].parameters()]
        batch = self.config.batch
        seen = (self.step + 1) * batch
        for average, halflife in zip(self.averages, self.config.halflives, strict=True):
            ramped = min(halflife, seen * self.config.ema_rampup)
            ema.lerp(average, weights, decay=ema.halflife_decay(batch, ramped))

    def generator(self, *, average: int | None = 0) -> Generator:
        """A copy of the student to keep, with averaged weights, or raw ones for None."""
        generator = deepcopy(self.method.generator()).eval().requires_grad_(False)
        if average is not None:
            for mine, kept in zip(
                generator.denoiser.parameters(), self.averages[average], strict=True
            ):
                mine.copy_(kept)
        for module in generator.modules():
            if isinstance(module, Denoiser):
                module.autocast = None
        return generator

    def sound(self) -> bool:
        """Whether there is a state to keep: no step half done, every parameter finite."""
        return self._between_steps and all(
            bool(p.isfinite().all())
            for player in self.method.players.values()
            for p in player.parameters()
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All there is to resume from: tensors by name, and a small JSON object."""
        tensors = {f"method.{name}": value for name, value in self._owned().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": v for key, v in moments.items()}
        for index, average in enumerate(self.averages):
            tensors |= {f"average.{index}.{i}": value for i, value in enumerate(average)}
        return tensors, {"step": self.step}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        for name, value in self._owned().items():
            value.copy_(tensors[f"method.{name}"])
        for name, optimizer in self.optimizers.items():
            prefix = f"optimizer.{name}."
            moments: dict[int, dict[str, Tensor]] = {}
            for key in (key for key in tensors if key.startswith(prefix)):
                index, moment = key.removeprefix(prefix).split(".", 1)
                moments.setdefault(int(index), {})[moment] = tensors[key].clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for index, average in enumerate(self.averages):
            for i, value in enumerate(average):
                value.copy_(tensors[f"average.{index}.{i}"])
        self.step = told["step"]

    def _owned(self) -> dict[str, Tensor]:
        """The method's state but for the teacher, who never changes and is pinned by hash."""
        state = self.method.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("teacher.")}


def learning_rate(config: FitConfig, done: int, length: int) -> float:
    """Warm-up from 0, then constant or down to 0; `done` steps are behind, of `length`."""
    rise = min((done + 1) / config.warmup, 1.0) if config.warmup else 1.0
    share = min(max(done - config.warmup, 0) / max(length - config.warmup, 1), 1.0)
    falls = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return config.lr * rise * falls[config.schedule]


def _prepare(method: Method, config: FitConfig) -> None:
    for module in method.modules():
        if not isinstance(module, Denoiser):
            continue
        module.autocast = torch.bfloat16 if config.precision == "bf16" else None
        if config.compile:
            module.backbone.compile()
    if config.channels_last:
        # kept weights are buffers
        for weight in (*method.parameters(), *method.buffers()):
            if weight.ndim == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)


def _optimizer(player: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    weights = list(player.parameters())
    if config.optimizer == "radam":
        return torch.optim.RAdam(
            weights, config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        weights, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
