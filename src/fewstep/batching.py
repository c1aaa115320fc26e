"""Streams of training rows: which rows a step sees is a function of (seed, stream, step).

Each stream is a fresh permutation every epoch, keyed by (seed, stream, epoch), so resuming at any
step needs no state. The next step's rows are read while the current one is computed.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep import distributed, threads
from fewstep.condition import Condition
from fewstep.generator import SampleSpec
from fewstep.images import from_uint8
from fewstep.methods.base import Batch, ImageBatch, PairBatch, RingBatch, derive_seed


@runtime_checkable
class Stream(Protocol):
    """Rows by number; `coin` holds a uniform number for each row, for augmentation."""

    def __len__(self) -> int: ...

    def rows(
        self, index: Tensor, coin: Tensor, device: torch.device
    ) -> ImageBatch | PairBatch | RingBatch: ...


class ImageStream:
    """Real images: uint8 (n, c, h, w) read as [-1, 1], or points (n, d) as they are."""

    def __init__(self, images: Tensor, labels: Tensor | None, *, flip: bool = False) -> None:
        self.images = images
        self.labels = labels
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> ImageBatch:
        """Rows `index`, mirrored left to right where `coin` is below ½ and `flip` is on."""
        x0 = self.images[index].to(device)
        if x0.dtype == torch.uint8:
            x0 = from_uint8(x0)
        if self.flip:
            x0 = torch.where((coin < 0.5).view(-1, 1, 1, 1).to(device), x0.flip(-1), x0)
        cond = None if self.labels is None else Condition(self.labels[index].to(device))
        return ImageBatch(x0, cond)


class Batches:
    """The global batch of each step, cut into this rank's micro-batches."""

    AHEAD = 2
    """Steps read in advance, each in a thread of its own."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        spec: SampleSpec,
        *,
        batch: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.streams = streams
        self.spec = spec
        self.batch = batch
        self.seed = seed
        self.device = torch.device(device)
        self._orders: dict[str, tuple[int, Tensor]] = {}
        self._readers = threads.workers(self.AHEAD)
        self._coming: dict[tuple[int, int], Future[list[Batch]]] = {}

    def step(self, step: int, micro_batch: int = 0) -> list[Batch]:
        """This rank's rows of step `step`, at most `micro_batch` at once (0: all)."""
        rank, ranks = distributed.world()  # here, not in a thread: it may start the process group
        wanted = [(step + ahead, micro_batch) for ahead in range(self.AHEAD + 1)]
        self._coming = {
            key: self._coming.get(key) or self._readers.submit(self._read, *key, rank, ranks)
            for key in wanted
        }
        return self._coming.pop(wanted[0]).result()

    def _read(self, step: int, micro_batch: int, rank: int, ranks: int) -> list[Batch]:
        low, high = self.batch * rank // ranks, self.batch * (rank + 1) // ranks
        size = micro_batch or self.batch
        return [
            self._batch(step, first, min(size, high - first)) for first in range(low, high, size)
        ]

    def _batch(self, step: int, first: int, rows: int) -> Batch:
        streams = {
            name: stream.rows(
                self._index(name, len(stream), step)[first : first + rows],
                self._coin(name, step)[first : first + rows],
                self.device,
            )
            for name, stream in self.streams.items()
        }
        return Batch(self.seed, step, first, rows, self.batch, self.spec, self.device, streams)

    def _coin(self, name: str, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, name, step, "coin"))
        return torch.rand(self.batch, generator=generator)

    def _index(self, name: str, length: int, step: int) -> Tensor:
        """Row numbers of the whole global batch; it may run over the end of an epoch."""
        start, stop = step * self.batch, (step + 1) * self.batch
        parts: list[Tensor] = []
        while start < stop:
            epoch, offset = divmod(start, length)
            part = self._order(name, length, epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _order(self, name: str, length: int, epoch: int) -> Tensor:
        kept = self._orders.get(name)
        if kept is None or kept[0] != epoch:
            # readers on two sides of an epoch's end may each make its order: the same one
            generator = torch.Generator().manual_seed(derive_seed(self.seed, name, epoch, "order"))
            kept = (epoch, torch.randperm(length, generator=generator))
            self._orders[name] = kept
        return kept[1]
