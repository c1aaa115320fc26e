"""Input of a method's losses: rows of data, and random numbers that depend only on their keys."""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.condition import Condition, with_augment_labels
from fewstep.data.augment import RANDOM_NUMBERS, Augmentation
from fewstep.sample_spec import SampleSpec


@dataclass(frozen=True)
class ImageBatch:
    """Real images `x0` (b, c, h, w) in [-1, 1], or points (b, d)."""

    x0: Tensor
    cond: Condition | None
    noise: Tensor | None = None
    """The noise that a coupling pairs with the images; None without one."""


@dataclass(frozen=True)
class PairBatch:
    """Standard normal `noise` and the image `x0` that a deterministic teacher generates from it."""

    noise: Tensor
    x0: Tensor
    cond: Condition | None


@dataclass(frozen=True)
class RingBatch:
    """Recorded rings of a circuit. A ring is the sequence of updates of a hidden state that turns
    noise into an image (docs/circuits.md).

    `noise` and image `x0` are (b, c, h, w), the `first` state is (b, C, H, W). `chunks`
    (b, K, C, H, W) divides the updates into K equal parts; each chunk is the sum that its updates
    add to the state.
    """

    noise: Tensor
    x0: Tensor
    first: Tensor
    chunks: Tensor
    cond: Condition | None


@runtime_checkable
class PromptSource(Protocol):
    """Conditions of a data set, from which batches draw."""

    def draw(self, uniform: Tensor) -> Condition:
        """One condition for each of the `uniform` numbers in [0, 1), on their device."""
        ...


def derive_seed(*key: int | str) -> int:
    """Hash a key to a 63-bit seed. All randomness of training is a function of such keys."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class Batch:
    """Rows [first, first + rows) of one step's global batch of `total` rows, and random numbers.

    Random numbers depend on (seed, step, player, occurrence, number of the draw), where occurrence
    counts the turns of the player within the step. They are drawn for the whole global batch and
    cut to these rows, so that the micro-batches of all ranks together get the same numbers as one
    batch.
    """

    seed: int
    step: int
    first: int
    rows: int
    total: int
    spec: SampleSpec
    device: torch.device
    streams: Mapping[str, Any]
    carry: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Detached, row-aligned tensors that one turn leaves for the next turns of the same step."""
    augmentation: Augmentation | None = None
    """That of the real images, which have it already."""
    prompts: PromptSource | None = None
    """Prompts to generate; None for a student without text."""

    _turn: tuple[int | str, ...] = ()
    _draws: int = 0

    @property
    def images(self) -> ImageBatch:
        """Real images. The method must list `images` in `reads`."""
        return self.streams["images"]

    @property
    def pairs(self) -> PairBatch:
        """Recorded noise and images. The method must list `pairs` in `reads`."""
        return self.streams["pairs"]

    @property
    def rings(self) -> RingBatch:
        """Recorded rings of a circuit. The method must list `rings` in `reads`."""
        return self.streams["rings"]

    def begin(self, player: str, occurrence: int) -> None:
        """Start a turn, on which the next draws depend. The trainer calls this."""
        self._turn = (player, occurrence)
        self._draws = 0

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `x` (rows, ...)."""
        full = torch.empty(self.total, *x.shape[1:], device=self.device, dtype=x.dtype)
        return self._cut(full.normal_(generator=self._generator()))

    def rand(self) -> Tensor:
        """One uniform number in [0, 1) per row, of shape (rows,)."""
        full = torch.empty(self.total, device=self.device)
        return self._cut(full.uniform_(generator=self._generator()))

    def shared_rand(self) -> float:
        """One uniform number in [0, 1), the same for all rows, micro-batches and ranks."""
        self._draws += 1
        return derive_seed(self.seed, self.step, *self._turn, self._draws) / 2**63

    def noise(self) -> Tensor:
        """Standard normal noise (rows, *shape) to generate from."""
        return self.randn_like(torch.empty(self.rows, *self.spec.shape, device="meta").float())

    def coupled_noise(self) -> Tensor:
        """Noise (rows, ...) that is paired with `images`.

        Raises: ValueError for batches without a coupling.
        """
        if self.images.noise is None:
            raise ValueError("the images have no noise: build Batches with pairing")
        return self.images.noise

    def cond(self) -> Condition | None:
        """Random conditions to generate; None if the images have none.

        Classes are uniformly distributed. Prompts are captions of the data set, each equally
        likely; if there are classes too, they are those of the captions' images.
        """
        if self.prompts is not None:
            return self.prompts.draw(self.rand())
        if not self.spec.classes:
            return None
        return Condition((self.rand() * self.spec.classes).long())

    def augment(self, x: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        """Images (rows, c, h, w) and their condition, augmented as the real images are."""
        if self.augmentation is None:
            return x, cond
        full = torch.empty(self.total, RANDOM_NUMBERS, device=self.device)
        x, labels = self.augmentation(x, self._cut(full.uniform_(generator=self._generator())))
        return x, with_augment_labels(cond, labels)

    @contextmanager
    def same_dropout(self) -> Generator[None]:
        """Networks called inside use the same dropout masks each time this context is entered."""
        torch.manual_seed(self.dropout_seed)
        yield

    @property
    def dropout_seed(self) -> int:
        """Seed of the dropout masks, from (seed, step, turn, first row)."""
        return derive_seed(self.seed, self.step, *self._turn, "dropout", self.first)

    def _generator(self) -> torch.Generator:
        self._draws += 1
        generator = torch.Generator(self.device)
        return generator.manual_seed(derive_seed(self.seed, self.step, *self._turn, self._draws))

    def _cut(self, full: Tensor) -> Tensor:
        return full[self.first : self.first + self.rows]
