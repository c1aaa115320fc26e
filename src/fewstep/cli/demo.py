"""`fewstep demo`: train a teacher of digits, record pairs, train students, score all, report."""

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from fewstep.cli import console, evaluate, jobs, record, train
from fewstep.files import atomic_write
from fewstep.locks import lock_folder, lock_owner
from fewstep.paths import check_writable_folder

if TYPE_CHECKING:
    from fewstep.comparison import Exhibit
    from fewstep.evaluation import Evaluator
    from fewstep.generator import Generator
    from fewstep.loading import LoadedRun
    from fewstep.metrics import EvalProtocol
    from fewstep.recording import Recording
    from fewstep.scores import Score

_QUICK_STEPS = {"teacher": 450, "regress": 600, "dmd": 110, "meanflow": 110, "consistency": 90}
QUICK = {
    name: (f"fit.steps={steps}", "fit.ema_halflife=0.05") for name, steps in _QUICK_STEPS.items()
}
"""The runs of the short demo: a teacher and four students, with overrides that shorten them."""
OTHER_STUDENTS = (
    *("cd", "ict", "scm", "progressive", "sfd", "sfd-one-step", "dmd2", "sid", "sida"),
    *("circuit", "residual-sum"),
)
"""The students that only `--all` trains."""
PAIRS = {"quick": 6144, "all": 16384}
PAIR_STEPS = 8
PAIR_SAMPLER = "multistep"
RINGS = {"count": 16384, "steps": 8, "chunks": 8}
"""Settings of the store of rings, the circuit's recorded updates, for its one-step student."""
NOTE = (
    "These students trained for seconds. To train longer, run: fewstep demo --all. It also trains "
    f"{', '.join(OTHER_STUDENTS[:-1])} and {OTHER_STUDENTS[-1]}."
)
TEACHER = {
    "quick": {"transfer": (1, 2, 4, 16)},
    "all": {"transfer": (1, 2, 4, 8, 16), "heun": (10,)},
}
"""Samplers and step counts at which the teacher is scored."""
STUDENT_STEPS = (1, 2, 4)
PATIENCE = 20
"""Seconds to wait for jobs whose demo was killed."""


@dataclass(frozen=True)
class Options:
    """Train a teacher and one-step students on real images, and write a report, in minutes."""

    all: bool = False
    """Train every distillation method for the full length of its recipe, which takes over an
    hour."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the runs, by default runs/demo or runs/demo-all. The same command resumes them."""


class StoreSpec(NamedTuple):
    """The run from which a store of the demo is recorded, with the settings and the sampler."""

    source: str
    settings: dict[str, int]
    sampler: str


class Demo(NamedTuple):
    """The runs of the demo, in the folder `out`."""

    out: Path
    all: bool

    @property
    def students(self) -> tuple[str, ...]:
        quick = tuple(name for name in QUICK if name != "teacher")
        return (*quick, *OTHER_STUDENTS) if self.all else quick

    @property
    def kind(self) -> str:
        return "all" if self.all else "quick"

    def store_spec(self, store: str) -> StoreSpec:
        """The specification of `pairs` (of the teacher) or `rings` (of the circuit)."""
        if store == "rings":
            return StoreSpec("circuit", RINGS, "ring")
        settings = {"count": PAIRS[self.kind], "steps": PAIR_STEPS}
        return StoreSpec("teacher", settings, PAIR_SAMPLER)

    def preset(self, name: str) -> str:
        return "digits-flow" if name == "teacher" else f"digits-{name}"

    def inputs(self, name: str) -> dict[str, str]:
        """The demo's runs and stores that a run reads, by the recipe key that names them."""
        from fewstep.recipe import read

        recipe = read(self.preset(name))
        addresses = {
            "teacher.load": recipe.teacher and recipe.teacher.load,
            "pairs.load": recipe.pairs and recipe.pairs.load,
            "student.init": recipe.student.init,
        }
        prefix = "runs/digits-"
        names = {
            key: address.removeprefix(prefix)
            for key, address in addresses.items()
            if address and address.startswith(prefix)
        }
        return {key: "teacher" if name == "flow" else name for key, name in names.items()}

    def overrides(self, name: str) -> list[str]:
        """Overrides of the preset: the addresses of its inputs, and its length."""
        inputs = self.inputs(name).items()
        paths = [f"{key}={json.dumps(str(self.out / run))}" for key, run in inputs]
        return [*paths, *(() if self.all else QUICK.get(name, ()))]


