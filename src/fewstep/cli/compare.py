"""`fewstep compare RUN RUN ... [--steps 1,2,4] [--out compare.html]`."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from fewstep.cli import console, evaluate
from fewstep.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from fewstep.data import ImageSet
    from fewstep.evaluation import Evaluator
    from fewstep.generator import Generator
    from fewstep.metrics import EvalProtocol
    from fewstep.recipe import Recipe
    from fewstep.report import Exhibit
    from fewstep.scores import Score


@dataclass(frozen=True)
class Options:
    """Measure runs by one protocol, side by side, into one report.

    What was measured of a run before, by the same protocol, is not measured again.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, weights files, diffusers:FOLDER or diffusers:HUB_NAME."""
    steps: str = "1,2,4"
    """Step counts, with commas; a run made for others takes the nearest of its own."""
    protocol: str = "quick"
    """quick, resnet10k, fid10k, fid50k, clean-fid50k or dino50k; the next three change it."""
    samples: int | None = None
    """Images to generate for each score."""
    extractor: str | None = None
    """classifier, pixels, inception, dinov2, squeezenet or resnet56-cifar10."""
    resize: Literal["tf1-bilinear", "clean-bicubic"] | None = None
    """How images reach the extractor's size; by default as its standard says."""
    weights: Literal["ema", "best"] = "ema"
    """Averaged weights of the last step, or of the best evaluation during training."""
    data: str | None = None
    """The reference set's name, brought to the runs' size; by default the set that each run was
    trained on. Other people's checkpoints do not tell theirs, and take the other runs'."""
    teacher: str | None = None
    """Which of the runs the others are measured by; by default the one that they name."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("compare.html")
    """The report."""
    json: bool = False
    """Print the scores as a JSON object, by run."""


class Entry(NamedTuple):
    """A run that is compared."""

    name: str
    address: str
    generator: "Generator"
    recipe: "Recipe | None"
    step: int | None
    """Of the weights, where they are not the run's last."""


def main(argv: Sequence[str]) -> int:
    """Measure, report, print; 0 when done."""
    told = console.options(Options, "compare", argv)
    from fewstep import metrics
    from fewstep.report import write_report

    wanted = console.counts(told.steps)
    protocol = metrics.protocol(told.protocol).changed(
        samples=told.samples, extractor=told.extractor, resize=told.resize
    )
    _writable(told.out)
    entries = _entries(told.runs, told.weights)
    teacher = _teacher(entries, told.teacher)
    evaluators = _evaluators(entries, protocol, told.data, told.weights)
    scores = [_scores(entry, evaluators[entry.address], wanted) for entry in entries]
    exhibits = [
        _exhibit(entry, own, entry is teacher) for entry, own in zip(entries, scores, strict=True)
    ]
    # nearest neighbours are sought in one set
    only = {id(y): y for y in evaluators.values()}
    evaluator = next(iter(only.values())) if len(only) == 1 else None
    sets = dict.fromkeys(evaluator.images.name for evaluator in evaluators.values())
    runs = f"{len(entries)} runs" if len(entries) > 1 else entries[0].name
    title = f"{runs} against {', '.join(sets)}"
    write_report(told.out, exhibits, title=title, evaluator=evaluator)
    if told.json:
        tables = [[score.table() for score in own] for own in scores]
        print(json.dumps({e.name: own for e, own in zip(entries, tables, strict=True)}, indent=2))
        return 0
    evaluate.show((e.name, s) for e, own in zip(entries, scores, strict=True) for s in own)
    console.out.print(f"report: {told.out}")
    return 0


