"""`Objective`: what the trainer needs of a method: its networks, their turns and their losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, get_args, get_origin

from torch import Tensor, nn

from fewstep.autoencoders import Autoencoder
from fewstep.generator import Generator
from fewstep.methods.batch import Batch


class Loss(NamedTuple):
    """A scalar loss `value`, the mean over the batch's rows, and other scalars to log by name."""

    value: Tensor
    numbers: Mapping[str, Tensor] = {}


class Turn(NamedTuple):
    """One update of a player, which is a network that the method trains.

    `loss` computes the player's loss on a batch. `phase` is a range [first, stop) of training
    steps: the player's learning rate schedule spans these steps only, and its optimiser state is
    reset at the first one. Without a phase the schedule spans the whole run.
    """

    player: str
    loss: Callable[[Batch], Loss]
    phase: tuple[int, int] | None = None


ConfigT = TypeVar("ConfigT")


class Objective(nn.Module, ABC, Generic[ConfigT]):
    """Base class of `Method`, which trains generators, and of the training of autoencoders.

    A subclass names the frozen dataclass of its settings as in `class Dmd(Method[DmdConfig])`;
    `Config` then refers to that class, whose fields are the keys of a recipe's `[method]` table.
    All its state lives in its parameters and buffers. It only computes losses: it calls no
    `.backward()` and has no optimiser, device, log or file.
    """

    Config: ClassVar[type]
    reads: frozenset[str]
    """Data streams that its batches contain: any of `images`, `pairs`, `rings`. If they depend on
    the settings, `__init__` sets this attribute."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__dict__.get("__orig_bases__", ()):  # bases with their type arguments
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, Objective):
                if not isinstance(arguments[0], TypeVar):
                    cls.Config = arguments[0]

    @classmethod
    def length_settings(cls, config: ConfigT) -> list[str]:
        """Keys of a recipe whose effect at a training step depends on the number of all steps.

        A run of a method without such settings can be extended: `fewstep train --extend`. A
        subclass whose losses or turns depend on the number of steps must override this.
        """
        return []

    def warnings(self) -> list[str]:
        """One line for each setting that is likely to be wrong; see `training_warnings`.

        What cannot work at all raises InputError in `__init__`.
        """
        return []

    @property
    @abstractmethod
    def players(self) -> Mapping[str, nn.Module]:
        """The networks that the method trains, by name."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The one of `players` that the run saves."""

    @abstractmethod
    def turns(self, step: int) -> Iterator[Turn]:
        """Yield the turns of a training step in order; code after a `yield` runs after its update.

        The sequence of players must depend on `step` only, so that it is the same on all ranks.
        """

    @abstractmethod
    def result(self) -> Generator | Autoencoder:
        """What the run saves. Its parameters are those of `network`, in this order."""
