"""The base class of training methods: whose turn it is, and what the loss is.

The trainer does everything else. docs/extending.md builds a method in one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, get_args, get_origin

from torch import Tensor, nn

from fewstep.denoiser import SPAN_TOLERANCE, Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.methods.batch import Batch
from fewstep.parametrization import Clean, Eps
from fewstep.plugins import name_of


class Loss(NamedTuple):
    """A scalar, the mean over the rows of the batch, and other scalars to log by name."""

    value: Tensor
    numbers: Mapping[str, Tensor] = {}


class Turn(NamedTuple):
    """One update: the player whose optimiser steps, and its loss.

    `phase` is a range [first, stop) of training steps: the player's learning rate schedule spans
    these steps alone, and its optimiser state is reset at the first. Without it the schedule spans
    the whole run.
    """

    player: str
    loss: Callable[[Batch], Loss]
    phase: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """The networks that a method trains and learns from, and the images they generate."""

    student: Denoiser
    spec: SampleSpec
    teacher: Generator | None = None


ConfigT = TypeVar("ConfigT")


class Method(nn.Module, ABC, Generic[ConfigT]):
    """Base class of training methods. All its state lives in its parameters and buffers.

    A subclass names its settings once, as a frozen dataclass: `class Dmd(Method[DmdConfig])`. They
    are the `[method]` table of a recipe, and `Config` refers to their class. A method computes
    losses only: it calls no `.backward()` and has no optimiser, device, log or file.

    Raises: InputError if it needs a teacher and the task has none.
    """

    Config: ClassVar[type]
    reads: frozenset[str]
    """Streams that its batches contain: any of `images`, `pairs`, `rings`. If they depend on the
    settings, `__init__` assigns them."""
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
            raise InputError(
                f"{type(self).__name__} distils a teacher, and the recipe has none: "
                "set teacher.load to a run or a pretrained network"
            )
        self.config = config
        self.student = task.student
        self.spec = task.spec
        self.teacher = task.teacher

    @property
    def fixed_steps(self) -> int | None:
        """Total number of training steps of its phases; None for a method without phases."""
        return None

    def check(self, streams: Mapping[str, Any], *, teacher: str | None) -> None:
        """Check that the recorded data fit; `teacher` is the hash of the teacher's weights.

        Raises: InputError if they do not.
        """

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """The networks that are trained, by name. The run saves `student`."""
        return {"student": self.student}

    @abstractmethod
    def turns(self, step: int) -> Iterator[Turn]:
        """Yield the turns of one step, in order; code after a `yield` runs after that update.

        The sequence of players must depend on `step` alone, so that all ranks agree.
        """

    @abstractmethod
    def generator(self) -> Generator:
        """The student with its sampler and times."""


def require_teacher(task: Task) -> Generator:
    """The teacher of a task.  Raises: InputError if it has none."""
    if task.teacher is None:
        raise InputError(
            'method.source = "teacher" needs a teacher: set teacher.load to a run or a pretrained '
            "network"
        )
    return task.teacher


def check_regular(student: Denoiser) -> None:
    """Raise InputError for parametrizations whose x0 or velocity is undefined at one end."""
    if isinstance(student.parametrization, Eps | Clean):
        raise InputError(
            "this method needs a network whose x0 and velocity are defined at all noise levels: "
            "use velocity, v or edm, not "
            f"{name_of('parametrization', type(student.parametrization))}"
        )


def check_spans(student: Denoiser, teacher: Denoiser) -> None:
    """Raise InputError if the student's times exceed the teacher's; both have one process."""
    (low, high), (teacher_low, teacher_high) = student.span, teacher.span
    if low < teacher_low - SPAN_TOLERANCE or high > teacher_high + SPAN_TOLERANCE:
        raise InputError(
            f"the student is trained for t in [{low:.6g}, {high:.6g}], but its teacher only for t "
            f"in [{teacher_low:.6g}, {teacher_high:.6g}]: give the student the teacher's "
            "parametrization"
        )
