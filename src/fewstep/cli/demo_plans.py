"""What each demo trains, records and measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fewstep.ranges import Precision


@dataclass(frozen=True)
class StoreSpec:
    """The run from which a store of the demo is recorded, with the settings and the sampler."""

    source: str
    count: int
    steps: int
    sampler: str
    chunks: int = 0
    guidance: float = 1.0
    clip: float | None = None

    @property
    def options(self) -> list[str]:
        """The options of `fewstep record`."""
        words = ["-n", str(self.count), "--steps", str(self.steps), "--sampler", self.sampler]
        words += ["--chunks", str(self.chunks)] * bool(self.chunks)
        words += guidance_options(self.guidance)
        return words + ([] if self.clip is None else ["--clip", f"{self.clip:g}"])


def guidance_options(weight: float) -> list[str]:
    """The options of a command that guides a run by `weight`."""
    return ["--guidance", f"{weight:g}"] * (weight != 1)


def precision_options(precision: Precision) -> list[str]:
    """The options of a command that computes in a number format."""
    return ["--precision", precision] * (precision != "f32")


@dataclass(frozen=True)
class Plan:
    """The runs of a demo: a teacher, and students that are distilled from it."""

    option: str
    """The option of `fewstep demo` that selects it; empty for the one without an option."""
    title: str
    presets: str
    """What the names of its presets begin with. The teacher is the preset `flow`."""
    students: tuple[str, ...]
    stores: Mapping[str, StoreSpec]
    """The stores of pairs, by the name after `runs/` and `presets` in the presets."""
    teacher: Mapping[str, tuple[int, ...]]
    """Samplers and step counts at which the teacher is scored."""
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Overrides of a run's preset."""
    protocol: str = "quick"
    samples: int = 2_000
    side_by_side: bool = True
    """Whether jobs run side by side with a thread each. Else one job at a time has all cores."""
    note: str = ""

    @property
    def evaluate_options(self) -> list[str]:
        """The options of `fewstep evaluate` for the scores of the demo, if not its defaults."""
        if (self.protocol, self.samples) == ("quick", 2_000):
            return []
        return ["--protocol", self.protocol, "--samples", str(self.samples)]

    @property
    def guidance(self) -> float:
        """Guidance of the teacher when it is recorded and scored."""
        return self.stores["pairs"].guidance


_PAIRS = StoreSpec("teacher", 6144, 8, "multistep")
_SECONDS = {"teacher": 450, "regress": 600, "dmd": 110, "meanflow": 110, "consistency": 90}
_OTHERS = (
    *("cd", "ict", "scm", "progressive", "sfd", "sfd-one-step", "dmd2", "sid", "sida"),
    *("circuit", "residual-sum"),
)
_STUDENTS = ("regress", "dmd", "meanflow", "consistency")

PLANS = {
    plan.option: plan
    for plan in (
        Plan(
            "",
            "fewstep demo: handwritten digits",
            "digits-",
            _STUDENTS,
            {"pairs": _PAIRS},
            {"transfer": (1, 2, 4, 16)},
            overrides={
                name: (f"fit.steps={steps}", "fit.ema_halflife=0.05")
                for name, steps in _SECONDS.items()
            },
            note=(
                "These students trained for seconds. To train longer, run: fewstep demo --all. It "
                f"also trains {', '.join(_OTHERS[:-1])} and {_OTHERS[-1]}."
            ),
        ),
        Plan(
            "--all",
            "fewstep demo: handwritten digits",
            "digits-",
            (*_STUDENTS, *_OTHERS),
            {
                "pairs": replace(_PAIRS, count=16384),
                # the circuit's recorded updates, for its one-step student
                "rings": StoreSpec("circuit", 16384, 8, "ring", chunks=8),
            },
            {"transfer": (1, 2, 4, 8, 16), "heun": (10,)},
        ),
        Plan(
            "--cifar10",
            "fewstep demo: CIFAR-10 in one step",
            "cifar10-cpu-",
            ("regress",),
            {"pairs": StoreSpec("teacher", 16000, 10, "multistep", guidance=2.0, clip=1.0)},
            {"transfer": (1, 4, 16)},
            protocol="resnet10k",
            side_by_side=False,
        ),
    )
}
"""The demos by their options."""
