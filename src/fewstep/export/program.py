"""`Unrolled`: all steps of a sample as one module, which can be traced.

The times of the steps, and everything that follows from them, are constants of the program; the
steps share the weights.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.autoencoders import Decoder
from fewstep.coefficients import Coefficients
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export.constants import constant_table, not_traced
from fewstep.export.tracing import condition_names, example_conditions, reason
from fewstep.generator import Generator
from fewstep.noise import RowNoise
from fewstep.sampling import StepContext, check_path, iterate


class ProgramNoise(RowNoise):
    """Fresh noise in a program, which knows no seeds."""

    def __getattr__(self, name: str) -> Any:
        if name in RowNoise(()).__dict__:
            raise InputError(
                "the sampler draws noise from seeds, which a program does not have: let it call "
                "context.noise.like(x)"
            )
        raise AttributeError(name)


class InputNoise(ProgramNoise):
    """Fresh noise that is an input of the program: `fresh[:, k]` is draw number k + 1."""

    def __init__(self, fresh: Tensor | None) -> None:
        self.fresh, self.draws = fresh, 0

    def like(self, x: Tensor) -> Tensor:
        self.draws += 1
        return torch.zeros_like(x) if self.fresh is None else self.fresh[:, self.draws - 1]


@dataclass
class ConstantContext(StepContext):
    """The context of a step whose coefficients are constants."""

    def at(self, t: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        entry = self.coefficients(t, like)
        return entry.alpha, entry.sigma

    def noisier(self, t: float, factor: float) -> float:
        with not_traced():
            return super().noisier(t, factor)

    def coefficients(self, t: float, like: Tensor) -> Coefficients:
        if t not in self.table:
            with not_traced():
                self.table = {**self.table, **constant_table(self.model, [t])}
        return self.table[t]


class Unrolled(nn.Module):
    """`steps` steps of a generator as a module that returns the images:
    `module(noise[, label][, tokens, token_mask][, fresh_noise])`.

    `noise` (b, *shape) is standard normal, and so is `fresh_noise` (b, draws, *shape), an input if
    the sampler draws noise. The others are those of `tracing.condition_names`. Images (b, *shape)
    are in [0, 1]; points (b, d) are returned as they are.

    Raises: InputError if the network or sampler fails.
    """

    def __init__(self, generator: Generator, steps: int) -> None:
        super().__init__()
        self.steps = generator.nearest(steps)
        times = generator.grid(self.steps, generator.denoiser)
        self.denoiser, self.step, self.spec = generator.denoiser, generator.step, generator.spec
        self.decoder: Decoder | None = generator.decoder
        self.times = check_path(self.denoiser, times)
        sigma = float(self.denoiser.process.sigma(times[:1]))
        self.start = sigma * generator.grid.start_scale(self.times[0], self.denoiser)
        self.table = constant_table(self.denoiser, [*self.times, self.denoiser.span[0]])
        self.eval().requires_grad_(False)
        noise = InputNoise(None)
        with torch.inference_mode():
            try:
                self._sample(torch.zeros(1, *self.spec.shape), None, noise)
            except InputError:
                raise
            except Exception as error:  # whatever a sampler of the user's own raises
                raise InputError(f"the network or sampler fails: {reason(error)}") from error
        self.draws = noise.draws

    @property
    def input_names(self) -> list[str]:
        """Names of the arguments, in order."""
        names = ["noise", *condition_names(self.spec)]
        return names + (["fresh_noise"] if self.draws else [])

    @property
    def output_name(self) -> str:
        return "image" if len(self.spec.shape) == 3 else "points"

    def example_inputs(self, batch: int, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs for a batch: the noise of seeds `seed`, `seed + 1`, …, and conditions."""
        noise = RowNoise(range(seed, seed + batch))
        inputs = [noise.draw(0, self.spec.shape), *example_conditions(self.spec, batch)]
        if self.draws:
            draws = [noise.draw(k + 1, self.spec.shape) for k in range(self.draws)]
            inputs.append(torch.stack(draws, dim=1))
        return tuple(inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        values = dict(zip(self.input_names, inputs, strict=True))
        cond = Condition.from_tensors(values)
        samples = self._sample(values["noise"], cond, InputNoise(values.get("fresh_noise")))
        return (samples.clamp(-1, 1) + 1) / 2 if self.output_name == "image" else samples

    def _sample(self, noise: Tensor, cond: Condition | None, fresh: InputNoise) -> Tensor:
        context = ConstantContext(self.denoiser, cond, fresh, table=self.table)
        states = iterate(self.step, context, self.start * noise, self.times)
        samples = deque(states, maxlen=1).pop()
        return samples if self.decoder is None else self.decoder(samples)
