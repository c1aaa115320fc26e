"""The base class of training methods, which choose the network to update and compute its loss.

The trainer does everything else. docs/extending.md builds a method in one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fewstep.couplings import Coupling
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.objective import ConfigT, Loss, Objective, Turn
from fewstep.sample_spec import SampleSpec
from fewstep.tables import check_fields

__all__ = [
    "Loss",
    "Method",
    "Task",
    "Turn",
    "check_condition_dropout",
    "check_trainable_guidance",
    "require_teacher",
]


@dataclass(frozen=True)
class Task:
    """Input of a method: the student, its teacher, the images' shape and classes, and the length of
    the training.

    Raises: InputError for fewer than 1 step.
    """

    student: Denoiser
    spec: SampleSpec
    teacher: Generator | None = None
    """None for a method that trains without a teacher."""
    steps: int = 10_000
    """Number of training steps, `FitConfig.steps`: the schedules of a method are shares of it."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a training needs at least 1 step, not {self.steps} steps")


class Method(Objective[ConfigT], ABC):
    """Base class of the methods that train generators; see `Objective`.

    Raises: InputError if it needs a teacher and the task has none, or if a setting
    `condition_dropout` would leave the classes or prompts untrained.
    """

    needs_teacher: ClassVar[bool] = True
    starts_from_noise: ClassVar[bool] = False
    """Whether the student trains on noise alone at its first time, as it is sampled. Others train
    on images with noise, and must start where hardly any image is left: see `check_start`."""
    uses_first_image: ClassVar[bool] = True
    """Whether training or sampling uses the student's x0 or velocity at the time where sampling
    starts. Then `check_start` refuses an eps network that starts from almost pure noise."""
    trains_at_all_times: ClassVar[bool] = False
    """Whether training covers the noise levels of the whole span, wherever sampling starts. Such a
    student can start from a picture with noise: see `painting`."""
    trains_velocity: ClassVar[bool] = False
    """Whether the student's velocity at all times is that of a probability flow, as a teacher's is.
    Then images have a likelihood: see `likelihood`."""
    augments_samples: ClassVar[bool] = False
    """Whether the loss augments generated images by `Batch.augment`. Then `data.augment` has an
    effect without `images` in `reads`."""
    draws_conditions: ClassVar[bool] = False
    """Whether it takes classes and prompts to generate from `Batch.cond`. Then `data.prompts` has
    an effect."""
    differentiates_in_time: ClassVar[bool] = False
    """Whether the loss contains the student's derivative with respect to t. Then a student whose
    embedding of the noise level is fast gets a warning: see `training_warnings`."""

    def __init__(self, config: ConfigT, task: Task) -> None:
        super().__init__()
        if self.needs_teacher and task.teacher is None:
            raise InputError(
                f"{type(self).__name__} distils a teacher, and the recipe has none: "
                "set teacher.load to a run or a pretrained network"
            )
        check_fields(config, "method")
        check_condition_dropout(getattr(config, "condition_dropout", 0.0), task.spec)
        self.config = config
        self.student = task.student
        self.spec = task.spec
        self.teacher = task.teacher
        self.steps = task.steps

    @classmethod
    def condition_dropout(cls, settings: Mapping[str, Any]) -> float:
        """Fraction of rows that a training with these `settings` trains without their condition.

        `settings` is the table [method] of a recipe with all defaults. A network can be guided if
        it is above 0.
        """
        return settings.get("condition_dropout", 0.0)

    def check(self, streams: Mapping[str, Any]) -> None:
        """Check that the recorded data fit the student.

        `streams` are the data streams of `reads` by name. Raises InputError if the data do not fit.
        """

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"student": self.student}

    @property
    def coupling(self) -> Coupling | None:
        """How the noise `Batch.images.noise` is paired with the real images.

        None for a method that draws its noise itself, independent of the images.
        """
        return None

    @property
    def network(self) -> Denoiser:
        return self.student

    def result(self) -> Generator:
        return self.generator()

    @abstractmethod
    def generator(self) -> Generator:
        """The student with the sampler and grid of times that it is trained for."""


def check_condition_dropout(share: float, spec: SampleSpec) -> None:
    """Raise InputError if `share` is 1 and there are conditions, which would not be trained."""
    if share == 1 and spec.is_conditional:
        kind = f"{spec.classes} classes" if spec.classes else "prompts"
        without = "data.labels=false" if spec.classes else "data.captions=false"
        raise InputError(
            f"method.condition_dropout is {share}, which leaves the {kind} untrained: set "
            f"{without} to train without them, or a smaller fraction"
        )


def check_trainable_guidance(names: str, condition_dropout: float, spec: SampleSpec) -> None:
    """Raise InputError unless a student can learn guidance: it needs conditions, and
    `condition_dropout` trains it without them too. `names` are the settings of the guidance."""
    if not spec.is_conditional:
        raise InputError(
            f"{names} needs classes or prompts, and these images have none: remove it from the "
            "recipe"
        )
    if condition_dropout == 0:
        raise InputError(
            f"{names} compares with the output without condition, which "
            "method.condition_dropout = 0.0 does not train: set it to 0.1"
        )


def require_teacher(task: Task) -> Generator:
    """The teacher of a task.  Raises: InputError if it has none."""
    if task.teacher is None:
        raise InputError(
            'method.source = "teacher" needs a teacher: set teacher.load to a run or a pretrained '
            "network"
        )
    return task.teacher
