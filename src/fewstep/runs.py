"""Run folders, weights files with their description, and addresses of generators.

    runs/<name>/recipe.toml  progress.jsonl  samples/  model.safetensors  best.safetensors
                scores.jsonl  state/  report.html

`model.safetensors` contains the averaged weights and, in one metadata key, everything else that
`load(path)` needs. `best.safetensors` is the same for the training step with the smallest Fréchet
distance. `state/` contains the training state with the raw (not averaged) weights, and
`scores.jsonl` the scores measured after training.
"""

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from torch import Tensor

from fewstep import __version__, plugins
from fewstep.errors import InputError
from fewstep.files import append_json_line, atomic_write, read_json_lines, tensor_digest
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.models import find_model
from fewstep.paths import check_kind
from fewstep.weights_file import (
    build_generator,
    check_loadable,
    method_name,
    read_weights_file,
    to_float16,
    write_weights_file,
)

Weights = Literal["ema", "raw", "best"]
STUDENT_STEPS = (1, 2, 4)
TEACHER_STEPS = (16,)


class Run:
    """A run folder, with the paths of its files."""

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
        """The sample grids saved during training, oldest first."""
        return sorted(self.samples.glob("step-*.png"))

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe's table into this folder, unless it is there.

        Raises: InputError as `check_recipe`.
        """
        self.check_recipe(recipe)
        if not self.recipe_file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.recipe_file, tomli_w.dumps(recipe).encode())

    def check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Check that this folder is new, or belongs to the recipe with this table.

        Raises: InputError with the first difference if it belongs to another recipe.
        """
        if self.recipe_file.exists():
            old, new = _flatten(_read_toml(self.recipe_file)), _flatten(recipe)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key) and not key.startswith("about."):
                    raise InputError(
                        f"{self.folder} belongs to another recipe: {key} is "
                        f"{old.get(key, 'not set')} in its recipe.toml and "
                        f"{new.get(key, 'not set')} in this recipe; "
                        "give another --out, or delete that folder"
                    )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is not empty and is not a run folder: it has no recipe.toml; give "
                "another --out"
            )

    def progress(self) -> list[dict[str, Any]]:
        """The logged lines, oldest first, except a last line that a crash left incomplete."""
        return [
            line
            for line in read_json_lines(self.progress_file)
            if isinstance(line.get("step"), int)
        ]

    def rewind(self, step: int) -> None:
        """Remove the logged lines after training step `step`; a resumed run writes them again."""
        lines = [json.dumps(line) + "\n" for line in self.progress() if line["step"] <= step]
        _replace(self.progress_file, "".join(lines).encode())

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to progress.jsonl."""
        append_json_line(self.progress_file, line)

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.jsonl"

    def scores(self) -> list[dict[str, Any]]:
        """The lines of scores.jsonl, oldest first; some may be of earlier weights of this run."""
        return read_json_lines(self.scores_file)

    def append_score(self, line: Mapping[str, Any]) -> None:
        """Append one score to scores.jsonl."""
        append_json_line(self.scores_file, line)

    def save_state(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Write the training state: tensors, and a JSON object with everything else."""
        write_weights_file(self.state_file, tensors, note)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and JSON object that `save_state` wrote; None if there is no state yet."""
        return read_weights_file(self.state_file) if self.state_file.exists() else None

    def raw_generator(self, *, allow_code: Collection[str] = ()) -> Generator:
        """The student with the raw (not averaged) weights of the last step."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.folder} has no state/, which contains the raw weights")
        tensors, note = state
        prefix = "method.student."
        raw = {f"denoiser.{k.removeprefix(prefix)}": v for k, v in tensors.items() if prefix in k}
        return build_generator(note, raw, self.state_file, allow_code)


def save_generator(
    path: Path,
    generator: Generator,
    recipe: Mapping[str, Any] | None,
    pins: Mapping[str, str],
    *,
    step: int | None = None,
    license: str = "",
    scores: Sequence[Mapping[str, Any]] = (),
    half: bool = False,
) -> None:
    """Write weights with their description; equal weights and recipes give equal bytes.

    `recipe` is the recipe's table, `pins` are the hashes of the data and weights that training
    used, `step` is the training step of the weights, None for the last, and `scores` are tables of
    `Score`. `half` stores float16, which `load` widens again.

    Raises: InputError for a generator that `load` could not build again, or weights that are too
    large for float16.
    """
    note: dict[str, Any] = {} if step is None else {"step": step}
    note |= {"license": license} if license else {}
    note |= {"scores": [dict(score) for score in scores]} if scores else {}
    note |= {
        "description": check_loadable(generator),
        "recipe": None if recipe is None else dict(recipe),
        "pins": dict(pins),
        "version": __version__,
    }
    tensors = generator.state_dict()
    if half:
        tensors = {name: to_float16(name, weight) for name, weight in tensors.items()}
    write_weights_file(path, tensors, note)


