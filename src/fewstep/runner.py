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
from fewstep.autoencoder_files import save_autoencoder
from fewstep.autoencoders import Autoencoder
from fewstep.averaging import save_snapshot
from fewstep.distributed import (
    first_rank,
    hardware,
    lock_together,
    peak_memory,
    reset_peak_memory,
    run_together,
)
from fewstep.errors import SharedError
from fewstep.generator import Generator
from fewstep.images import save_grid
from fewstep.locks import remove_leftover_lock
from fewstep.methods.checks import training_warnings
from fewstep.progress_grids import progress_grid
from fewstep.recipe import Recipe
from fewstep.resuming import MAX_GROWTH, PINS, Start, check_changes, find_start, restore
from fewstep.run_folder import Run, flatten
from fewstep.scores import Score, score_from
from fewstep.trainer import NonFiniteLoss, Progress, Training


class Diverged(SharedError):
    """Raised on all ranks if a loss is not finite; `setting` is an override: a lower rate."""

    def __init__(self, text: str, setting: str) -> None:
        super().__init__(text)
        self.setting = setting


def run_recipe(
    recipe: Recipe,
    folder: Path | str,
    *,
    device: torch.device | None = None,
    log_every: int = 10,
    extend: bool = False,
) -> Pull[Progress]:
    """Train `recipe` in its run folder, starting from the last saved step; yields after each step.

    The state is saved every `fit.save_every` steps, at the end, and when the caller closes this
    generator. A finished run yields nothing. The folder is created, or changed, when the first
    step has succeeded. With `extend`, the recipe may have more steps than the run: see `resuming`.

    Raises: InputError if the folder belongs to another recipe or another process trains in it, if
    the data or weights that the run uses have changed, or if the loss becomes NaN or infinite.
    """
    run, place = Run(folder), device or distributed.device()
    with lock_together(run.folder):
        run_together(lambda: check_changes(run, recipe, extend=extend))  # before data are read
        assembly = run_together(lambda: assemble(recipe, place))
        check_ranks(recipe, run, assembly.pins)
        pins, machine = assembly.pins, hardware(place)
        start = run_together(lambda: find_start(run, recipe, pins, machine, extend=extend))
        yield from _train(RunWriter(run, recipe, assembly, log_every, start), assembly, start)


def _train(writer: "RunWriter", assembly: Assembly, start: Start) -> Pull[Progress]:
    if writer.writes and start.step < writer.total:
        for message in (*start.messages, *training_warnings(assembly.method)):
            warnings.warn(message, stacklevel=2)
    for training in assembly.trainings(writer.recipe.fit, start.step if start.state else None):
        if start.state and start.state[1]["players"] == list(training.method.players):
            restore(training, start.state, writer.run)
            writer.complete(training, start.state[1])
        writer.prepare(training)
        try:
            for progress in training:
                writer.update(progress)
                yield progress
        except NonFiniteLoss as error:
            raise writer.stop(training, error) from error
        except BaseException:  # interrupted, or closed by the caller
            writer.save(training)
            raise


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
    note = run.state_note()
    table = flatten(recipe.table())
    for path in PINS.keys() - {"student.init"}:  # machines may have other paths
        table.pop(path, None)
    distributed.check_equal(
        {
            "the version of fewstep": __version__,
            "the version of torch": torch.__version__,
            **{f"the hash of {name}": digest for name, digest in pins.items()},
            f"the saved step in {run.folder}": note and note["step"],
            **table,
        }
    )


def is_finished(recipe: Recipe, folder: Path | str, *, extend: bool = False) -> bool:
    """Whether the recipe has been trained to its last step in this folder, and all files of this
    step are there but the report. Then what is left of a killed process is removed."""
    run = Run(folder)
    changes, note = check_changes(run, recipe, extend=extend), run.state_note()
    if note is None or "fit.steps" in changes or note["step"] < note["total"]:
        return False
    if {*run.missing()} - {run.report_file.name}:
        return False
    if run.owner() is None:
        remove_leftover_lock(run.folder)
        with suppress(OSError):  # it may be read-only
            run.clear_leftovers()
    return True


