"""Refuse samples with NaN or infinite values, which pictures and scores would hide."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.formatting import percent, quantity
from fewstep.generator import Generator
from fewstep.plugins import name_of


class NonFiniteImages(InputError):
    """Raised for images with NaN or infinite values."""


def check_finite(
    generator: Generator, images: Tensor, states: Callable[[], Iterable[Tensor]]
) -> Tensor:
    """Return `images` (b, *shape) if all their values are finite.

    `states` repeats their sampling by `generator` and returns the states at each time, the noise
    first and the images last. It is only called for the error message.

    Raises: NonFiniteImages, an InputError, with the share of images that contain NaN or infinite
    values, and the sampling step at which the first such value appears.
    """
    bad = count_nonfinite(images)
    if not bad:
        return images
    shares = [count_nonfinite(x) for x in states()]
    first = next((step for step, share in enumerate(shares) if share), len(shares) - 1)
    sampler = name_of("sampler", type(generator.step))
    verb = "contains" if bad == 1 else "contain"
    raise NonFiniteImages(
        f"{bad:,} of {quantity(len(images), 'image')} ({percent(bad / len(images))}) {verb} NaN or "
        f"infinite values, from step {first} of {len(shares) - 1} of the sampler {sampler}: "
        + _remedy(generator)
    )


def count_nonfinite(images: Tensor) -> int:
    """The number of rows of `images` (b, ...) that contain NaN or infinite values."""
    if bool(images.isfinite().all()):  # one pass over the values is faster than one over the rows
        return 0
    return int((~images.isfinite()).flatten(1).any(1).sum())


def nonfinite_weight(network: nn.Module) -> str | None:
    """The name of the first weight with NaN or infinite values; None if all are finite."""
    weights = network.state_dict().items()
    return next((name for name, weight in weights if not bool(weight.isfinite().all())), None)


def _remedy(generator: Generator) -> str:
    if name := nonfinite_weight(generator):
        return (
            f"its weight {name} contains some, so its file is damaged or its training diverged; "
            "use other weights"
        )
    precision = generator.denoiser.precision
    if precision != "f32":
        return f"the network computes in {precision}; use --precision f32"
    return "use another sampler or more steps, or train the network longer"
