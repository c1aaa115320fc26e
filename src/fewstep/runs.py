"""Run folders, self-describing weights, and what an address means.

    runs/<name>/recipe.toml  progress.jsonl  samples/  model.safetensors  best.safetensors
                scores.jsonl  state/  report.html

`model.safetensors` holds the averaged weights and, in one metadata key, everything needed to use
them: `load(path)` asks for nothing else. `best.safetensors` is the same of the step that scored
best. `state/` serves resuming, and the raw weights; `scores.jsonl` what was measured afterwards.
"""

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep import __version__
from fewstep.errors import InputError
from fewstep.files import atomic_write, tensor_digest
from fewstep.generator import Generator, from_description
from fewstep.pretrained import SCHEMES
from fewstep.recipe import Recipe
from fewstep.trainer import Training

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

    def claim(self, recipe: Recipe) -> None:
        """Make this the recipe's folder, or check that it is.

        Raises: InputError when the folder belongs to another recipe, naming what differs.
        """
        if self.recipe_file.exists():
            there = _flat(_read_toml(self.recipe_file))
            here = _flat(recipe.table())
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
            _replace(self.recipe_file, recipe.toml().encode())

    def progress(self) -> list[dict[str, Any]]:
        """The logged lines, oldest first; a line cut by a crash is left out."""
        return [line for line in _lines(self.progress_file) if isinstance(line.get("step"), int)]

    def rewind(self, step: int) -> None:
        """Drop logged lines after `step`: a resumed run writes them again."""
        kept = [line for line in self.progress() if line["step"] <= step]
        _replace(self.progress_file, "".join(json.dumps(k) + "\n" for k in kept).encode())

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to progress.jsonl."""
        _append(self.progress_file, line)

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.jsonl"

    def scores(self) -> list[dict[str, Any]]:
        """The scores that were kept of these weights or earlier ones, oldest first."""
        return _lines(self.scores_file)

    def append_score(self, line: Mapping[str, Any]) -> None:
        """Append one score, with what it belongs to, to scores.jsonl."""
        _append(self.scores_file, line)

    def save_state(self, training: Training, pins: Mapping[str, str]) -> None:
        """Keep what is needed to resume, all or nothing; `pins` are hashes of what it rests on."""
        tensors, told = training.state()
        self.state_file.parent.mkdir(exist_ok=True)
        description = training.method.generator().describe()
        note = {**told, "pins": dict(pins), "description": description}
        _save(self.state_file, tensors, note)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_state` kept, or None before the first time."""
        return _open(self.state_file) if self.state_file.exists() else None

    def raw_generator(self) -> Generator:
        """The student with the weights of the last step, not averaged."""
        kept = self.state()
        if kept is None:
            raise InputError(f"{self.folder} holds no state/, and with it no raw weights")
        tensors, told = kept
        prefix = "method.student."
        raw = {f"denoiser.{k.removeprefix(prefix)}": v for k, v in tensors.items() if prefix in k}
        return _filled(told["description"], raw, self.state_file)


def save_generator(
    path: Path,
    generator: Generator,
    recipe: Recipe | None,
    pins: Mapping[str, str],
    *,
    step: int | None = None,
) -> None:
    """Weights that describe themselves: equal weights and recipe give equal bytes. `step` is told
    where they are not a run's last."""
    note = {} if step is None else {"step": step}
    note |= {
        "description": generator.describe(),
        "recipe": recipe.table() if recipe else None,
        "pins": dict(pins),
        "version": __version__,
    }
    _save(path, dict(generator.state_dict()), note)


def load(address: str | Path, *, weights: Weights = "ema") -> Generator:
    """The generator at an address: a run folder, a weights file, or `scheme:rest`.

    Raises: InputError for what is missing, damaged, or not ours.
    """
    if _foreign(address):
        scheme, _, rest = str(address).partition(":")
        if scheme not in SCHEMES:
            known = ", ".join(f"{known}:" for known in SCHEMES)
            raise InputError(
                f"{address}: there is no file of that name, and no {scheme}: (known are {known})"
            )
        if weights != "ema":
            raise InputError(f"{weights} weights are in a run folder; {address} holds one kind")
        return SCHEMES[scheme](rest)
    path = Path(address)
    if path.is_dir():
        run = Run(path)
        if weights == "raw":
            return run.raw_generator()
        path = run.best_file if weights == "best" else run.model_file
        if not path.exists():
            why = "set evaluate.every" if weights == "best" else "has its training been started?"
            raise InputError(f"{run.folder} holds no {path.name}; {why}")
    elif weights != "ema":
        raise InputError(f"{weights} weights are in a run folder; give the folder, not a file")
    tensors, note = _open(path)
    return _filled(note["description"], tensors, path)


def describe(address: str | Path, *, weights: Weights = "ema") -> dict[str, Any]:
    """What a weights file says of itself beside its weights: recipe, pins and version. Other
    people's say nothing."""
    if _foreign(address):
        return {}
    path, run = Path(address), Run(address)
    if path.is_dir():
        path = run.best_file if weights == "best" else run.model_file
    return _open(path)[1]


def _foreign(address: str | Path) -> bool:
    """Whether it is `scheme:rest` rather than a file."""
    return ":" in str(address) and not Path(address).exists()


def weights_hash(generator: Generator) -> str:
    """SHA-256 of a generator's description and weights."""
    about = json.dumps(generator.describe(), sort_keys=True)
    return tensor_digest(generator.state_dict(), about=about)


def _filled(description: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Generator:
    generator = from_description(description)
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


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
