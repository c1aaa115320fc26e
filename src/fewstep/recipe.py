"""Recipes: TOML files that describe a run, parsed into frozen dataclasses.

An unknown key raises an error that suggests the nearest key. `[method]` is parsed into the `Config`
class of the method that it names, so a new method adds its own keys.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any

import tomli_w

from fewstep import plugins
from fewstep.backbones import BackboneConfig
from fewstep.data.augment import ALL_KINDS, Augmentation, AugmentKind
from fewstep.errors import InputError, did_you_mean
from fewstep.metrics import EvalProtocol, protocol
from fewstep.metrics.extractors.resize import Resize
from fewstep.optimizers import FitConfig
from fewstep.parametrization import Parametrization
from fewstep.process import Process
from fewstep.ranges import (
    NONEMPTY,
    Address,
    CountOrZero,
    Finite,
    NonNegative,
    Pixels,
    Positive,
    PositiveFraction,
    Probability,
    ProbabilityBelowOne,
    Samples,
    SamplingSteps,
)
from fewstep.schema import read_table
from fewstep.tables import from_table, resolve_name, to_table
from fewstep.text.base import TextEncoder


@dataclass(frozen=True)
class PublishedScore:
    """A score from a paper or project page. Reports show it in a table of its own, not ranked."""

    name: str
    """Method; network and its size; class-conditional or unconditional; length of training."""
    steps: SamplingSteps
    """Sampling steps (or network evaluations) per image, as published."""
    score: Finite
    """The published score."""
    protocol: str
    """How it was measured, such as "FID, 50,000 samples"."""
    cost: str = ""
    """Hardware and time of the training, as published."""
    source: str = ""
    """The paper or page that contains the score."""


@dataclass(frozen=True)
class About:
    """Information about the recipe; it has no effect on training."""

    title: str = ""
    """Title, in one line."""
    paper: str = ""
    """The paper from which the method or its settings come."""
    hardware: str = ""
    """Hardware on which `hours` was measured."""
    hours: NonNegative | None = None
    """Training time on that hardware, in hours."""
    expect: dict[str, Any] = field(default_factory=dict[str, Any])
    """Expected Fréchet distance and its spread, with sampling steps, samples and extractor."""
    published: tuple[PublishedScore, ...] = ()
    """Published scores for the same task; see `PublishedScore`."""


@dataclass(frozen=True)
class DataConfig:
    """The images to train on, which are also the reference of scores."""

    name: str
    """digits, mnist, fashion-mnist, cifar10, cifar10-captions, celeba, emoji, folder, or an address
    such as my_sets:read."""
    split: str = "train"
    """train or test; celeba and folders with splits may also have valid."""
    size: Pixels | None = None
    """Side length in pixels to which images are resized; by default that of the set."""
    path: Address | None = None
    """Folder of the images, for the sets `folder` and celeba."""
    flip: bool = False
    """Mirror each image left to right with probability ½."""
    augment: Probability = 0.0
    """Probability of each kind of EDM's augmentation, 0 to 1; EDM: 0.12 on CIFAR-10, 0.15 on larger
    images. Labels tell the network how each image was transformed, so that it generates images that
    are not. x-flips always have probability ½; those of `flip` have no label."""
    augment_kinds: tuple[AugmentKind, ...] = ALL_KINDS
    """Which kinds there are; MeanFlow's authors leave out y-flip and rotation."""
    labels: bool = True
    """Train a class-conditional model, if the images have classes."""
    captions: bool = True
    """Train on captions, if there is a text encoder: that of [text], or that of the teacher."""
    prompts: Address | None = None
    """Text file with a prompt on each line, for methods that generate images; by default they
    generate from the captions of the data."""

    autoencoder: Address | None = None
    """Train on latents of this autoencoder: a run of the method autoencode, or diffusers:FOLDER. By
    default the teacher's, for methods that read no images."""
    latents: Address | None = None
    """Store of the images' latents that `fewstep encode` wrote; by default the images are encoded
    before the training, in memory."""

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of training images; None without one."""
        return Augmentation(self.augment, self.augment_kinds) if self.augment else None


@dataclass(frozen=True)
class TeacherConfig:
    """The generator to distil."""

    load: Address
    """Run folder, weights file, or address such as diffusers:FOLDER."""
    guidance: NonNegative = 1.0
    """Weight of guidance; 1 is no guidance."""
    guidance_interval: tuple[Probability, Probability] | None = None
    """Lowest and highest time of guidance, from 0 (image) to 1 (noise); by default all times."""
    autoguidance: Address | None = None
    """A worse network, such as a smaller or shorter run, that guidance leads away from; by default
    the output without condition."""


@dataclass(frozen=True)
class PairsConfig:
    """Recorded teacher data."""

    load: Address
    """Folder or URL of a store that `fewstep record` wrote."""


@dataclass(frozen=True)
class Snr:
    """A time of a process, given by its signal-to-noise ratio."""

    snr: Positive
    """(alpha/sigma)², above 0; 0.25 is sigma = 2 alpha."""


@dataclass(frozen=True)
class StudentConfig:
    """The network to train: a copy of the teacher's network, of another run's, or a new one."""

    init: Address = "teacher"
    """Initial weights: teacher, scratch (a new network), or the address of a run."""
    dropout: ProbabilityBelowOne | None = None
    """Dropout rate of a copied network, by default unchanged; published students often use 0."""
    process: Process | None = None
    """Noise process, with init = "scratch": flow, vp, ve, cosine, table or linear-betas."""
    parametrization: Parametrization | None = None
    """What the network predicts: eps, v, velocity, x0 or edm. A copied network keeps its weights
    and first trains for fit.adapt steps to predict this instead."""
    start: PositiveFraction | Snr | None = None
    """Time in (0, 1] at which the student's sampling starts, or {snr = 0.25} for the time with this
    signal-to-noise ratio (alpha/sigma)²; by default the noisiest time of the network. An eps
    network cannot start near 1: its errors there are too large in the image."""
    backbone: BackboneConfig | None = None
    """Architecture and its settings, with init = "scratch": unet, mlp, circuit or residuals."""


@dataclass(frozen=True)
class EvaluateConfig:
    """When and how the run is evaluated during training."""

    every: CountOrZero = 0
    """Training steps between evaluations; 0 means never."""
    steps: Annotated[tuple[SamplingSteps, ...], NONEMPTY] = (1, 2, 4)
    """Numbers of sampling steps to evaluate."""
    best: SamplingSteps | None = None
    """Step count whose Fréchet distance selects the weights in best.safetensors; by default the
    first of `steps`."""
    protocol: str = "quick"
    """Evaluation protocol: quick, resnet10k, fid10k, fid50k, clean-fid50k or dino50k."""
    samples: Samples | None = None
    """Images to generate for each score; by default the protocol's number."""
    extractor: str | None = None
    """Network that computes the features, by default the protocol's: classifier, pixels, rotations,
    inception, dinov2, squeezenet or resnet56-cifar10."""
    resize: Resize | None = None
    """How images are resized for the extractor: tf1-bilinear or clean-bicubic."""
    measures: tuple[str, ...] = ()
    """Extra measures: sliced-wasserstein, text-match and clip-score for networks that read prompts,
    or addresses such as my_package.my_module:MEASURE."""

    def __post_init__(self) -> None:
        _ = self.evaluation_protocol  # raises for a wrong protocol now, not after training

    @property
    def evaluation_protocol(self) -> EvalProtocol:
        """The protocol of that name, with the settings above that are not None."""
        return protocol(self.protocol).with_settings(
            samples=self.samples,
            extractor=self.extractor,
            resize=self.resize,
            measures=self.measures,
        )


