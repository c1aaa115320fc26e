"""Run a recipe in its run folder: build its objects, resume, train, log and save."""

import math
import time
from collections.abc import Generator as Pull
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep import backbones, data, distributed, metrics, plugins, runs, store
from fewstep.allocator import keeps_freed_memory
from fewstep.batching import Batches, ImageStream, Stream
from fewstep.data import ImageSet
from fewstep.denoiser import Denoiser
from fewstep.distributed import first_rank, hardware, peak_memory, reset_peak_memory, wait
from fewstep.download import cache
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.generator import Generator, SampleSpec
from fewstep.guidance import unguided
from fewstep.images import save_grid
from fewstep.losses import bind_classifier, perceptual_hash
from fewstep.methods.base import Method, Task
from fewstep.recipe import Recipe
from fewstep.runs import Run
from fewstep.scores import score_from
from fewstep.streams import PairStream, RingStream
from fewstep.tables import addresses
from fewstep.trainer import NonFiniteLoss, Progress, Training


@dataclass(frozen=True)
class Assembly:
    """The objects that a recipe describes."""

    method: Method
    batches: Batches
    pins: dict[str, str]
    """Hashes of the data and weights that training uses; a resumed run must have the same ones."""
    evaluator: Evaluator | None
    """Measures the run during training; None if evaluate.every is 0."""


def read_data(recipe: Recipe) -> ImageSet:
    """Load the images of a recipe."""
    config = recipe.data
    return data.load(config.name, split=config.split, size=config.size, path=config.path)


def assemble(recipe: Recipe, device: torch.device) -> Assembly:
    """Build the objects that a recipe describes, and check that they fit together."""
    # the user wrote this recipe, so weights that it names may import the same packages
    evaluation = recipe.evaluate
    evaluation_names = (evaluation.extractor or "", *evaluation.measures)
    code = [*addresses(recipe.table()), *(name for name in evaluation_names if ":" in name)]
    plugins.allow(address.partition(":")[0].partition(".")[0] for address in code)
    images = read_data(recipe)
    use_labels = recipe.data.labels and images.labels is not None
    spec = SampleSpec(
        images.shape,
        images.classes if use_labels else 0,
        images.class_names if use_labels else (),
    )
    pins = {"data": images.fingerprint}
    teacher = None
    if recipe.teacher:
        teacher = _teacher(recipe, spec)
        pins["teacher"] = runs.weights_hash(teacher)
    method_class = plugins.resolve("method", recipe.method_name)
    student = _student(recipe, spec, teacher)
    config = bind_classifier(recipe.method, lambda: _classifier(images))
    loss_hash = perceptual_hash(config, spec.shape)
    if loss_hash:
        pins["loss"] = loss_hash
    # created before training, so that a wrong setting raises its error now
    evaluator = Evaluator(images, evaluation.evaluation_protocol) if evaluation.every else None
    method = method_class(config, Task(student, spec, teacher)).to(device)
    if method.fixed_steps not in (None, recipe.fit.steps):
        raise InputError(
            f"the sum of method.phases is {method.fixed_steps} training steps, but fit.steps is "
            f"{recipe.fit.steps}: make them equal"
        )
    streams: dict[str, Stream] = {}
    if "images" in method.reads:
        labels = images.labels if use_labels else None
        streams["images"] = ImageStream(images.images, labels, flip=recipe.data.flip)
    if "pairs" in method.reads:
        streams["pairs"], pins["pairs"] = _open_store(recipe, spec, PairStream)
    if "rings" in method.reads:
        streams["rings"], pins["pairs"] = _open_store(recipe, spec, RingStream)
    method.check(streams, teacher=pins.get("teacher"))
    batches = Batches(streams, spec, batch=recipe.fit.batch, seed=recipe.fit.seed, device=device)
    return Assembly(method, batches, pins, evaluator)


def _classifier(images: ImageSet) -> Path:
    """The weights file of a classifier of these images; trains it if the file is missing."""
    if not images.classes:
        raise InputError(
            f'method.loss "features" trains a classifier, but {images.name} has no labels; set the '
            'loss\'s extractor="squeezenet" or another pretrained network'
        )
    metrics.make_extractor("classifier", images, cache=cache())
    return metrics.classifier_file(images.fingerprint, cache())


