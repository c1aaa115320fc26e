"""The training loop of all methods: `for progress in fit(method, batches, config)`.

A method trains one or more networks, its players. Each training step takes a new global batch, for
which the method yields turns; a turn updates one player. The trainer computes the turn's loss on
every micro-batch, averages and clips the gradients, and steps that player's optimiser. Random
numbers are a function of (seed, step, ...), so a run needs no random state but its step number.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import distributed, ema
from fewstep.autoencoders import Autoencoder
from fewstep.batching import Batches
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Method
from fewstep.methods.batch import Batch
from fewstep.methods.checks import check_start
from fewstep.methods.objective import Loss, Objective, Turn
from fewstep.optimizers import (
    FitConfig,
    fit_problems,
    learning_rate,
    make_optimizer,
    warmup_problem,
)
from fewstep.precision import float32_products

MAX_SKIPS = 100
"""Number of updates of a player left out in a row that ends a run with fit.nonfinite = "skip"."""


class NonFiniteLoss(ArithmeticError):
    """Raised if a loss or gradient is NaN or infinite; that update is not made.

    With fit.nonfinite = "skip" it is raised only for the 100th such update in a row of a player.
    """

    def __init__(self, text: str, player: str) -> None:
        super().__init__(text)
        self.player = player


@dataclass(frozen=True)
class Progress:
    """A finished step: its number from 1, the number of all steps, images trained on so far, and
    numbers to log by name."""

    step: int
    total: int
    images: int
    numbers: Mapping[str, float]
    training: "Training"


def fit(method: Objective[Any], batches: Batches, config: FitConfig) -> Iterator[Progress]:
    """Train for `config.steps` steps, yielding after each.

    Raises: NonFiniteLoss if a loss or gradient is NaN or infinite, unless `config.nonfinite` is
    "skip"; the weights remain finite.
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
        method: Objective[Any],
        batches: Batches,
        config: FitConfig,
        *,
        earlier: int = 0,
        later: int = 0,
    ) -> None:
        if isinstance(method, Method) and not earlier:  # else checked before the earlier training
            check_start(method)
        self.method = method
        self.earlier = earlier
        self.run_steps = earlier + config.steps + later
        self.batches = batches
        self.config = config
        self.step = 0
        check_players(method, config)
        _prepare(method, config)
        self.optimizers = {
            name: make_optimizer(player, config.player(name))
            for name, player in method.players.items()
        }
        self.averages = [
            [p.detach().clone() for p in method.network.parameters()] for _ in config.halflives
        ]
        self.power_averages = ema.PowerAverages(method.network, config.ema_lengths or ())
        self.skips = {name: (0, 0) for name in method.players}
        """Updates left out of each player, because they were not finite: in all, and in a row."""
        self._active_player: str | None = None
        self._between_steps = True
        device, is_adaptation = batches.device, not self.is_last
        for problem in fit_problems(method.players, config, device, is_adaptation=is_adaptation):
            warnings.warn(problem, stacklevel=2)

    def __iter__(self) -> Iterator[Progress]:
        while not self.is_finished:
            yield self.advance()

    def advance(self) -> Progress:
        """Do one step: all turns of the method on one new global batch."""
        micros = self.batches.step(self.step, self.config.micro_batch)
        turn_counts: dict[str, int] = {}
        numbers: dict[str, float] = {}
        updates: list[bool] = []
        with float32_products(self.config.precision):
            for turn in self.method.turns(self.step):
                occurrence = turn_counts.get(turn.player, 0)
                turn_counts[turn.player] = occurrence + 1
                numbers |= self._do_turn(turn, occurrence, micros)
                if self.method.players[turn.player] is self.method.network:
                    updates.append(self.skips[turn.player][1] == 0)
            if any(updates) or not updates:
                self._average()
        self.step += 1
        self.power_averages.update(self.method.network, self.step)
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
            problem = warmup_problem(config, "fit", stop - first, "phase")
            if problem and config.warmup < config.steps:  # otherwise it was said at the start
                warnings.warn(problem, stacklevel=2)
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
        numbers = self._numbers(turn.player, sums)
        return {**self._update(turn.player, config.clip, numbers), f"{turn.player}/lr": rate}

    def _loss(self, turn: Turn, micro: Batch) -> Loss:
        with torch.random.fork_rng(
            [micro.device] if micro.device.type == "cuda" else [], device_type=micro.device.type
        ):
            torch.manual_seed(micro.dropout_seed)
            return turn.loss(micro)

    def _update(self, player: str, clip: float, numbers: dict[str, float]) -> dict[str, float]:
        """Step the player's optimiser, unless its loss or gradient is not finite.

        Returns the numbers to log. All ranks see the same sums, and so decide alike.
        """
        parameters = [p for p in self.method.players[player].parameters() if p.grad is not None]
        distributed.sum_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        loss, size = numbers[f"{player}/loss"], float(norm)
        finite = math.isfinite(loss) and math.isfinite(size)
        if not finite:
            self._skip(player, loss, size)
            return {f"{player}/skipped": self.skips[player][0]}
        if 0 < clip < size:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        self._between_steps = False
        self.optimizers[player].step()
        self.skips[player] = (self.skips[player][0], 0)
        return {**numbers, f"{player}/gradient": size}

    def _skip(self, player: str, loss: float, norm: float) -> None:
        """Count an update that is left out.  Raises: NonFiniteLoss if the training cannot go on."""
        skips, in_row = (number + 1 for number in self.skips[player])
        if self.config.nonfinite == "stop" or in_row >= MAX_SKIPS:
            text = f"the loss of player {player!r} is {loss:.4g} and the norm of its gradient "
            text += f"{norm:.4g} at step {self.step + 1}"
            if self.config.nonfinite == "skip":
                text += f", the {MAX_SKIPS}th update in a row that is left out"
            raise NonFiniteLoss(text, player)
        self.skips[player] = (skips, in_row)

    def _numbers(self, player: str, sums: dict[str, Tensor]) -> dict[str, float]:
        values = distributed.sum_numbers(torch.stack(list(sums.values()))).tolist()
        return {f"{player}/{name}": value for name, value in zip(sums, values, strict=True)}

    def _activate(self, player: str) -> None:
        """Let only the parameters of this player require gradients."""
        if self._active_player == player:
            return
        self.method.requires_grad_(False).eval()
        self.method.players[player].requires_grad_(True).train()
        self._active_player = player

    def _average(self) -> None:
        weights = [p.detach() for p in self.method.network.parameters()]
        config, images = self.config, (self.step + 1) * self.config.batch
        limit = images * config.ema_rampup if config.ema_rampup else math.inf
        for average, halflife in zip(self.averages, config.halflives, strict=True):
            halflife_now = min(config.halflife_images(halflife), limit)
            ema.lerp(average, weights, decay=ema.halflife_decay(config.batch, halflife_now))

    def result(self, *, average: int | None = 0) -> Generator | Autoencoder:
        """A copy of what the method trains, with the weight average of this index; None for the raw
        weights."""
        result = deepcopy(self.method.result()).eval().requires_grad_(False)
        if average is not None:
            for parameter, value in zip(result.parameters(), self.averages[average], strict=True):
                parameter.copy_(value)
        for module in result.modules():
            if isinstance(module, Denoiser):
                module.precision = "f32"
        return result

    def generator(self, *, average: int | None = 0) -> Generator:
        """`result` of a method that trains a generator."""
        generator = self.result(average=average)
        assert isinstance(generator, Generator)
        return generator

    @property
    def is_last(self) -> bool:
        """Whether no other training of the run follows this one."""
        return self.earlier + self.config.steps == self.run_steps

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
        tensors |= self.power_averages.state()
        return tensors, {
            "step": self.run_step,
            "players": list(self.method.players),
            "skips": {name: list(counts) for name, counts in self.skips.items()},
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Set the state to the result of an earlier call of `state`."""
        for name, value in self._method_state().items():
            value.copy_(tensors[f"method.{name}"])
        for name, optimizer in self.optimizers.items():
            prefix = f"optimizer.{name}."
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            moments: dict[int, dict[str, Tensor]] = {}
            for key in (key for key in tensors if key.startswith(prefix)):
                index, moment = key.removeprefix(prefix).split(".", 1)
                value, like = tensors[key], weights[int(index)]
                # fused optimisers read the memory of a weight and its moments in the same order
                copy = torch.empty_like(like if like.shape == value.shape else value).copy_(value)
                moments.setdefault(int(index), {})[moment] = copy
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for index, average in enumerate(self.averages):
            for i, value in enumerate(average):
                value.copy_(tensors[f"average.{index}.{i}"])
        self.power_averages.restore(tensors)
        self.skips = {name: (skips, in_row) for name, (skips, in_row) in note["skips"].items()}
        self.step = note["step"] - self.earlier

    def _method_state(self) -> dict[str, Tensor]:
        """State of the method without the teacher, which training does not change."""
        state = self.method.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("teacher.")}


def check_players(method: Objective[Any], config: FitConfig) -> None:
    """Raise InputError for settings of a player that the method does not have."""
    unknown = set(config.players) - set(method.players)
    if unknown:
        raise InputError(
            f"fit.players.{sorted(unknown)[0]} sets the optimiser of a player that this method "
            f"does not have; choose one of {', '.join(method.players)}"
        )


def _prepare(method: Objective[Any], config: FitConfig) -> None:
    for module in method.modules():
        if not isinstance(module, Denoiser):
            continue
        module.precision = config.precision
        if config.compile:
            module.backbone.compile()
    if config.channels_last:
        # frozen weights are buffers
        for weight in (*method.parameters(), *method.buffers()):
            if weight.ndim == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)