@dataclass(frozen=True)
class Recipe:
    """All settings of a run, one attribute for each section of the TOML file."""

    data: DataConfig
    method: Any
    """Settings of the method, an instance of its `Config` class."""
    method_name: str
    about: About = field(default_factory=About)
    teacher: TeacherConfig | None = None
    pairs: PairsConfig | None = None
    text: TextEncoder | None = None
    student: StudentConfig = field(default_factory=StudentConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def table(self) -> dict[str, Any]:
        """The recipe as nested tables with all defaults, as in a run folder; None is left out."""
        table = _without_none(to_table(self))
        name, method = table.pop("method_name"), table.pop("method")
        return {**table, "method": {"name": name, **method}}

    def toml(self) -> str:
        """The recipe with all defaults, as TOML."""
        return tomli_w.dumps(self.table())


_SECTIONS: dict[str, Any] = {
    "about": About,
    "data": DataConfig,
    "teacher": TeacherConfig,
    "pairs": PairsConfig,
    "text": TextEncoder,
    "student": StudentConfig,
    "fit": FitConfig,
    "evaluate": EvaluateConfig,
}


def read(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a preset or a TOML file, with `key=value` overrides applied.

    Raises: InputError for an unknown preset, invalid TOML, an unknown key or an invalid value.
    """
    return parse(read_table(name, overrides))


def parse(table: Mapping[str, Any], *, allow_code: Collection[str] | None = None) -> Recipe:
    """Turn nested tables into a recipe and check every key and value.

    `allow_code` lists the modules that addresses `package.module:Class` may import; None, for a
    recipe that the user wrote, allows all. Raises InputError for an unknown key, a missing section,
    a value of the wrong type, or an address that is not allowed.
    """
    sections = [*_SECTIONS, "method"]
    for key in table:
        if key not in sections:
            raise InputError(f"unknown recipe key {key}{did_you_mean(key, sections)}")
    for key in ("data", "method"):
        if key not in table:
            raise InputError(f"the recipe has no [{key}] section")
    method = resolve_name("method", table["method"], "method", allow_code)
    if not is_dataclass(getattr(method, "Config", None)):
        raise InputError(
            f"method.name is {table['method']['name']!r}, which is not a method; choose one of "
            f"{', '.join(plugins.names('method'))}"
        )
    settings = {key: value for key, value in table["method"].items() if key != "name"}
    values = {
        key: from_table(kind, table[key], key, allow_code=allow_code)
        for key, kind in _SECTIONS.items()
        if key in table
    }
    recipe = Recipe(
        **values,
        method=from_table(method.Config, settings, "method", allow_code=allow_code),
        method_name=table["method"]["name"],
    )
    plugins.check_allowed("data", recipe.data.name, allow_code)
    plugins.check_allowed("extractor", recipe.evaluate.extractor or "", allow_code)
    for measure in recipe.evaluate.measures:
        plugins.check_allowed("measure", measure, allow_code)
    return recipe


def _without_none(value: Any) -> Any:
    """A table without its None values, which TOML cannot express."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
