"""Run folders, and the paths of their files.

    runs/<name>/recipe.toml  progress.jsonl  samples/  model.safetensors  best.safetensors
                scores.jsonl  state/  report.html

`model.safetensors` contains the averaged weights and, in one metadata key, everything else that
`runs.load(path)` needs. `best.safetensors` is the same for the training step with the smallest
Fréchet distance. `state/` contains the training state with the raw (not averaged) weights, and
`scores.jsonl` the scores measured after training.
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor

from fewstep.checksums import (
    append_json_line,
    check_toml,
    json_line,
    read_json_lines,
    toml_with_check,
)
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.generator import Generator
from fewstep.paths import read_regular
from fewstep.weights_file import build_generator, read_weights_file, write_weights_file


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
            _replace(self.recipe_file, toml_with_check(tomli_w.dumps(recipe)).encode())

    def check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Check that this folder is new, or belongs to the recipe with this table.

        Raises: InputError with the first difference if it belongs to another recipe.
        """
        if self.recipe_file.exists():
            old, new = flatten(_read_toml(self.recipe_file)), flatten(recipe)
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
        lines = [json_line(line) for line in self.progress() if line["step"] <= step]
        _replace(self.progress_file, b"".join(lines))

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
        if not self.state_file.exists():
            return None
        remedy = "copy it again from where it is intact, or train into another --out"
        if self.model_file.exists():
            remedy += f", from its averaged weights with student.init={self.folder}"
        return read_weights_file(self.state_file, remedy=remedy)

    def raw_generator(self, *, allow_code: Collection[str] = ()) -> Generator:
        """The student with the raw (not averaged) weights of the last step."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.folder} has no state/, which contains the raw weights")
        tensors, note = state
        prefix = "method.student."
        raw = {f"denoiser.{k.removeprefix(prefix)}": v for k, v in tensors.items() if prefix in k}
        return build_generator(note, raw, self.state_file, allow_code)


def _replace(path: Path, content: bytes) -> None:
    with atomic_write(path, single_writer=True) as file:
        file.write(content)


def _read_toml(path: Path) -> dict[str, Any]:
    remedy = "copy it again from where it is intact, or give another --out"
    try:
        text = read_regular(path).decode()
        table = tomllib.loads(text)
    except ValueError as error:  # of the encoding, or of TOML
        raise InputError(f"{path} is damaged: {error}: {remedy}") from error
    if not check_toml(text):
        raise InputError(
            f"{path} was changed: its last line does not have the checksum of the others: {remedy}"
        )
    return table


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys such as `fit.seed`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
