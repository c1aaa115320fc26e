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

    `inputs` lists the program's inputs in order: x, level, level_s, label, tokens, token_mask,
    without those that the network does not have. A label below `classes` is a class; `classes`
    stands for none.
    """

    dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return next(iter(self.network.state_dict().values())).device

    def __init__(
        self, program: torch.export.ExportedProgram, inputs: Sequence[str], classes: int
    ) -> None:
        super().__init__()
        self.program, self.inputs, self.classes = program, list(inputs), classes
        self.network = program.module()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "ExportedNetwork":
        """Load the program in a folder; it computes in float32."""
        folder = Path(folder)
        config = json.loads((folder / CONFIG).read_text())
        program = torch.export.load(folder / PROGRAM)
        return cls(program, config["inputs"], config["classes"])

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the program into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = type(self).__name__
        config = {"_class_name": name, "inputs": self.inputs, "classes": self.classes}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        torch.export.save(self.program, folder / PROGRAM)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        timestep_s: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The network's output, in a tuple of one."""
        values = {"x": sample, "level": timestep, "level_s": timestep_s}
        values |= {"tokens": tokens, "token_mask": token_mask}
        if class_labels is not None:
            values["label"] = torch.where(class_labels == self.classes, -1, class_labels)
        output: Tensor = self.network(*(values[name] for name in self.inputs))
        return (output,)
