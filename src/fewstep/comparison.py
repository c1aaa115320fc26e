"""Compare runs: score all of them by one protocol, against the same real images.

The command line, the report and any other front end build on this module. It prints nothing but
the note of an `Evaluator`: pass a `ProgressBar` to show how far the work is.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.abilities import why_not_guidable, with_guidance
from fewstep.distributed import first_rank, gather
from fewstep.errors import InputError, did_you_mean, errors_about
from fewstep.evaluation import Evaluator, cached_score, exhaust
from fewstep.generator import Generator
from fewstep.guidance import check_interval
from fewstep.likelihood_score import (
    LikelihoodScore,
    LikelihoodSettings,
    append_likelihood,
    cached_likelihood,
    iter_likelihood,
    stored_likelihoods,
)
from fewstep.loading import LoadedRun, load_runs, reference_images
from fewstep.metrics import EvalProtocol
from fewstep.ranges import Precision
from fewstep.recipe import Recipe
from fewstep.run_folder import Run
from fewstep.runs import Weights
from fewstep.scores import Score, append_score

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Called with a description and a total; the context it returns takes the number done so far."""


def no_bar(description: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """A `ProgressBar` that shows nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Exhibit:
    """One generator in a report, with everything that the report shows of it."""

    name: str
    """Unique in the report."""
    generator: Generator
    """With averaged weights."""
    scores: Sequence[Score]
    """Scores at any step counts and samplers; if empty, the report shows only pictures."""
    recipe: Recipe | None
    """None if the weights file contains no recipe."""
    progress: Sequence[Mapping[str, Any]]
    """The logged lines of progress.jsonl."""
    commands: Sequence[str]
    """Shell commands that reproduce it."""
    baseline: bool = False
    """Whether the others are compared with this one; at most one exhibit of a report."""
    likelihoods: Sequence[LikelihoodScore] = ()
    """Likelihoods of real images that were measured before."""
    grids: Sequence[Path] = ()
    """PNG files drawn from the same noise during training, named step-N.png, oldest first."""


@dataclass(frozen=True)
class Comparison:
    """Scores of several runs, ready for `report.write_report`."""

    title: str
    exhibits: Sequence[Exhibit]
    evaluator: Evaluator | None
    """The evaluator that measured all runs; None if they have different reference sets."""


def compare(
    addresses: Sequence[str],
    protocol: EvalProtocol,
    steps: Sequence[int],
    *,
    weights: Weights = "ema",
    data_name: str | None = None,
    caption_split: str | None = None,
    baseline: str | None = None,
    guidance: float = 1.0,
    interval: Sequence[float] | None = None,
    precision: Precision = "f32",
    bar: ProgressBar = no_bar,
) -> Comparison:
    """Score each run at each step count of `steps`, or at the nearest that the run supports.

    Scores in a run's folder that were measured by the same protocol are used again. `data_name`
    names the reference set, as `NAME` or `NAME:PATH`; by default it is the set that each run was
    trained on. Runs that read prompts generate from the captions of the reference set's split
    `caption_split`, by default of the reference set itself. `baseline` names one of the runs; see
    `find_baseline` for the default. `guidance` and `interval` are as in `guide_runs`; `precision`
    is the number format in which images are generated.

    Raises: InputError if a run is missing or is listed twice, if the runs generate images of
    different shapes or classes, for a `caption_split` where no run reads prompts, or for `guidance`
    where no run can be guided.
    """
    loaded = guide_runs(load_runs(addresses, weights=weights), guidance, interval=interval)
    loaded = [replace(run, generator=run.generator.with_precision(precision)) for run in loaded]
    check_caption_split(caption_split, loaded)
    reference = find_baseline(loaded, baseline)
    evaluators = make_evaluators(loaded, protocol, data_name, caption_split=caption_split, bar=bar)
    exhibits: list[Exhibit] = []
    for run, evaluator in zip(loaded, evaluators, strict=True):
        counts = dict.fromkeys(run.generator.nearest(n, quietly=True) for n in steps)
        scores = [measure(evaluator, run.generator, run.address, n, bar=bar) for n in counts]
        exhibits.append(make_exhibit(run, scores, baseline=run is reference))
    names = dict.fromkeys(evaluator.images.name for evaluator in evaluators)
    run_text = f"{len(loaded)} runs" if len(loaded) > 1 else loaded[0].name
    one_evaluator = all(evaluator is evaluators[0] for evaluator in evaluators)
    title = f"{run_text} against {', '.join(names)}"
    return Comparison(title, exhibits, evaluators[0] if one_evaluator else None)


def check_caption_split(split: str | None, loaded: Sequence[LoadedRun]) -> None:
    """Raise InputError for a split of captions if none of the runs reads prompts."""
    if split is not None and not any(run.generator.spec.text for run in loaded):
        names = ", ".join(run.address for run in loaded)
        raise InputError(
            f"--caption-split chooses the captions of runs that read prompts, and {names} "
            f"read{'s' if len(loaded) == 1 else ''} none: leave it out"
        )


def guide_runs(
    loaded: Sequence[LoadedRun], weight: float, *, interval: Sequence[float] | None = None
) -> list[LoadedRun]:
    """The runs, under classifier-free guidance where they were trained for it, or where no recipe
    says how they were trained.

    Others stay as they are: students that imitate a guided teacher or have learned guidance
    themselves, rings of circuits, and runs without classes and prompts.

    Raises: InputError if no run can be guided, or as `Generator.with_guidance`.
    """
    if check_interval(interval, weight) is None and weight == 1:
        return [*loaded]
    reasons = [_why_not_guided(run) for run in loaded]
    if all(reasons):
        lines = [f"{run.name}: {reason}" for run, reason in zip(loaded, reasons, strict=True)]
        raise InputError(f"no run can be guided ({'; '.join(lines)}): leave out --guidance")
    return [
        run if reason else _guide(run, weight, interval)
        for run, reason in zip(loaded, reasons, strict=True)
    ]


def _why_not_guided(run: LoadedRun) -> str:
    generator = run.generator
    if run.recipe is None and generator.spec.is_conditional and not generator.step.own_grid:
        return ""
    if run.recipe and getattr(run.recipe.method, "learns_guidance", False):
        return "it learned guidance in its training"
    return why_not_guidable(generator, run.recipe and run.recipe.table())


def _guide(run: LoadedRun, weight: float, interval: Sequence[float] | None) -> LoadedRun:
    recipe = run.recipe and run.recipe.table()
    return replace(run, generator=with_guidance(run.generator, weight, recipe, interval=interval))


def find_baseline(loaded: Sequence[LoadedRun], name: str | None = None) -> LoadedRun | None:
    """The run that the others are compared with.

    It is the run with this `name`. By default it is the first run that is the teacher of another
    one and whose own teacher is not among the runs; None if there is no such run.
    """
    if name is not None:
        for run in loaded:
            same_path = Path(name).resolve() == Path(run.address).resolve()
            if same_path or name in (run.name, Path(run.address).name):
                return run
        hint = did_you_mean(name, [run.name for run in loaded])
        raise InputError(f"--baseline {name} is not one of the runs{hint}")
    teachers = {
        run.name: _without_options(run.recipe.teacher.load)
        for run in loaded
        if run.recipe and run.recipe.teacher
    }
    addresses = {_without_options(run.address) for run in loaded}
    for run in loaded:
        is_teacher = _without_options(run.address) in teachers.values()
        if is_teacher and teachers.get(run.name) not in addresses:
            return run
    return None


def _without_options(address: str) -> Path:
    """The path of an address; its options, such as the spacing of steps, change no weights."""
    path = Path(address)
    return (path if path.exists() else Path(address.partition("?")[0])).resolve()


def make_evaluators(
    loaded: Sequence[LoadedRun],
    protocol: EvalProtocol,
    data_name: str | None = None,
    *,
    caption_split: str | None = None,
    bar: ProgressBar = no_bar,
) -> list[Evaluator]:
    """The evaluator of each run; runs with the same reference set share one evaluator.

    A run without a recipe is measured against the reference set of the other runs, if they all
    have the same one.
    """
    by_fingerprint: dict[tuple[str, str | None], Evaluator] = {}
    by_key: dict[object, Evaluator] = {}  # each set is read once, however many runs share it
    evaluators: list[Evaluator] = []
    with_recipe = {_data_key(run): run for run in loaded if run.recipe}
    for run in loaded:
        uses_others_set = run.recipe is None and len(with_recipe) == 1
        source = next(iter(with_recipe.values())) if uses_others_set else run
        split = caption_split if run.generator.spec.text else None
        key = data_name or _data_key(source), split
        if key not in by_key:
            images = reference_images(source, data_name)
            if (images.fingerprint, split) not in by_fingerprint:
                prompted = split and reference_images(source, data_name, split=split)
                evaluator = prepare(Evaluator(images, protocol, prompted=prompted or None), bar=bar)
                by_fingerprint[images.fingerprint, split] = evaluator
            by_key[key] = by_fingerprint[images.fingerprint, split]
        evaluators.append(by_key[key])
    return evaluators


def _data_key(run: LoadedRun) -> tuple[object, ...] | None:
    """The settings that determine which images a run is measured against; None without a recipe."""
    if run.recipe is None:
        return None
    config = run.recipe.data
    return config.name, config.split, config.size, config.path, run.data_hash


def prepare(evaluator: Evaluator, *, bar: ProgressBar = no_bar) -> Evaluator:
    """Compute the features of the evaluator's real images, or read them from the cache."""
    with bar(f"{evaluator.images.name}, real", len(evaluator.images)) as update:
        exhaust(evaluator.prepare(), update)
    return evaluator


def measure(
    evaluator: Evaluator,
    generator: Generator,
    address: str,
    steps: int,
    *,
    seed: int = 0,
    bar: ProgressBar = no_bar,
) -> Score:
    """Read the score from the run folder at `address`; else measure it and save it there.

    The processes of `torchrun` share the work, and the first one saves the score.
    """
    cached = cached_score(address, evaluator, generator, steps=steps, seed=seed)
    cached = gather(cached)[0]  # those of other machines may not see the folder
    if cached:
        return cached
    description = f"{address}, {steps} steps"
    with bar(description, evaluator.protocol.samples) as update, errors_about(address):
        work = evaluator.iter_score(generator, steps=steps, seed=seed, shared=True)
        score = exhaust(work, update)
    if first_rank():
        append_score(address, score)
    return score


def measure_likelihood(
    run: LoadedRun,
    generator: Generator,
    settings: LikelihoodSettings,
    *,
    data_name: str | None = None,
    split: str | None = None,
    bar: ProgressBar = no_bar,
) -> LikelihoodScore:
    """Read the likelihood from the folder of `run`; else measure it and save it there.

    `generator` is that of the run, on the device to use, and `data_name` and `split` are the set of
    real images, by default the images that the run was trained on.
    """
    images = reference_images(run, data_name, split=split)
    own_split = run.recipe.data.split if run.recipe and not data_name else "train"
    name = split or own_split
    cached = cached_likelihood(run.address, generator, images, settings, split=name)
    if cached:
        return cached
    total = min(settings.samples, len(images))
    with bar(f"{run.address}, likelihood", total) as update, errors_about(run.address):
        score = exhaust(iter_likelihood(generator, images, settings, split=name), update)
    append_likelihood(run.address, score)
    return score


def make_exhibit(
    run: LoadedRun,
    scores: Sequence[Score],
    *,
    baseline: bool = False,
    commands: Sequence[str] | None = None,
) -> Exhibit:
    """A run as the report shows it; `commands` defaults to the training from its recipe file."""
    folder = Run(run.address)
    is_folder = folder.folder.is_dir()
    if commands is None:
        train = ["fewstep", "train", str(folder.recipe_file), "--out", str(folder.folder)]
        commands = [shlex.join(train)] if folder.recipe_file.exists() else []
    progress = folder.progress() if is_folder else []
    return Exhibit(
        name=run.name,
        generator=run.generator,
        scores=scores,
        recipe=run.recipe,
        progress=[line for line in progress if run.step is None or line["step"] <= run.step],
        commands=commands,
        baseline=baseline,
        likelihoods=stored_likelihoods(run.address, run.generator),
        grids=folder.grids() if is_folder else [],
    )
