"""Run folders, weights files that describe themselves, and addresses of generators.

    runs/<name>/recipe.toml  progress.jsonl  samples/  model.safetensors  best.safetensors
                scores.jsonl  state/  report.html

`model.safetensors` holds the averaged weights and, in one metadata key, everything else that
`load(path)` needs. `best.safetensors` is the same for the step with the best score. `state/` holds
the training state with the raw weights, and `scores.jsonl` the scores measured after training.
"""

import json
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep import __version__, plugins
from fewstep.errors import InputError
from fewstep.files import atomic_write, tensor_digest
from fewstep.generator import Generator, from_description
from fewstep.guidance import unguided
from fewstep.tables import from_table, to_table

KEY = "fewstep"  # safetensors orders several metadata keys at random: equal weights, unequal files
Weights = Literal["ema", "raw", "best"]


class Run:
    """A run folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def model_file(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def best_file(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def state_file(self) -> Path:
        return self.folder / "state" / "state.safetensors"

    @property
    def progress_file(self) -> Path:
        return self.folder / "progress.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    def grids(self) -> list[Path]:
        """The grids that were drawn in the course of training, oldest first."""
        return sorted(self.samples.glob("step-*.png"))

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe's table into this folder, or check that the folder belongs to it.

        Raises: InputError if the folder belongs to another recipe, naming the first difference.
        """
        if self.recipe_file.exists():
            there, here = _flatten(_read_toml(self.recipe_file)), _flatten(recipe)
            for key in sorted(there.keys() | here.keys()):
                if there.get(key) != here.get(key) and not key.startswith("about."):
                    raise InputError(
                        f"{self.folder} belongs to another recipe: {key} is "
                        f"{there.get(key, 'not set')} there and {here.get(key, 'not set')} here; "
                        "give another --out, or delete that folder"
                    )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and is no run folder; give another --out")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.recipe_file, tomli_w.dumps(recipe).encode())

    def progress(self) -> list[dict[str, Any]]:
        """The logged lines, oldest first, without a last line that a crash cut off."""
        return [line for line in _lines(self.progress_file) if isinstance(line.get("step"), int)]

    def rewind(self, step: int) -> None:
        """Remove logged lines after `step`, which a resumed run will write again."""
        lines = [json.dumps(line) + "\n" for line in self.progress() if line["step"] <= step]
        _replace(self.progress_file, "".join(lines).encode())

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to progress.jsonl."""
        _append(self.progress_file, line)

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.jsonl"

    def scores(self) -> list[dict[str, Any]]:
        """The scores of these weights and of earlier ones, oldest first."""
        return _lines(self.scores_file)

    def append_score(self, line: Mapping[str, Any]) -> None:
        """Append one score to scores.jsonl."""
        _append(self.scores_file, line)

    def save_state(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Write what is needed to resume: tensors, and a JSON object beside them."""
        _save(self.state_file, tensors, note)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_state` wrote, or None if there is no state yet."""
        return _open(self.state_file) if self.state_file.exists() else None

    def raw_generator(self, *, allow_code: Collection[str] = ()) -> Generator:
        """The student with the weights of the last step, not averaged."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.folder} has no state/, which holds the raw weights")
        tensors, note = state
        prefix = "method.student."
        raw = {f"denoiser.{k.removeprefix(prefix)}": v for k, v in tensors.items() if prefix in k}
        return _build(note["description"], raw, self.state_file, allow_code)


def save_generator(
    path: Path,
    generator: Generator,
    recipe: Mapping[str, Any] | None,
    pins: Mapping[str, str],
    *,
    step: int | None = None,
) -> None:
    """Write weights with their description; equal weights and recipe give equal bytes.

    `recipe` is the recipe's table, `pins` are hashes of the data and the teacher, and `step` is the
    training step, if it is not a run's last. Raises InputError for a generator that `load` could
    not build again.
    """
    note = {} if step is None else {"step": step}
    note |= {
        "description": check_loadable(generator),
        "recipe": None if recipe is None else dict(recipe),
        "pins": dict(pins),
        "version": __version__,
    }
    _save(path, dict(generator.state_dict()), note)


def check_loadable(generator: Generator) -> dict[str, Any]:
    """The generator's description.  Raises: InputError if `load` could not build it again."""
    description, backbone = generator.describe(), unguided(generator.denoiser.backbone)
    parts: dict[str, Any] = {
        "backbone": backbone.config,
        "process": generator.denoiser.process,
        "parametrization": generator.denoiser.parametrization,
        "sampler": generator.step,
        "grid": generator.grid,
    }
    for noun, part in parts.items():
        plugins.check_importable(noun, type(part))
        if from_table(type(part), to_table(part), noun) != part:
            raise InputError(f"the {noun} {part!r} changes when it is read back from its fields")
    # on this device weights take no memory: their names and shapes are what is compared
    with torch.device("meta"):
        again = backbone.config.build(shape=backbone.shape, classes=backbone.classes)
    if _shapes(again) != _shapes(backbone):
        name = plugins.name_of("backbone", type(backbone.config))
        raise InputError(
            f"the backbone {name} builds another network from its config than the one to be saved: "
            "all that shapes a network must be fields of its config"
        )
    return description


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def load(
    address: str | Path, *, weights: Weights = "ema", allow_code: Collection[str] = ()
) -> Generator:
    """The generator at an address: a run folder, a weights file, or `source:rest`.

    Weights may use classes from outside this package; building those runs their code, so their
    modules or packages must be listed in `allow_code`.

    Raises: InputError for what is missing, damaged, not allowed, or not a file of ours.
    """
    if _is_foreign(address):
        source, _, rest = str(address).partition(":")
        if source not in plugins.names("source"):
            sources = ", ".join(f"{name}:" for name in plugins.names("source"))
            raise InputError(
                f"{address}: no such file, and {source!r} is not a known source; known: {sources}"
            )
        if weights != "ema":
            raise InputError(f"{weights} weights need a run folder; {address} has one kind only")
        return plugins.resolve("source", source)(rest)
    path = Path(address)
    if path.is_dir():
        run = Run(path)
        if weights == "raw":
            return run.raw_generator(allow_code=allow_code)
        path = run.best_file if weights == "best" else run.model_file
        if not path.exists():
            why = "set evaluate.every" if weights == "best" else "has its training been started?"
            raise InputError(f"{run.folder} has no {path.name}; {why}")
    elif weights != "ema":
        raise InputError(f"{weights} weights need a run folder; give the folder, not a file")
    tensors, note = _open(path)
    return _build(note["description"], tensors, path, allow_code)


def describe(address: str | Path, *, weights: Weights = "ema") -> dict[str, Any]:
    """The metadata of a weights file: description, recipe, pins and version.

    Empty for a checkpoint of another source.
    """
    if _is_foreign(address):
        return {}
    path, run = Path(address), Run(address)
    if path.is_dir():
        path = run.best_file if weights == "best" else run.model_file
    return _open(path)[1]


def _is_foreign(address: str | Path) -> bool:
    """Whether it is `source:rest` rather than a file."""
    return ":" in str(address) and not Path(address).exists()


def weights_hash(generator: Generator) -> str:
    """SHA-256 of a generator's description and weights."""
    header = json.dumps(generator.describe(), sort_keys=True)
    return tensor_digest(generator.state_dict(), header=header)


def _build(
    description: dict[str, Any], tensors: dict[str, Tensor], path: Path, allow_code: Collection[str]
) -> Generator:
    try:
        generator = from_description(description, allow_code=allow_code)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        generator.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit the network it describes") from error
    return generator.eval().requires_grad_(False)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) else []
    return lines


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a+b") as file:
        # a crash may have cut the last line: what comes after it is whole
        file.seek(max(file.tell() - 1, 0))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + json.dumps(dict(line)).encode() + b"\n")


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"there is no run folder or weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get(KEY)
            if note is None:
                raise InputError(
                    f"{path} is safetensors, but not of fewstep: it does not say what network it is"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(note)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error


def _save(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path, single_writer=True) as file:
        # by name: `safetensors.torch.save` would hold all weights in memory a second time
        save_file(contents, file.name, metadata={KEY: json.dumps(note, sort_keys=True)})


def _replace(path: Path, content: bytes) -> None:
    with atomic_write(path, single_writer=True) as file:
        file.write(content)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
