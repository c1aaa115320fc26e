"""`TextImageNetwork`: embeds images and captions, so that what belongs together is close."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.condition import Text
from fewstep.images import from_uint8

EMBEDDING = 128
"""Length of the embeddings of images and captions."""
BATCH = 256  # images or captions per forward pass: bounds the memory


class TextImageNetwork(nn.Module):
    """Two towers that end in unit vectors, as in CLIP (Radford et al. 2021, arXiv:2103.00020).

    The cosine of an image and a caption is how well they match.
    """

    def __init__(self, shape: tuple[int, int, int], vocabulary: int) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.image_tower = ImageTower(shape)
        self.text_tower = TextTower(vocabulary)
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        """Logarithm of the factor of the cosines in the training loss."""

    def draw(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        for name, weight in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(weight, std=0.5, generator=generator)
            elif weight.ndim > 1:
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Unit vectors of any number of images."""
        return torch.cat([self.image_tower(batch.float()) for batch in images.split(BATCH)])

    @torch.no_grad()
    def embed_text(self, text: Text) -> Float[Tensor, "n d"]:
        """Unit vectors of encoded captions."""
        batches = zip(text.tokens.split(BATCH), text.mask.split(BATCH), strict=True)
        return torch.cat([self.text_tower(tokens, mask) for tokens, mask in batches])


class ImageTower(nn.Module):
    """Convolutions down to 4x4, then a linear layer. Images above 32x32 are averaged down to it."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape[0], min(shape[1], 32), min(shape[2], 32)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((height, width))]
        out = 32
        layers += _block(channels, out, 2 if max(height, width) > 16 else 1)
        if max(height, width) > 16:
            height, width = -(-height // 2), -(-width // 2)
        while max(height, width) > 4:
            channels, out = out, 2 * out
            layers += [*_block(channels, out, 2), *_block(out, out, 1)]
            height, width = -(-height // 2), -(-width // 2)
        linear = nn.utils.skip_init(nn.Linear, out * height * width, EMBEDDING, bias=False)
        self.layers = nn.Sequential(*layers, nn.Flatten(), linear)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Unit vectors of float images in [0, 255]."""
        return F.normalize(self.layers(from_uint8(images)), dim=1)


def _block(channels: int, out: int, stride: int) -> list[nn.Module]:
    conv = nn.utils.skip_init(nn.Conv2d, channels, out, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


class TextTower(nn.Module):
    """The mean over the tokens of their embeddings and of a convolution of three neighbours, then
    two linear layers.

    The mean makes the parts of a caption count independently of each other, so that captions of
    known parts in new compositions get meaningful vectors; the convolution sees word order.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        d = EMBEDDING
        self.embedding = nn.utils.skip_init(nn.Embedding, vocabulary, d)
        self.neighbours = nn.utils.skip_init(nn.Conv1d, d, d, 3, padding=1, bias=False)
        self.inner = nn.utils.skip_init(nn.Linear, d, 2 * d, bias=False)
        self.outer = nn.utils.skip_init(nn.Linear, 2 * d, d, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Float[Tensor, "n d"]:
        """Unit vectors of captions: ids of tokens (n, length), and a mask that is true for those of
        the caption."""
        weight = mask[..., None].float()
        x = self.embedding(tokens) * weight
        x = (x + self.neighbours(x.mT).mT.relu()) * weight
        mean = x.sum(1) / weight.sum(1).clamp(min=1)
        return F.normalize(self.outer(self.inner(mean).relu()), dim=1)
