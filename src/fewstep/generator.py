"""A denoiser and how it is sampled: what a run produces, what `load` returns, what is shipped."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from fewstep import backbones
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.circuits.network import CircuitConfig
from fewstep.circuits.one_step import ResidualsConfig
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.guidance import Guided, unguided
from fewstep.parametrization import AnyParametrization
from fewstep.process import AnyProcess
from fewstep.sampling import Step, describe_step, named_step, path, ring, sample, transfer
from fewstep.times import Grid, GridConfig, UniformGrid


@dataclass(frozen=True)
class SampleSpec:
    """What is generated: the shape of one sample, and its classes (none: unconditional)."""

    shape: tuple[int, ...]
    classes: int = 0
    class_names: tuple[str, ...] = ()


class Generator(nn.Module):
    """Images from noise: `denoiser`, stepped by `step` on `grid`.

    `grid.counts` are the step counts it was made for; for another count the nearest is taken, with
    a warning that says so.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        spec: SampleSpec,
        *,
        grid: Grid | None = None,
        step: Step = transfer,
    ) -> None:
        super().__init__()
        self.denoiser: Denoiser = denoiser
        self.spec = spec
        self.grid = grid or UniformGrid()
        self.step = step

    def forward(
        self,
        noise: Tensor,
        *,
        steps: int = 1,
        cond: Condition | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Tensor:
        """Images (b, *shape) near [-1, 1] from standard normal `noise`, in `steps` steps.

        Raises: InputError for no steps, a foreign noise shape, or a label out of range.
        """
        self._check(noise, cond)
        times = self.grid(self.nearest(steps), self.denoiser)
        return sample(self.denoiser, noise, times, step=self.step, cond=cond, seed=seed)

    def path(self, noise: Tensor, *, steps: int, cond: Condition | None = None) -> Iterator[Tensor]:
        """The states (b, *shape) at each time of the grid, then the image: `steps` + 1 tensors."""
        self._check(noise, cond)
        times = self.grid(self.nearest(steps), self.denoiser)
        return path(self.denoiser, noise, times, step=self.step, cond=cond)

    def _check(self, noise: Tensor, cond: Condition | None) -> None:
        if tuple(noise.shape[1:]) != self.spec.shape:
            raise InputError(
                f"noise has shape {tuple(noise.shape)}; this generator makes "
                f"(n, {', '.join(map(str, self.spec.shape))})"
            )
        if cond is not None:
            self.check_labels(cond.label)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def nearest(self, steps: int, *, quietly: bool = False) -> int:
        """The step count it takes when asked for `steps`; warns, or not, where they differ."""
        counts = self.grid.counts
        if not counts or steps in counts or steps < 1:
            return steps
        taken = min(counts, key=lambda count: abs(count - steps))
        made_for = ", ".join(map(str, counts))
        if not quietly:
            told = f"made for {made_for} steps, asked for {steps}: taking {taken}"
            warnings.warn(told, stacklevel=3)
        return taken

    def check_labels(self, label: Tensor) -> None:
        """Refuse classes that it does not know; -1, no class, is always allowed."""
        classes = self.spec.classes
        if not classes:
            raise InputError("this generator is unconditional; ask for no label")
        low, high = int(label.min()), int(label.max())
        if low < -1 or high >= classes:
            raise InputError(
                f"label {high if high >= classes else low} is out of range; "
                f"the classes are 0 to {classes - 1}"
            )

    def with_sampler(self, *, grid: Grid | None = None, step: Step | None = None) -> "Generator":
        """The same denoiser, sampled otherwise.

        A ring's grid counts its updates: another step takes a uniform one, unless one is given.
        """
        freed = self.step is ring and step not in (None, ring)
        kept = UniformGrid() if freed else self.grid
        return Generator(self.denoiser, self.spec, grid=grid or kept, step=step or self.step)

    def with_guidance(self, weight: float) -> "Generator":
        """The same weights under classifier-free guidance."""
        if not self.spec.classes:
            raise InputError(
                "guidance needs a class-conditional generator; this one has no classes"
            )
        inner = self.denoiser
        guided = Denoiser(
            Guided(unguided(inner.backbone), weight),
            inner.process,
            inner.parametrization,
            autocast=inner.autocast,
            is_flow_map=inner.is_flow_map,
        )
        return Generator(guided, self.spec, grid=self.grid, step=self.step)

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; `from_description` reads it back."""
        backbone = self.denoiser.backbone
        return {
            "spec": asdict(self.spec),
            "backbone": asdict(backbone.config),
            "guidance": backbone.weight if isinstance(backbone, Guided) else 1.0,
            "process": asdict(self.denoiser.process),
            "parametrization": asdict(self.denoiser.parametrization),
            "step": describe_step(self.step),
            "grid": asdict(self.grid),
            **({"is_flow_map": True} if self.denoiser.is_flow_map else {}),
        }


AnyBackbone = MLPConfig | UNetConfig | CircuitConfig | ResidualsConfig
"""Settings of any architecture; the field `name` distinguishes them in a recipe."""


@dataclass(frozen=True)
class _Description:
    spec: SampleSpec
    backbone: AnyBackbone
    guidance: float
    process: AnyProcess
    parametrization: AnyParametrization
    step: dict[str, Any]
    grid: GridConfig
    is_flow_map: bool = False


def from_description(description: dict[str, Any]) -> Generator:
    """A generator with untrained weights, as `Generator.describe` told it."""
    told = TypeAdapter(_Description).validate_python(description)
    spec = told.spec
    backbone = backbones.build(told.backbone, shape=spec.shape, classes=spec.classes)
    denoiser = Denoiser(backbone, told.process, told.parametrization, is_flow_map=told.is_flow_map)
    step = named_step(told.step["name"], **{k: v for k, v in told.step.items() if k != "name"})
    generator = Generator(denoiser, spec, grid=told.grid, step=step)
    return generator if told.guidance == 1.0 else generator.with_guidance(told.guidance)
