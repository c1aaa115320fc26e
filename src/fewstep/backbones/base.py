"""What every raw network promises: images and levels in, a tensor like the images out."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.condition import Condition


@runtime_checkable
class BackboneConfig(Protocol):
    """A frozen dataclass of an architecture's settings."""

    @property
    def name(self) -> str:
        """Name of the architecture in recipes."""
        ...

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "Backbone":
        """Make the network, with weights drawn from torch's default generator."""
        ...


class Backbone(nn.Module, ABC):
    """A network that knows no diffusion: `output = net(x, level)`, with `level` the noise level.

    `level` and `level_s` hold one number a row, in the units the network is trained with. A
    `Denoiser` gives them their meaning and converts the output. Weights are drawn as a module is
    made, from torch's default generator, so seed it before; dropout draws from it too.
    """

    config: Any
    """The dataclass that `build` made it from: it goes into the weights' description."""
    shape: tuple[int, ...]
    """Of one image, or one point: (3, 32, 32), or (2,)."""
    classes: int
    """How many classes the network knows; 0 for a network that takes no condition."""
    level_scale: float
    """What a logarithmic level (EDM's `ln(sigma) / 4`, about -1.55 to 1.1) is to be multiplied
    with, so that it spans a fair part of the sinusoid's range, 0 to 1000."""

    @property
    def trunks(self) -> tuple[nn.Module, ...]:
        """The networks whose calls are its evaluations: itself, unless it is asked in parts."""
        return (self,)

    def start(self, teacher: "Backbone | None") -> None:
        """Take from a teacher's network what a fresh one of this kind begins with: nothing.

        Raises: InputError where that is another network than it needs.
        """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """The raw output. `level_s` is the destination's level, for networks with two times.

        Without `level_s` a network with two times stays at `level`; without `cond` a network with
        classes is unconditional. What a network was not made for raises a `ValueError`.
        """

    @abstractmethod
    def features(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b ..."]]:
        """Activations on the way, for adversarial heads; their number and widths never change."""
