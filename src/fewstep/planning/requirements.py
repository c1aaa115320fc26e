"""What a recipe needs on this machine: data, teacher, recorded pairs and published weights.

Missing data and teachers that a preset trains have stand-ins with the same shapes, so that a recipe
can be looked at before anything was downloaded or trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from fewstep import metrics, plugins, runs, store
from fewstep.assembly import guide_teacher, read_data
from fewstep.autoencoder_recipes import build_autoencode, check_autoencoder_recipe
from fewstep.backbones import UNetConfig
from fewstep.conditions import data_spec
from fewstep.data import ImageSet
from fewstep.data.published import blank_images, find_published
from fewstep.denoiser import Denoiser
from fewstep.download import cache, home
from fewstep.formatting import listing
from fewstep.generator import Generator
from fewstep.losses import Features, ImageDistance, Lpips, SquaredError
from fewstep.methods.autoencode import Autoencode
from fewstep.methods.base import Method, Task
from fewstep.metrics.extractors.trunks import TRUNK_FILES
from fewstep.metrics.extractors.weights import PUBLISHED, find_weights
from fewstep.models import find_model
from fewstep.parametrization import Eps
from fewstep.paths import expand_home
from fewstep.planning.latents import find_latents
from fewstep.planning.requirement import Requirement
from fewstep.pretrained.address import split_options
from fewstep.pretrained.hub import AVERAGED, find_local
from fewstep.process import LinearBetas
from fewstep.recipe import Recipe, read
from fewstep.sample_spec import SampleSpec
from fewstep.schema import preset_names
from fewstep.store_recipes import pairs_address
from fewstep.student import build_student


def find_data(recipe: Recipe) -> tuple[Requirement, ImageSet]:
    """The images of a recipe, or black ones in place of those of a published set.

    Raises: InputError for wrong settings, and for other sets that cannot be read.
    """
    config = recipe.data
    published = find_published(config.name, config.path)
    name = f"{config.name}, {config.split}"
    if published is None or config.split not in published.images:
        return Requirement("data", name), read_data(recipe)
    missing = published.missing(config.split)
    if not missing:
        return Requirement("data", name), read_data(recipe)
    files, folder = listing([path.name for path in missing]), published.folder
    remedy = (
        f"{published.megabytes} MB are downloaded to {folder}"
        if published.megabytes
        else f"download it by hand, and put {files} into {folder}"
    )
    images = blank_images(published, config.name, config.split, config.size)
    return Requirement("data", name, remedy), images


def find_generator(noun: str, address: str) -> tuple[Requirement, Generator | None]:
    """The generator at an address; if it is missing, one with the same network, or None.

    Raises: InputError for one that is damaged.
    """
    source, colon, rest = address.partition(":")
    name, _ = split_options(rest)
    is_source = bool(colon) and source in plugins.names("source")
    if Path(address).exists() or (not is_source and find_model(address)):
        return Requirement(noun, address), runs.load(address)
    if is_source and source == "diffusers":
        if find_local(name):
            return Requirement(noun, address), runs.load(address)
        place = home() / "weights" / name
        remedy = f"it is downloaded from the Hugging Face hub, or put its folder at {place}"
        return Requirement(noun, address, remedy), _ddpm() if name in AVERAGED else None
    if is_source:
        if Path(expand_home(name)).exists() or source not in ("edm", "openai", "lucidrains"):
            return Requirement(noun, address), runs.load(address)
        return Requirement(noun, address, f"put the file at {name}"), None
    preset = Path(address).name
    if preset not in preset_names():
        return Requirement(noun, address, f"fewstep train RECIPE --out {address}"), None
    place = "" if address == f"runs/{preset}" else f" --out {address}"
    return Requirement(noun, address, f"fewstep train {preset}{place}"), stand_in(read(preset))


def find_pairs(recipe: Recipe, reads: frozenset[str]) -> tuple[Requirement, int | None]:
    """The store of a recipe, and its number of records; None if it is missing.

    `reads` are the streams of the method. Raises InputError for a recipe without pairs, and for a
    store that is damaged.
    """
    address = pairs_address(recipe)
    if "://" not in address and not Path(address).exists():
        teacher = recipe.teacher.load if recipe.teacher else "RUN"
        ring = " --sampler ring --chunks K" if "rings" in reads else ""
        remedy = f"fewstep record {teacher}{ring} --out {address}"
        return Requirement("pairs", address, remedy), None
    return Requirement("pairs", address), len(store.Reader(address))


def find_networks(recipe: Recipe, images: ImageSet, is_blank: bool) -> Iterator[Requirement]:
    """The networks of perceptual losses, and of scores during training.

    Raises: InputError for an extractor or measure that is unknown, or unfit for these images.
    """
    for field in fields(recipe.method) if is_dataclass(recipe.method) else ():
        loss = getattr(recipe.method, field.name)
        if isinstance(loss, Lpips):
            for name in (TRUNK_FILES[loss.trunk], f"lpips-{loss.trunk}"):
                yield _weights("loss", name, images, is_blank)
        elif isinstance(loss, Features) and not loss.weights:
            yield _weights("loss", loss.extractor, images, is_blank)
    if recipe.evaluate.every:
        protocol = recipe.evaluate.evaluation_protocol
        name = protocol.extractor
        if protocol.unlabelled_extractor and not metrics.has_classes(images):
            name = protocol.unlabelled_extractor
        yield _weights("extractor", name, images, is_blank)
        plugins.resolve("extractor", name)
        if name == "pixels" or (name == "classifier" and not metrics.has_classes(images)):
            metrics.make_extractor(name, images, resize=protocol.resize)  # or raises its error
        for measure in protocol.measures:
            metrics.find_measure(measure)


def _weights(noun: str, name: str, images: ImageSet, is_blank: bool) -> Requirement:
    """The weights of a network, published or trained on the images."""
    if name in PUBLISHED:
        path = find_weights(name)
        if path:
            return Requirement(noun, f"{name}, {path}")
        return Requirement(noun, name, f"downloaded from {PUBLISHED[name].url}")
    if name == "classifier":
        path = None if is_blank else metrics.classifier_file(images.fingerprint, cache())
        if path and path.exists():
            return Requirement(noun, f"{name}, {path}")
        return Requirement(noun, name, "it is trained on the images, once")
    return Requirement(noun, name)


def stand_in(recipe: Recipe) -> Generator | None:
    """The generator that a recipe trains, untrained; None if its teacher's network is not known."""
    _, images = find_data(recipe)
    networks: dict[str, Any] = {}
    for noun, address in generator_addresses(recipe).items():
        _, networks[noun] = find_generator(noun, address)
        if networks[noun] is None:
            return None
    sources = [network for noun, network in networks.items() if noun != "weak"]
    spec = data_spec(recipe, images, *sources)
    _, decoder = find_latents(recipe, images, sources)
    if decoder:
        spec = replace(spec, shape=decoder.latent_shape)
    return build_method(recipe, spec, **networks)[0].generator().replace(decoder=decoder)


