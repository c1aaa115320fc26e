"""Build the objects that a recipe describes: data, teacher, student, method and batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import data, metrics, plugins, runs
from fewstep.abilities import with_guidance
from fewstep.autoencoder_recipes import build_autoencode, check_autoencoder_recipe
from fewstep.autoencoders import Decoder
from fewstep.batching import Batches, ImageStream
from fewstep.compiler import check_compiler
from fewstep.conditions import caption_table, data_spec, prompts
from fewstep.data import ImageSet
from fewstep.download import cache
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.latent_recipes import check_latents, check_pairs, latent_space
from fewstep.latents import Latents
from fewstep.losses import bind_classifier, bind_decoder, perceptual_hash
from fewstep.methods.adapt import Adapt, AdaptConfig
from fewstep.methods.autoencode import Autoencode
from fewstep.methods.base import Method, Task
from fewstep.methods.batch import derive_seed
from fewstep.methods.checks import (
    check_augmentation,
    check_coupling,
    check_prompt_file,
    check_start,
)
from fewstep.methods.objective import Objective
from fewstep.optimizers import FitConfig, adapt_config, adapt_steps, main_config
from fewstep.recipe import Recipe
from fewstep.sample_spec import SampleSpec
from fewstep.store_recipes import open_stores
from fewstep.student import build_student, check_spec
from fewstep.tables import addresses
from fewstep.text.base import encoder_hash
from fewstep.text.captions import CaptionTable
from fewstep.trainer import Training, check_players

EXAMPLES = 12
"""Number of training images that show the progress of an autoencoder."""


@dataclass(frozen=True)
class Assembly:
    """The objects that a recipe describes."""

    method: Objective[Any]
    batches: Batches
    pins: dict[str, str]
    """Hashes of the data and weights that training uses; a resumed run must have the same ones."""
    evaluator: Evaluator | None
    """Measures the run during training; None if evaluate.every is 0."""
    adaptation: tuple[Adapt, Batches] | None
    """The method that adapts a copied student before training, and its batches."""
    rebuild: Callable[[], Objective[Any]]
    """Builds `method` again with the student's present weights, which it may copy."""
    data_files: str = ""
    """What became of the files in the folder of the data; empty for other sets."""
    examples: Tensor | None = None
    """Training images, uint8, whose reconstructions show the progress of an autoencoder."""
    decoder: Decoder | None = None
    """Decodes the latents that the method trains on; None for pixels."""

    def trainings(self, fit: FitConfig, steps_done: int | None = None) -> Iterator[Training]:
        """The trainings of the run, in order: the adaptation, if any, then that of the method.

        The caller finishes each before it takes the next. Those that ended before `steps_done`, the
        saved step of a resumed run, are left out.
        """
        main = main_config(fit)
        if not self.adaptation:
            yield Training(self.method, self.batches, main)
            return
        assert isinstance(self.method, Method)
        check_start(self.method)  # before the adaptation, not after it
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


