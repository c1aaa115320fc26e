"""Build the objects that a recipe describes: data, teacher, student, method and batches."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep import backbones, data, metrics, plugins, runs, store
from fewstep.abilities import with_guidance
from fewstep.batching import Batches, ImageStream, Stream
from fewstep.data import ImageSet
from fewstep.denoiser import SPAN_TOLERANCE, Denoiser
from fewstep.download import cache
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.generator import Generator, SampleSpec
from fewstep.guidance import unguided
from fewstep.losses import bind_classifier, perceptual_hash
from fewstep.methods.adapt import Adapt, AdaptConfig
from fewstep.methods.base import Method, Task
from fewstep.methods.batch import derive_seed
from fewstep.methods.checks import check_augmentation, check_start
from fewstep.optimizers import FitConfig, adapt_config, adapt_steps, main_config
from fewstep.parametrization import Mixed, Native, Parametrization
from fewstep.recipe import Recipe, Snr, StudentConfig
from fewstep.streams import PairStream, RingStream
from fewstep.tables import addresses
from fewstep.trainer import Training, check_players


@dataclass(frozen=True)
class Assembly:
    """The objects that a recipe describes."""

    method: Method
    batches: Batches
    pins: dict[str, str]
    """Hashes of the data and weights that training uses; a resumed run must have the same ones."""
    evaluator: Evaluator | None
    """Measures the run during training; None if evaluate.every is 0."""
    adaptation: tuple[Adapt, Batches] | None
    """The method that adapts a copied student before training, and its batches."""
    rebuild: Callable[[], Method]
    """Builds `method` again with the student's present weights, which it may copy."""

    def trainings(self, fit: FitConfig, steps_done: int | None = None) -> Iterator[Training]:
        """The trainings of the run, in order: the adaptation, if any, then that of the method.

        The caller finishes each before it takes the next. Those that ended before `steps_done`, the
        saved step of a resumed run, are left out.
        """
        main = main_config(fit)
        if not self.adaptation:
            yield Training(self.method, self.batches, main)
            return
        # before the adaptation, not after it
        check_start(self.method)
        check_players(self.method, main)
        adapt, batches = self.adaptation
        steps = adapt_steps(fit)
        if steps_done is None or steps_done <= steps:
            yield Training(adapt, batches, adapt_config(fit), later=fit.steps)
        yield Training(self.rebuild(), self.batches, main, earlier=steps)

    def count_steps(self, fit: FitConfig) -> int:
        """The number of steps of all trainings of the run."""
        return fit.steps + (adapt_steps(fit) if self.adaptation else 0)


def read_data(recipe: Recipe) -> ImageSet:
    """Load the images of a recipe."""
    config = recipe.data
    return data.load(config.name, split=config.split, size=config.size, path=config.path)


def allow_code(recipe: Recipe) -> None:
    """Let weights import the packages that a recipe names: its user wrote it."""
    names = (recipe.evaluate.extractor or "", *recipe.evaluate.measures)
    code = [*addresses(recipe.table()), *(name for name in names if ":" in name)]
    plugins.allow(address.partition(":")[0].partition(".")[0] for address in code)


def data_spec(recipe: Recipe, images: ImageSet) -> SampleSpec:
    """Shape and classes of what a recipe trains a network to generate."""
    if not recipe.data.labels or images.labels is None:
        return SampleSpec(images.shape)
    return SampleSpec(images.shape, images.classes, images.class_names)


def assemble(recipe: Recipe, device: torch.device) -> Assembly:
    """Build the objects that a recipe describes, and check that they fit together."""
    allow_code(recipe)
    evaluation = recipe.evaluate
    images = read_data(recipe)
    spec = data_spec(recipe, images)
    pins = {"data": images.fingerprint}
    teacher = None
    if recipe.teacher:
        address = recipe.teacher.load
        trained_by = runs.describe(address).get("recipe")
        teacher = guide_teacher(recipe, spec, runs.load(address), trained_by)
        pins["teacher"] = runs.weights_hash(teacher)
    method_class = plugins.resolve("method", recipe.method_name)
    student, original = build_student(recipe, spec, teacher)
    config = bind_classifier(recipe.method, lambda: _classifier(images))
    loss_hash = perceptual_hash(config, spec.shape)
    if loss_hash:
        pins["loss"] = loss_hash
    # created before training, so that a wrong setting raises its error now
    evaluator = Evaluator(images, evaluation.evaluation_protocol) if evaluation.every else None

    def build() -> Method:
        return method_class(config, Task(student, spec, teacher, recipe.fit.steps)).to(device)

    method = build()
    check_augmentation(method, recipe.data.augment)
    streams, store_hash = open_stores(recipe, spec, method, teacher)
    if store_hash:
        pins["pairs"] = store_hash
    if "images" in method.reads:
        streams["images"] = _image_stream(recipe, images, spec)
    fit, augmentation = recipe.fit, recipe.data.augmentation
    batches = Batches(
        streams, spec, batch=fit.batch, seed=fit.seed, device=device, augmentation=augmentation
    )
    adaptation = None
    if original and method.uses_first_image and adapt_steps(recipe.fit):
        task = Task(student, spec, original, adapt_steps(recipe.fit))
        adapt = Adapt(AdaptConfig(), task).to(device)
        seed = derive_seed(recipe.fit.seed, "adapt")
        rows = {"images": _image_stream(recipe, images, spec)}
        if recipe.student.init != "teacher":
            pins["student.init"] = runs.network_hash(original)
        adapt_batches = Batches(
            rows, spec, batch=fit.batch, seed=seed, device=device, augmentation=augmentation
        )
        adaptation = adapt, adapt_batches
    return Assembly(method, batches, pins, evaluator, adaptation, build)


