"""Predictions whose image is clamped to ±clip."""

from dataclasses import replace

from torch import Tensor

from fewstep.denoiser import Prediction


def clamp(x0: Tensor, clip: float | None) -> Tensor:
    """`x0` within ±clip."""
    if clip is None:
        return x0
    # 0 · inf is NaN: the clamp would hide infinite values, which are a failure of the network
    return x0.clamp(-clip, clip) + 0 * x0


def image_and_noise(prediction: Prediction, clip: float | None) -> tuple[Tensor, Tensor]:
    """The predicted x0, and eps; with `clip`, the clamped x0, and the noise that then makes x_t."""
    if clip is None:
        return prediction.x0, prediction.eps
    x0 = clamp(prediction.x0, clip)
    return x0, (prediction.x_t - prediction.alpha * x0) / prediction.sigma


def clipped_velocity(prediction: Prediction, clip: float | None) -> Tensor:
    """The velocity of `image_and_noise`."""
    if clip is None:
        return prediction.velocity
    output = prediction.target(*image_and_noise(prediction, clip))
    return replace(prediction, output=output).velocity
