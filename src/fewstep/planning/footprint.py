"""What a training step asks of the networks, and the memory that it needs, without computing it.

The networks are moved to PyTorch's device `meta`, whose tensors have shapes but no values. The
method's own losses then run at the size of a real micro-batch in seconds, whatever the network.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone
from fewstep.condition import AUGMENT_LABELS, Condition, Text, with_augment_labels
from fewstep.guidance import Guided
from fewstep.methods.batch import Batch, ImageBatch, PairBatch
from fewstep.methods.objective import Objective, Turn
from fewstep.optimizers import FitConfig
from fewstep.sample_spec import SampleSpec

META = torch.device("meta")
PERIOD = 60
"""Training steps after which the turns of all usual methods repeat."""
SAMPLES = 4
"""Number of steps that are looked at; more if there are more kinds."""


@dataclass(frozen=True)
class Footprint:
    """Network calls and activations of a training step."""

    calls: Mapping[str, float]
    """Evaluations per image of a batch, in an average step, by network."""
    activations: int
    """Bytes that the largest turn keeps for its backward pass, of one micro-batch in float32."""


class ShapeBatch(Batch):
    """A batch whose rows and random numbers have shapes only."""

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.empty(self.rows, *x.shape[1:], device=META, dtype=x.dtype)

    def rand(self) -> Tensor:
        return torch.empty(self.rows, device=META)


def measure(
    method: Objective[Any], spec: SampleSpec, fit: FitConfig, *, augmented: bool
) -> Footprint | None:
    """The footprint of a method that reads images, pairs or nothing; it loses its weights.

    None for a method that needs recorded rings, or the values of its batches, to compute its
    losses.
    """
    if "rings" in method.reads:
        return None
    method.to(META)
    rows = min(fit.micro_batch or fit.batch, fit.batch)
    totals: dict[str, float] = defaultdict(float)
    activations = 0
    with torch.random.fork_rng(devices=()), _counted(method, rows) as calls:
        samples = _sample_steps(method, fit.steps)
        for step, weight in samples.items():
            calls.clear()
            try:
                activations = max(
                    activations, _run(method, _batch(method, spec, rows, step, augmented))
                )
            # a method of another package can ask for values, which raises errors of many kinds
            except Exception:
                return None
            for name, count in calls.items():
                totals[name] += weight * count
    order = [*method.players, *sorted(set(totals) - set(method.players))]
    return Footprint({name: totals[name] for name in order if totals[name]}, activations)


def _sample_steps(method: Objective[Any], length: int) -> dict[int, float]:
    """Training steps to look at, with their weights in the average.

    Methods update their players in turns with a short period. Of each kind of step in it, one or a
    few are taken over the whole training, as the losses themselves can change with the step.
    """
    kinds: dict[Any, list[int]] = defaultdict(list)
    period = min(PERIOD, length)
    for step in range(period):
        kinds[tuple(_describe(turn) for turn in method.turns(step))].append(step)
    weights: dict[int, float] = {}
    count = max(SAMPLES // len(kinds), 1)
    for steps in kinds.values():
        repeats = max((length - 1 - steps[0]) // period, 0)
        sample = {steps[0] + period * (repeats * i // max(count - 1, 1)) for i in range(count)}
        for step in sample:
            weights[step] = len(steps) / period / len(sample)
    return weights


def _run(method: Objective[Any], batch: Batch) -> int:
    """Compute the losses of one step. Returns the bytes that the largest keeps for its gradient."""
    occurrences: Counter[str] = Counter()
    largest = 0
    for turn in method.turns(batch.step):
        player = method.players[turn.player]
        method.requires_grad_(False).eval()
        player.requires_grad_(True).train()
        batch.begin(turn.player, occurrences[turn.player])
        occurrences[turn.player] += 1
        tensors: dict[int, Any] = {}

        def save(tensor: Tensor, tensors: dict[int, Any] = tensors) -> Tensor:
            storage = tensor.untyped_storage()
            tensors[id(storage)] = storage  # alive, so that no other one gets its number
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, _unchanged):
            turn.loss(batch)
        for weight in (*method.parameters(), *method.buffers()):
            tensors.pop(id(weight.untyped_storage()), None)
        largest = max(largest, sum(storage.nbytes() for storage in tensors.values()))
    return largest


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _describe(turn: Turn) -> tuple[Any, ...]:
    """The player and the loss: turns with the same description ask the same networks."""
    loss: Any = turn.loss
    settings: tuple[Any, ...] = ()
    if isinstance(loss, partial):
        loss, settings = loss.func, tuple(sorted(loss.keywords.items()))
    return turn.player, getattr(loss, "__qualname__", repr(loss)), settings


def _batch(
    method: Objective[Any], spec: SampleSpec, rows: int, step: int, augmented: bool
) -> ShapeBatch:
    x = torch.empty(rows, *spec.shape, device=META)
    plain = _condition(spec, rows)
    labels = torch.empty(rows, AUGMENT_LABELS, device=META)
    cond = with_augment_labels(plain, labels) if augmented else plain
    streams = {"images": ImageBatch(x, cond, noise=x), "pairs": PairBatch(x, x, plain)}
    read = {name: rows for name, rows in streams.items() if name in method.reads}
    prompts = _ShapePrompts(spec) if spec.text else None
    return ShapeBatch(0, step, 0, rows, rows, spec, META, read, prompts=prompts)


def _condition(spec: SampleSpec, rows: int) -> Condition | None:
    """Conditions without values for `rows` rows."""
    label = torch.empty(rows, dtype=torch.int64, device=META) if spec.classes else None
    text = None
    if spec.text:
        size, features = (rows, spec.text.input.length), spec.text.input.features
        tokens = torch.empty(*size, features) if features else torch.empty(size, dtype=torch.int64)
        text = Text(tokens.to(META), torch.empty(size, dtype=torch.bool, device=META))
    return None if label is None and text is None else Condition(label, text=text)


class _ShapePrompts:
    """Prompts without values."""

    def __init__(self, spec: SampleSpec) -> None:
        self.spec = spec

    def draw(self, uniform: Tensor) -> Condition:
        cond = _condition(self.spec, len(uniform))
        assert cond
        return cond


@contextmanager
def _counted(method: nn.Module, rows: int) -> Generator[dict[str, float]]:
    """Counts the evaluations per row of each network, by its name in the method."""
    calls: dict[str, float] = defaultdict(float)

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], *_: Any) -> None:
            calls[name] += inputs[0].shape[0] / rows

        return hook

    def with_count(name: str, features: Callable[..., Any]) -> Callable[..., Any]:
        def counted_features(x: Tensor, *arguments: Any, **options: Any) -> Any:
            calls[name] += x.shape[0] / rows
            return features(x, *arguments, **options)

        return counted_features

    handles: list[Any] = []
    networks = _networks(method)
    for name, network in networks:
        handles += [trunk.register_forward_pre_hook(count(name)) for trunk in network.trunks]
        object.__setattr__(network, "features", with_count(name, network.features))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for _, network in networks:
            object.__delattr__(network, "features")


def _networks(method: nn.Module) -> list[tuple[str, Backbone]]:
    """The networks of a method, by the first part of their names: student, fake, teacher, ..."""
    paths = [
        (path, module)
        for path, module in method.named_modules()
        if isinstance(module, Backbone) and not isinstance(module, Guided)
    ]
    outer = [
        (path, module)
        for path, module in paths
        if not any(path.startswith(f"{other}.") for other, _ in paths)
    ]
    return [(path.partition(".")[0], module) for path, module in outer]