def load(
    address: str | Path, *, weights: Weights = "ema", allow_code: Collection[str] = ()
) -> Generator:
    """Load the generator at an address: a run folder, a weights file, a model that comes with a
    package such as `fewstep:digits`, or `source:rest`.

    Weights may use classes from outside this package. Loading such weights runs code of these
    classes, so `allow_code` must list their modules or packages.

    Raises: InputError for an address that does not exist, a file that is damaged or was not
    written by fewstep, or code that is not allowed.
    """
    path = Path(address)
    if weights == "raw" and path.is_dir():
        check_kind(path, "run")
        return Run(path).raw_generator(allow_code=allow_code)
    file = _find_file(address, weights)
    if file is None:
        source, _, rest = str(address).partition(":")
        return plugins.resolve("source", source)(rest)
    tensors, note = read_weights_file(file)
    return build_generator(note, tensors, file, allow_code)


def describe(address: str | Path, *, weights: Weights = "ema") -> dict[str, Any]:
    """The metadata of a weights file: description, recipe, pins, version, licence and scores.

    Empty for an address `source:rest`.
    """
    file = _find_file(address, weights)
    return {} if file is None else read_weights_file(file)[1]


def default_steps(generator: Generator, recipe: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Numbers of sampling steps to use unless others are requested, fewest first.

    They are those of the grid; if it supports any, 1, 2 and 4 for a student, and 16 for a teacher.
    """
    if generator.grid.counts:
        return generator.grid.counts
    is_teacher = recipe is None or method_name(recipe) in ("denoise", "reflow")
    return TEACHER_STEPS if is_teacher else STUDENT_STEPS


def _find_file(address: str | Path, weights: Weights) -> Path | None:
    """The weights file of a run, of itself, or of a packaged model; None for `source:rest`."""
    path = Path(address)
    if ":" in str(address) and not path.exists():
        return _find_packaged(str(address), weights)
    check_kind(path, "run")
    if not path.is_dir():
        if weights != "ema":
            raise InputError(
                f'weights="{weights}" needs a run folder, and {address} is a file; give the folder'
            )
        return path
    run = Run(path)
    file = run.best_file if weights == "best" else run.model_file
    if not file.exists():
        remedy = (
            "set evaluate.every in its recipe to evaluate during training"
            if weights == "best"
            else "train it until the first checkpoint, every fit.save_every steps"
        )
        raise InputError(f"{run.folder} has no {file.name}: {remedy}")
    return file


def _find_packaged(address: str, weights: Weights) -> Path | None:
    """The weights file of a packaged model; None for the checkpoint of a known source."""
    file, source = find_model(address), address.partition(":")[0]
    if file is None and source not in plugins.names("source"):
        choices = ", ".join([*plugins.names("source"), *plugins.names("models")])
        raise InputError(
            f"{address}: no such file, and {source!r} is not a known source; known: {choices}"
        )
    if weights != "ema":
        raise InputError(
            f'weights="{weights}" needs a run folder; {address} is a checkpoint with one kind of '
            "weights only"
        )
    return file


def network_hash(generator: Generator) -> str:
    """SHA-256 of a generator's network with its process and parametrization.

    Unlike `weights_hash`, it does not depend on sampler, grid, guidance and names of classes: the
    same network has the same hash however it is sampled.
    """
    description, backbone = generator.describe(), unguided(generator.denoiser.backbone)
    sampling = ("spec", "guidance", "step", "grid", "packages")
    parts = {key: value for key, value in description.items() if key not in sampling}
    return tensor_digest(backbone.state_dict(), header=json.dumps(parts, sort_keys=True))


def weights_hash(generator: Generator) -> str:
    """SHA-256 of a generator's description and weights."""
    header = json.dumps(generator.describe(), sort_keys=True)
    return tensor_digest(generator.state_dict(), header=header)


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
