"""Samples as short lists of instructions, for programs that run the network but not PyTorch.

Most samplers compute sums of the state, the network's output and noise, with factors that are known
before. `sampling_program` records them while the sampler runs on symbols in place of images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from fewstep import plugins
from fewstep.denoiser import Denoiser, Prediction
from fewstep.errors import InputError
from fewstep.export.constants import constant_table
from fewstep.export.program import ConstantContext, ProgramNoise
from fewstep.export.tracing import reason
from fewstep.generator import Generator
from fewstep.painting import paint_times
from fewstep.sampling import check_path, iterate

Terms = dict[int, float]
Instruction = dict[str, Any]


@dataclass
class Recorder:
    """The instructions of a program; each writes the next register, after those of the inputs."""

    inputs: list[str]
    shape: tuple[int, ...] = ()
    instructions: list[Instruction] = field(default_factory=list[Instruction])

    def append(self, instruction: Instruction) -> "Linear":
        """Append an instruction. Returns its register."""
        self.instructions.append(instruction)
        return Linear(self, {len(self.inputs) + len(self.instructions) - 1: 1.0})

    def register(self, value: "Linear", clip: float | None = None) -> "Linear":
        """The value as one register, clamped to ±clip."""
        if clip is None and list(value.terms.values()) == [1.0]:
            return value
        return self.append({"sum": value.pairs(), "clip": clip})


class Unsupported(Exception):
    """Raised for an operation that is no sum of registers."""


class Linear(Tensor):
    """A sum of registers with constant factors, in place of a batch; it has no data."""

    recorder: Recorder
    terms: Terms

    def __new__(cls, recorder: Recorder, terms: Terms) -> "Linear":
        batch = torch.empty(1, *recorder.shape, device="meta")
        self = Tensor._make_subclass(cls, batch)  # pyright: ignore[reportPrivateUsage]
        self.recorder, self.terms = recorder, terms
        return self

    def __init__(self, recorder: Recorder, terms: Terms) -> None:
        super().__init__()

    def pairs(self) -> list[list[float]]:
        """[register, factor] of each term; one at least."""
        terms = [[register, factor] for register, factor in sorted(self.terms.items())]
        return [term for term in terms if term[1]] or terms[:1]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.__name__.strip("_")
        if name in ("get", "size", "dim", "len"):  # attributes such as shape, and sizes
            return super().__torch_function__(func, tuple(types), tuple(args), kwargs or {})
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise Unsupported(name)
        return operation(*args, **(kwargs or {}))


def _scale(a: Any, b: Any) -> Linear:
    total, factor = (a, b) if isinstance(a, Linear) else (b, a)
    if isinstance(factor, Linear) or (isinstance(factor, Tensor) and factor.ndim):
        raise Unsupported("mul of two batches")
    return Linear(total.recorder, {k: v * float(factor) for k, v in total.terms.items()})


def _add(a: Any, b: Any) -> Linear:
    if not (isinstance(a, Linear) and isinstance(b, Linear)):
        total, number = (a, b) if isinstance(a, Linear) else (b, a)
        if number != 0:  # `sum` starts from 0
            raise Unsupported("add of a number")
        return total
    names = sorted(a.terms.keys() | b.terms.keys())
    total = {name: a.terms.get(name, 0.0) + b.terms.get(name, 0.0) for name in names}
    return Linear(a.recorder, total)


def _divide(a: Any, b: Any) -> Linear:
    if isinstance(b, Linear):
        raise Unsupported("div by a batch")
    return _scale(a, 1 / float(b) if b else math.inf)


def _subtract(a: Any, b: Any) -> Linear:
    return _add(a, _scale(b, -1.0) if isinstance(b, Linear) else -b)


def _clamp(a: Linear, min: float | None = None, max: float | None = None) -> Linear:
    if min is None or max is None or min != -max:
        raise Unsupported("clamp to a range that is not ±clip")
    return a.recorder.register(a, float(max))


_OPERATIONS: dict[str, Callable[..., Linear]] = {
    **dict.fromkeys(("mul", "multiply", "rmul"), _scale),
    **dict.fromkeys(("add", "radd"), _add),
    **dict.fromkeys(("sub", "subtract"), _subtract),
    **dict.fromkeys(("rsub",), lambda a, b: _subtract(b, a)),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _divide),
    **dict.fromkeys(("neg", "negative"), lambda a: _scale(a, -1.0)),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "to": lambda a, *kind, **options: a,
    "float": lambda a: a,
}


class _RecordedNoise(ProgramNoise):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.draws = recorder, 0

    def like(self, x: Any) -> Any:
        self.draws += 1
        return self.recorder.append({"noise": self.draws})


@dataclass
class _RecordingContext(ConstantContext):
    recorder: Recorder = field(default_factory=lambda: Recorder([]))

    def predict(self, x_t: Any, t: float) -> Prediction:
        return self._call(x_t, t, t if self.model.is_flow_map else None)

    def predict_to(self, x_t: Any, t: float, s: float | None) -> Prediction:
        end = self.model.span[0] if s is None else s
        return self._call(x_t, t, end if self.model.is_flow_map else None)

    def _call(self, x_t: Any, t: float, s: float | None) -> Prediction:
        x_t, at = self.recorder.register(x_t), self.coefficients(t, x_t)
        output = self.recorder.append(
            {
                "network": (x_t * at.scale).pairs(),
                "level": self._level(t, x_t),
                "level_s": None if s is None else self._level(s, x_t),
            }
        )
        return Prediction(x_t, output, at)

    def _level(self, t: float, x_t: Any) -> float:
        model = self.model
        scale = model.backbone.level_scale if model.parametrization.logarithmic else 1.0
        return float(self.coefficients(t, x_t).level) * scale


def sampling_program(
    generator: Generator, steps: int, *, freedom: float | None = None
) -> dict[str, Any]:
    """The instructions of a sample of `steps` steps, as JSON values; docs/browser.md lists them.

    With `freedom`, from 0 to 1, it starts at a picture with noise, as `painting.paint` does.

    Raises: InputError for a sampler that computes more than sums and clamps.
    """
    steps, denoiser = generator.nearest(steps), generator.denoiser
    inputs = ["noise"] if freedom is None else ["noise", "image"]
    recorder = Recorder(inputs, generator.spec.shape)
    if freedom is None:
        grid = generator.grid(steps, denoiser)
        times = check_path(denoiser, grid)
        scale = generator.grid.start_scale(times[0], denoiser)
    else:
        times = check_path(denoiser, paint_times(generator, freedom, steps))
        scale = 1.0
    context = _context(denoiser, times, recorder)
    first = context.table[times[0]]
    start: Terms = {0: float(first.sigma) * scale}
    if freedom is not None:
        start[1] = float(first.alpha)
    first_state = recorder.register(Linear(recorder, start))
    try:
        *_, image = iterate(generator.step, context, first_state, times)
        recorder.register(cast(Linear, image))
        _check_finite(recorder)
    except InputError:
        raise
    except Exception as error:  # whatever a sampler of the user's own raises
        name = plugins.name_of("sampler", type(generator.step))
        problem = str(error) if isinstance(error, Unsupported) else reason(error)
        raise InputError(
            f"the sampler {name} computes more than sums and clamps of images ({problem}), "
            "which only the exports onnx and torch can: choose another --sampler, or one of these"
        ) from error
    return {"inputs": recorder.inputs, "instructions": recorder.instructions}


def _context(denoiser: Denoiser, times: list[float], recorder: Recorder) -> _RecordingContext:
    table = constant_table(denoiser, [*times, denoiser.span[0]])
    return _RecordingContext(
        denoiser, None, _RecordedNoise(recorder), table=table, recorder=recorder
    )


def _check_finite(recorder: Recorder) -> None:
    for instruction in recorder.instructions:
        pairs = instruction.get("sum") or instruction.get("network") or []
        numbers = [factor for _, factor in pairs]
        numbers += [instruction[key] or 0.0 for key in ("level", "level_s") if key in instruction]
        if not torch.tensor(numbers).isfinite().all():
            raise InputError(
                "a factor of the sample is infinite or not a number at these times: choose another "
                "number of --steps, or another --sampler"
            )


def run_program(
    program: Mapping[str, Any],
    network: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    inputs: Sequence[Tensor],
    draw: Callable[[int], Tensor],
) -> Tensor:
    """Run a program: the reference for other languages.

    `network(x, level, level_s)` returns the raw output (b, ...), with levels (b,); `inputs` are the
    noise and, if the program has it, the image, (b, ...); `draw(k)` returns fresh noise number k.
    """
    registers = list(inputs)

    def combine(pairs: Sequence[Sequence[float]]) -> Tensor:
        return sum((factor * registers[int(i)] for i, factor in pairs), torch.zeros(()))

    for instruction in program["instructions"]:
        if "noise" in instruction:
            registers.append(draw(instruction["noise"]))
        elif "sum" in instruction:
            clip = instruction["clip"]
            value = combine(instruction["sum"])
            registers.append(value if clip is None else value.clamp(-clip, clip))
        else:
            x, level_s = combine(instruction["network"]), instruction["level_s"]
            level = x.new_full((len(x),), instruction["level"])
            end = None if level_s is None else torch.full_like(level, level_s)
            registers.append(network(x, level, end))
    return registers[-1]
