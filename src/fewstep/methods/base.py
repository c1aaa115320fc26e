"""What a distillation method is: players, turns, losses, and the batch it is given.

A method says *whose turn it is* and *what the loss is*; the trainer does the rest. See
docs/extending.md for a method in one file.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Generator as Pull
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, get_args, get_origin

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoiser import SPAN_TOLERANCE, Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.parametrization import Clean, Eps
from fewstep.plugins import name_of


class Loss(NamedTuple):
    """A scalar, the mean over the batch's rows, and numbers worth a curve."""

    value: Tensor
    numbers: Mapping[str, Tensor] = {}


class Turn(NamedTuple):
    """Whose optimiser moves, and on what loss.

    `phase` are the first step of a stretch of training and the one after its last: the player's
    schedule spans just these, and its moments are forgotten at the first. Without it the schedule
    spans the run.
    """

    player: str
    loss: "Callable[[Batch], Loss]"
    phase: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImageBatch:
    """Rows of real images in [-1, 1]."""

    x0: Tensor
    cond: Condition | None


@dataclass(frozen=True)
class PairBatch:
    """Rows of a deterministic teacher's answers: standard normal noise and its image."""

    noise: Tensor
    x0: Tensor
    cond: Condition | None


@dataclass(frozen=True)
class RingBatch:
    """Rows of a circuit's rings: noise (b, c, h, w) and image, the first state (b, C, H, W), and
    what each of K equal parts of the updates adds to it (b, K, C, H, W)."""

    noise: Tensor
    x0: Tensor
    first: Tensor
    chunks: Tensor
    cond: Condition | None


@dataclass(frozen=True)
class Task:
    """The networks that a method trains and learns from, and the images they generate."""

    student: Denoiser
    spec: SampleSpec
    teacher: Generator | None = None


def require_teacher(task: Task) -> Generator:
    """The teacher of a task.  Raises: InputError if it has none."""
    if task.teacher is None:
        raise InputError('method.source = "teacher" needs [teacher] load')
    return task.teacher


def check_regular(student: Denoiser) -> None:
    """Refuse students whose x0 or velocity fails at one end of the path.  Raises: InputError."""
    if isinstance(student.parametrization, Eps | Clean):
        raise InputError(
            "this method needs a network that neither forgets x_t where there is no noise nor "
            "amplifies its error where there is much: use velocity, v or edm, not "
            f"{name_of('parametrization', type(student.parametrization))}"
        )


def check_spans(student: Denoiser, teacher: Denoiser) -> None:
    """Refuse a student that would ask its teacher where it was never trained; of one process.

    Raises: InputError.
    """
    (low, high), (least, most) = student.span, teacher.span
    if low < least - SPAN_TOLERANCE or high > most + SPAN_TOLERANCE:
        raise InputError(
            f"the student is trained for t in [{low:.6g}, {high:.6g}], but its teacher was for "
            f"[{least:.6g}, {most:.6g}] alone: give the student the teacher's parametrization"
        )


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed for a key: all randomness of training is a function of such keys."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class Batch:
    """Rows [first, first + rows) of one step's global batch, and all randomness of its losses.

    Every draw is keyed by (seed, step, player, occurrence, number of the draw), made for the whole
    global batch and cut to these rows: micro-batches and ranks see the same numbers as one batch.
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

    _turn: tuple[int | str, ...] = ()
    _draws: int = 0

    @property
    def images(self) -> ImageBatch:
        """Real images; for a method that reads them."""
        return self.streams["images"]

    @property
    def pairs(self) -> PairBatch:
        """Recorded noise and images; for a method that reads them."""
        return self.streams["pairs"]

    @property
    def rings(self) -> RingBatch:
        """A circuit's recorded rings; for a method that reads them."""
        return self.streams["rings"]

    def begin(self, player: str, occurrence: int) -> None:
        """The trainer's: key the draws that follow by this turn."""
        self._turn = (player, occurrence)
        self._draws = 0

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers, shaped as `x` (rows, ...)."""
        full = torch.empty(self.total, *x.shape[1:], device=self.device, dtype=x.dtype)
        return self._cut(full.normal_(generator=self._generator()))

    def rand(self) -> Tensor:
        """One uniform number in [0, 1) a row."""
        full = torch.empty(self.total, device=self.device)
        return self._cut(full.uniform_(generator=self._generator()))

    def shared_rand(self) -> float:
        """One uniform number in [0, 1), equal on every row, micro-batch and rank."""
        self._draws += 1
        return derive_seed(self.seed, self.step, *self._turn, self._draws) / 2**63

    def noise(self) -> Tensor:
        """Standard normal noise (rows, *shape) to generate from."""
        return self.randn_like(torch.empty(self.rows, *self.spec.shape, device="meta").float())

    def cond(self) -> Condition | None:
        """Classes to generate, all alike; None where there are none."""
        if not self.spec.classes:
            return None
        return Condition((self.rand() * self.spec.classes).long())

    @contextmanager
    def same_dropout(self) -> Pull[None]:
        """Networks called inside see the same dropout masks each time it is entered."""
        torch.manual_seed(self.dropout_seed)
        yield

    @property
    def dropout_seed(self) -> int:
        """Keyed by (seed, step, turn, first row)."""
        return derive_seed(self.seed, self.step, *self._turn, "dropout", self.first)

    def _generator(self) -> torch.Generator:
        self._draws += 1
        generator = torch.Generator(self.device)
        return generator.manual_seed(derive_seed(self.seed, self.step, *self._turn, self._draws))

    def _cut(self, full: Tensor) -> Tensor:
        return full[self.first : self.first + self.rows]


ConfigT = TypeVar("ConfigT")


class Method(nn.Module, ABC, Generic[ConfigT]):
    """Base class of training methods. All its state lives in its parameters and buffers.

    A subclass names its settings once, as a frozen dataclass: `class Dmd(Method[DmdConfig])`. They
    are the `[method]` table of a recipe, and the class keeps their type in `Config`. A method
    computes losses only: it calls no `.backward()` and has no optimiser, device, log or file.

    Raises: InputError if it needs a teacher and the task has none.
    """

    Config: ClassVar[type]
    reads: frozenset[str]
    """The streams that its batches hold: `images`, `pairs`, `rings`; may be empty, and may depend
    on the settings: then `__init__` says."""
    needs_teacher: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__dict__.get("__orig_bases__", ()):  # the bases as written, with arguments
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, Method):
                if not isinstance(arguments[0], TypeVar):
                    cls.Config = arguments[0]

    def __init__(self, config: ConfigT, task: Task) -> None:
        super().__init__()
        if self.needs_teacher and task.teacher is None:
            raise InputError(f"{type(self).__name__} distils a teacher: give [teacher] load")
        self.config = config
        self.student = task.student
        self.spec = task.spec
        self.teacher = task.teacher

    @property
    def fixed_steps(self) -> int | None:
        """Training steps that its phases take together; None where it has none."""
        return None

    def check(self, streams: Mapping[str, Any], *, teacher: str | None) -> None:
        """Refuse recorded data that are not what it learns from; `teacher` is the hash of the
        teacher's weights.  Raises: InputError.
        """

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """Who is trained, by name; `student` is the one that is kept."""
        return {"student": self.student}

    @abstractmethod
    def turns(self, step: int) -> Iterator[Turn]:
        """The turns of one step, in order; a line after a `yield` runs after that turn's update.

        The sequence of players depends on `step` alone, so that all ranks agree.
        """

    @abstractmethod
    def generator(self) -> Generator:
        """The student to keep, and how it is sampled."""
