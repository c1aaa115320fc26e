"""Batches of training rows. The rows of a step are a function of (seed, stream, step).

Each stream is shuffled in every epoch by a generator seeded with (seed, stream, epoch), so that
training can resume at any step without a saved state. Rows of the next steps are read while the
current step is computed.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep import distributed, threads
from fewstep.condition import Condition, with_augment_labels
from fewstep.couplings import Pairing
from fewstep.data.augment import RANDOM_NUMBERS, Augmentation
from fewstep.errors import InputError
from fewstep.images import from_uint8
from fewstep.latents import Rows
from fewstep.methods.batch import (
    Batch,
    ImageBatch,
    PairBatch,
    PromptSource,
    RingBatch,
    derive_seed,
)
from fewstep.sample_spec import SampleSpec
from fewstep.text.captions import CaptionTable


@runtime_checkable
class Stream(Protocol):
    """Training rows that can be read by number."""

    def __len__(self) -> int: ...

    def rows(
        self, index: Tensor, coin: Tensor, device: torch.device
    ) -> ImageBatch | PairBatch | RingBatch:
        """The rows selected by `index` (b,).

        `coin` (b,) has a uniform random number in [0, 1) per row, for augmentation.
        """
        ...


class ImageStream:
    """Real images, uint8 (n, c, h, w), mapped to [-1, 1]; or points or latents, as they are.

    `flip` mirrors images. Latents cannot be mirrored, so `mirrored` has those of mirrored images.
    """

    def __init__(
        self,
        images: Rows,
        labels: Tensor | None,
        *,
        captions: CaptionTable | None = None,
        flip: bool = False,
        mirrored: Rows | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.captions = captions
        self.flip = flip
        self.mirrored = mirrored

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> ImageBatch:
        """The rows selected by `index`. Those with `coin` below ½ are mirrored, if any are.

        An image with several captions has one of them, drawn again each time.
        """
        x0 = self.images[index].to(device)
        is_mirrored = (coin < 0.5).view(-1, *[1] * (x0.ndim - 1)).to(device)
        if self.mirrored is not None:
            x0 = torch.where(is_mirrored, self.mirrored[index].to(device), x0)
        if x0.dtype == torch.uint8:
            x0 = from_uint8(x0)
        if self.flip:
            x0 = torch.where(is_mirrored, x0.flip(-1), x0)
        label = None if self.labels is None else self.labels[index]
        # twice the coin without its integer part does not depend on whether the coin is below ½
        text = self.captions and self.captions.draw(index, (2 * coin).frac())
        if label is None and text is None:
            return ImageBatch(x0, None)
        return ImageBatch(x0, Condition(label, text=text).to(device))


class Prompts:
    """Captions of a data set with the classes of their images, from which batches draw; or the
    prompts of a file."""

    def __init__(self, captions: CaptionTable, labels: Tensor | None, *, hash: str = "") -> None:
        """`hash` is the SHA-256 of the prompts of a file; captions are in that of their set."""
        self.captions = captions
        self.labels = labels
        self.hash = hash

    def draw(self, uniform: Tensor) -> Condition:
        """A condition for each of the `uniform` numbers in [0, 1), on their device."""
        images, text = self.captions.draw_any(uniform.cpu())
        label = None if self.labels is None else self.labels[images]
        return Condition(label, text=text).to(uniform.device)


class Batches:
    """Divides the global batch of each step among ranks and into micro-batches."""

    AHEAD = 2
    """Number of steps that are read in advance, each in its own thread."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        spec: SampleSpec,
        *,
        batch: int,
        seed: int,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        prompts: PromptSource | None = None,
        pairing: Pairing | None = None,
    ) -> None:
        """`pairing` pairs the images with noise.

        Raises: InputError for a `pairing` beside an `augmentation`, which would move the images.
        """
        if pairing and augmentation:
            raise InputError("noise cannot be paired with augmented images: leave out one of them")
        self.streams = streams
        self.spec = spec
        self.batch = batch
        self.seed = seed
        self.device = torch.device(device)
        self.augmentation = augmentation
        self.prompts = prompts
        self.pairing = pairing
        self._orders: dict[str, tuple[int, Tensor]] = {}
        self._readers = threads.workers(self.AHEAD)
        self._pending: dict[tuple[int, int], Future[list[Batch]]] = {}

    def step(self, step: int, micro_batch: int = 0) -> list[Batch]:
        """This rank's micro-batches of step `step`, of at most `micro_batch` rows (0: all)."""
        rank, ranks = distributed.world()  # not in a thread, because it may start the process group
        keys = [(step + ahead, micro_batch) for ahead in range(self.AHEAD + 1)]
        self._pending = {
            key: self._pending.get(key) or self._readers.submit(self._read, *key, rank, ranks)
            for key in keys
        }
        return self._pending.pop(keys[0]).result()

    def _read(self, step: int, micro_batch: int, rank: int, ranks: int) -> list[Batch]:
        start, stop = self.batch * rank // ranks, self.batch * (rank + 1) // ranks
        size = micro_batch or self.batch
        paired = self._paired(step) if self.pairing and "images" in self.streams else None
        return [
            self._batch(step, first, min(size, stop - first), paired)
            for first in range(start, stop, size)
        ]

    def _paired(self, step: int) -> ImageBatch:
        """The images and noise of the whole batch, on the CPU, whatever the rank's rows are."""
        assert self.pairing
        stream = self.streams["images"]
        index = self._index("images", len(stream), step)
        noise = torch.empty(self.batch, *self.spec.shape)
        noise.normal_(generator=self._generator("images", step, "noise"))
        index = self.pairing.choose(noise, index)
        images = stream.rows(index, self._rand("images", step, "coin"), torch.device("cpu"))
        assert isinstance(images, ImageBatch)
        label = None if images.cond is None else images.cond.label
        noise = self.pairing.arrange(noise, images.x0, label)
        return ImageBatch(images.x0, images.cond, noise)

    def _batch(self, step: int, first: int, rows: int, paired: ImageBatch | None) -> Batch:
        streams = {
            name: self._rows(name, step, first, first + rows)
            for name in self.streams
            if paired is None or name != "images"
        }
        if paired:
            streams["images"] = _cut(paired, slice(first, first + rows), self.device)
        return Batch(
            self.seed,
            step,
            first,
            rows,
            self.batch,
            self.spec,
            self.device,
            streams,
            augmentation=self.augmentation,
            prompts=self.prompts,
        )

    def _rows(
        self, name: str, step: int, first: int, stop: int
    ) -> ImageBatch | PairBatch | RingBatch:
        stream = self.streams[name]
        index = self._index(name, len(stream), step)[first:stop]
        rows = stream.rows(index, self._rand(name, step, "coin")[first:stop], self.device)
        if self.augmentation is None or not isinstance(rows, ImageBatch):
            return rows
        uniform = self._rand(name, step, "augment", RANDOM_NUMBERS)[first:stop]
        x0, labels = self.augmentation(rows.x0, uniform)
        return ImageBatch(x0, with_augment_labels(rows.cond, labels))

    def _rand(self, name: str, step: int, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers (batch, *shape) of the global batch of a step, on the CPU."""
        return torch.rand(self.batch, *shape, generator=self._generator(name, step, purpose))

    def _generator(self, *key: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *key))

    def _index(self, name: str, length: int, step: int) -> Tensor:
        """Row numbers of the global batch of a step, which may cross the end of an epoch."""
        start, stop = step * self.batch, (step + 1) * self.batch
        parts: list[Tensor] = []
        while start < stop:
            epoch, offset = divmod(start, length)
            part = self._order(name, length, epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _order(self, name: str, length: int, epoch: int) -> Tensor:
        cached = self._orders.get(name)
        if cached is None or cached[0] != epoch:
            # threads of two epochs may both draw an epoch's order, but they draw the same one
            generator = self._generator(name, epoch, "order")
            cached = (epoch, torch.randperm(length, generator=generator))
            self._orders[name] = cached
        return cached[1]


def _cut(images: ImageBatch, rows: slice, device: torch.device) -> ImageBatch:
    """Rows of a batch, on a device."""
    x0, noise = (None if x is None else x[rows].to(device) for x in (images.x0, images.noise))
    assert x0 is not None
    return ImageBatch(x0, images.cond and images.cond[rows].to(device), noise)
