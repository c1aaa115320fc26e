"""Run a recipe in its run folder: build its objects, resume, train, log and save."""

import math
import time
import warnings
from collections.abc import Generator as Pull
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import __version__, distributed, runs
from fewstep.allocator import keeps_freed_memory
from fewstep.assembly import Assembly, assemble
from fewstep.distributed import (
    first_rank,
    hardware,
    peak_memory,
    reset_peak_memory,
    run_together,
    wait,
)
from fewstep.drawing import generate
from fewstep.errors import InputError, SharedError
from fewstep.finite import NonFiniteImages
from fewstep.generator import Generator
from fewstep.images import save_grid
from fewstep.methods.checks import training_warnings
from fewstep.recipe import Recipe
from fewstep.run_folder import Run, flatten
from fewstep.scores import score_from
from fewstep.trainer import NonFiniteLoss, Progress, Training


def run_recipe(
    recipe: Recipe, folder: Path | str, *, device: torch.device | None = None, log_every: int = 10
) -> Pull[Progress]:
    """Train `recipe` in its run folder, starting from the last saved step; yields after each step.

    The state is saved every `fit.save_every` steps, at the end, and when the caller closes this
    generator. A finished run yields nothing.

    Raises: InputError if the folder belongs to another recipe, if the data or weights that the run
    uses have changed, or if the loss becomes NaN or infinite.
    """
    run, place = Run(folder), device or distributed.device()
    assembly = run_together(lambda: assemble(recipe, place))
    check_ranks(recipe, run, assembly.pins)
    if first_rank():  # all ranks at once would write the same file
        run.claim(recipe.table())
    wait()
    state = _resume(run, assembly.pins)
    step = state[1]["step"] if state else 0
    writer = RunWriter(run, recipe, assembly, log_every, step)
    if writer.writes and step < writer.total:
        for message in training_warnings(assembly.method):
            warnings.warn(message, stacklevel=2)
    for training in assembly.trainings(recipe.fit, step if state else None):
        if state and state[1]["players"] == list(training.method.players):
            training.restore(*state)
        if writer.writes and not training.run_step:
            writer.draw(training.generator(), 0)
        try:
            for progress in training:
                writer.update(progress)
                yield progress
        except NonFiniteLoss as error:
            raise InputError(
                f"{error}; the last finite state is in {folder}: lower fit.lr, raise fit.warmup, "
                'or leave out such updates with fit.nonfinite="skip"'
            ) from error
        finally:
            writer.save(training)


def check_ranks(recipe: Recipe, run: Run, pins: Mapping[str, str]) -> None:
    """Raise InputError, on all ranks, unless they can train together.

    They need the same recipe, data, weights, version and view of the run folder, and a row each.
    """
    ranks = distributed.world()[1]
    if ranks == 1:
        return
    if recipe.fit.batch < ranks:
        raise SharedError(
            f"fit.batch is {recipe.fit.batch}, too few for {ranks} processes, of which each trains "
            "on a part of the batch: raise it, or start fewer processes"
        )
    state = run.state()
    table = flatten(recipe.table())
    for path in ("data.path", "teacher.load", "pairs.load"):  # machines may have other paths
        table.pop(path, None)
    distributed.check_equal(
        {
            "the version of fewstep": __version__,
            "the version of torch": torch.__version__,
            **{f"the hash of {name}": digest for name, digest in pins.items()},
            f"the saved step in {run.folder}": state and state[1]["step"],
            **table,
        }
    )


def is_finished(recipe: Recipe, folder: Path | str) -> bool:
    """Whether the recipe has been trained to its last step in this folder."""
    run = Run(folder)
    if not run.recipe_file.exists():
        return False
    run.claim(recipe.table())
    state = run.state()
    return state is not None and state[1]["step"] == state[1]["total"]


