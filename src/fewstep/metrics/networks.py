"""Published networks as extractors: Inception, SqueezeNet, ResNet-56 and DINOv2."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.download import home
from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.features import Extractor, ExtractorOutput, coloured, digest
from fewstep.metrics.inception import InceptionNetwork
from fewstep.metrics.perceptual import Lpips
from fewstep.metrics.resize import Resize, resized
from fewstep.metrics.resnet import ResNet56
from fewstep.metrics.trunks import TRUNKS, Trunk
from fewstep.metrics.weights import INCEPTION_SHA256, weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


class PretrainedExtractor(Extractor):
    """A network with weights of its own and one size of image, which images are brought to.

    `network` takes float images in the units of uint8 at that size and returns `ExtractorOutput`.
    Grey images are repeated to three channels.
    """

    def __init__(
        self, name: str, network: nn.Module, *, size: int, resize: Resize, hash: str | None = None
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.hash = hash or digest(network, name)
        self.size = size
        self.how: Resize = resize
        self.resize = f"{resize} to {size}"

    def seen(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        # TF32, the default of convolutions on a GPU, would change features by 1e-3
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            fitted = self._fitted(images)
            # as clean-fid does: bicubic overshoots at edges
            fitted = fitted.clamp(0, 255) if self.how == "clean-bicubic" else fitted
            return self.network.to(images.device)(fitted)

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        network: Any = self.network.to(images.device)
        if not hasattr(network, "feature_maps"):
            return super().feature_maps(images)
        return network.feature_maps(self._fitted(images))

    def _fitted(self, images: Tensor) -> Tensor:
        return resized(coloured(images), self.size, self.how)


class Normalised(nn.Module):
    """Images in the units of uint8 as ImageNet's classifiers take them."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return (images - self.mean) / self.std


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1's last map, averaged over space: 512 features (Iandola et al. 2016,
    arXiv:1602.07360)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.normalised, self.trunk = Normalised(), trunk

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> ExtractorOutput:
        return ExtractorOutput(self.feature_maps(images)[-1].mean((2, 3)))

    def feature_maps(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The maps of LPIPS."""
        return self.trunk.feature_maps(self.normalised(images))


class Dinov2(nn.Module):
    """DINOv2's class token: 1,024 features of its large network (Oquab et al. 2023,
    arXiv:2304.07193; as a measure of generators: Stein et al. 2023, arXiv:2306.04675)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalised, self.network = Normalised(), network

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> ExtractorOutput:
        return ExtractorOutput(self.network(self.normalised(images)).last_hidden_state[:, 0])


class NetworkSpec(NamedTuple):
    """How an extractor is made."""

    size: int
    resize: Resize
    make: Callable[[], nn.Module]
    hash: str | None = None


def _inception() -> nn.Module:
    return _filled(InceptionNetwork(), weights("inception"), "inception")


def _squeezenet() -> nn.Module:
    return SqueezeNet(published_trunk("squeeze"))


def _resnet() -> nn.Module:
    return _filled(ResNet56(), weights("resnet56-cifar10"), "resnet56-cifar10")


def _dinov2() -> nn.Module:
    try:
        from transformers import Dinov2Model  # pyright: ignore
    except ImportError as error:
        raise InputError(
            'the extractor "dinov2" needs transformers: pip install "fewstep[hub]"'
        ) from error
    folder = home() / "weights" / "dinov2-large"
    source = str(folder) if folder.is_dir() else "facebook/dinov2-large"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it tells of each attempt
    try:
        return Dinov2(Dinov2Model.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load DINOv2 from {source} ({str(error).splitlines()[0]}); go online, or put "
            f"config.json and model.safetensors of facebook/dinov2-large into {folder}"
        ) from error


INCEPTION_HASH = INCEPTION_SHA256[:16]
"""Of the standard Inception: its file's, which every other tool can check."""

NETWORKS = {
    "inception": NetworkSpec(299, "tf1-bilinear", _inception, INCEPTION_HASH),
    "dinov2": NetworkSpec(224, "clean-bicubic", _dinov2),
    "squeezenet": NetworkSpec(224, "clean-bicubic", _squeezenet),
    "resnet56-cifar10": NetworkSpec(32, "clean-bicubic", _resnet),
}


def load_pretrained(name: str, resize: Resize | None = None) -> PretrainedExtractor:
    """The extractor of that name, one of NETWORKS, with its published weights.

    Raises: InputError for another name, or where weights or packages are missing.
    """
    if name not in NETWORKS:
        raise InputError(
            f"there is no published network {name!r}{did_you_mean(name, NETWORKS)}; "
            f"there are: {', '.join(NETWORKS)}"
        )
    known = NETWORKS[name]
    return PretrainedExtractor(
        name, known.make(), size=known.size, resize=resize or known.resize, hash=known.hash
    )


_TRUNK_WEIGHTS = {"squeeze": "squeezenet", "alex": "alexnet", "vgg": "vgg16"}


def published_trunk(name: str) -> Trunk:
    """The trunk called squeeze, alex or vgg, with ImageNet's weights."""
    kept = {k: v for k, v in weights(_TRUNK_WEIGHTS[name]).items() if k.startswith("features.")}
    return _filled(TRUNKS[name](), kept, _TRUNK_WEIGHTS[name])


def published_lpips(name: str, *, size: int | None = None) -> Lpips:
    """LPIPS, version 0.1, of the trunk called squeeze, alex or vgg.

    Raises: InputError where weights are missing.
    """
    heads = weights(f"lpips-{name}")
    ordered = [heads[f"lin{i}.model.1.weight"] for i in range(len(heads))]
    return Lpips(published_trunk(name), ordered, size=size)


Network = TypeVar("Network", bound=nn.Module)


def _filled(network: Network, state: dict[str, Tensor], name: str) -> Network:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the file of weights of {name} holds another network's") from error
    return network.eval()
