"""Records of a circuit's ring: its initial state and its residual chunks.

A ring encodes noise into a state and applies N updates. With K chunks, chunk k is the state after
(k + 1)·N/K updates minus the state after k·N/K.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.circuits.view import Circuit
from fewstep.condition import Condition
from fewstep.store import F16, Codec, Int8

PERCENTILE = 99.5  # of |x| in each channel, the largest value of int8: as in Denoising Circuits


def ring_schema(
    image: tuple[int, ...], state: tuple[int, ...], chunks: int, *, x0: Codec
) -> Mapping[str, Codec]:
    """Codecs of a record: noise and image of shape `image`, one state and `chunks` chunks."""
    return {
        "noise": F16(image),
        "x0": x0,
        "rin0": Int8(state, channels=1, percentile=PERCENTILE),
        "r_chunks": Int8((chunks, *state), channels=2, percentile=PERCENTILE),
    }


def ring_records(
    circuit: Circuit,
    noise: Tensor,
    times: Sequence[float],
    chunks: int,
    *,
    cond: Condition | None = None,
) -> dict[str, Tensor]:
    """Run the ring from `noise` (b, c, h, w) through `times` to the end of the span.

    Returns, on the CPU, the noise, the image `x0`, the first state `rin0` (b, C, H, W) and
    `r_chunks` (b, chunks, C, H, W). `chunks` must divide the number of times. Up to rounding, the
    first state and all chunks add up to the last state.
    """
    end = circuit.denoiser.span[0]
    updates = len(times) // chunks  # in each chunk
    ring = circuit.ring(noise, [*times, end], cond=cond)
    states = [z.cpu() for i, z in enumerate(ring) if i % updates == 0]
    x0 = circuit.image(states[-1].to(noise), end)
    residuals = torch.stack([b - a for a, b in zip(states, states[1:], strict=False)], dim=1)
    return {"noise": noise.cpu(), "x0": x0.cpu(), "rin0": states[0], "r_chunks": residuals}