def main(argv: Sequence[str]) -> int:
    """Run `fewstep demo`. Returns the exit code."""
    options = console.options(Options, "demo", argv)
    folder = Path("runs/demo-all" if options.all else "runs/demo")
    check_writable_folder(options.out or folder, "--out")
    jobs.preload(["fewstep.cli.demo", "fewstep.runner", "fewstep.comparison"])
    demo = Demo(options.out or folder, options.all)
    from fewstep import metrics

    protocol = metrics.protocol("quick")
    with lock_folder(demo.out):
        _wait_for_orphans(demo)
        try:
            jobs.run_jobs(make_jobs(demo, protocol), workers=jobs.cores())
        except console.Stopped:
            words = ["fewstep", "demo", *["--all"] * demo.all, "--out", str(demo.out)]
            console.out.print(f"stopped; to resume: {shlex.join(words)}")
            return 0
        write_results(demo, protocol)
    return 0


def _wait_for_orphans(demo: Demo) -> None:
    """Wait for the jobs of a demo that was killed, which end at their next progress report."""
    deadline = time.monotonic() + PATIENCE
    folders = [demo.out / name for name in ("teacher", *demo.students, "pairs", "rings")]
    while any(map(lock_owner, folders)) and time.monotonic() < deadline:
        time.sleep(jobs.INTERVAL)


def make_jobs(demo: Demo, protocol: "EvalProtocol") -> list[jobs.Job]:
    """Everything to train, record and measure, with what each needs, the longest work first."""
    from fewstep.recipe import read
    from fewstep.recording import Recording

    real = jobs.Job("real images", 1, partial(_prepare, demo, protocol))
    trainings: list[jobs.Job] = []
    recordings: dict[str, jobs.Job] = {}
    measurings: list[jobs.Job] = []
    for name in ("teacher", *demo.students):
        overrides, inputs = demo.overrides(name), frozenset(demo.inputs(name).values())
        total = read(demo.preset(name), overrides).fit.steps
        run = partial(_train, demo.preset(name), overrides, demo.out / name)
        trainings.append(jobs.Job(name, total, run, inputs))
        for store in inputs & {"pairs", "rings"} - recordings.keys():
            source, settings, sampler = demo.store_spec(store)
            chunks = settings.get("chunks", 0)
            recording = Recording(settings["count"], settings["steps"], chunks=chunks)
            run = partial(_record, demo.out / source, demo.out / store, recording, sampler)
            recordings[store] = jobs.Job(store, recording.count, run, frozenset({source}))
        run = partial(_measure, demo, name, protocol)
        after = frozenset({name, real.name})
        measurings.append(jobs.Job(f"{name}, measured", 1, run, after))
    return [trainings[0], real, *recordings.values(), *trainings[1:], *measurings]


def _evaluator(demo: Demo, protocol: "EvalProtocol") -> "Evaluator":
    from fewstep.assembly import read_data
    from fewstep.evaluation import Evaluator
    from fewstep.recipe import read

    return Evaluator(read_data(read(demo.preset("teacher"))), protocol)


def _prepare(demo: Demo, protocol: "EvalProtocol", update: console.Update) -> None:
    from fewstep.evaluation import exhaust

    evaluator = _evaluator(demo, protocol)
    exhaust(evaluator.prepare(), partial(update, total=len(evaluator.images)))


def _train(preset: str, overrides: Sequence[str], folder: Path, update: console.Update) -> None:
    from fewstep.recipe import read
    from fewstep.runner import is_finished

    recipe = read(preset, overrides)
    if not is_finished(recipe, folder):
        train.train(recipe, folder, update)


