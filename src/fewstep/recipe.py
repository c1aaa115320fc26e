"""Recipes: TOML read into frozen dataclasses, strictly, and written back resolved.

A key that is not known is an error that names the nearest one. `[method]` is read into the named
method's own `Config`, so a new method brings its settings without touching this file.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fewstep import methods
from fewstep.errors import InputError, did_you_mean
from fewstep.generator import AnyBackbone
from fewstep.metrics import EvalProtocol, protocol
from fewstep.metrics.extractors.resize import Resize
from fewstep.parametrization import AnyParametrization
from fewstep.process import AnyProcess
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
    """digits, mnist, fashion-mnist, cifar10, celeba or folder."""
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
    process: AnyProcess | None = None
    """flow, vp, ve, cosine, table or linear-betas; of a network from scratch."""
    parametrization: AnyParametrization | None = None
    """eps, v, velocity, clean or edm; of a network from scratch."""
    backbone: AnyBackbone | None = None
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

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(f"evaluate.every is {self.every}; it counts steps, and 0 is never")
        if not self.steps or min(self.steps) < 1 or (self.best or 1) < 1:
            raise InputError("evaluate.steps and evaluate.best are counts of at least 1 step")
        _ = self.measured  # a mistake in it is told now

    @property
    def measured(self) -> EvalProtocol:
        """The protocol with what is changed of it."""
        return protocol(self.protocol).changed(
            samples=self.samples, extractor=self.extractor, resize=self.resize
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
        """The resolved recipe as nested tables, without empty values: what a run folder keeps."""
        told = _plain(asdict(self))
        name, method = told.pop("method_name"), told.pop("method")
        return {**told, "method": {"name": name, **method}}

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


def preset_names() -> list[str]:
    """The recipes that the package ships."""
    folder = resources.files("fewstep") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith("toml"))


def read(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a preset's name or a TOML file, with `key=value` overrides.

    Raises: InputError for an unknown preset, broken TOML, an unknown key or an unfit value.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"there is no recipe file {name}")
        text = path.read_text()
    elif name in preset_names():
        text = (resources.files("fewstep") / "presets" / f"{name}.toml").read_text()
    else:
        raise InputError(
            f"there is no recipe {name!r}{did_you_mean(name, preset_names())}; give a TOML file or "
            f"one of: {', '.join(preset_names())}"
        )
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    return from_table(table)


def from_table(table: Mapping[str, Any]) -> Recipe:
    """The recipe that nested tables tell, every key checked."""
    known = [*_SECTIONS, "method"]
    for key in table:
        if key not in known:
            raise InputError(f"unknown recipe key {key!r}{did_you_mean(key, known)}")
    for key in ("data", "method"):
        if key not in table:
            raise InputError(f"the recipe lacks [{key}]")
    told = dict(table["method"])
    name = told.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"[method] lacks name; there are: {', '.join(methods.names())}")
    if "student" in table:
        table = {**table, "student": _with_native(table["student"])}
    sections = {k: _checked(k, v, _SECTIONS[k]) for k, v in table.items() if k != "method"}
    method = _checked("method", told, methods.find(name).Config)
    return Recipe(**sections, method=method, method_name=name)


def _with_native(student: Mapping[str, Any]) -> Mapping[str, Any]:
    """eps, v and clean are native to the student's own process unless told otherwise."""
    told, process = student.get("parametrization"), student.get("process")
    if not told or told.get("name") not in ("eps", "v", "clean") or "native" in told:
        return student
    return {**student, "parametrization": {**told, "native": process}}


def _checked(section: str, value: Any, kind: Any) -> Any:
    _check_keys(section, value, kind)
    try:
        # JSON mode: strict about types, yet a list may stand for a tuple
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (section, *first["loc"]))
        got = first["input"]
        raise InputError(f"recipe key {where} is {got!r}: {first['msg']}") from error


def _check_keys(where: str, value: Any, kind: Any) -> None:
    """Refuse unknown keys at any depth, naming the nearest that is known."""
    if not isinstance(value, Mapping):
        return
    for option in _dataclasses(kind, value):
        hints = get_type_hints(option, include_extras=True)
        known = [f.name for f in fields(option)]
        for key, inner in value.items():
            if key not in known:
                raise InputError(f"unknown recipe key {where}.{key}{did_you_mean(key, known)}")
            _check_keys(f"{where}.{key}", inner, hints[key])
        return
    if get_origin(kind) is dict:
        for key, inner in value.items():
            _check_keys(f"{where}.{key}", inner, get_args(kind)[1])


def _dataclasses(kind: Any, value: Mapping[str, Any]) -> list[Any]:
    """The dataclass that a table is meant for: of a union, the one that bears its name."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    classes = [option for option in options if is_dataclass(option)]
    named = {f.default: c for c in classes for f in fields(c) if f.name == "name"}
    if len(classes) > 1 or value.get("name") in named:
        if value.get("name") not in named:
            told = value.get("name")
            raise InputError(
                f"name = {told!r} is not known here{did_you_mean(str(told), [*map(str, named)])}; "
                f"there are: {', '.join(map(str, named))}"
            )
        return [named[value["name"]]]
    return classes


def explained(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(key, value, meaning) of every key that the recipe could set, the method's own first."""
    yield "method.name", json.dumps(recipe.method_name), ", ".join(methods.names())
    sections = {"method": recipe.method, **{k: getattr(recipe, k) for k in _SECTIONS}}
    for section, value in sections.items():
        kind = type(recipe.method) if section == "method" else _SECTIONS[section]
        meanings = _meanings(kind)
        for each in fields(kind):
            now = getattr(value, each.name, None)
            shown = asdict(now) if is_dataclass(now) and not isinstance(now, type) else now
            text = "" if shown is None else json.dumps(_plain(shown))
            yield f"{section}.{each.name}", text, meanings.get(each.name, "")


def _meanings(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    config = ConfigDict(use_attribute_docstrings=True)
    # the config of an adapter reaches a dataclass only inside another type
    holder: Any = tuple.__class_getitem__(kind)
    schema = TypeAdapter(holder, config=config).json_schema()
    properties = schema["$defs"][kind.__name__].get("properties", {})
    return {key: told.get("description", "").replace("\n", " ") for key, told in properties.items()}


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, right = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise InputError(f"{text!r} is no override; write key=value, such as fit.steps=100")
    *parents, last = key.split(".")
    for parent in parents:
        inner: Any = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {parent} is a value, not a table")
        table = cast(dict[str, Any], inner)
    table[last] = _toml_value(key, right)


def _toml_value(key: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.fullmatch(r"[A-Za-z./~][\w./:~-]*", text):
            return text  # a bare word or path, which a shell user would not quote twice
        raise InputError(f"{key}={text}: the right side is not TOML ({error})") from error


def _plain(value: Any) -> Any:
    """For TOML: no None, tuples as lists."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