def _teacher(recipe: Recipe, spec: SampleSpec) -> Generator:
    assert recipe.teacher
    teacher = runs.load(recipe.teacher.load)
    if (teacher.spec.shape, teacher.spec.classes) != (spec.shape, spec.classes):
        raise InputError(
            f"the teacher {recipe.teacher.load} generates images of shape {teacher.spec.shape} "
            f"with {teacher.spec.classes} classes, but those of data.name={recipe.data.name} have "
            f"shape {spec.shape} and {spec.classes} classes"
            + ("" if teacher.spec.classes else "; data.labels=false trains without classes")
        )
    return (
        teacher if recipe.teacher.guidance == 1 else teacher.with_guidance(recipe.teacher.guidance)
    )


def _open_store(
    recipe: Recipe, spec: SampleSpec, kind: type[PairStream] | type[RingStream]
) -> tuple[Stream, str]:
    """A stream of the recipe's recorded pairs, and the hash of their store."""
    if recipe.pairs is None:
        raise InputError(
            f"method {recipe.method_name!r} learns from recorded pairs, and the recipe has none: "
            "run `fewstep record RUN --out DIR`, then set pairs.load=DIR"
        )
    reader = store.Reader(recipe.pairs.load)
    stream = kind(reader, classes=spec.classes)
    if stream.shape != spec.shape:
        raise InputError(
            f"the images in the store {recipe.pairs.load} have shape {stream.shape}, but those of "
            f"data.name={recipe.data.name} have {spec.shape}: record pairs of this size"
        )
    return stream, reader.hash


def _student(recipe: Recipe, spec: SampleSpec, teacher: Generator | None) -> Denoiser:
    config = recipe.student
    if config.init == "scratch":
        return _new_student(recipe, spec, teacher)
    if config.backbone or config.process or config.parametrization:
        raise InputError(
            f"student.init = {config.init!r} copies a network with its process and "
            "parametrization: remove student.backbone, student.process and "
            'student.parametrization, or set student.init = "scratch"'
        )
    if config.init == "teacher" and teacher is None:
        raise InputError(
            'student.init = "teacher" copies the teacher, and the recipe has none: set '
            'teacher.load, or student.init = "scratch"'
        )
    source = teacher if config.init == "teacher" else runs.load(config.init)
    assert source
    denoiser = source.denoiser
    backbone = deepcopy(unguided(denoiser.backbone))
    if config.dropout is not None:
        backbones.set_dropout(backbone, config.dropout)
    return Denoiser(backbone, denoiser.process, denoiser.parametrization, span=denoiser.span)


def _new_student(recipe: Recipe, spec: SampleSpec, teacher: Generator | None) -> Denoiser:
    config = recipe.student
    process = config.process or (teacher and teacher.denoiser.process)
    parametrization = config.parametrization or (teacher and teacher.denoiser.parametrization)
    if not (process and parametrization and config.backbone):
        raise InputError(
            'student.init = "scratch" needs student.backbone, student.process and '
            "student.parametrization (the last two may come from a teacher)"
        )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        backbone = config.backbone.build(shape=spec.shape, classes=spec.classes)
    backbone.load_teacher(teacher and unguided(teacher.denoiser.backbone))
    return Denoiser(backbone, process, parametrization)


def run_recipe(
    recipe: Recipe, folder: Path | str, *, device: torch.device | None = None, log_every: int = 10
) -> Pull[Progress]:
    """Train `recipe` in its run folder, starting from the last saved step; yields after each step.

    The state is saved every `fit.save_every` steps, at the end, and when the caller closes this
    generator. A finished run yields nothing.

    Raises: InputError if the folder belongs to another recipe, if the data or weights that the run
    uses have changed, or if the loss becomes NaN or infinite.
    """
    run, assembly = Run(folder), assemble(recipe, device or distributed.device())
    if first_rank():  # all ranks at once would write the same file
        run.claim(recipe.table())
    wait()
    training = Training(assembly.method, assembly.batches, recipe.fit)
    _resume(run, training, assembly.pins)
    writer = RunWriter(run, recipe, assembly, log_every, training.step)
    if writer.writes and not training.step:
        writer.draw(training.generator(), 0)
    try:
        for progress in training:
            writer.update(progress)
            yield progress
    except NonFiniteLoss as error:
        raise InputError(
            f"{error}; the last finite state is in {folder}: lower fit.lr or raise fit.warmup"
        ) from error
    finally:
        writer.save(training)


