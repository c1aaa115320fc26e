"""Recipes: TOML read into frozen dataclasses, strictly, and written back resolved.

A key that is not known is an error that names the nearest one. `[method]` is read into the named
method's own `Config`, so a new method brings its settings without touching this file.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import tomli_w

from fewstep import plugins
from fewstep.backbones import BackboneConfig
from fewstep.errors import InputError, did_you_mean
from fewstep.metrics import EvalProtocol, protocol
from fewstep.metrics.extractors.resize import Resize
from fewstep.parametrization import Parametrization
from fewstep.process import Process
from fewstep.schema import read_table
from fewstep.tables import from_table, resolve_name, to_table
from fewstep.trainer import FitConfig


@dataclass(frozen=True)
class PublishedScore:
    """A figure of somebody's paper or project page, to stand beside ours, never ranked with it."""

    name: str
    """Whose: method, network, length of training."""
    steps: int
    """Steps, or evaluations of the network, for an image: as published."""
    score: float
    """The figure."""
    protocol: str
    """What it is and how it was taken: "FID, 50,000 samples, ..."."""
    cost: str = ""
    """Hardware and time, as published."""
    source: str = ""
    """Paper or page."""


@dataclass(frozen=True)
class About:
    """What to expect of the recipe; never read by the training itself."""

    title: str = ""
    """One line."""
    paper: str = ""
    """Where the method or its settings come from."""
    hardware: str = ""
    """What `hours` were measured on."""
    hours: float | None = None
    """How long it takes there."""
    expect: dict[str, Any] = field(default_factory=dict[str, Any])
    """The score band to expect, with steps, samples and extractor."""
    published: tuple[PublishedScore, ...] = ()
    """Published figures of the same task, each with its own protocol."""


@dataclass(frozen=True)
class DataConfig:
    """The images to learn from and to be measured against."""

    name: str
    """digits, mnist, fashion-mnist, cifar10, celeba, folder, or an address such as my_sets:read."""
    split: str = "train"
    """train or test; of celeba, valid too."""
    size: int | None = None
    """Side to resize to."""
    path: str | None = None
    """Of a folder of images, or of CelebA."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    labels: bool = True
    """Whether the model is told the classes; false: unconditional."""


@dataclass(frozen=True)
class TeacherConfig:
    """Whom to distil."""

    load: str
    """A run folder, a weights file or an address."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1: none."""


@dataclass(frozen=True)
class PairsConfig:
    """Recorded teacher data."""

    load: str
    """The folder that `fewstep record` wrote."""


@dataclass(frozen=True)
class StudentConfig:
    """The network to train: a copy of the teacher's, of another run's, or a new one."""

    init: str = "teacher"
    """teacher, scratch, or a run whose weights to start from."""
    dropout: float | None = None
    """Of a copied network, where not as it was: published students often have 0."""
    process: Process | None = None
    """flow, vp, ve, cosine, table or linear-betas; of a network from scratch."""
    parametrization: Parametrization | None = None
    """eps, v, velocity, clean or edm; of a network from scratch."""
    backbone: BackboneConfig | None = None
    """unet, mlp, circuit or residuals and its settings; of a network from scratch."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How the run is measured."""

    every: int = 0
    """Steps between evaluations during training; 0: none."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Step counts to measure."""
    best: int | None = None
    """The step count whose Fréchet distance decides which weights become best.safetensors; by
    default the first of `steps`."""
    protocol: str = "quick"
    """How scores are taken: quick, resnet10k, fid10k, fid50k, clean-fid50k or dino50k."""
    samples: int | None = None
    """Images to generate for each score, where not as many as the protocol says."""
    extractor: str | None = None
    """Features, where not those of the protocol: classifier, pixels, inception, dinov2,
    squeezenet or resnet56-cifar10."""
    resize: Resize | None = None
    """How images reach the extractor's size: tf1-bilinear or clean-bicubic."""
    measures: tuple[str, ...] = ()
    """Extra measures: sliced-wasserstein, or addresses such as my_package.my_module:MEASURE."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(f"evaluate.every is {self.every}; it counts steps, and 0 is never")
        if not self.steps or min(self.steps) < 1 or (self.best or 1) < 1:
            raise InputError("evaluate.steps and evaluate.best are counts of at least 1 step")
        _ = self.measured  # a mistake in it is told now

    @property
    def measured(self) -> EvalProtocol:
        """The protocol with what is changed of it."""
        return protocol(self.protocol).with_settings(
            samples=self.samples,
            extractor=self.extractor,
            resize=self.resize,
            measures=self.measures,
        )


@dataclass(frozen=True)
class Recipe:
    """A run, told completely."""

    data: DataConfig
    method: Any
    """The method's own Config; `method_name` says whose."""
    method_name: str
    about: About = field(default_factory=About)
    teacher: TeacherConfig | None = None
    pairs: PairsConfig | None = None
    student: StudentConfig = field(default_factory=StudentConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def table(self) -> dict[str, Any]:
        """The resolved recipe as nested tables, without empty values: what a run folder holds."""
        table = _without_none(to_table(self))
        name, method = table.pop("method_name"), table.pop("method")
        return {**table, "method": {"name": name, **method}}

    def toml(self) -> str:
        """The resolved recipe as TOML."""
        return tomli_w.dumps(self.table())


_SECTIONS: dict[str, Any] = {
    "about": About,
    "data": DataConfig,
    "teacher": TeacherConfig,
    "pairs": PairsConfig,
    "student": StudentConfig,
    "fit": FitConfig,
    "evaluate": EvaluateConfig,
}


def read(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a preset's name or a TOML file, with `key=value` overrides.

    Raises: InputError for an unknown preset, broken TOML, an unknown key or an unfit value.
    """
    return parse(read_table(name, overrides))


def parse(table: Mapping[str, Any], *, allow_code: Collection[str] | None = None) -> Recipe:
    """The recipe in nested tables, with every key checked.

    `allow_code` lists the modules that addresses `package.module:Class` may import; None, for a
    recipe that the user wrote, allows all. Raises InputError for an unknown key, a missing section,
    a value of another type, or an address that is not allowed.
    """
    sections = [*_SECTIONS, "method"]
    for key in table:
        if key not in sections:
            raise InputError(f"unknown recipe key {key}{did_you_mean(key, sections)}")
    for key in ("data", "method"):
        if key not in table:
            raise InputError(f"the recipe lacks [{key}]")
    method = resolve_name("method", table["method"], "method", allow_code)
    settings = {key: value for key, value in table["method"].items() if key != "name"}
    if "student" in table:
        table = {**table, "student": _with_native(table["student"], allow_code)}
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


def _with_native(student: Any, allow_code: Collection[str] | None) -> Any:
    """Parametrizations with a process of their own take the student's, unless one is given."""
    table = student.get("parametrization") if isinstance(student, Mapping) else None
    if not isinstance(table, Mapping) or "native" in table or "process" not in student:
        return student
    kind = resolve_name("parametrization", table, "student.parametrization", allow_code)
    native = next((f for f in fields(kind) if f.name == "native"), None)
    if native is None or native.default is not MISSING:
        return student
    return {**student, "parametrization": {**table, "native": student["process"]}}


def _without_none(value: Any) -> Any:
    """A table without empty values, which TOML does not have."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
