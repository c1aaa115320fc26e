"""`fewstep demo`: digits, a teacher, its pairs, students, scores and a report."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from fewstep.cli import console, evaluate, record, train

if TYPE_CHECKING:
    from fewstep.evaluation import Evaluator
    from fewstep.scores import Score

QUICK = {
    "teacher": ("fit.steps=450", "fit.ema_halflife=6000"),
    "regress": ("fit.steps=600",),
    "dmd": ("fit.steps=110",),
    "meanflow": ("fit.steps=110",),
    "consistency": ("fit.steps=90",),
}
"""What is shortened of the recipes for three minutes: one student of each of four families."""
REST = (
    *("cd", "ict", "scm", "progressive", "sfd", "sfd-one-step", "dmd2", "sid", "sida"),
    *("circuit", "residual-sum"),
)
"""The students that take longer: `--all`."""
PAIRS = {"quick": 6144, "all": 16384}
PAIR_STEPS = 8
PAIR_SAMPLER = "multistep"
RINGS = {"count": 16384, "steps": 8, "chunks": 8}
"""What is recorded of the circuit, for its sum."""
LEFT = (
    "These students had seconds each. Longer trainings, and "
    f"{', '.join(REST[:-1])} and {REST[-1]}, are left to `fewstep demo --all`."
)
TEACHER = {
    "quick": {"transfer": (1, 2, 4, 16)},
    "all": {"transfer": (1, 2, 4, 8, 16), "heun": (10,)},
}
"""By what sampler and in how many steps the teacher is measured."""
STUDENT_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Options:
    """From real images to one-step students and a report, in about three minutes."""

    all: bool = False
    """Every distillation of a diffusion, each for as long as its recipe says: over an hour."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of its runs, runs/demo or runs/demo-all; what is there is not done again."""


class Recorded(NamedTuple):
    """Whose answers, how many and in how many steps, by what sampler."""

    source: str
    told: dict[str, int]
    sampler: str


class Demo(NamedTuple):
    """What is made, where."""

    out: Path
    all: bool

    @property
    def students(self) -> tuple[str, ...]:
        quick = tuple(name for name in QUICK if name != "teacher")
        return (*quick, *REST) if self.all else quick

    @property
    def pairs(self) -> int:
        return PAIRS[self.kind]

    @property
    def kind(self) -> str:
        return "all" if self.all else "quick"

    def recorded(self, kind: str) -> Recorded:
        """What is recorded as `pairs`, of the teacher, or as `rings`, of the circuit."""
        if kind == "rings":
            return Recorded("circuit", RINGS, "ring")
        return Recorded("teacher", {"count": self.pairs, "steps": PAIR_STEPS}, PAIR_SAMPLER)

    def preset(self, name: str) -> str:
        return "digits-flow" if name == "teacher" else f"digits-{name}"

    def store(self, name: str) -> str | None:
        """Whether a run reads `pairs` or `rings`, or nothing recorded."""
        from fewstep.recipe import read

        recorded = read(self.preset(name)).pairs
        return recorded and self._run(recorded.load)

    def overrides(self, name: str) -> list[str]:
        """What changes of the preset: where teacher, pairs and first weights lie; its length."""
        from fewstep.recipe import read

        recipe = read(self.preset(name))
        told = {
            "teacher.load": recipe.teacher and recipe.teacher.load,
            "pairs.load": recipe.pairs and recipe.pairs.load,
            "student.init": recipe.student.init,
        }
        return [
            f"{key}={json.dumps(str(self.out / self._run(value)))}"
            for key, value in told.items()
            if value and value.startswith("runs/digits-")
        ] + [*(() if self.all else QUICK.get(name, ()))]

    def _run(self, address: str) -> str:
        """The demo's own folder for a run that a preset names."""
        name = address.removeprefix("runs/digits-")
        return "teacher" if name == "flow" else name


