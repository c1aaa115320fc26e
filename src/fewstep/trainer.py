"""The training loop of all methods: `for progress in fit(method, batches, config)`.

A method trains one or more networks, its players. Each training step takes a new global batch, for
which the method yields turns; a turn updates one player. The trainer computes the turn's loss on
every micro-batch, averages and clips the gradients, and steps that player's optimiser. Random
numbers are a function of (seed, step, ...), so a run needs no random state but its step number.
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
from fewstep.methods.base import Loss, Method, Turn, check_start
from fewstep.methods.batch import Batch


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
    """Steps before the others that adapt a copied network to student.parametrization, with the
    optimiser settings of [fit.players.adapt]; by default a tenth of `steps` if it differs from the
    network's, else 0."""
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


class NonFiniteLoss(ArithmeticError):
    """Raised if a loss or gradient is NaN or infinite; that update is not made."""


@dataclass(frozen=True)
class Progress:
    """A finished step: its number from 1, the number of all steps, images trained on so far, and
    numbers to log by name."""

    step: int
    total: int
    images: int
    numbers: Mapping[str, float]
    training: "Training"


def fit(method: Method, batches: Batches, config: FitConfig) -> Iterator[Progress]:
    """Train for `config.steps` steps, yielding after each.

    Raises: NonFiniteLoss if a loss or gradient is NaN or infinite; the weights remain finite.
    """
    yield from Training(method, batches, config)


class Training:
    """The state of a training: method, optimisers, weight averages and number of finished steps.

    A run may consist of two trainings: `earlier` is the number of steps in the one before this,
    `later` in the one after it. They count in the progress and in the saved step number, but not in
    `config.steps` nor in `step`.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        config: FitConfig,
        *,
        earlier: int = 0,
        later: int = 0,
    ) -> None:
        check_start(method)
        self.method = method
        self.earlier = earlier
        self.run_steps = earlier + config.steps + later
        self.batches = batches
        self.config = config
        self.step = 0
        unknown = set(config.players) - set(method.players)
        if unknown:
            raise InputError(
                f"fit.players.{sorted(unknown)[0]} sets the optimiser of a player that this method "
                f"does not have; choose one of {', '.join(method.players)}"
            )
        _prepare(method, config)
        self.optimizers = {
            name: _optimizer(player, config.player(name)) for name, player in method.players.items()
        }
        self.averages = [
            [p.detach().clone() for p in method.student.parameters()] for _ in config.halflives
        ]
        self._active_player: str | None = None
        self._between_steps = True

    def __iter__(self) -> Iterator[Progress]:
        while not self.is_finished:
            yield self.advance()

    def advance(self) -> Progress:
        """Do one step: all turns of the method on one new global batch."""
        micros = self.batches.step(self.step, self.config.micro_batch)
        turn_counts: dict[str, int] = {}
        numbers: dict[str, float] = {}
        for turn in self.method.turns(self.step):
            occurrence = turn_counts.get(turn.player, 0)
            turn_counts[turn.player] = occurrence + 1
            numbers |= self._do_turn(turn, occurrence, micros)
        self._average()
        self.step += 1
        self._between_steps = True
        return Progress(
            step=self.run_step,
            total=self.run_steps,
            images=self.run_step * self.config.batch,
            numbers=numbers,
            training=self,
        )

    @property
    def run_step(self) -> int:
        """The number of finished steps of the run, with those before this training."""
        return self.earlier + self.step

    def _do_turn(self, turn: Turn, occurrence: int, micros: list[Batch]) -> dict[str, float]:
        self._activate(turn.player)
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
            weight = micro.rows / micro.total
            (loss.value * weight).backward()
            for name, value in {"loss": loss.value, **loss.numbers}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * weight
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
                f"the loss of player {player!r} is {numbers[f'{player}/loss']:.4g} and the norm "
                f"of its gradient {float(norm):.4g} at step {self.step + 1}"
            )
        if 0 < clip < float(norm):
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        self._between_steps = False
        optimizer.step()
        numbers[f"{player}/gradient"] = float(norm)

    def _numbers(self, player: str, sums: dict[str, Tensor], rate: float) -> dict[str, float]:
        values = distributed.sum_numbers(torch.stack(list(sums.values()))).tolist()
        numbers = {f"{player}/{name}": value for name, value in zip(sums, values, strict=True)}
        return {**numbers, f"{player}/lr": rate}

    def _activate(self, player: str) -> None:
        """Let only the parameters of this player require gradients."""
        if self._active_player == player:
            return
        self.method.requires_grad_(False).eval()
        self.method.players[player].requires_grad_(True).train()
        self._active_player = player

    def _average(self) -> None:
        weights = [p.detach() for p in self.method.student.parameters()]
        batch = self.config.batch
        images = (self.step + 1) * batch
        for average, halflife in zip(self.averages, self.config.halflives, strict=True):
            halflife_now = min(halflife, images * self.config.ema_rampup)
            ema.lerp(average, weights, decay=ema.halflife_decay(batch, halflife_now))

    def generator(self, *, average: int | None = 0) -> Generator:
        """A copy of the student with the weight average of this index; None for the raw weights."""
        generator = deepcopy(self.method.generator()).eval().requires_grad_(False)
        if average is not None:
            parameters = generator.denoiser.parameters()
            for parameter, value in zip(parameters, self.averages[average], strict=True):
                parameter.copy_(value)
        for module in generator.modules():
            if isinstance(module, Denoiser):
                module.autocast = None
        return generator

    @property
    def is_finished(self) -> bool:
        """Whether all `config.steps` steps are done."""
        return self.step >= self.config.steps

    def can_be_saved(self) -> bool:
        """Whether the state can be saved: between two steps, and with finite parameters."""
        return self._between_steps and all(
            bool(p.isfinite().all())
            for player in self.method.players.values()
            for p in player.parameters()
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to resume: tensors by name, and a small JSON object."""
        tensors = {f"method.{name}": value for name, value in self._method_state().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": v for key, v in moments.items()}
        for index, average in enumerate(self.averages):
            tensors |= {f"average.{index}.{i}": value for i, value in enumerate(average)}
        return tensors, {"step": self.run_step, "players": list(self.method.players)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Set the state to the result of an earlier call of `state`."""
        for name, value in self._method_state().items():
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
        self.step = note["step"] - self.earlier

    def _method_state(self) -> dict[str, Tensor]:
        """State of the method without the teacher, which training does not change."""
        state = self.method.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("teacher.")}


def learning_rate(config: FitConfig, done: int, length: int) -> float:
    """Learning rate after `done` of `length` steps: warm-up from 0, then the schedule."""
    warmup = min((done + 1) / config.warmup, 1.0) if config.warmup else 1.0
    x = min(max(done - config.warmup, 0) / max(length - config.warmup, 1), 1.0)
    decay = {"constant": 1.0, "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}
    return config.lr * warmup * decay[config.schedule]


def _prepare(method: Method, config: FitConfig) -> None:
    for module in method.modules():
        if not isinstance(module, Denoiser):
            continue
        module.autocast = torch.bfloat16 if config.precision == "bf16" else None
        if config.compile:
            module.backbone.compile()
    if config.channels_last:
        # frozen weights are buffers
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
