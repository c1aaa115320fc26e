"""`fewstep evaluate RUN --likelihood [--samples N] [--split test] [--probes N]`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.ranges import Count

if TYPE_CHECKING:
    from fewstep.generator import Generator
    from fewstep.likelihood_score import LikelihoodScore, LikelihoodSettings
    from fewstep.loading import LoadedRun


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """Options of `fewstep evaluate` for the likelihood of real images."""

    likelihood: bool = False
    """Instead of scores, measure the likelihood of real images under a teacher, in bits per
    dimension: of --samples images, by default 200. --steps and --protocol have no effect."""
    split: str | None = None
    """With --likelihood: the split of the set, such as test; by default that of the training."""
    probes: str | None = None
    """With --likelihood: random probes of the divergence (Hutchinson), or exact; by default exact
    up to 16 dimensions, else 1."""
    tolerance: Annotated[float, Ge(1e-7), Le(0.1)] | None = None
    """With --likelihood: error of a step of the ODE's solver; by default 1e-4."""

    def check_likelihood(
        self, *, straightness: bool, precision: str, without_effect: Mapping[str, str | None]
    ) -> None:
        """Raise InputError for options that do not fit each other.

        `without_effect` are options, by their names, on which no likelihood depends.
        """
        if not self.likelihood:
            for name in ("split", "probes", "tolerance"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is for --likelihood, which is missing")
            return
        if straightness:
            raise InputError("--likelihood and --straightness are two measures: give one of them")
        if precision != "f32":
            raise InputError(
                f"a likelihood is computed in f32: --precision {precision} is too coarse for the "
                "solver; leave it out"
            )
        for name, value in without_effect.items():
            if value:
                raise InputError(f"--{name} {value} has no effect on a likelihood: leave it out")

    def likelihood_settings(self, samples: int | None, seed: int) -> "LikelihoodSettings":
        """The settings of these options."""
        from fewstep.likelihood_score import LikelihoodSettings

        settings: dict[str, Any] = {"samples": samples, "tolerance": self.tolerance}
        settings = {name: value for name, value in settings.items() if value is not None}
        return LikelihoodSettings(**settings, probes=_count_probes(self.probes), seed=seed)


def _count_probes(text: str | None) -> int | None:
    """The number of probes, 0 for the exact divergence, None for the default."""
    if text is None:
        return None
    if text == "exact":
        return 0
    if not text.isdecimal():
        raise InputError(f"--probes is {text!r}: it must be a number of probes, or exact")
    return console.numbers("--probes", text, int, Count)[0]


def evaluate_likelihood(
    run: "LoadedRun",
    generator: "Generator",
    settings: "LikelihoodSettings",
    *,
    data: str | None,
    split: str | None,
    as_json: bool,
) -> int:
    """Measure and print the likelihood of real images. Returns the exit code."""
    from fewstep import comparison, runs
    from fewstep.abilities import why_no_likelihood

    # also of a recipe that this version cannot read, the method is known
    recipe = runs.describe(run.address).get("recipe")
    if reason := why_no_likelihood(generator, recipe):
        raise InputError(
            f"{run.address} gives images no likelihood: {reason}; evaluate a teacher without "
            "guidance, such as a run of the method denoise"
        )
    score = comparison.measure_likelihood(
        run, generator, settings, data_name=data, split=split, bar=console.bar
    )
    if as_json:
        print(json.dumps(score.table(), indent=2))
    else:
        _show(run.address, score)
    return 0


def _show(name: str, score: "LikelihoodScore") -> None:
    console.out.print(
        f"{name}: {score.bits:.3f} bits per dimension (95 % interval {score.low:.3f} – "
        f"{score.high:.3f})"
    )
    console.out.print(score.settings_text, style="dim")
