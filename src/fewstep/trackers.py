"""Experiment trackers: a run's log and sample grids forwarded to TensorBoard, W&B or Trackio.

A follower reads the run folder as it grows; the training knows nothing of it. Beside what a tracker
writes, `RUN/TRACKER/sent.json` keeps how far it was told, so that a resumed run goes on there.
"""

import io
import json
import re
import secrets
import tomllib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from fewstep.distributed import first_rank
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.runs import Run

PROJECT = "fewstep"


class Tracker(ABC):
    """Where numbers and images are sent, by training step; steps come in order."""

    name: ClassVar[str]
    module: ClassVar[str]
    """What to import of its package."""
    rewrites: ClassVar[bool] = False
    """Whether it can forget steps and be told them again."""
    where: str = ""
    """How a person looks at it."""

    def __init__(self, run: Run, first: int) -> None:
        """For a run whose step `first` is logged next, perhaps not for the first time."""
        self.file = run.folder / self.name / "sent.json"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        told = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.id: str = told.get("id", secrets.token_hex(4))
        since: int = told.get("step", -1)
        self.since = min(since, first - 1) if self.rewrites else since
        """The last step that need not be sent again."""
        self.recipe = run.recipe_file.read_text() if run.recipe_file.exists() else ""

    @classmethod
    def require(cls) -> Any:
        """Its package. Raises: ImportError, or InputError for what a user must do first."""
        return import_module(cls.module)

    @abstractmethod
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of one step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture."""

    @abstractmethod
    def close(self) -> None:
        """Send what is still on its way."""

    def mark(self, step: int) -> None:
        """Remember that everything up to `step` has been sent."""
        with atomic_write(self.file, single_writer=True) as file:
            file.write(json.dumps({"step": step, "id": self.id}).encode())


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard."""

    name = "tensorboard"
    module = "torch.utils.tensorboard"
    rewrites = True

    def __init__(self, run: Run, first: int) -> None:
        super().__init__(run, first)
        self.where = f"tensorboard --logdir {self.file.parent}"
        writer = self.require().SummaryWriter
        self.writer = writer(str(self.file.parent), purge_step=self.since + 1)
        if self.since < 0:
            self.writer.add_text("recipe", f"```toml\n{self.recipe}\n```", 0)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def mark(self, step: int) -> None:
        self.writer.flush()  # else up to two minutes of it would be lost with the process
        super().mark(step)

    def close(self) -> None:
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, its files in RUN/wandb.

    A resumed run goes on after the last step that its server has: of what was on its way when a
    training was killed, nobody else knows. Offline, each session's files hold the whole run.
    """

    name = "wandb"
    module = "wandb"

    @classmethod
    def require(cls) -> Any:
        wandb = super().require()
        if wandb.run is None and wandb.setup().settings.mode == "online":
            try:
                wandb.login(verify=False)  # asks now, not from under the progress bar
            except wandb.Error as error:
                raise InputError(f"--track wandb: {error} Or set WANDB_MODE=offline.") from error
        return wandb

    def __init__(self, run: Run, first: int) -> None:
        super().__init__(run, first)
        self.package = wandb = self.require()
        self.run = wandb.init(
            project=PROJECT,
            id=self.id,
            name=run.folder.resolve().name,
            dir=str(run.folder),
            config=tomllib.loads(self.recipe),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.since = self.run.starting_step - 1
        offline = f"wandb sync {self.file.parent}/latest-run"
        self.where = offline if self.run.offline else self.run.url

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({name: self.package.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """A run of Trackio, in its own local store unless TRACKIO_SPACE_ID says otherwise."""

    name = "trackio"
    module = "trackio"
    where = f"trackio show --project {PROJECT}"

    def __init__(self, run: Run, first: int) -> None:
        super().__init__(run, first)
        self.package = self.require()
        with redirect_stdout(io.StringIO()):  # it greets with seven lines
            self.run = self.package.init(
                project=PROJECT,
                name=f"{run.folder.resolve().name}-{self.id}",  # it resumes by name
                config=tomllib.loads(self.recipe),
                resume="allow",
                embed=False,
            )
        # what it holds it tells nobody; its own counter is nearer the truth than ours, which knows
        # nothing of what was on its way when a training was killed
        self.since = getattr(self.run, "_next_step", self.since + 1) - 1

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({name: self.package.Image(str(path))}, step=step)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self.package.finish()


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (TensorBoard, WandB, Trackio)}


def require(names: Iterable[str]) -> None:
    """Check on the first rank that these trackers can be used.

    Raises: InputError that says what to install, or to do.
    """
    if not first_rank():
        return
    for name in names:
        try:
            TRACKERS[name].require()
        except ImportError as error:
            raise InputError(
                f"--track {name} needs a package that is not there ({error}): "
                "pip install 'fewstep[trackers]'"
            ) from error


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """A logged line in one level: the score {"steps": 1, "frechet": 9.5} under
    score/1-step/frechet."""
    told: dict[str, Any] = {}
    for key, value in line.items():
        if not isinstance(value, Mapping):
            told[key] = value
            continue
        inner = dict(value)
        steps = inner.pop("steps", None)
        place = key if steps is None else f"{key}/{steps}-step"
        told |= {f"{place}/{k}": v for k, v in flat(inner).items()}
    return told


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a logged line but its step, flat."""
    return {
        key: float(value)
        for key, value in flat(line).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"
    }


