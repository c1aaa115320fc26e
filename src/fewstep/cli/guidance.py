"""The options of guidance, which several commands have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fewstep.cli import console
from fewstep.ranges import NonNegative, Probability

if TYPE_CHECKING:
    from fewstep.generator import Generator


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How the outputs of a run are guided."""

    guidance: NonNegative = 1.0
    """Weight of guidance, classifier-free unless there is --autoguidance; 1 means no guidance."""
    guidance_interval: Annotated[str | None, tyro.conf.arg(metavar="LOW,HIGH")] = None
    """Lowest and highest time of guidance, from 0 (image) to 1 (noise), such as 0.2,0.8; by default
    all times. At other times the network is called once."""
    autoguidance: Annotated[
        str | None,
        console.run_option(
            "With --guidance: a worse network to lead away from, such as a smaller or shorter run, "
            "in place of no condition"
        ),
    ] = None

    def check(self) -> None:
        """Raise InputError for settings that no run can have, before one is loaded."""
        from fewstep.abilities import check_autoguidance
        from fewstep.guidance import check_interval

        check_interval(self.interval, self.guidance)
        if self.autoguidance is not None:
            check_autoguidance(self.guidance)

    def apply(
        self, generator: "Generator", recipe: Mapping[str, Any] | None, *, negative: str = ""
    ) -> "Generator":
        """The generator under this guidance. `recipe` is the table of the one that trained it.

        Raises: InputError as `abilities.with_guidance`.
        """
        from fewstep import runs
        from fewstep.abilities import with_guidance

        weak = None if self.autoguidance is None else runs.load(self.autoguidance)
        settings: dict[str, Any] = {"interval": self.interval, "weak": weak, "negative": negative}
        return with_guidance(generator, self.guidance, recipe, **settings)

    @property
    def interval(self) -> tuple[float, ...] | None:
        """The numbers of --guidance-interval; None without it."""
        return parse_interval(self.guidance_interval)


def parse_interval(text: str | None) -> tuple[float, ...] | None:
    """The numbers of --guidance-interval LOW,HIGH.  Raises: InputError for other text."""
    if text is None:
        return None
    return console.numbers("--guidance-interval", text, float, Probability)