def is_finished(recipe: Recipe, folder: Path | str) -> bool:
    """Whether the recipe has been trained to its last step in this folder."""
    run = Run(folder)
    if not run.recipe_file.exists():
        return False
    run.claim(recipe.table())
    state = run.state()
    return state is not None and state[1]["step"] >= recipe.fit.steps


def _resume(run: Run, training: Training, pins: dict[str, str]) -> None:
    state = run.state()
    if first_rank():
        run.rewind(state[1]["step"] if state else 0)
    if state is None:
        return
    tensors, note = state
    for name, value in pins.items():
        if note["pins"].get(name) != value:
            raise InputError(
                f"{run.folder} was trained with another {name} than this recipe loads now: the "
                "hashes differ; give another --out, or restore the earlier one"
            )
    training.restore(tensors, note)


class RunWriter:
    """Writes the files of a run folder during training, on the first rank only."""

    def __init__(
        self, run: Run, recipe: Recipe, assembly: Assembly, log_every: int, step: int
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.pins = assembly.pins
        self.log_every = log_every
        self.saved_step = step
        self.start_time = time.perf_counter()
        self.writes = first_rank()
        self.device = assembly.batches.device
        reset_peak_memory(self.device)
        self.evaluator = assembly.evaluator
        self.latest: dict[str, float] = {}
        """Latest value of each number since the last log line; not all players train each step."""
        if self.writes and step < recipe.fit.steps:
            note = {"allocator": "freed memory is kept"} if keeps_freed_memory() else {}
            run.log({"step": step, "hardware": hardware(self.device), **note})

    def update(self, progress: Progress) -> None:
        """Write what is due at this step: a log line, scores, a checkpoint."""
        if not self.writes:
            return
        last = progress.step == self.recipe.fit.steps
        self.latest |= progress.numbers
        if last or progress.step % self.log_every == 0:
            seconds = round(time.perf_counter() - self.start_time, 3)
            line = {"step": progress.step, "images": progress.images, "seconds": seconds}
            self.run.log({**line, "memory": peak_memory(self.device), **self.latest})
            self.latest = {}
        every = self.recipe.evaluate.every
        if every and progress.step % every == 0:
            self.measure(progress.training)
        if last or progress.step % self.recipe.fit.save_every == 0:
            self.save(progress.training)

    def save(self, training: Training) -> None:
        """Save state, weights and a sample grid, unless this step is saved or cannot be saved."""
        if not self.writes or training.step == self.saved_step or not training.can_be_saved():
            return
        generator = training.generator()
        tensors, note = training.state()
        note |= {"pins": self.pins, "description": generator.describe()}
        self.run.save_state(tensors, note)
        runs.save_generator(self.run.model_file, generator, self.recipe.table(), self.pins)
        self.draw(generator, training.step)
        self.saved_step = training.step

    def draw(self, generator: Generator, step: int) -> None:
        """Save a sample grid, always from the same noise, at the largest of evaluate.steps."""
        steps = generator.nearest(max(self.recipe.evaluate.steps), quietly=True)
        count = 2 * (generator.spec.classes or 8)
        if len(generator.spec.shape) == 3:
            images = torch.cat([x for _, x in generate(generator, count, steps=steps)])
            save_grid(images, self.run.samples / f"step-{step:07}.png", columns=count // 2)

    def measure(self, training: Training) -> None:
        """Log scores of the averaged weights; save the weights if their score is the best so far.

        The earlier scores are read from the log, because a resumed run has lost its memory.
        """
        config, generator = self.recipe.evaluate, training.generator()
        assert self.evaluator
        step_counts = (config.best or config.steps[0], *config.steps)
        counts = [generator.nearest(steps, quietly=True) for steps in step_counts]
        earlier = [score_from(line["score"]) for line in self.run.progress() if "score" in line]
        for steps in sorted(set(counts)):
            score = self.evaluator.score(generator, steps=steps)
            self.run.log({"step": training.step, "score": score.table()})
            comparable = (s for s in earlier if (s.steps, s.protocol) == (steps, score.protocol))
            best = min((s.frechet for s in comparable), default=math.inf)
            if steps == counts[0] and score.frechet < best:
                path, step = self.run.best_file, training.step
                runs.save_generator(path, generator, self.recipe.table(), self.pins, step=step)
