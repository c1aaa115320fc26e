"""SqueezeNet 1.1, a small ImageNet classifier."""

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.metrics.extractors.base import ExtractorOutput
from fewstep.metrics.extractors.pretrained import Normalize, PretrainedExtractor
from fewstep.metrics.extractors.trunks import Trunk, load_trunk


class SqueezeNet(PretrainedExtractor):
    """512 features: SqueezeNet 1.1's last feature map, averaged over space."""

    name = "squeezenet"
    size = 224
    standard_resize = "clean-bicubic"

    @classmethod
    def load_network(cls) -> nn.Module:
        return SqueezeNetNetwork(load_trunk("squeeze"))


class SqueezeNetNetwork(nn.Module):
    """Features of images in [0, 255] (Iandola et al. 2016, arXiv:1602.07360)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.normalize, self.trunk = Normalize(), trunk

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> ExtractorOutput:
        return ExtractorOutput(self.feature_maps(images)[-1].mean((2, 3)))

    def feature_maps(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The feature maps that LPIPS uses."""
        return self.trunk.feature_maps(self.normalize(images))