def _record(
    source: Path, folder: Path, recording: "Recording", sampler: str, update: console.Update
) -> None:
    record.run(str(source), folder, recording, update, sampler=sampler)


def _measure(demo: Demo, name: str, protocol: "EvalProtocol", update: console.Update) -> None:
    from fewstep.loading import load_run

    _scores(demo, load_run(demo.out / name), _evaluator(demo, protocol), update)


def _scores(
    demo: Demo, run: "LoadedRun", evaluator: "Evaluator", update: console.Update | None = None
) -> list["Score"]:
    """Scores of a run: read from its folder, else measured and saved there."""
    from fewstep.comparison import measure

    settings = _sampler_settings(demo, run)
    scores: list[Score] = []
    for index, (generator, steps) in enumerate(settings):

        def report(done: int, index: int = index, steps: int = steps) -> None:
            samples = evaluator.protocol.samples
            if update:
                update(index * samples + done, f"{steps} steps", total=len(settings) * samples)

        bar = lambda description, total, report=report: nullcontext(report)  # noqa: E731
        scores.append(measure(evaluator, generator, run.address, steps, bar=bar))
    return scores


def _sampler_settings(demo: Demo, run: "LoadedRun") -> list[tuple["Generator", int]]:
    """The generators and step counts at which to score a run; each generator has its sampler."""
    from fewstep.plugins import resolve

    if run.name == "teacher":
        return [
            (run.generator.with_sampler(step=resolve("sampler", sampler)()), steps)
            for sampler, counts in TEACHER[demo.kind].items()
            for steps in counts
        ]
    counts = run.generator.grid.counts or STUDENT_STEPS
    return [(run.generator, steps) for steps in counts if steps in (*STUDENT_STEPS, RINGS["steps"])]


def write_results(demo: Demo, protocol: "EvalProtocol") -> None:
    """Write results.json and report.html, and print the table of scores."""
    import torch

    from fewstep.comparison import make_exhibit
    from fewstep.loading import load_run
    from fewstep.report import write_report

    torch.set_num_threads(1)  # times per image are measured with one thread, like the scores
    evaluator = _evaluator(demo, protocol)
    exhibits: list[Exhibit] = []
    for name in ("teacher", *demo.students):
        run = load_run(demo.out / name)
        scores = _scores(demo, run, evaluator)
        commands = _commands(demo, name, [score.steps for score in scores])
        is_teacher = name == "teacher"
        exhibits.append(make_exhibit(run, scores, baseline=is_teacher, commands=commands))
    tables = {e.name: [score.table() for score in e.scores] for e in exhibits}
    with atomic_write(demo.out / "results.json") as file:
        file.write(json.dumps(tables, indent=2).encode() + b"\n")
    title, notes = "fewstep demo: handwritten digits", [] if demo.all else [NOTE]
    report = demo.out / "report.html"
    write_report(report, exhibits, title=title, notes=notes, evaluator=evaluator)
    evaluate.show((e.name, score) for e in exhibits for score in e.scores)
    for note in notes:
        console.out.print(note)
    console.out.print(f"report: {report}")


def _commands(demo: Demo, name: str, steps: Sequence[int]) -> list[str]:
    """Shell commands that record the inputs of a run, train it and score it."""
    inputs, run = demo.inputs(name), str(demo.out / name)
    commands: list[list[str]] = []
    for store in {"pairs", "rings"} & set(inputs.values()):
        source, settings, sampler = demo.store_spec(store)
        options = {"-n" if key == "count" else f"--{key}": n for key, n in settings.items()}
        words = [word for key, n in options.items() for word in (key, str(n))]
        paths = [str(demo.out / source), "--out", str(demo.out / store)]
        commands.append(["fewstep", "record", *paths, *words, "--sampler", sampler])
    verb = "distill" if "teacher.load" in inputs else "train"
    commands.append(["fewstep", verb, demo.preset(name), *demo.overrides(name), "--out", run])
    counts = TEACHER[demo.kind]["transfer"] if name == "teacher" else steps
    commands.append(["fewstep", "evaluate", run, "--steps", ",".join(map(str, counts))])
    return [shlex.join(command) for command in commands]