def assemble(recipe: Recipe, device: torch.device) -> Assembly:
    """Build the objects that a recipe describes, and check that they fit together."""
    allow_code(recipe)
    method_class = plugins.resolve("method", recipe.method_name)
    if issubclass(method_class, Autoencode):
        check_autoencoder_recipe(recipe)
    elif recipe.fit.compile:
        check_compiler("fit.compile=true")
    evaluation = recipe.evaluate
    images = read_data(recipe)
    if issubclass(method_class, Autoencode):
        return _assemble_autoencoder(recipe, images, device)
    pins = {"data": images.fingerprint}
    teacher = runs.load(recipe.teacher.load) if recipe.teacher else None
    initial = None
    if recipe.student.init not in ("teacher", "scratch"):
        initial = runs.load(recipe.student.init)
        pins["student.init"] = runs.network_hash(initial)
    spec = data_spec(recipe, images, teacher, initial)
    if spec.text and spec.text.input.features:  # learned pieces of words follow from the captions
        pins["text"] = encoder_hash(spec.text)
    space = latent_space(recipe, images, teacher, initial)
    if space:
        spec, pins["autoencoder"] = space.spec(spec), space.decoder.autoencoder
        space.decoder.to(device)
    if recipe.teacher and teacher:
        trained_by = runs.describe(recipe.teacher.load).get("recipe")
        weak = recipe.teacher.autoguidance and runs.load(recipe.teacher.autoguidance)
        teacher = guide_teacher(recipe, spec, teacher, trained_by, weak=weak or None)
        pins["teacher"] = runs.weights_hash(teacher)
    student, original = build_student(recipe, spec, teacher, initial)
    config = bind_classifier(recipe.method, lambda: _classifier(images))
    loss_hash = perceptual_hash(config, images.shape)
    if loss_hash:
        pins["loss"] = loss_hash
    config = bind_decoder(config, space and space.decoder)
    # created before training, so that a wrong setting raises its error now
    evaluator = Evaluator(images, evaluation.evaluation_protocol) if evaluation.every else None

    def build() -> Method:
        return method_class(config, Task(student, spec, teacher, recipe.fit.steps)).to(device)

    method = build()
    check_augmentation(method, recipe.data.augment)
    check_coupling(method, augment=recipe.data.augment, flip=recipe.data.flip)
    check_prompt_file(method, recipe.data.prompts)
    streams, store_hash = open_stores(recipe, spec, method, teacher)
    check_pairs(recipe, streams, space)
    if store_hash:
        pins["pairs"] = store_hash
    adapts = bool(original and method.uses_first_image and adapt_steps(recipe.fit))
    rows, reads_images = None, "images" in method.reads or adapts
    check_latents(recipe, reads_images=reads_images)
    captions = None
    if reads_images or recipe.data.prompts is None:
        captions = caption_table(images, spec)
    if reads_images:
        latents = space and space.latents(recipe, images, device)
        if latents and latents.hash:
            pins["latents"] = latents.hash
        rows = _image_stream(recipe, images, spec, latents, captions)
    if rows and "images" in method.reads:
        streams["images"] = rows
    fit, augmentation = recipe.fit, recipe.data.augmentation
    source = prompts(recipe, images, spec, captions)
    if source and source.hash:
        pins["data.prompts"] = source.hash
    settings: Any = {
        "batch": fit.batch,
        "device": device,
        "augmentation": augmentation,
        "prompts": source,
    }
    pairing = None
    if rows and method.coupling:
        pairing = method.coupling.bind(rows.images, rows.labels, device)
    batches = Batches(streams, spec, seed=fit.seed, pairing=pairing, **settings)
    adaptation = None
    if adapts and rows:
        task = Task(student, spec, original, adapt_steps(recipe.fit))
        adapt = Adapt(AdaptConfig(), task).to(device)
        seed = derive_seed(recipe.fit.seed, "adapt")
        adaptation = adapt, Batches({"images": rows}, spec, seed=seed, **settings)
    data_files = images.files.summary() if images.files else ""
    decoder = space and space.decoder
    return Assembly(
        method, batches, pins, evaluator, adaptation, build, data_files, decoder=decoder
    )


def _assemble_autoencoder(recipe: Recipe, images: ImageSet, device: torch.device) -> Assembly:
    """The objects of a recipe that trains an autoencoder."""
    fit, spec = recipe.fit, SampleSpec(images.shape)
    config = bind_classifier(recipe.method, lambda: _classifier(images))
    pins = {"data": images.fingerprint}
    loss_hash = perceptual_hash(config, images.shape)
    if loss_hash:
        pins["loss"] = loss_hash
    method = build_autoencode(recipe, images.shape, config).to(device)
    streams = {"images": ImageStream(images.images, None, flip=recipe.data.flip)}
    batches = Batches(streams, spec, batch=fit.batch, seed=fit.seed, device=device)
    return Assembly(
        method,
        batches,
        pins,
        None,
        None,
        lambda: method,
        images.files.summary() if images.files else "",
        images.images[:EXAMPLES],
    )


def _image_stream(
    recipe: Recipe,
    images: ImageSet,
    spec: SampleSpec,
    latents: Latents | None,
    captions: CaptionTable | None,
) -> ImageStream:
    labels = images.labels if spec.classes else None
    if latents:
        return ImageStream(latents.rows, labels, captions=captions, mirrored=latents.mirrored)
    return ImageStream(images.images, labels, captions=captions, flip=recipe.data.flip)


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
    recipe: Recipe,
    spec: SampleSpec,
    teacher: Generator,
    trained_by: Mapping[str, Any] | None,
    *,
    weak: Generator | None = None,
) -> Generator:
    """The teacher under the recipe's guidance. `trained_by` is the table of the teacher's recipe,
    and `weak` the network at the address `teacher.autoguidance`.

    Raises: InputError for a teacher of other images, without the recipe's augmentation, or that
    cannot be guided.
    """
    assert recipe.teacher
    address = recipe.teacher.load
    check_spec(teacher, f"the teacher {address}", recipe, spec)
    config = unguided(teacher.denoiser.backbone).config
    if recipe.data.augment and not getattr(config, "augmented", False):
        raise InputError(
            f"data.augment is {recipe.data.augment}, but the teacher {address} was trained without "
            "this augmentation: set data.augment=0, or train the teacher with it"
        )
    config = recipe.teacher
    interval = config.guidance_interval
    return with_guidance(teacher, config.guidance, trained_by, interval=interval, weak=weak)
