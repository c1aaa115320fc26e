"""`fewstep train RECIPE --dry-run`: what the training needs and costs, on one screen."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from fewstep.cli import console
from fewstep.distributed import device, hardware, world
from fewstep.errors import InputError
from fewstep.formatting import listing, number, quantity
from fewstep.planning import Plan, plan_recipe
from fewstep.recipe import Recipe
from fewstep.resuming import check_changes
from fewstep.run_folder import Run

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_plan(recipe: Recipe, folder: Path, *, extend: bool = False) -> int:
    """Print the plan of a training in a run folder.

    Returns the exit code: 2 if the training would be refused.
    """
    plan = plan_recipe(recipe)
    try:
        status = _status(Run(folder), recipe, extend)
    except InputError as error:
        plan.problems.append(str(error))
        status = "cannot be used"
    rows = [("run folder", f"{folder}: {status}"), *lines(plan)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.out.print(f"{name:<{width}}  {text}")
    return 2 if plan.problems else 0


def _status(run: Run, recipe: Recipe, extend: bool) -> str:
    """What a training would do in the run folder.  Raises: InputError if it would be refused."""
    owner = run.owner()
    if owner:
        raise InputError(f"{run.folder} is in use by {owner}")
    changes, note = check_changes(run, recipe, extend=extend), run.state_note()
    if note is None:
        return "new" if run.recipe() is None else "starts again, because nothing has been saved"
    texts = [f"{key} = {new}" for key, (_, new) in changes.items()]
    changed = f", with {', '.join(texts)}" * bool(texts)
    if note["step"] < note["total"] or "fit.steps" in changes:
        return f"resumes after step {note['step']:,}{changed}"
    missing = run.missing()
    return f"finished{changed}; lacks {listing(missing)}" if missing else "finished"


def lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """The lines of a plan, as (name, text)."""
    recipe, fit = plan.recipe, plan.recipe.fit
    if recipe.about.title:
        yield "recipe", recipe.about.title
    for need in plan.requirements:
        status = f"missing: {need.missing}" if need.missing else "present"
        yield need.noun, f"{need.name}: {status}"
    if plan.images and plan.spec:
        shape, count = " x ".join(map(str, plan.spec.shape)), plan.spec.classes
        classes = f"{count:,} classes" if count else "without classes"
        yield "images", f"{len(plan.images):,} of shape {shape}, {classes}"
    for name, count in plan.trained.items():
        yield name, f"{_size(count)} parameters, trained"
    for name, count in plan.frozen.items():
        yield name, f"{_size(count)} parameters, not trained"
    if plan.footprint and plan.footprint.calls:
        calls = ", ".join(f"{name} {count:.3g}" for name, count in plan.footprint.calls.items())
        yield "network calls", f"{calls} per image and training step"
    yield "training", _training(plan)
    if plan.memory:
        yield "memory", _memory(plan)
        yield "device", hardware(device())
        yield "checkpoint", f"{_bytes(plan.disk)}, every {quantity(fit.save_every, 'step')}"
    if plan.snapshots:
        yield "snapshots", f"{_size(plan.snapshots)}B of averages in all"
    yield "evaluation", _evaluation(recipe)
    for warning in plan.warnings:
        yield "warning", warning
    for problem in plan.problems:
        yield "problem", problem


def _training(plan: Plan) -> str:
    """Steps, batches, images and epochs."""
    fit = plan.recipe.fit
    total = fit.steps * fit.batch
    parts = [f"{quantity(fit.steps, 'step')} of {quantity(fit.batch, 'image')}"]
    if 0 < fit.micro_batch < fit.batch:
        parts[0] += f" in micro-batches of {fit.micro_batch:,}"
    parts.append(f"{_size(total)} images in all")
    if plan.images and "images" in plan.reads:
        parts.append(f"{number(total / len(plan.images))} epochs")
    if plan.records:
        parts.append(f"{plan.records:,} recorded pairs, {number(total / plan.records)} epochs")
    if plan.adapt_steps:
        parts.append(f"{quantity(plan.adapt_steps, 'step')} before that adapt the student")
    return "; ".join(parts)


def _memory(plan: Plan) -> str:
    """Bytes on each device; those of activations are an estimate."""
    fit = plan.recipe.fit
    if plan.footprint is None:
        return f"{_bytes(plan.memory)}; activations are not known"
    rows = -(-fit.batch // world()[1])  # of each process
    rows = min(fit.micro_batch or rows, rows)
    activations = plan.footprint.activations * rows // min(fit.micro_batch or fit.batch, fit.batch)
    if fit.precision == "bf16":
        activations //= 2
    parts = {**plan.memory, "activations": activations}
    images = quantity(rows, "image")
    without = " and without the network of the loss" * any(
        n.noun == "loss" for n in plan.requirements
    )
    return f"{_bytes(parts)} of {images} at once (estimated in {fit.precision}{without})"


def _evaluation(recipe: Recipe) -> str:
    config = recipe.evaluate
    if not config.every:
        return "none during training"
    protocol = config.evaluation_protocol
    samples, steps = quantity(protocol.samples, "sample"), " and ".join(map(str, config.steps))
    return f"every {quantity(config.every, 'step')}: {samples} in {steps} sampling steps"


def _size(count: float) -> str:
    for size, letter in UNITS:
        if count >= size:
            return f"{number(count / size)} {letter}"
    return number(count) if count >= 100 else f"{count:g}"


def _bytes(parts: Mapping[str, int]) -> str:
    total = sum(parts.values())
    texts = (f"{name} {_size(value)}B" for name, value in parts.items())
    return f"{_size(total)}B: {', '.join(texts)}"
