"""`fewstep demo`: train a teacher, record pairs, train students, score all, report."""

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from fewstep.cli import console, evaluate, jobs, record, train
from fewstep.cli.demo_plans import PLANS, Plan, StoreSpec, guidance_options, precision_options
from fewstep.cli.guidance import GuidanceOptions
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.locks import lock_folder, lock_owner
from fewstep.paths import check_writable_folder
from fewstep.ranges import Precision

if TYPE_CHECKING:
    from fewstep.comparison import Exhibit
    from fewstep.evaluation import Evaluator
    from fewstep.generator import Generator
    from fewstep.loading import LoadedRun
    from fewstep.metrics import EvalProtocol
    from fewstep.scores import Score

STUDENT_STEPS = (1, 2, 4)
PATIENCE = 20
"""Seconds to wait for jobs whose demo was killed."""


@dataclass(frozen=True)
class Options:
    """Train a teacher and one-step students on real images, and write a report; in minutes for the
    digits without an option."""

    all: bool = False
    """Train every distillation method for the full length of its recipe, which takes over an
    hour."""
    cifar10: bool = False
    """Train a teacher of CIFAR-10 and its one-step student instead, which takes three hours of two
    cores."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the runs, by default runs/demo, runs/demo-all or runs/demo-cifar10. The same
    command resumes them."""
    precision: Precision = "f32"
    """Number format of the trainings and of the recorded pairs; bf16 is faster on GPUs and on CPUs
    with instructions for it."""

    @property
    def plan(self) -> Plan:
        """Raises: InputError for two demos at once."""
        if self.all and self.cifar10:
            raise InputError("--all and --cifar10 are two demos: run one after the other")
        return PLANS["--all" if self.all else "--cifar10" if self.cifar10 else ""]


class Demo(NamedTuple):
    """The runs of a plan, in the folder `out`."""

    out: Path
    plan: Plan
    precision: Precision = "f32"

    @property
    def threads(self) -> int:
        return 1 if self.plan.side_by_side else jobs.cores()

    def preset(self, name: str) -> str:
        return self.plan.presets + ("flow" if name == "teacher" else name)

    def inputs(self, name: str) -> dict[str, str]:
        """The demo's runs and stores that a run reads, by the recipe key that names them."""
        from fewstep.recipe import read

        recipe = read(self.preset(name))
        addresses = {
            "teacher.load": recipe.teacher and recipe.teacher.load,
            "pairs.load": recipe.pairs and recipe.pairs.load,
            "student.init": recipe.student.init,
        }
        prefix = f"runs/{self.plan.presets}"
        names = {
            key: address.removeprefix(prefix)
            for key, address in addresses.items()
            if address and address.startswith(prefix)
        }
        return {key: "teacher" if name == "flow" else name for key, name in names.items()}

    def overrides(self, name: str) -> list[str]:
        """Overrides of the preset: the addresses of its inputs, its length and number format."""
        inputs = self.inputs(name).items()
        paths = [f"{key}={json.dumps(str(self.out / run))}" for key, run in inputs]
        precision = [f"fit.precision={self.precision}"] * (self.precision != "f32")
        return [*paths, *self.plan.overrides.get(name, ()), *precision]


def main(argv: Sequence[str]) -> int:
    """Run `fewstep demo`. Returns the exit code."""
    options = console.options(Options, "demo", argv)
    plan = options.plan
    demo = Demo(options.out or Path(f"runs/demo{plan.option[1:]}"), plan, options.precision)
    check_writable_folder(demo.out, "--out")
    jobs.preload(["fewstep.cli.demo", "fewstep.runner", "fewstep.comparison"])
    from fewstep import metrics

    protocol = metrics.protocol(plan.protocol).with_settings(samples=plan.samples)
    with lock_folder(demo.out):
        _wait_for_orphans(demo)
        try:
            workers = jobs.cores() // demo.threads
            jobs.run_jobs(make_jobs(demo, protocol), workers=workers, threads=demo.threads)
        except console.Stopped:
            words = [*filter(None, ["fewstep", "demo", plan.option]), "--out", str(demo.out)]
            words += precision_options(demo.precision)
            console.out.print(f"stopped; to resume: {shlex.join(words)}")
            return 0
        write_results(demo, protocol)
    return 0


def _wait_for_orphans(demo: Demo) -> None:
    """Wait for the jobs of a demo that was killed, which end at their next progress report."""
    plan = demo.plan
    deadline = time.monotonic() + PATIENCE
    folders = [demo.out / name for name in ("teacher", *plan.students, *plan.stores)]
    while any(map(lock_owner, folders)) and time.monotonic() < deadline:
        time.sleep(jobs.INTERVAL)


