"""How much of images an autoencoder loses: PSNR, LPIPS, and the Fréchet distance."""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.autoencoders import Autoencoder
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.images import from_uint8, to_uint8
from fewstep.latents import batch_size, encode_images
from fewstep.metrics import Lpips, ScoreAccumulator, load_lpips


@dataclass(frozen=True)
class Reconstruction:
    """Measures of reconstructions, in 8 bits like the images that they are compared with."""

    images: int
    """Number of images."""
    psnr: float
    """Peak signal-to-noise ratio in dB, the mean over images."""
    lpips: float | None
    """LPIPS with SqueezeNet's features, the mean over images. None without its weights,
    or for images that are too small."""
    frechet: float
    """Fréchet distance of the reconstructions from the reference."""
    frechet_of_images: float
    """That of the images themselves, which no autoencoder can be expected to undercut."""
    extractor: str
    reference: str
    """Name, size and fingerprint of the reference."""


def measure_reconstructions(
    autoencoder: Autoencoder, images: ImageSet, evaluator: Evaluator
) -> Generator[int, None, Reconstruction]:
    """Reconstruct `images` and measure; yields the number of images done so far.

    Raises: InputError for images of another shape than those of the evaluator or autoencoder.
    """
    if images.shape != evaluator.images.shape:
        raise InputError(
            f"the images have shape {images.shape}, and those of the reference "
            f"{evaluator.images.name} have {evaluator.images.shape}"
        )
    reference = yield from evaluator.prepare()
    count, done = len(images), 0
    again, original = (ScoreAccumulator(reference, count) for _ in range(2))
    lpips, psnr, distance = _find_lpips(images.shape), list[Tensor](), list[Tensor]()
    parts = images.images.split(batch_size(images.shape))
    for part, latents in zip(parts, encode_images(autoencoder, images.images), strict=True):
        with torch.inference_mode():
            device = autoencoder.decoder.mean.device
            decoded = to_uint8(autoencoder.decode(latents.to(device))).cpu()
            psnr.append(peak_ratio(part, decoded))
            if lpips:
                distance.append(lpips(from_uint8(part), from_uint8(decoded)))
        again.update(decoded)
        original.update(part)
        done += len(part)
        yield done
    return Reconstruction(
        images=count,
        psnr=torch.cat(psnr).mean().item(),
        lpips=torch.cat(distance).mean().item() if distance else None,
        frechet=again.measures().frechet,
        frechet_of_images=original.measures().frechet,
        extractor=evaluator.extractor.name,
        reference=evaluator.reference_name,
    )


def peak_ratio(
    images: UInt8[Tensor, "b c h w"], others: UInt8[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """PSNR in dB of each image; of equal ones as if one value in all of them differed by 1."""
    error = (images.double() - others.double()).square().flatten(1)
    least = 1 / error.shape[1]
    return 10 * torch.log10(255**2 / error.mean(1).clamp(min=least))


def _find_lpips(shape: tuple[int, ...]) -> Lpips | None:
    """LPIPS, if its weights are on this machine and it takes images of `shape`."""
    image = torch.zeros(1, *shape)
    try:
        lpips = load_lpips("squeeze")
        lpips(image, image)
    except InputError:
        return None
    return lpips
