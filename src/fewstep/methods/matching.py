"""The base class of distribution matching: DMD and SiD, which train a student and a fake score."""

from abc import ABC
from typing import Protocol, TypeVar, runtime_checkable

from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Loss, Method, Task
from fewstep.methods.batch import Batch
from fewstep.methods.checks import grid_times
from fewstep.methods.fake_score import FakeConfig, FakeScore, cached_images
from fewstep.methods.schedule import count_steps, is_share
from fewstep.sampling import Renoise
from fewstep.times import FixedGrid, Grid


@runtime_checkable
class MatchingConfig(Protocol):
    """The settings that all distribution matching methods have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def fake(self) -> FakeConfig: ...
    @property
    def adversarial(self) -> AdversarialConfig: ...


ConfigT = TypeVar("ConfigT", bound=MatchingConfig)


class DistributionMatching(Method[ConfigT], ABC):
    """Base class of methods that train a student and a fake score of its images."""

    teacher: Generator
    starts_from_noise = True
    augments_samples = True
    draws_conditions = True

    def __init__(self, config: ConfigT, task: Task) -> None:
        super().__init__(config, task)
        self.fake = FakeScore(self.real, task.spec, config.fake, config.adversarial)
        self.warmup = count_steps(config.fake.warmup, task.steps)
        self.adversarial_start = count_steps(config.adversarial.start, task.steps)
        if self.warmup >= task.steps:
            raise InputError(
                f"method.fake.warmup is {self.warmup} steps of a training of {task.steps}, in "
                "which the student would never train: set it to a small share, such as 0.01"
            )
        self.times: list[float] = grid_times(config.grid, config.steps, task.student).tolist()

    @classmethod
    def length_settings(cls, config: ConfigT) -> list[str]:
        starts = {"fake.warmup": config.fake.warmup, "adversarial.start": config.adversarial.start}
        return [f"method.{key}" for key, start in starts.items() if is_share(start)]

    def warnings(self) -> list[str]:
        if self.fake.head is None or self.adversarial_start < self.steps:
            return []
        return [
            f"method.adversarial.start is {self.adversarial_start} steps of a training of "
            f"{self.steps}, so that the adversarial loss never reaches the student: set it to a "
            "share of the training, such as 0.1"
        ]

    @property
    def real(self) -> Denoiser:
        """The teacher's denoiser, with guidance if the recipe sets it."""
        return self.teacher.denoiser

    def student_trains(self, step: int, every: int = 1) -> bool:
        """Whether the student has a turn: every `every` steps, after the fake score's warm-up."""
        return step >= self.warmup and (step - self.warmup) % every == 0

    def is_adversarial(self, step: int) -> bool:
        """Whether the adversarial loss is in the student's loss at this step."""
        return self.fake.head is not None and step >= self.adversarial_start

    @property
    def players(self) -> dict[str, nn.Module]:
        return {"student": self.student, "fake": self.fake}

    def fake_loss(self, batch: Batch) -> Loss:
        """Loss of the fake score's turn; see `cached_images` for the images that it trains on."""
        return self.fake.loss(batch, *cached_images(self.student, self.times, batch))

    def generator(self) -> Generator:
        grid = FixedGrid((tuple(self.times),))
        return Generator(self.student, self.spec, grid=grid, step=Renoise())