def generator_addresses(recipe: Recipe) -> dict[str, str]:
    """The addresses of the trained networks that a recipe starts from: `teacher`, `weak` (that of
    its autoguidance), `initial`."""
    init, teacher = recipe.student.init, recipe.teacher
    return {
        **({"teacher": teacher.load} if teacher else {}),
        **({"weak": teacher.autoguidance} if teacher and teacher.autoguidance else {}),
        **({"initial": init} if init not in ("teacher", "scratch") else {}),
    }


def build_method(
    recipe: Recipe,
    spec: SampleSpec,
    *,
    teacher: Generator | None = None,
    weak: Generator | None = None,
    initial: Generator | None = None,
) -> tuple[Method[Any], bool]:
    """The recipe's method, and whether its student is adapted first.

    Squared errors take the place of perceptual losses, which need published weights.
    """
    if teacher is not None and recipe.teacher:
        trained_by = _recipe_table(recipe.teacher.load)
        teacher = guide_teacher(recipe, spec, teacher, trained_by, weak=weak)
    student, original = build_student(recipe, spec, teacher, initial)
    task = Task(student, spec, teacher, recipe.fit.steps)
    method = plugins.resolve("method", recipe.method_name)(_without_weights(recipe.method), task)
    return method, original is not None and method.uses_first_image


def build_autoencoder_method(recipe: Recipe, shape: tuple[int, ...]) -> Autoencode:
    """The method of a recipe that trains an autoencoder, as `build_method`."""
    check_autoencoder_recipe(recipe)
    return build_autoencode(recipe, shape, _without_weights(recipe.method))


def _without_weights(config: Any) -> Any:
    """A method's settings with squared errors in place of perceptual losses."""
    for field in fields(config) if is_dataclass(config) else ():
        if isinstance(getattr(config, field.name), ImageDistance):
            config = replace(config, **{field.name: SquaredError()})  # pyright: ignore
    return config


def _recipe_table(address: str) -> Mapping[str, Any] | None:
    """The recipe that trained the network at an address, or that will; None if it is not known."""
    if Path(address).exists() or ":" in address:
        is_local = Path(address).exists() or find_model(address)
        return runs.describe(address).get("recipe") if is_local else None
    preset = Path(address).name
    return read(preset).table() if preset in preset_names() else None


def _ddpm() -> Generator:
    """A network like google/ddpm-cifar10-32, untrained."""
    process = LinearBetas()
    backbone = UNetConfig().build(shape=(3, 32, 32))
    return Generator(Denoiser(backbone, process, Eps(process)), SampleSpec((3, 32, 32)))