def _resume(run: Run, pins: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The saved state, if it has the same data and weights; removes later lines of the log."""
    state = run.state()
    if first_rank():
        run.rewind(state[1]["step"] if state else 0)
    if state is None:
        return None
    for name, value in pins.items():
        if state[1]["pins"].get(name) != value:
            raise InputError(
                f"{run.folder} was trained with another {name} than this recipe loads now: the "
                "hashes differ; give another --out, or restore the earlier one"
            )
    return state


class RunWriter:
    """Writes the files of a run folder during training, on the first rank; all ranks measure."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        assembly: Assembly,
        log_every: int,
        step: int,
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.pins = assembly.pins
        self.total = assembly.count_steps(recipe.fit)
        self.log_every = log_every
        self.saved_step = step
        self.start_time = time.perf_counter()
        self.writes = first_rank()
        self.device = assembly.batches.device
        reset_peak_memory(self.device)
        self.evaluator = assembly.evaluator
        self.latest: dict[str, float] = {}
        """Latest value of each number since the last log line; not all players train each step."""
        if self.writes and step < self.total:
            note = {"allocator": "freed memory is kept"} if keeps_freed_memory() else {}
            note |= {"data": assembly.data_files} if assembly.data_files else {}
            run.log({"step": step, "total": self.total, "hardware": hardware(self.device), **note})

    def update(self, progress: Progress) -> None:
        """Write what is due at this step: a log line, scores, a checkpoint."""
        last = progress.training.is_finished
        if self.writes:
            self._log(progress)
        every = self.recipe.evaluate.every
        if every and progress.step % every == 0:
            self.measure(progress.training)
        if last or progress.step % self.recipe.fit.save_every == 0:
            self.save(progress.training)

    def _log(self, progress: Progress) -> None:
        self.latest |= progress.numbers
        if progress.training.is_finished or progress.step % self.log_every == 0:
            seconds = round(time.perf_counter() - self.start_time, 3)
            line = {"step": progress.step, "images": progress.images, "seconds": seconds}
            self.run.log({**line, "memory": peak_memory(self.device), **self.latest})
            self.latest = {}

    def save(self, training: Training) -> None:
        """Save state, weights and a sample grid, unless this step is saved or cannot be saved."""
        if not self.writes or training.run_step == self.saved_step or not training.can_be_saved():
            return
        generator = training.generator()
        tensors, note = training.state()
        note |= {"total": self.total, "pins": self.pins}
        note["description"] = generator.describe()
        self.run.save_state(tensors, note)
        runs.save_generator(self.run.model_file, generator, self.recipe.table(), self.pins)
        self.draw(generator, training.run_step)
        self.saved_step = training.run_step

    def draw(self, generator: Generator, step: int) -> None:
        """Save a sample grid, always from the same noise, at the largest of evaluate.steps.

        There is none of images with NaN: the training goes on, and its loss decides when it stops.
        """
        steps = generator.nearest(max(self.recipe.evaluate.steps), quietly=True)
        count = 2 * (generator.spec.classes or 8)
        if len(generator.spec.shape) != 3:
            return
        with suppress(NonFiniteImages):
            images = torch.cat([x for _, x in generate(generator, count, steps=steps)])
            save_grid(images, self.run.samples / f"step-{step:07}.png", columns=count // 2)

    def measure(self, training: Training) -> None:
        """Log scores of the averaged weights; save the weights if their score is the best so far.

        All ranks share the work, so that none waits for long. The earlier scores are read from the
        log, because a resumed run has lost its memory. Weights of an adaptation are not the
        method's, and are never the best.
        """
        config, generator = self.recipe.evaluate, training.generator()
        assert self.evaluator
        step_counts = (config.best or config.steps[0], *config.steps)
        counts = [generator.nearest(steps, quietly=True) for steps in step_counts]
        lines = self.run.progress() if self.writes else []
        lines = (line for line in lines if line["step"] > training.earlier)
        earlier = [score_from(line["score"]) for line in lines if "score" in line]
        for steps in sorted(set(counts)):
            score = self.evaluator.score(generator, steps=steps, shared=True)
            if not self.writes:
                continue
            self.run.log({"step": training.run_step, "score": score.table()})
            comparable = (s for s in earlier if (s.steps, s.protocol) == (steps, score.protocol))
            best = min((s.frechet for s in comparable), default=math.inf)
            if training.is_last and steps == counts[0] and score.frechet < best:
                path, step = self.run.best_file, training.run_step
                runs.save_generator(path, generator, self.recipe.table(), self.pins, step=step)
