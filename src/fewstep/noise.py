"""Standard normal noise that depends on seeds alone: not on batches, devices or earlier noise."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RowNoise:
    """Standard normal noise for each row, from the row's own seed.

    A row's numbers depend on its seed and on the count of earlier draws, not on the rest of the
    batch. They come from Philox counters in NumPy, so they are equal on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        self.draws = 0
        self._bits = np.random.Philox(key=0)
        self._generator, self._start = np.random.Generator(self._bits), self._bits.state

    def like(self, x: Tensor) -> Tensor:
        """The next noise, with the shape (b, ...), dtype and device of `x`."""
        self.draws += 1
        return self.draw(self.draws, tuple(x.shape[1:])).to(x.device, x.dtype)

    def draw(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """Noise (b, *shape) in float32: that of the draw `number`, of which 0 is the first."""
        rows = np.empty((len(self.seeds), *shape), dtype=np.float32)
        for row, seed in zip(rows, self.seeds, strict=True):
            # setting the key is four times as fast as a new Philox, which first gathers entropy
            self._start["state"]["key"][:] = seed, number
            self._bits.state = self._start
            self._generator.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(rows)


def noise_from_seeds(
    seeds: Sequence[int], shape: tuple[int, ...], *, device: torch.device | str = "cpu"
) -> Tensor:
    """The starting noise (b, *shape), one row per seed, whatever the rest of the batch."""
    return RowNoise(seeds).draw(0, shape).to(device)
