"""`fewstep demo`: digits, a teacher, its pairs, students, scores and a report."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fewstep.cli import console, evaluate, record, train

if TYPE_CHECKING:
    from fewstep.evaluation import Yardstick
    from fewstep.scores import Score

STUDENTS = ("regress", "consistency")
PAIRS = 6144
PAIR_STEPS = 8
PAIR_SAMPLER = "multistep"
TEACHER = (("transfer", (1, 2, 4, 8, 16)), ("heun", (10,)))
STUDENT_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Options:
    """From real images to one-step students and a report, in about three minutes."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/demo")
    """The folder of its runs; what is there already is not done again."""


def main(argv: Sequence[str]) -> int:
    """Train, record, distil, measure, report; 0 when all is there."""
    told = console.options(Options, "demo", argv)
    out = told.out
    done = (
        _train("teacher", "digits-flow", out)
        and _pairs(out)
        and all(_train(name, f"digits-{name}", out) for name in STUDENTS)
    )
    if not done:
        console.out.print(f"stopped; to resume: fewstep demo --out {out}")
        return 0
    from fewstep import metrics
    from fewstep.evaluation import Yardstick

    images = evaluate.reference(str(out / "teacher"), None)
    yardstick = Yardstick(images, metrics.protocol("quick"))
    scores = _measure(out, yardstick)
    results = {
        name: [score.table() for who, score in scores if who == name]
        for name in ("teacher", *STUDENTS)
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    _report(out, scores, yardstick)
    evaluate.show(scores)
    console.out.print(f"report: {out / 'report.html'}")
    return 0


def _overrides(name: str, out: Path) -> list[str]:
    if name == "teacher":
        return []
    needs_pairs = name == "regress"
    load = [f"teacher.load={json.dumps(str(out / 'teacher'))}"]
    return load + ([f"pairs.load={json.dumps(str(out / 'pairs'))}"] if needs_pairs else [])


def _train(name: str, preset: str, out: Path) -> bool:
    from fewstep.experiment import finished
    from fewstep.recipe import read

    recipe = read(preset, _overrides(name, out))
    return finished(recipe, out / name) or train.run(recipe, out / name, what=f"{name:<12}")


def _pairs(out: Path) -> bool:
    from fewstep.recording import Recording

    wanted = Recording(PAIRS, PAIR_STEPS)
    return record.run(str(out / "teacher"), out / "pairs", wanted, sampler=PAIR_SAMPLER)


def _measure(out: Path, yardstick: "Yardstick") -> list[tuple[str, "Score"]]:
    from fewstep import runs
    from fewstep.sampling import named_step

    teacher = runs.load(out / "teacher")
    ways = [
        ("teacher", teacher.sampled(step=named_step(sampler)), steps)
        for sampler, counts in TEACHER
        for steps in counts
    ]
    for name in STUDENTS:
        student = runs.load(out / name)
        counts = student.grid.counts or STUDENT_STEPS
        ways += [(name, student, steps) for steps in counts if steps in STUDENT_STEPS]
    scores: list[tuple[str, Score]] = []
    with console.bar("measure", len(ways)) as bar:
        for name, generator, steps in ways:
            bar(len(scores), f"{name}, {steps} steps")
            scores.append((name, yardstick.score(generator, steps=steps)))
        bar(len(scores))
    return scores


def _report(out: Path, scores: list[tuple[str, "Score"]], yardstick: "Yardstick") -> None:
    from fewstep import runs
    from fewstep.recipe import read
    from fewstep.report import Exhibit, write_report
    from fewstep.runs import Run

    exhibits = [
        Exhibit(
            name=name,
            generator=runs.load(out / name),
            scores=[score for who, score in scores if who == name],
            recipe=read(str(Run(out / name).recipe_file)),
            progress=Run(out / name).progress(),
            commands=_commands(name, out),
            yardstick=name == "teacher",
            grids=Run(out / name).grids(),
        )
        for name in ("teacher", *STUDENTS)
    ]
    title = "fewstep demo: handwritten digits"
    write_report(out / "report.html", exhibits, title=title, yardstick=yardstick)


def _commands(name: str, out: Path) -> list[str]:
    """What would make this run by hand."""
    preset = "digits-flow" if name == "teacher" else f"digits-{name}"
    verb = "train" if name == "teacher" else "distill"
    run, pairs = str(out / name), str(out / "pairs")
    commands = [shlex.join(["fewstep", verb, preset, *_overrides(name, out), "--out", run])]
    if name == "regress":
        told = ["-n", str(PAIRS), "--steps", str(PAIR_STEPS), "--sampler", PAIR_SAMPLER]
        record_pairs = [
            "fewstep",
            "record",
            str(out / "teacher"),
            "--out",
            pairs,
            *told,
        ]
        commands.insert(0, shlex.join(record_pairs))
    steps = ",".join(map(str, TEACHER[0][1] if name == "teacher" else STUDENT_STEPS))
    return [*commands, shlex.join(["fewstep", "evaluate", run, "--steps", steps])]
