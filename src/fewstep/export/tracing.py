"""Trace a module to a `torch.export` program, and say in one line which operation prevents it."""

import io
import logging
import re
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.generator import Generator as Sampler
from fewstep.guidance import unguided
from fewstep.sample_spec import SampleSpec

BATCH = "batch"
"""Name of the dimension of the rows, in all programs."""

_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'")


class Network(nn.Module):
    """The bare network of a generator, without guidance, whose inputs are all positional.

    `module(x, level[, level_s][, label][, tokens, token_mask])` returns the raw output (b, *shape).
    `level` and `level_s` (b,) are in float32; the others are those of `condition_names`.
    """

    def __init__(self, generator: Sampler) -> None:
        super().__init__()
        self.backbone = unguided(generator.denoiser.backbone)
        self.spec = generator.spec
        self.input_names = ["x", "level"]
        self.input_names += ["level_s"] if generator.denoiser.is_flow_map else []
        self.input_names += condition_names(self.spec)
        self.output_name = "output"
        self.eval().requires_grad_(False)

    def example_inputs(self, batch: int, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs for a batch: standard normal `x`, random levels, and conditions."""
        random = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(batch, *self.spec.shape, generator=random)]
        levels = torch.rand(2, batch, generator=random) * 100 + 1
        inputs += [levels[0], levels[0] * levels[1] / 101][: 1 + ("level_s" in self.input_names)]
        return (*inputs, *example_conditions(self.spec, batch))

    def forward(self, *inputs: Tensor) -> Tensor:
        values = dict(zip(self.input_names, inputs, strict=True))
        cond = Condition.from_tensors(values)
        return self.backbone(values["x"], values["level"], level_s=values.get("level_s"), cond=cond)


def condition_names(spec: SampleSpec) -> list[str]:
    """Names of the inputs of a program that are conditions.

    `label` (b,) in int64 is a class number, or -1 for none. `tokens` (b, n) in int64 are those of a
    prompt, and the boolean `token_mask` (b, n) is true for them; a row without any has no prompt.
    """
    names = ["label"] if spec.classes else []
    return names + (["tokens", "token_mask"] if spec.text is not None else [])


def example_conditions(spec: SampleSpec, batch: int) -> list[Tensor]:
    """Inputs for a batch by `condition_names`: no condition, then classes and lengths in turn."""
    row = torch.arange(batch)
    inputs = [row % (spec.classes + 1) - 1] if spec.classes else []
    if spec.text is not None:
        place = torch.arange(spec.text.input.length)
        tokens = (997 * row[:, None] + 31 * place) % spec.text.input.vocabulary
        inputs += [tokens, place < (7 * row % (len(place) + 1))[:, None]]
    return inputs


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The program of `module.forward(*inputs)`, for any number of rows.

    `inputs` are examples with at least two rows.

    Raises: InputError for an operation that depends on values, or that needs a fixed number of
    rows.
    """
    rows = tuple({0: torch.export.Dim(BATCH)} for _ in inputs)
    with quiet():
        try:
            return torch.export.export(module, tuple(inputs), dynamic_shapes={"inputs": rows})
        except Exception as error:  # whatever a module of the user's own raises
            raise InputError(f"the network or sampler cannot be traced: {reason(error)}") from error


@contextmanager
def quiet() -> Generator[None]:
    """A context in which PyTorch's exporters neither warn nor log."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def reason(error: BaseException) -> str:
    """What an exporter's error says, in one line that names the operation and its place."""
    text = str(error).strip()
    operator = _OPERATOR.search(text)
    if operator:
        return f"it has no operation like {operator[1]}"
    if "Constraints violated" in text:
        return "it fixes the number of rows, as a loop over rows does: use operations on batches"
    place = _place(error)
    if "data-dependent" in text:
        return f"the value of a tensor decides what is computed{place}"
    lines = text.splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}{place}"


def _place(error: BaseException) -> str:
    """The line of the user's code, or of fewstep's, at which the error was raised."""
    outside = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if outside not in Path(frame.filename).parents and frame.filename != __file__
    ]
    if not frames:
        return ""
    last = frames[-1]
    return f" in `{last.line}`, {Path(last.filename).name} line {last.lineno}"
