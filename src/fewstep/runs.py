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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep import __version__, plugins
from fewstep.errors import InputError
from fewstep.files import append_json_line, atomic_write, read_json_lines, tensor_digest
from fewstep.generator import Generator, from_description
from fewstep.guidance import unguided
from fewstep.paths import check_kind
from fewstep.schema import preset_names
from fewstep.tables import from_table, to_table

# a single metadata key: safetensors writes several in random order, so equal weights would not
# give equal files
KEY = "fewstep"
Weights = Literal["ema", "raw", "best"]


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
        """Write the recipe's table into this folder, or check that the folder belongs to it.

        Raises: InputError with the first difference if the folder belongs to another recipe.
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
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.recipe_file, tomli_w.dumps(recipe).encode())

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
        _save(self.state_file, tensors, note)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and JSON object that `save_state` wrote; None if there is no state yet."""
        return _open(self.state_file) if self.state_file.exists() else None

    def raw_generator(self, *, allow_code: Collection[str] = ()) -> Generator:
        """The student with the raw (not averaged) weights of the last step."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.folder} has no state/, which contains the raw weights")
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
    """Write weights with their description; equal weights and recipes give equal bytes.

    `recipe` is the recipe's table, `pins` are the hashes of the data and weights that training
    used, and `step` is the training step of the weights, None for the last. Raises InputError for a
    generator that `load` could not build again.
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
            raise InputError(
                f"the {noun} {part!r} is not equal to the one built from its fields, so it cannot "
                "be saved: keep all its settings in fields"
            )
    # only names and shapes of the weights are compared, so they need no memory
    with torch.device("meta"):
        again = backbone.config.build(shape=backbone.shape, classes=backbone.classes)
    if _shapes(again) != _shapes(backbone):
        name = plugins.name_of("backbone", type(backbone.config))
        raise InputError(
            f"the backbone {name} builds another network from its config than the one to be saved: "
            "everything that determines its weights' shapes must be a field of the config"
        )
    return description


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def load(
    address: str | Path, *, weights: Weights = "ema", allow_code: Collection[str] = ()
) -> Generator:
    """Load the generator at an address: a run folder, a weights file, or `source:rest`.

    Weights may use classes from outside this package. Loading such weights runs code of these
    classes, so `allow_code` must list their modules or packages.

    Raises: InputError for an address that does not exist, a file that is damaged or was not
    written by fewstep, or code that is not allowed.
    """
    if _is_foreign(address):
        source, _, rest = str(address).partition(":")
        if source not in plugins.names("source"):
            sources = ", ".join(plugins.names("source"))
            raise InputError(
                f"{address}: no such file, and {source!r} is not a known source; known: {sources}"
            )
        if weights != "ema":
            raise InputError(
                f'weights="{weights}" needs a run folder; {address} is a checkpoint with one kind '
                "of weights only"
            )
        return plugins.resolve("source", source)(rest)
    path = Path(address)
    check_kind(path, "run")
    if path.is_dir():
        run = Run(path)
        if weights == "raw":
            return run.raw_generator(allow_code=allow_code)
        path = run.best_file if weights == "best" else run.model_file
        if not path.exists():
            remedy = (
                "set evaluate.every in its recipe to evaluate during training"
                if weights == "best"
                else "train it until the first checkpoint, every fit.save_every steps"
            )
            raise InputError(f"{run.folder} has no {path.name}: {remedy}")
    elif weights != "ema":
        raise InputError(
            f'weights="{weights}" needs a run folder, and {address} is a file; give the folder'
        )
    tensors, note = _open(path)
    return _build(note["description"], tensors, path, allow_code)


def describe(address: str | Path, *, weights: Weights = "ema") -> dict[str, Any]:
    """The metadata of a weights file: description, recipe, pins and version.

    Empty for an address `source:rest`.
    """
    if _is_foreign(address):
        return {}
    path, run = Path(address), Run(address)
    if path.is_dir():
        path = run.best_file if weights == "best" else run.model_file
    return _open(path)[1]


def _is_foreign(address: str | Path) -> bool:
    """Whether the address is `source:rest` rather than a file or folder."""
    return ":" in str(address) and not Path(address).exists()


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
        raise InputError(
            f"{path} is damaged: its weights do not fit the network in its description"
        ) from error
    return generator.eval().requires_grad_(False)


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        remedy = "give a run folder or a weights file, or another project's checkpoint as "
        remedy += ", ".join(f"{source}:PATH" for source in plugins.names("source"))
        if str(path) in preset_names():
            remedy = f"it is a recipe's name; train it, `fewstep train {path} --out DIR`, for a run"
        raise InputError(f"{path} does not exist: {remedy}")
    from fewstep.pretrained.files import describe_file, describe_text

    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get(KEY)
            if note is not None:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                return tensors, json.loads(note)
    except (SafetensorError, OSError) as error:
        if path.suffix == ".safetensors":
            problem = describe_text(path) or error
            raise InputError(f"{path} is damaged or not a safetensors file: {problem}") from error
    raise InputError(describe_file(path))


def _save(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path, single_writer=True) as file:
        # pass the file's name: `safetensors.torch.save` would copy all weights in memory
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
