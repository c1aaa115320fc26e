"""`torch.export` programs, one `.pt2` file for each number of steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.export.base import Exporter
from fewstep.export.program import Unrolled
from fewstep.export.source import Source


@dataclass(frozen=True)
class TorchExport(Exporter):
    """`model-N.pt2` for N steps: `torch.export.load(file).module()(noise[, label], ...)`."""

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        checks: dict[str, Any] = {}
        for steps in source.steps:
            module = Unrolled(source.generator, steps)
            file = folder / f"model-{module.steps}.pt2"
            torch.export.save(trace(module), file)
            checks[file.name] = _largest_difference(file, module)
        return checks


def trace(module: Unrolled) -> torch.export.ExportedProgram:
    """The program for any number of rows."""
    inputs, batch = module.example_inputs(2), torch.export.Dim("batch")
    rows = tuple({0: batch} for _ in inputs)
    return torch.export.export(module, inputs, dynamic_shapes={"inputs": rows})


@torch.inference_mode()
def _largest_difference(file: Path, module: Unrolled) -> float:
    """The largest difference of 7 images from those of PyTorch."""
    inputs: tuple[Tensor, ...] = module.example_inputs(7)
    loaded = torch.export.load(file).module()
    return (loaded(*inputs) - module(*inputs)).abs().max().item()
