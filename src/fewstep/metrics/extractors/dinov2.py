"""DINOv2, a network that was trained without labels."""

import logging

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.download import home
from fewstep.errors import InputError
from fewstep.metrics.extractors.base import ExtractorOutput
from fewstep.metrics.extractors.pretrained import Normalize, PretrainedExtractor


class Dinov2(PretrainedExtractor):
    """1,024 features: the class token of DINOv2's large network. Its Fréchet distance is called
    FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675)."""

    name = "dinov2"
    size = 224
    standard_resize = "clean-bicubic"

    @classmethod
    def load_network(cls) -> nn.Module:
        try:
            from transformers import Dinov2Model  # pyright: ignore
        except ImportError as error:
            raise InputError(
                'the extractor "dinov2" needs transformers: pip install "fewstep[hub]"'
            ) from error
        folder = home() / "weights" / "dinov2-large"
        has_config = (folder / "config.json").is_file()
        source = str(folder) if has_config else "facebook/dinov2-large"
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt
        try:
            return Dinov2Network(Dinov2Model.from_pretrained(source))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load DINOv2 from {source} ({str(error).splitlines()[0]}); go online, or "
                f"put config.json and model.safetensors of facebook/dinov2-large into {folder}"
            ) from error


class Dinov2Network(nn.Module):
    """Features of images in [0, 255] (Oquab et al. 2023, arXiv:2304.07193)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalize, self.network = Normalize(), network

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> ExtractorOutput:
        return ExtractorOutput(self.network(self.normalize(images)).last_hidden_state[:, 0])