def _image_stream(recipe: Recipe, images: ImageSet, spec: SampleSpec) -> ImageStream:
    labels = images.labels if spec.classes else None
    return ImageStream(images.images, labels, flip=recipe.data.flip)


def _classifier(images: ImageSet) -> Path:
    """The weights file of a classifier of these images; trains it if the file is missing."""
    if not images.classes:
        raise InputError(
            f'method.loss "features" trains a classifier, but {images.name} has no labels; set the '
            'loss\'s extractor="squeezenet" or another pretrained network'
        )
    metrics.make_extractor("classifier", images, cache=cache())
    return metrics.classifier_file(images.fingerprint, cache())


def guide_teacher(
    recipe: Recipe, spec: SampleSpec, teacher: Generator, trained_by: Mapping[str, Any] | None
) -> Generator:
    """The teacher under the recipe's guidance. `trained_by` is the table of the teacher's recipe.

    Raises: InputError for a teacher of other images, without the recipe's augmentation, or that
    cannot be guided.
    """
    assert recipe.teacher
    address = recipe.teacher.load
    _check_spec(teacher, f"the teacher {address}", recipe, spec)
    config = unguided(teacher.denoiser.backbone).config
    if recipe.data.augment and not getattr(config, "augmented", False):
        raise InputError(
            f"data.augment is {recipe.data.augment}, but the teacher {address} was trained without "
            "this augmentation: set data.augment=0, or train the teacher with it"
        )
    return with_guidance(teacher, recipe.teacher.guidance, trained_by)


def _check_spec(generator: Generator, noun: str, recipe: Recipe, spec: SampleSpec) -> None:
    """Raise InputError for a generator of images of another shape or classes than the data's."""
    own = generator.spec
    if (own.shape, own.classes) == (spec.shape, spec.classes):
        return
    size = own.shape[-1]
    remedies: list[str] = []
    if spec.shape[1:] != own.shape[1:] == (size, size):
        remedies.append(f"data.size={size} resizes the images")
    if spec.classes and not own.classes:
        remedies.append("data.labels=false trains without classes")
    raise InputError(
        f"{noun} generates images of shape {own.shape} with {own.classes} classes, but those of "
        f"data.name={recipe.data.name} have shape {spec.shape} and {spec.classes} classes"
        + (f"; {' and '.join(remedies)}" if remedies else "")
    )


def open_stores(
    recipe: Recipe, spec: SampleSpec, method: Method, teacher: Generator | None
) -> tuple[dict[str, Stream], str | None]:
    """The streams of recorded data that a method reads, and the hash of their store.

    Raises: InputError if they do not fit the images, the teacher or the method. A `teacher` of None
    is not compared with the one that they were recorded with.
    """
    streams: dict[str, Stream] = {}
    store_hash = None
    for name, kind in (("pairs", PairStream), ("rings", RingStream)):
        if name in method.reads:
            streams[name], store_hash = _open_store(recipe, spec, kind, teacher)
    method.check(streams)
    return streams, store_hash


def pairs_address(recipe: Recipe) -> str:
    """The address of the recorded pairs of a recipe.  Raises: InputError if it names none."""
    if recipe.pairs is None:
        raise InputError(
            f"method {recipe.method_name!r} learns from recorded pairs, and the recipe has none: "
            "run `fewstep record RUN --out DIR`, then set pairs.load=DIR"
        )
    return recipe.pairs.load