def _writable(out: Path) -> None:
    """Before an hour is spent on measuring."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab"):
            pass
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from error


def _entries(addresses: Sequence[str], weights: Literal["ema", "best"]) -> list[Entry]:
    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.recipe import from_table

    if not addresses:
        raise InputError("compare needs runs: fewstep compare RUN RUN ...")
    if len({Path(address).resolve() for address in addresses}) < len(addresses):
        raise InputError("a run is named twice; compare each once")
    short = [Path(address).resolve().name for address in addresses]
    entries: list[Entry] = []
    for address, name in zip(addresses, short, strict=True):
        generator = runs.load(address, weights=weights).to(device())
        note = runs.describe(address, weights=weights)
        named = name if short.count(name) == 1 else address
        if "step" in note:
            named += f" (best, step {note['step']:,})"
        recipe = from_table(note["recipe"]) if note.get("recipe") else None
        entries.append(Entry(named, address, generator, recipe, note.get("step")))
    kinds = {(e.generator.spec.shape, e.generator.spec.classes) for e in entries}
    if len(kinds) > 1:
        told = "; ".join(f"{e.name}: {e.generator.spec.shape}" for e in entries)
        raise InputError(f"these runs make different things ({told}); compare one kind at a time")
    return entries


def _teacher(entries: Sequence[Entry], named: str | None) -> Entry | None:
    """Whom the others are measured by: the one named, or the first of their line of teachers."""
    if named is not None:
        for entry in entries:
            same = Path(named).resolve() == Path(entry.address).resolve()
            if same or named in (entry.name, Path(entry.address).name):
                return entry
        near = did_you_mean(named, [entry.name for entry in entries])
        raise InputError(f"--teacher {named} is none of the runs{near}")
    loads = {
        e.name: Path(e.recipe.teacher.load).resolve()
        for e in entries
        if e.recipe and e.recipe.teacher
    }
    there = {Path(e.address).resolve() for e in entries}
    for entry in entries:
        taught = Path(entry.address).resolve() in loads.values()
        if taught and loads.get(entry.name) not in there:
            return entry
    return None


def _evaluators(
    entries: Sequence[Entry],
    protocol: "EvalProtocol",
    data: str | None,
    weights: Literal["ema", "best"],
) -> "dict[str, Evaluator]":
    """A evaluator for each run, one and the same for runs of one reference set."""
    from fewstep.evaluation import Evaluator

    made: dict[str, Evaluator] = {}
    found: dict[str, Evaluator] = {}
    sets: dict[object, ImageSet] = {}  # read once, however many runs share it
    told = {_set(e.recipe): e for e in entries if e.recipe}
    for entry in entries:
        # who does not tell is measured as the others are, if these agree
        teller = entry if entry.recipe or len(told) != 1 else next(iter(told.values()))
        which = data or (teller.recipe and _set(teller.recipe))
        if which not in sets:
            shape = entry.generator.spec.shape
            sets[which] = evaluate.reference(teller.address, data, weights, shape=shape)
        images = sets[which]
        if images.fingerprint not in made:
            evaluator = Evaluator(images, protocol)
            made[images.fingerprint] = evaluate.prepared(evaluator)
        found[entry.address] = made[images.fingerprint]
    return found


def _set(recipe: "Recipe") -> tuple[object, ...]:
    """What says which images a recipe is measured against."""
    d = recipe.data
    return d.name, d.split, d.size, d.path


def _scores(entry: Entry, evaluator: "Evaluator", wanted: Sequence[int]) -> "list[Score]":
    counts = dict.fromkeys(entry.generator.nearest(steps, quietly=True) for steps in wanted)
    return [evaluate.measured(evaluator, entry.generator, entry.address, n) for n in counts]


def _exhibit(entry: Entry, scores: "Sequence[Score]", baseline: bool) -> "Exhibit":
    from fewstep.report import Exhibit
    from fewstep.runs import Run

    folder = Path(entry.address)
    recipe = folder / "recipe.toml"
    progress = Run(folder).progress() if folder.is_dir() else []
    command = shlex.join(["fewstep", "train", str(recipe), "--out", str(folder)])
    return Exhibit(
        name=entry.name,
        generator=entry.generator,
        scores=scores,
        recipe=entry.recipe,
        progress=[line for line in progress if entry.step is None or line["step"] <= entry.step],
        commands=[command] if recipe.exists() else [],
        baseline=baseline,
        grids=Run(folder).grids() if folder.is_dir() else [],
    )
