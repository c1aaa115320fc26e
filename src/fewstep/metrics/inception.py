"""The network whose features FID is defined by: Inception-v3 as TensorFlow froze it in 2015.

The graph is `inception-2015-12-05` (Szegedy et al. 2015, arXiv:1512.00567), and the names are those
of its published PyTorch weights, `pt_inception-2015-12-05-6726825d.pth`. It is not torchvision's
Inception: average pools leave the padding out, the last block pools by maximum, and there are 1008
classes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.metrics.features import ExtractorOutput


class InceptionNetwork(nn.Module):
    """Images in the units of uint8, 0...255, to `ExtractorOutput`; weights are loaded afterwards.

    It starts in evaluation mode with its weights frozen; gradients reach the images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _Unit(32, 64, (3, 3), padding=(1, 1))
        self.MaxPool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = _Unit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Unit(80, 192, (3, 3))
        self.MaxPool_2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _Block(192, _fives(32), "average")
        self.Mixed_5c = _Block(256, _fives(64), "average")
        self.Mixed_5d = _Block(288, _fives(64), "average")
        self.Mixed_6a = _Block(288, SHRINK_TO_17, "shrink")
        self.Mixed_6b = _Block(768, _sevens(128), "average")
        self.Mixed_6c = _Block(768, _sevens(160), "average")
        self.Mixed_6d = _Block(768, _sevens(160), "average")
        self.Mixed_6e = _Block(768, _sevens(192), "average")
        self.Mixed_7a = _Block(768, SHRINK_TO_8, "shrink")
        self.Mixed_7b = _Block(1280, FORKS, "average")
        self.Mixed_7c = _Block(2048, FORKS, "max")
        self.fc = nn.utils.skip_init(nn.Linear, 2048, 1008)
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "n 3 299 299"]) -> ExtractorOutput:
        seen = (images - 128) / 128
        for layer in list(self.children())[:-1]:
            seen = layer(seen)
        features = seen.mean((2, 3))
        return ExtractorOutput(features, F.linear(features, self.get_parameter("fc.weight")))


# A branch is a row of convolutions, "height x width channels"; "|" sets two side by side.
Branches = dict[str, list[str]]

SHRINK_TO_17: Branches = {
    "branch3x3": ["3x3 384"],
    "branch3x3dbl": ["1x1 64", "3x3 96", "3x3 96"],
}
SHRINK_TO_8: Branches = {
    "branch3x3": ["1x1 192", "3x3 320"],
    "branch7x7x3": ["1x1 192", "1x7 192", "7x1 192", "3x3 192"],
}
FORKS: Branches = {
    "branch1x1": ["1x1 320"],
    "branch3x3": ["1x1 384", "1x3 384 | 3x1 384"],
    "branch3x3dbl": ["1x1 448", "3x3 384", "1x3 384 | 3x1 384"],
    "branch_pool": ["1x1 192"],
}


def _fives(pooled: int) -> Branches:
    return {
        "branch1x1": ["1x1 64"],
        "branch5x5": ["1x1 48", "5x5 64"],
        "branch3x3dbl": ["1x1 64", "3x3 96", "3x3 96"],
        "branch_pool": [f"1x1 {pooled}"],
    }


def _sevens(wide: int) -> Branches:
    one, row, column = f"1x1 {wide}", f"1x7 {wide}", f"7x1 {wide}"
    return {
        "branch1x1": ["1x1 192"],
        "branch7x7": [one, row, "7x1 192"],
        "branch7x7dbl": [one, column, row, column, "1x7 192"],
        "branch_pool": ["1x1 192"],
    }


class _Unit(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(
            nn.Conv2d, inputs, outputs, kernel, stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.ModuleDict):
    """Branches side by side, their channels joined.

    With "average" and "max" the size is kept and `branch_pool` sees the pooled input. With "shrink"
    the last convolution of each branch has stride 2, and the pooled input is a branch of its own.
    """

    def __init__(
        self, inputs: int, branches: Branches, pool: Literal["average", "max", "shrink"]
    ) -> None:
        super().__init__()
        self.pool = pool
        self.paths = {branch: _named(branch, row) for branch, row in branches.items()}
        for path in self.paths.values():
            width = inputs
            for step in path:
                last = pool == "shrink" and step is path[-1]
                self.update({name: _unit(width, text, last) for name, text in step.items()})
                width = sum(int(text.split()[1]) for text in step.values())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        pooled = self._pooled(x)
        ends: list[Tensor] = []
        for branch, path in self.paths.items():
            seen = pooled if branch == "branch_pool" else x
            for step in path:
                seen = torch.cat([self[name](seen) for name in step], 1)
            ends.append(seen)
        return torch.cat([*ends, pooled] if self.pool == "shrink" else ends, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 2) if self.pool == "shrink" else F.max_pool2d(x, 3, 1, 1)


def _unit(inputs: int, text: str, shrinks: bool) -> _Unit:
    """The convolution that "height x width channels" asks for."""
    size, outputs = text.split()
    height, width = map(int, size.split("x"))
    if shrinks:
        return _Unit(inputs, int(outputs), (height, width), stride=2)
    return _Unit(inputs, int(outputs), (height, width), padding=(height // 2, width // 2))


def _named(branch: str, row: list[str]) -> list[dict[str, str]]:
    """The published names: a lone convolution has its branch's, a row counts, a pair is a, b."""
    if len(row) == 1:
        return [{branch: row[0]}]
    steps = [step.split(" | ") for step in row]
    return [
        {f"{branch}_{i}{'ab'[j] if step[1:] else ''}": text for j, text in enumerate(step)}
        for i, step in enumerate(steps, 1)
    ]
