"""`torch.export` programs, one `.pt2` file for each number of steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.export.base import Exporter
from fewstep.export.checking import compare
from fewstep.export.program import Unrolled
from fewstep.export.source import Source
from fewstep.export.tracing import trace


@dataclass(frozen=True)
class TorchExport(Exporter):
    """`model-N.pt2` for N steps: `torch.export.load(file).module()(noise[, label], ...)`."""

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        checks: dict[str, Any] = {}
        for steps in source.steps:
            module = Unrolled(source.generator, steps)
            file = folder / f"model-{module.steps}.pt2"
            torch.export.save(trace(module, module.example_inputs(2)), file)
            loaded = torch.export.load(file).module()
            checks[file.name] = compare(file.name, lambda inputs, run=loaded: run(*inputs), module)
        return checks
