"""The forward process: images of a data set at increasing noise levels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from fewstep.data import ImageSet
from fewstep.drawing import seeds
from fewstep.explain.model import Model
from fewstep.explain.sheets import draw_sheet
from fewstep.images import from_uint8, to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.process import Process

IMAGES = 3
COLUMNS = 6


@dataclass(frozen=True, eq=False)
class NoisyImages:
    """Images at increasing times."""

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    """Scales of the image and of the noise at each time."""
    images: UInt8[Tensor, "n t c h w"]
    """x_t/(alpha + sigma), which has the range of images, at each time."""

    def sheet(self) -> Image.Image:
        """The images in rows, with the numbers of each time above."""
        columns = {
            "t": [f"{t:.3g}" for t in self.times],
            "alpha": [f"{a:.3g}" for a in self.alpha],
            "sigma": [f"{s:.3g}" for s in self.sigma],
        }
        is_scaled = any(abs(a + s - 1) > 1e-3 for a, s in zip(self.alpha, self.sigma, strict=True))
        note = "shown: x_t / (alpha + sigma)" if is_scaled else ""
        return draw_sheet([[*row] for row in self.images], [""] * len(self.images), columns, note)


@torch.inference_mode()
def add_noise(model: Model, *, seed: int = 0) -> NoisyImages:
    """Images of the model's data at times of its process; each has the same noise at all times.

    Latents are decoded: the images are those that the noisy latents stand for.

    Raises: InputError as `Model.images` and `Model.autoencoder`.
    """
    generator = model.generator
    x0 = from_uint8(_choose(model.images(), seed))
    process, span = generator.denoiser.process, generator.denoiser.span
    autoencoder = None
    if generator.decoder:
        autoencoder = model.autoencoder()
        x0 = autoencoder.encode(x0)
    eps = noise_from_seeds(seeds(seed, range(len(x0))), generator.spec.shape)
    times = even_times(process, span, COLUMNS).flip(0)
    alpha, sigma = process.alpha(times), process.sigma(times)
    states = [process.add_noise(x0, eps, float(t)) / float(a + s)
              for t, a, s in zip(times, alpha, sigma, strict=True)]  # fmt: skip
    if autoencoder:
        states = [autoencoder.decode(state) for state in states]
    images = torch.stack([to_uint8(state) for state in states], dim=1)
    return NoisyImages(tuple(times.tolist()), tuple(alpha.tolist()), tuple(sigma.tolist()), images)


def even_times(
    process: Process, span: tuple[float, float], count: int, *, start: float = 1.0
) -> Tensor:
    """`count` decreasing times (float64) at equal steps of the noise level sigma/(alpha + sigma).

    They run from the level of the time `start` to 0, as far as `span` goes.
    """
    ratio = process.ratio(torch.tensor(min(start, span[1]), dtype=torch.float64))
    level = torch.linspace(1, 0, count, dtype=torch.float64) / (1 + 1 / ratio)
    return process.time(level / (1 - level)).clamp(*span)


def _choose(images: ImageSet, seed: int) -> UInt8[Tensor, "n c h w"]:
    """Some images, of different classes if there are several."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(images))
    if images.labels is not None and images.classes > 1:
        labels = images.labels.numpy()[order]
        _, first = np.unique(labels, return_index=True)
        others = np.setdiff1d(np.arange(len(order)), first)
        order = order[np.concatenate([np.sort(first), others])]
    return images.images[torch.from_numpy(order[:IMAGES])]
