"""The Inception network that defines FID: the Inception-v3 graph of TensorFlow from 2015.

The graph is `inception-2015-12-05` (Szegedy et al. 2015, arXiv:1512.00567). The names of its
weights are those of the published PyTorch file, `pt_inception-2015-12-05-6726825d.pth`. It differs
from torchvision's Inception: average pools exclude the padding, the last block uses a max pool, and
there are 1008 classes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.metrics.extractors.base import ExtractorOutput
from fewstep.metrics.extractors.pretrained import PretrainedExtractor
from fewstep.metrics.extractors.weights import INCEPTION_SHA256, load_into, load_weights

INCEPTION_HASH = INCEPTION_SHA256[:16]
"""Hash of the standard extractor: the first 16 digits of its weights file's SHA-256."""


class Inception(PretrainedExtractor):
    """The standard Inception network: 2,048 features and 1,008 logits. Its Fréchet distance is
    called FID (Heusel et al. 2017, arXiv:1706.08500)."""

    name = "inception"
    size = 299
    standard_resize = "tf1-bilinear"
    published_hash = INCEPTION_HASH

    @classmethod
    def load_network(cls) -> nn.Module:
        return load_into(InceptionNetwork(), load_weights("inception"), "inception")


class InceptionNetwork(nn.Module):
    """Maps float images in [0, 255] to `ExtractorOutput`. Load its weights after construction.

    It is in evaluation mode and its weights are frozen; it is differentiable in the images.
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
        x = (images - 128) / 128
        for layer in list(self.children())[:-1]:
            x = layer(x)
        features = x.mean((2, 3))
        return ExtractorOutput(features, F.linear(features, self.get_parameter("fc.weight")))


# A branch is a sequence of convolutions, "height x width channels"; "|" separates parallel ones.
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


def _fives(pool_channels: int) -> Branches:
    return {
        "branch1x1": ["1x1 64"],
        "branch5x5": ["1x1 48", "5x5 64"],
        "branch3x3dbl": ["1x1 64", "3x3 96", "3x3 96"],
        "branch_pool": [f"1x1 {pool_channels}"],
    }


def _sevens(channels: int) -> Branches:
    one, row, column = f"1x1 {channels}", f"1x7 {channels}", f"7x1 {channels}"
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
    """Parallel branches whose channels are concatenated.

    With the pools "average" and "max", height and width stay the same and `branch_pool` takes the
    pooled input. With "shrink", the last convolution of each branch has stride 2 and the pooled
    input is a branch of its own.
    """

    def __init__(
        self, inputs: int, branches: Branches, pool: Literal["average", "max", "shrink"]
    ) -> None:
        super().__init__()
        self.pool = pool
        self.paths = {branch: _layers(branch, texts) for branch, texts in branches.items()}
        for path in self.paths.values():
            channels = inputs
            for layer in path:
                shrinks = pool == "shrink" and layer is path[-1]
                self.update({name: _unit(channels, text, shrinks) for name, text in layer.items()})
                channels = sum(int(text.split()[1]) for text in layer.values())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        pooled = self._pool(x)
        ends: list[Tensor] = []
        for branch, path in self.paths.items():
            out = pooled if branch == "branch_pool" else x
            for layer in path:
                out = torch.cat([self[name](out) for name in layer], 1)
            ends.append(out)
        return torch.cat([*ends, pooled] if self.pool == "shrink" else ends, 1)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 2) if self.pool == "shrink" else F.max_pool2d(x, 3, 1, 1)


def _unit(inputs: int, text: str, shrinks: bool) -> _Unit:
    """The convolution described by "height x width channels"."""
    size, outputs = text.split()
    height, width = map(int, size.split("x"))
    if shrinks:
        return _Unit(inputs, int(outputs), (height, width), stride=2)
    return _Unit(inputs, int(outputs), (height, width), padding=(height // 2, width // 2))


def _layers(branch: str, texts: list[str]) -> list[dict[str, str]]:
    """Published name and text of each convolution of a branch, layer by layer.

    A single convolution has the branch's name; several are numbered; parallel ones end in a or b.
    """
    if len(texts) == 1:
        return [{branch: texts[0]}]
    layers = [text.split(" | ") for text in texts]
    return [
        {f"{branch}_{i}{'ab'[j] if layer[1:] else ''}": text for j, text in enumerate(layer)}
        for i, layer in enumerate(layers, 1)
    ]