class RunWriter:
    """Writes the files of a run folder during training, on the first rank; all ranks measure."""

    def __init__(
        self, run: Run, recipe: Recipe, assembly: Assembly, log_every: int, start: Start
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.pins = assembly.pins
        self.data_files = assembly.data_files
        self.total = assembly.count_steps(recipe.fit)
        self.log_every = log_every
        self.start = start
        self.saved_step = start.step
        self.start_time = time.perf_counter()
        self.writes = first_rank()
        self.device = assembly.batches.device
        reset_peak_memory(self.device)
        self.evaluator = assembly.evaluator
        self.examples, self.decoder = assembly.examples, assembly.decoder
        note = start.state[1] if start.state else {}
        self.latest: dict[str, float] = note.get("latest", {})
        """Latest value of each number since the last log line; not all players train each step."""
        self.norm: float = note.get("norm", 0.0)
        """Norm of all weights at the start of the training."""
        self.growth: float = note.get("growth", 1.0)
        """Ratio of the norm at the saved step to it."""
        self.unscored = False
        """Whether an evaluation of the present step is not finished."""
        self.first_grid: Tensor | None = None
        self.has_begun = False

    def prepare(self, training: Training) -> None:
        """Keep what the run folder gets of the time before the first step."""
        if training.step == 0:
            self.norm = _norm(training)
        if self.writes and training.run_step == 0:
            self.first_grid = self._draw(self._result(training))

    def complete(self, training: Training, note: Mapping[str, Any]) -> None:
        """Write what the saved step, to which `training` was restored, owes."""
        missing = self.run.missing() if self.writes else []
        step, model = training.run_step, self.run.model_file
        if model.name in missing:
            self._save_model(self._result(training))
        if self.run.name_of(self.run.grid_file(step)) in missing:
            self._save_grid(self._result(training), step)
        if note["unscored"]:
            if self.evaluator:
                if self.writes:
                    self.run.keep_lines(lambda line: line["step"] < step or "score" not in line)
                self.measure(training)
            self.saved_step = -1  # write the state again, which then owes no scores
            self.save(training)

    def update(self, progress: Progress) -> None:
        """Write what is due at this step: a log line, scores, a checkpoint."""
        training = progress.training
        if self.writes:
            if not self.has_begun:
                self._begin()
            self._log(progress)
            save_snapshot(self.run, training)
        every = self.recipe.evaluate.every
        if every and progress.step % every == 0:
            self.unscored = True
            self.measure(training)
        if training.is_finished or progress.step % self.recipe.fit.save_every == 0:
            self.save(training)

    def _begin(self) -> None:
        """Claim the folder: the recipe has proved sound, because its first step has succeeded."""
        run, start = self.run, self.start
        if start.clears:
            run.clear()
        if start.state and start.state[1]["total"] != self.total:
            # before the recipe: a kill between them must not leave a run that looks finished
            run.save_state(start.state[0], {**start.state[1], "total": self.total})
        if start.changes_result and run.best_file.exists():
            if runs.describe(run.folder, weights="best")["step"] > start.step:
                run.best_file.unlink()  # of a step that will not be repeated
        run.claim(self.recipe.table())
        run.clear_leftovers()
        run.rewind(start.step if start.state else -1)
        run.remove_snapshots(after=start.step)
        run.report_file.unlink(missing_ok=True)  # of an earlier end
        line = {"step": start.step, "total": self.total, "hardware": hardware(self.device)}
        line |= {"allocator": "freed memory is kept"} if keeps_freed_memory() else {}
        line |= {"data": self.data_files} if self.data_files else {}
        run.log(line | ({"changes": start.changes} if start.changes else {}))
        if self.first_grid is not None:
            self._write_grid(self.first_grid, 0)
        self.has_begun = True

    def _log(self, progress: Progress) -> None:
        self.latest |= progress.numbers
        if progress.training.is_finished or progress.step % self.log_every == 0:
            seconds = round(time.perf_counter() - self.start_time, 3)
            line = {"step": progress.step, "images": progress.images, "seconds": seconds}
            self.run.log({**line, "memory": peak_memory(self.device), **self.latest})
            self.latest = {}

    def stop(self, training: Training, error: NonFiniteLoss) -> Diverged:
        """Log that a loss is not finite, so that the optimisers' settings may change. Nothing is
        saved: the weights may have begun to diverge.

        Returns the error with what to do.
        """
        if self.writes and self.run.recipe_file.exists():
            self.run.log({"step": training.run_step, "nonfinite": str(error)})
        fit, key = self.recipe.fit, "fit"
        player = fit.players.get(error.player)
        if player and player.lr is not None:
            key += f".players.{error.player}"
        rate = fit.player(error.player).lr
        skip = "" if fit.nonfinite == "skip" else ' or fit.nonfinite="skip"'
        resumes = self.saved_step and self.growth <= MAX_GROWTH
        then = f"resumes after step {self.saved_step:,}" if resumes else "starts from the beginning"
        return Diverged(
            f"{error}; run the same command with a lower {key}.lr (now {rate:g}), a longer "
            f"{key}.warmup{skip}: it {then}",
            f"{key}.lr={rate / 10:g}",
        )

    def save(self, training: Training) -> None:
        """Save weights, a sample grid, and last the state that needs them, unless this step is
        saved or cannot be saved."""
        if not self.writes or training.run_step == self.saved_step or not training.can_be_saved():
            return
        save_snapshot(self.run, training)  # a signal may have stopped `update` before it
        result = self._result(training)
        self._save_model(result)
        files = [self.run.model_file, *self._save_grid(result, training.run_step)]
        self.growth = _norm(training) / self.norm if self.norm else 1.0
        tensors, note = training.state()
        note |= {
            "total": self.total,
            "pins": self.pins,
            "description": result.describe(),
            "files": [self.run.name_of(file) for file in files],
            "unscored": self.unscored,
            "latest": self.latest,
            "norm": self.norm,
            "growth": self.growth,
            "hardware": hardware(self.device),
        }
        self.run.save_state(tensors, note)
        self.saved_step = training.run_step

    def _result(self, training: Training) -> Generator | Autoencoder:
        """What the training saves; a generator of latents gets its decoder."""
        result = training.result()
        if isinstance(result, Generator) and self.decoder:
            return result.replace(decoder=self.decoder)
        return result

    def _save_model(self, result: Generator | Autoencoder) -> None:
        save = save_autoencoder if isinstance(result, Autoencoder) else runs.save_generator
        save(self.run.model_file, result, self.recipe.table(), self.pins)  # pyright: ignore

    def _save_grid(self, result: Generator | Autoencoder, step: int) -> list[Path]:
        """Save a grid of pictures. Returns its file in a list, which is empty for points."""
        images = self._draw(result)
        return [] if images is None else [self._write_grid(images, step)]

    def _draw(self, result: Generator | Autoencoder) -> Tensor | None:
        return progress_grid(result, max(self.recipe.evaluate.steps), self.examples)

    def _write_grid(self, images: Tensor, step: int) -> Path:
        path = self.run.grid_file(step)
        save_grid(images, path, columns=len(images) // 2)
        return path

    def measure(self, training: Training) -> None:
        """Log scores of the averaged weights; save the weights if their score is the best so far.

        All ranks share the work, so that none waits for long. The earlier scores are read from the
        log, because a resumed run has lost its memory. Weights of an adaptation are not the
        method's, and are never the best.
        """
        config, generator, evaluator = self.recipe.evaluate, self._result(training), self.evaluator
        assert evaluator and isinstance(generator, Generator)
        step_counts = (config.best or config.steps[0], *config.steps)
        counts = [generator.nearest(steps, quietly=True) for steps in step_counts]
        earlier = self._earlier_scores(training) if self.writes else []
        for steps in sorted(set(counts)):
            score = evaluator.score(generator, steps=steps, shared=True)
            if not self.writes:
                continue
            self.run.log({"step": training.run_step, "score": score.table()})
            comparable = (s for s in earlier if (s.steps, s.protocol) == (steps, score.protocol))
            best = min((s.frechet for s in comparable), default=math.inf)
            if training.is_last and steps == counts[0] and score.frechet < best:
                path, step = self.run.best_file, training.run_step
                runs.save_generator(path, generator, self.recipe.table(), self.pins, step=step)
        self.unscored = False

    def _earlier_scores(self, training: Training) -> list[Score]:
        """The logged scores that weights must beat to be the best; none without best weights."""
        if not self.run.best_file.exists():
            return []
        lines = (line for line in self.run.progress() if line["step"] > training.earlier)
        return [score_from(line["score"]) for line in lines if "score" in line]


def _norm(training: Training) -> float:
    """Norm of all weights that the training changes."""
    players = training.method.players.values()
    norms = [p.detach().norm() for player in players for p in player.parameters()]
    return float(torch.stack(norms).norm())
