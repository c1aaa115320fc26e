"""Run folders, and the paths of their files.

    runs/<name>/recipe.toml  progress.jsonl  samples/  model.safetensors  best.safetensors
                scores.jsonl  state/  averages/  report.html  .lock

`model.safetensors` contains the averaged weights and, in one metadata key, everything else that
`runs.load(path)` needs. `best.safetensors` is the same for the training step with the smallest
Fréchet distance. `state/` contains the training state with the raw (not averaged) weights, and
`scores.jsonl` the scores measured after training. `averages/` contains the snapshots of averages
with a power profile, if the recipe asks for any. `.lock` exists while a process trains the run.

Every file is written whole or not at all, and the state after all that belongs to its step.
"""

import reprlib
import tomllib
from collections.abc import Callable, Collection, Mapping
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
from fewstep.files import LOCK, TEMPORARY, atomic_write
from fewstep.generator import Generator
from fewstep.paths import read_regular
from fewstep.weights_file import (
    build_generator,
    method_name,
    read_description,
    read_weights_file,
    write_weights_file,
)


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
        return sorted(path for path in self.samples.glob("step-*.png") if path.stem[5:].isdecimal())

    @property
    def averages(self) -> Path:
        return self.folder / "averages"

    def snapshot_file(self, step: int) -> Path:
        """The averages with a power profile at a training step."""
        return self.averages / f"step-{step:07}.safetensors"

    def snapshots(self) -> dict[int, Path]:
        """The files of these averages by their training step, oldest first."""
        paths = sorted(self.averages.glob("step-*.safetensors"))
        return {int(path.stem[5:]): path for path in paths if path.stem[5:].isdecimal()}

    def remove_snapshots(self, after: int) -> None:
        """Remove those of later steps, which a resumed run writes again."""
        for step, path in self.snapshots().items():
            if step > after:
                path.unlink()

    @property
    def report_file(self) -> Path:
        return self.folder / "report.html"

    def grid_file(self, step: int) -> Path:
        """The sample grid of a training step."""
        return self.samples / f"step-{step:07}.png"

    def name_of(self, file: Path) -> str:
        """The name of one of its files in this folder, such as "samples/step-0000010.png"."""
        return file.relative_to(self.folder).as_posix()

    def check_folder(self) -> None:
        """Raise InputError for a folder that has files, but is no run folder."""
        if self.recipe_file.exists() or not self.folder.exists():
            return
        unfinished = (LOCK, self.recipe_file.name + TEMPORARY)  # of a process killed at its start
        if any(path.name not in unfinished for path in self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is not empty and is not a run folder: it has no recipe.toml; give "
                "another --out"
            )

    def owner(self) -> str | None:
        """The process that trains this run, such as "process 71 on host"; None if there is none."""
        from fewstep.locks import lock_owner  # `load` does not need it

        return lock_owner(self.folder)

    def recipe(self) -> dict[str, Any] | None:
        """The table of the run's recipe; None before its first training step."""
        return _read_toml(self.recipe_file) if self.recipe_file.exists() else None

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe's table into this folder, unless it is there."""
        if self.recipe() != recipe:
            _replace(self.recipe_file, _toml_bytes(recipe))

    def clear_leftovers(self) -> None:
        """Remove temporary files of killed processes. Not while another one trains."""
        for folder in (self.folder, self.samples, self.averages, self.state_file.parent):
            # the second pattern is that of safetensors
            for pattern in (f"*{TEMPORARY}", ".tmp??????"):
                for path in folder.glob(pattern):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what was trained, so that the run starts again; the recipe remains."""
        trained = (self.state_file, self.model_file, self.best_file, self.report_file)
        for path in (*trained, *self.grids()):
            path.unlink(missing_ok=True)
        self.rewind(-1)

    def missing(self) -> list[str]:
        """What the saved step still owes: files by their names in the folder, and "scores".

        The same training command completes it.
        """
        note = self.state_note()
        if note is None:
            return []
        names = [name for name in note["files"] if not (self.folder / name).exists()]
        names += ["scores"] if note["unscored"] else []
        lacks_report = not self.report_file.exists() and not self.is_autoencoder
        return names + [self.report_file.name] * (note["step"] == note["total"] and lacks_report)

    @property
    def is_autoencoder(self) -> bool:
        """Whether the run trains an autoencoder, whose folder has no report."""
        return method_name(self.recipe()) == "autoencode"

    def progress(self) -> list[dict[str, Any]]:
        """The logged lines, oldest first, except a last line that a crash left incomplete."""
        return [
            line
            for line in read_json_lines(self.progress_file)
            if isinstance(line.get("step"), int)
        ]

    def nonfinite_step(self) -> int | None:
        """The last finished step, if the run ended with a loss or gradient that is not finite."""
        lines = self.progress()
        return lines[-1]["step"] if lines and "nonfinite" in lines[-1] else None

    def rewind(self, step: int) -> None:
        """Remove the logged lines after training step `step`; a resumed run writes them again."""
        self.keep_lines(lambda line: line["step"] <= step)

    def keep_lines(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Remove the logged lines that do not fulfil a condition."""
        lines = [json_line(line) for line in self.progress() if condition(line)]
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
        tensors, note = read_weights_file(self.state_file, remedy=self._state_remedy())
        _check_state(note, self.state_file)
        return tensors, note

    def state_note(self) -> dict[str, Any] | None:
        """The JSON object of `state` alone, whose tensors are not read."""
        if not self.state_file.exists():
            return None
        note = read_description(self.state_file, remedy=self._state_remedy())
        _check_state(note, self.state_file)
        return note

    def _state_remedy(self) -> str:
        """What to do about a damaged state."""
        remedy = "copy it again from where it is intact, or train into another --out"
        if self.model_file.exists():
            remedy += f", from its averaged weights with student.init={self.folder}"
        return remedy

    def raw_generator(self, *, allow_code: Collection[str] = ()) -> Generator:
        """The student with the raw (not averaged) weights of the last step."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.folder} has no state/, which contains the raw weights")
        tensors, note = state
        prefix = "method.student."
        raw = {f"denoiser.{k.removeprefix(prefix)}": v for k, v in tensors.items() if prefix in k}
        if note["description"].get("decoder"):  # training does not change it
            model, _ = read_weights_file(self.model_file)
            raw |= {name: value for name, value in model.items() if name.startswith("decoder.")}
        return build_generator(note, raw, self.state_file, allow_code)


_STATE: dict[str, tuple[Any, Any]] = {
    "step": (int, None),
    "total": (int, None),
    "players": (list, str),
    "skips": (dict, list),
    "pins": (dict, str),
    "files": (list, str),
    "unscored": (bool, None),
    "latest": (dict, int | float),
    "norm": (int | float, None),
    "growth": (int | float, None),
    "hardware": (str, None),
}
"""Types of the values in the JSON object of a state, and of their items."""


def _check_state(note: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a state that another version wrote, or one that was made by hand."""
    for key, (kind, item_kind) in _STATE.items():
        value = note.get(key)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        items: Any = value.values() if isinstance(value, dict) else value
        if not fits or (item_kind and not all(isinstance(item, item_kind) for item in items)):
            raise InputError(
                f"{path} is no state of this version of fewstep: its {key} is "
                f"{reprlib.repr(value)}; train into another --out"
            )


def _toml_bytes(recipe: Mapping[str, Any]) -> bytes:
    # a path that is not UTF-8 is written as its bytes
    return toml_with_check(tomli_w.dumps(recipe)).encode("utf-8", "surrogateescape")


def _replace(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _read_toml(path: Path) -> dict[str, Any]:
    remedy = "copy it again from where it is intact, or give another --out"
    try:
        text = read_regular(path).decode("utf-8", "surrogateescape")
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