def main(argv: Sequence[str]) -> int:
    """Train, record, distil, measure, report; 0 when all is there."""
    told = console.options(Options, "demo", argv)
    demo = Demo(told.out or Path("runs/demo-all" if told.all else "runs/demo"), told.all)
    done, recorded = _train("teacher", demo), set[str]()
    for name in demo.students:
        kind = demo.store(name)
        if done and kind and kind not in recorded:
            done = _record(kind, demo)
            recorded.add(kind)
        done = done and _train(name, demo)
    if not done:
        again = "fewstep demo --all" if demo.all else "fewstep demo"
        console.out.print(f"stopped; to resume: {again} --out {demo.out}")
        return 0
    from fewstep import metrics
    from fewstep.comparison import load_run, reference_images
    from fewstep.evaluation import Evaluator

    out = demo.out
    images = reference_images(load_run(out / "teacher"))
    evaluator = Evaluator(images, metrics.protocol("quick"))
    scores = _measure(demo, evaluator)
    results = {
        name: [score.table() for who, score in scores if who == name]
        for name in ("teacher", *demo.students)
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    _report(demo, scores, evaluator)
    evaluate.show(scores)
    if not demo.all:
        console.out.print(LEFT)
    console.out.print(f"report: {out / 'report.html'}")
    return 0


def _train(name: str, demo: Demo) -> bool:
    from fewstep.recipe import read
    from fewstep.runner import finished

    recipe, folder = read(demo.preset(name), demo.overrides(name)), demo.out / name
    return finished(recipe, folder) or train.train_with_bar(recipe, folder)


def _record(kind: str, demo: Demo) -> bool:
    from fewstep.recording import Recording

    source, told, sampler = demo.recorded(kind)
    wanted = Recording(told["count"], told["steps"], chunks=told.get("chunks", 0))
    with console.bar("record", told["count"]) as update, console.stopping() as stop:
        source = str(demo.out / source)
        return record.run(source, demo.out / kind, wanted, update, stop, sampler=sampler)


def _measure(demo: Demo, evaluator: "Evaluator") -> list[tuple[str, "Score"]]:
    from fewstep import runs
    from fewstep.sampling import named_step

    teacher = runs.load(demo.out / "teacher")
    ways = [
        ("teacher", teacher.with_sampler(step=named_step(sampler)), steps)
        for sampler, counts in TEACHER[demo.kind].items()
        for steps in counts
    ]
    for name in demo.students:
        student = runs.load(demo.out / name)
        counts = student.grid.counts or STUDENT_STEPS
        few = [steps for steps in counts if steps in (*STUDENT_STEPS, RINGS["steps"])]
        ways += [(name, student, steps) for steps in few]
    scores: list[tuple[str, Score]] = []
    with console.bar("measure", len(ways)) as bar:
        for name, generator, steps in ways:
            bar(len(scores), f"{name}, {steps} steps")
            scores.append((name, evaluator.score(generator, steps=steps)))
        bar(len(scores))
    return scores


def _report(demo: Demo, scores: list[tuple[str, "Score"]], evaluator: "Evaluator") -> None:
    from fewstep.comparison import load_run, make_exhibit
    from fewstep.report import write_report

    out = demo.out
    exhibits = [
        make_exhibit(
            load_run(out / name),
            [score for who, score in scores if who == name],
            baseline=name == "teacher",
            commands=_commands(name, demo, [s.steps for who, s in scores if who == name]),
        )
        for name in ("teacher", *demo.students)
    ]
    title = "fewstep demo: handwritten digits"
    notes = [] if demo.all else [LEFT]
    write_report(out / "report.html", exhibits, title=title, notes=notes, evaluator=evaluator)


def _commands(name: str, demo: Demo, measured: list[int]) -> list[str]:
    """What would make this run by hand, and measure it."""
    from fewstep.recipe import read

    verb = "distill" if read(demo.preset(name)).teacher else "train"
    run, kind = str(demo.out / name), demo.store(name)
    told = demo.overrides(name)
    commands = [shlex.join(["fewstep", verb, demo.preset(name), *told, "--out", run])]
    if kind:
        source, numbers, sampler = demo.recorded(kind)
        how = ["record", str(demo.out / source), "--out", str(demo.out / kind)]
        for key, number in numbers.items():
            how += ["-n" if key == "count" else f"--{key}", str(number)]
        commands.insert(0, shlex.join(["fewstep", *how, "--sampler", sampler]))
    counts = TEACHER[demo.kind]["transfer"] if name == "teacher" else measured
    steps = ",".join(map(str, counts))
    return [*commands, shlex.join(["fewstep", "evaluate", run, "--steps", steps])]