def _open_store(
    recipe: Recipe,
    spec: SampleSpec,
    kind: type[PairStream] | type[RingStream],
    teacher: Generator | None,
) -> tuple[Stream, str]:
    """A stream of the recipe's recorded pairs, and the hash of their store."""
    address = pairs_address(recipe)
    reader = store.Reader(address)
    stream = kind(reader, classes=spec.classes)
    if stream.shape != spec.shape:
        raise InputError(
            f"the images in the store {address} have shape {stream.shape}, but those of "
            f"data.name={recipe.data.name} have {spec.shape}: record pairs of this size"
        )
    if spec.classes and not stream.has_labels():
        raise InputError(
            f"the pairs in {address} have no labels, so that the {spec.classes} classes "
            "would not be trained: record a class-conditional teacher, or set data.labels=false"
        )
    # samples converted from other projects do not say who recorded them
    source = reader.provenance.get("teacher")
    teacher_hash = runs.network_hash(teacher) if teacher else source
    if source not in (None, teacher_hash):
        assert recipe.teacher and teacher_hash
        raise InputError(
            f"the pairs in {address} were recorded with another teacher than "
            f"{recipe.teacher.load} (hashes {source[:12]} and {teacher_hash[:12]}): record pairs "
            "of this teacher, or set teacher.load to theirs"
        )
    return stream, reader.hash


def build_student(
    recipe: Recipe,
    spec: SampleSpec,
    teacher: Generator | None,
    initial: Generator | None = None,
) -> tuple[Denoiser, Generator | None]:
    """The student, and the network whose weights it copies if it must be adapted to predict
    another quantity than that network. `initial` is the run that `student.init` names, if it is
    loaded already.

    Raises: InputError for settings that do not fit together, the images or the teacher.
    """
    config = recipe.student
    if config.init == "scratch":
        return _with_start(_new_student(recipe, spec, teacher), config), None
    if config.backbone or config.process:
        raise InputError(
            f"student.init = {config.init!r} copies a network with its process: remove "
            'student.backbone and student.process, or set student.init = "scratch"'
        )
    if config.init == "teacher" and teacher is None:
        raise InputError(
            'student.init = "teacher" copies the teacher, and the recipe has none: set '
            'teacher.load, or student.init = "scratch"'
        )
    source = teacher if config.init == "teacher" else initial or runs.load(config.init)
    assert source
    _check_spec(source, f"the network of student.init={config.init}", recipe, spec)
    denoiser = source.denoiser
    network = unguided(denoiser.backbone)
    if recipe.data.augment:
        network = backbones.with_augmentation(network)
    backbone = deepcopy(network)
    if config.dropout is not None:
        backbones.set_dropout(backbone, config.dropout)
    student = Denoiser(backbone, denoiser.process, denoiser.parametrization, span=denoiser.span)
    if config.parametrization is None:
        return _with_start(student, config), None
    student = _repurpose(student, config.parametrization)
    changed = student.parametrization != denoiser.parametrization
    original = Generator(denoiser.replace(backbone=network), spec) if changed else None
    return _with_start(student, config), original


def _repurpose(student: Denoiser, parametrization: Parametrization) -> Denoiser:
    """The same network, to predict another quantity.

    Its inputs stay as they are, unless the parametrization's `native` is another process.
    """
    old = student.parametrization
    inputs = old.inputs if isinstance(old, Mixed) else old
    new = parametrization.bind(inputs.process if isinstance(inputs, Native) else student.process)
    if new != inputs and not (isinstance(inputs, Native) and isinstance(new, Native)):
        new = Mixed(inputs=inputs, outputs=new)
    natural = student.replace(parametrization=new, span=None).span
    low, high = max(student.span[0], natural[0]), min(student.span[1], natural[1])
    return student.replace(parametrization=new, span=(low, high))


def _with_start(student: Denoiser, config: StudentConfig) -> Denoiser:
    """The student with the start time of the recipe as the upper end of its span."""
    start, setting = config.start, f"student.start is {config.start}"
    if isinstance(start, Snr):
        snr, ratio = start.snr, torch.tensor([start.snr**-0.5], dtype=torch.float64)
        start = student.process.time(ratio).item()
        setting = f"student.start.snr is {snr:g}, which is t = {start:.6g}"
    if start is None:
        return student
    low, high = student.span
    if not low < start <= high + SPAN_TOLERANCE:
        raise InputError(
            f"{setting}, but the student's network was trained only for times in [{low:.6g}, "
            f"{high:.6g}]: choose a start in this span"
        )
    return student.replace(span=(low, min(start, high)))


def _new_student(recipe: Recipe, spec: SampleSpec, teacher: Generator | None) -> Denoiser:
    config = recipe.student
    process = config.process or (teacher and teacher.denoiser.process)
    parametrization = config.parametrization or (teacher and teacher.denoiser.parametrization)
    if not (process and parametrization and config.backbone):
        raise InputError(
            'student.init = "scratch" needs student.backbone, student.process and '
            "student.parametrization (the last two may come from a teacher)"
        )
    settings: Any = config.backbone
    if recipe.data.augment:
        backbones.check_augmentable(settings)
        settings = replace(settings, augmented=True)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        backbone = settings.build(shape=spec.shape, classes=spec.classes)
    student = Denoiser(backbone, process, parametrization)
    backbone.load_teacher(teacher and unguided(teacher.denoiser.backbone))
    return student