class Follower:
    """Forwards to one tracker what a run logs; to be made when the log has been rewound."""

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self.run = run
        self.tracker = tracker
        self.offset = 0
        self.pictures: set[Path] = set()
        self.stopped = False

    def forward(self) -> None:
        """Send the lines logged since the last call, and the pictures there are by now."""
        file = self.run.progress_file
        if file.exists() and file.stat().st_size > self.offset:  # most steps log nothing
            self._guarded(last=False)

    def close(self) -> None:
        """Send the rest, and no more after it."""
        self._guarded(last=True)
        self.stopped = True

    def _guarded(self, last: bool) -> None:
        if self.stopped:
            return
        try:
            self._send()
            if last:
                self.tracker.close()
        except Exception as error:  # whatever a tracker meets, the training goes on
            self.stopped = True
            _stopped(self.tracker.name, error)

    def _send(self) -> None:
        rows: dict[int, dict[str, float]] = {}
        for line in self._lines():
            rows.setdefault(line["step"], {}).update(numbers(line))
        pictures = self._pictures()
        steps = sorted(step for step in {*rows, *pictures} if step > self.tracker.since)
        for step in steps:
            if rows.get(step):
                self.tracker.numbers(step, rows[step])
            if step in pictures:
                self.tracker.image(step, "samples", pictures[step])
        if steps:
            self.tracker.mark(steps[-1])

    def _lines(self) -> list[dict[str, Any]]:
        if not self.run.progress_file.exists():
            return []
        with self.run.progress_file.open("rb") as file:
            file.seek(self.offset)
            whole = file.read().rpartition(b"\n")[0]  # the rest is still being written
        self.offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]

    def _pictures(self) -> dict[int, Path]:
        new = {*self.run.samples.glob("step-*.png")} - self.pictures
        self.pictures |= new
        found = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in new)
        return {int(match[1]): path for match, path in found if match}


def follow(run: Run, name: str, first: int) -> Follower | None:
    """A follower of a run whose step `first` has just been made; None, with a warning, where its
    tracker cannot be opened."""
    try:
        return Follower(run, TRACKERS[name](run, first))
    except Exception as error:
        _stopped(name, error)
        return None


def _stopped(name: str, error: Exception) -> None:
    told = " ".join(str(error).split()) or type(error).__name__
    warnings.warn(f"{name} is told no more, the training goes on: {told}", stacklevel=2)