def make_jobs(demo: Demo, protocol: "EvalProtocol") -> list[jobs.Job]:
    """Everything to train, record and measure, with what each needs, the longest work first."""
    from fewstep.recipe import read

    real = jobs.Job("real images", 1, partial(_prepare, demo, protocol))
    trainings: list[jobs.Job] = []
    recordings: dict[str, jobs.Job] = {}
    measurings: list[jobs.Job] = []
    for name in ("teacher", *demo.plan.students):
        overrides, inputs = demo.overrides(name), frozenset(demo.inputs(name).values())
        total = read(demo.preset(name), overrides).fit.steps
        run = partial(_train, demo.preset(name), overrides, demo.out / name)
        trainings.append(jobs.Job(name, total, run, inputs))
        for store in inputs & demo.plan.stores.keys() - recordings.keys():
            spec = demo.plan.stores[store]
            run = partial(_record, demo, demo.out / store, spec)
            recordings[store] = jobs.Job(store, spec.count, run, frozenset({spec.source}))
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


def _record(demo: Demo, folder: Path, spec: StoreSpec, update: console.Update) -> None:
    from fewstep.recording import Recording

    recording = Recording(spec.count, spec.steps, chunks=spec.chunks)
    guidance = GuidanceOptions(guidance=spec.guidance)
    record.run(
        str(demo.out / spec.source),
        folder,
        recording,
        update,
        sampler=spec.sampler,
        clip=spec.clip,
        precision=demo.precision,
        guidance=guidance,
    )


def _measure(demo: Demo, name: str, protocol: "EvalProtocol", update: console.Update) -> None:
    _scores(demo, _load(demo, name), _evaluator(demo, protocol), update)


def _load(demo: Demo, name: str) -> "LoadedRun":
    """A run of the demo, the teacher under the guidance that its pairs are recorded with."""
    from fewstep.loading import load_run

    run, weight = load_run(demo.out / name), demo.plan.guidance
    if name != "teacher" or weight == 1:
        return run
    return replace(run, generator=run.generator.with_guidance(weight))


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

    plan = demo.plan
    if run.name == "teacher":
        return [
            (run.generator.with_sampler(step=resolve("sampler", sampler)()), steps)
            for sampler, counts in plan.teacher.items()
            for steps in counts
        ]
    counts = run.generator.grid.counts or STUDENT_STEPS
    rings = [spec.steps for spec in plan.stores.values() if spec.chunks]
    return [(run.generator, steps) for steps in counts if steps in (*STUDENT_STEPS, *rings)]


def write_results(demo: Demo, protocol: "EvalProtocol") -> None:
    """Write results.json and report.html, and print the table of scores."""
    import torch

    from fewstep.comparison import make_exhibit
    from fewstep.report import write_report

    torch.set_num_threads(1)  # times per image are measured with one thread
    evaluator = _evaluator(demo, protocol)
    exhibits: list[Exhibit] = []
    for name in ("teacher", *demo.plan.students):
        run = _load(demo, name)
        scores = _scores(demo, run, evaluator)
        commands = _commands(demo, name, [score.steps for score in scores])
        is_teacher = name == "teacher"
        exhibits.append(make_exhibit(run, scores, baseline=is_teacher, commands=commands))
    tables = {e.name: [score.table() for score in e.scores] for e in exhibits}
    with atomic_write(demo.out / "results.json") as file:
        file.write(json.dumps(tables, indent=2).encode() + b"\n")
    report, notes = demo.out / "report.html", [demo.plan.note] * bool(demo.plan.note)
    write_report(report, exhibits, title=demo.plan.title, notes=notes, evaluator=evaluator)
    evaluate.show((e.name, score) for e in exhibits for score in e.scores)
    for note in notes:
        console.out.print(note)
    console.out.print(f"report: {report}")


def _commands(demo: Demo, name: str, steps: Sequence[int]) -> list[str]:
    """Shell commands that record the inputs of a run, train it and score it."""
    inputs, run = demo.inputs(name), str(demo.out / name)
    commands: list[list[str]] = []
    for store in demo.plan.stores.keys() & set(inputs.values()):
        spec = demo.plan.stores[store]
        paths = [str(demo.out / spec.source), "--out", str(demo.out / store)]
        options = [*spec.options, *precision_options(demo.precision)]
        commands.append(["fewstep", "record", *paths, *options])
    verb = "distill" if "teacher.load" in inputs else "train"
    commands.append(["fewstep", verb, demo.preset(name), *demo.overrides(name), "--out", run])
    options = demo.plan.evaluate_options
    if name == "teacher":
        steps = demo.plan.teacher["transfer"]
        options = options + guidance_options(demo.plan.guidance)
    commands.append(["fewstep", "evaluate", run, "--steps", ",".join(map(str, steps)), *options])
    return [shlex.join(command) for command in commands]
