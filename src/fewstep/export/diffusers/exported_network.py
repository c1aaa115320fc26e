"""A network that diffusers has no class for, as a program of `torch.export`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CONFIG, PROGRAM = "config.json", "network.pt2"


class ExportedNetwork(nn.Module):
    """Called as UNet2DModel: network(sample, timestep, class_labels=..., timestep_s=...).

    `inputs` lists the names of the program's inputs, in order.
    """

    dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def __init__(self, program: torch.export.ExportedProgram, inputs: Sequence[str]) -> None:
        super().__init__()
        self.program, self.inputs = program, list(inputs)
        self.network = program.module()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "ExportedNetwork":
        """Load the program in a folder; it computes in float32."""
        folder = Path(folder)
        inputs = json.loads((folder / CONFIG).read_text())["inputs"]
        return cls(torch.export.load(folder / PROGRAM), inputs)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the program into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, "inputs": self.inputs}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        torch.export.save(self.program, folder / PROGRAM)

    def forward(
        self, sample: Tensor, timestep: Tensor, return_dict: bool = False, **values: Tensor
    ) -> tuple[Tensor]:
        """The network's output, in a tuple of one."""
        values |= {"sample": sample, "timestep": timestep}
        output: Tensor = self.network(*(values[name] for name in self.inputs))
        return (output,)
