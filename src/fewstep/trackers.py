"""Experiment trackers: forward a run's log and sample grids to TensorBoard, W&B or Trackio.

A `Follower` reads the run folder while training writes it; the training loop does not call it. The
file `RUN/TRACKER/sent.json` records the last step that was sent, so that a resumed run continues
there.
"""

import io
import json
import re
import secrets
import tomllib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from fewstep import plugins
from fewstep.checksums import parse_json_lines, read_checked_json, with_check
from fewstep.distributed import first_rank
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.run_folder import Run

PROJECT = "fewstep"


class Tracker(ABC):
    """Base class of trackers, which receive numbers and images in order of training steps."""

    name: ClassVar[str]
    module: ClassVar[str]
    """The module to import from the tracker's package."""
    rewrites: ClassVar[bool] = False
    """Whether steps that were sent can be deleted and sent again."""
    where: str = ""
    """The address or command that shows the tracked run."""

    def __init__(self, run: Run, first_step: int) -> None:
        """`first_step` is the next step that the run logs. A resumed run may log it again."""
        self.file = run.folder / self.name / "sent.json"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        remedy = "delete it, and the run is sent again from its start"
        sent = read_checked_json(self.file, remedy) if self.file.exists() else {}
        self.id: str = sent.get("id", secrets.token_hex(4))
        since: int = sent.get("step", -1)
        self.since = min(since, first_step - 1) if self.rewrites else since
        """Only steps after this one are sent."""
        self.recipe = run.recipe_file.read_text() if run.recipe_file.exists() else ""

    @classmethod
    def require(cls) -> Any:
        """Import the package. Raises ImportError, or InputError if the user must log in first."""
        return import_module(cls.module)

    @abstractmethod
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of one step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Send an image file."""

    @abstractmethod
    def close(self) -> None:
        """Send what is still queued, and end the tracked run."""

    def mark(self, step: int) -> None:
        """Write to sent.json that everything up to `step` has been sent."""
        with atomic_write(self.file) as file:
            file.write(json.dumps(with_check({"step": step, "id": self.id})).encode())


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard."""

    name = "tensorboard"
    module = "torch.utils.tensorboard"
    rewrites = True

    def __init__(self, run: Run, first_step: int) -> None:
        super().__init__(run, first_step)
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

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def mark(self, step: int) -> None:
        self.writer.flush()  # a killed process would lose up to two minutes of events
        super().mark(step)

    def close(self) -> None:
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, with its files in RUN/wandb.

    A resumed run continues after the last step that the server has, because only the server knows
    what arrived before the process was killed. Offline, the files of each session contain the whole
    run.
    """

    name = "wandb"
    module = "wandb"

    @classmethod
    def require(cls) -> Any:
        wandb = super().require()
        if wandb.run is None and wandb.setup().settings.mode == "online":
            try:
                wandb.login(verify=False)  # prompt now, not below the progress bar
            except wandb.Error as error:
                raise InputError(f"--track wandb: {error} Or set WANDB_MODE=offline.") from error
        return wandb

    def __init__(self, run: Run, first_step: int) -> None:
        super().__init__(run, first_step)
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
    """A run of Trackio, in its local database unless TRACKIO_SPACE_ID names a Space."""

    name = "trackio"
    module = "trackio"
    where = f"trackio show --project {PROJECT}"

    def __init__(self, run: Run, first_step: int) -> None:
        super().__init__(run, first_step)
        self.package = self.require()
        with redirect_stdout(io.StringIO()):  # hide the seven lines that it prints
            self.run = self.package.init(
                project=PROJECT,
                name=f"{run.folder.resolve().name}-{self.id}",  # Trackio resumes by name
                config=tomllib.loads(self.recipe),
                resume="allow",
                embed=False,
            )
        # no public attribute tells which steps arrived before the process was killed; Trackio's
        # step counter is the best estimate
        self.since = getattr(self.run, "_next_step", self.since + 1) - 1

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({name: self.package.Image(str(path))}, step=step)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self.package.finish()


def require(names: Iterable[str]) -> None:
    """Check on the first rank that these trackers can be used.

    Raises InputError if a package is missing or the user must log in first.
    """
    if not first_rank():
        return
    for name in names:
        try:
            plugins.resolve("tracker", name).require()
        except ImportError as error:
            raise InputError(
                f"--track {name} needs a package that is not installed ({error}): "
                "pip install 'fewstep[trackers]'"
            ) from error


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a logged line: {"score": {"steps": 1, "frechet": 9.5}} becomes
    {"score/1-step/frechet": 9.5}."""
    cells: dict[str, Any] = {}
    for key, value in line.items():
        if not isinstance(value, Mapping):
            cells[key] = value
            continue
        inner = dict(value)
        steps = inner.pop("steps", None)
        prefix = key if steps is None else f"{key}/{steps}-step"
        cells |= {f"{prefix}/{k}": v for k, v in flat(inner).items()}
    return cells


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a flattened line, without its step and the number of all steps."""
    return {
        key: float(value)
        for key, value in flat(line).items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key not in ("step", "total")
    }


class Follower:
    """Forwards a run's log to one tracker. Create it after `Run.rewind` has shortened the log."""

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self.run = run
        self.tracker = tracker
        self.offset = self.lines = 0
        self.images: set[Path] = set()
        self.stopped = False

    def forward(self) -> None:
        """Send the lines and images that are new since the last call."""
        file = self.run.progress_file
        if file.exists() and file.stat().st_size > self.offset:  # most steps log nothing
            self._send_safely(last=False)

    def close(self) -> None:
        """Send the rest and close the tracker."""
        self._send_safely(last=True)
        self.stopped = True

    def _send_safely(self, last: bool) -> None:
        """Send what is new; an error ends the tracking with a warning, not the training."""
        if self.stopped:
            return
        try:
            self._send()
            if last:
                self.tracker.close()
        except Exception as error:  # trackers raise errors of many types
            self.stopped = True
            _warn_stopped(self.tracker.name, error)

    def _send(self) -> None:
        rows: dict[int, dict[str, float]] = {}
        for line in self._lines():
            rows.setdefault(line["step"], {}).update(numbers(line))
        images = self._new_images()
        steps = sorted(step for step in {*rows, *images} if step > self.tracker.since)
        for step in steps:
            if rows.get(step):
                self.tracker.numbers(step, rows[step])
            if step in images:
                self.tracker.image(step, "samples", images[step])
        if steps:
            self.tracker.mark(steps[-1])

    def _lines(self) -> list[dict[str, Any]]:
        if not self.run.progress_file.exists():
            return []
        with self.run.progress_file.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]  # the rest is still being written
        self.offset, first = self.offset + len(content), self.lines + 1
        self.lines += content.count(b"\n")
        return parse_json_lines(content, self.run.progress_file, first=first)

    def _new_images(self) -> dict[int, Path]:
        new = {*self.run.samples.glob("step-*.png")} - self.images
        self.images |= new
        matches = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in new)
        return {int(match[1]): path for match, path in matches if match}


def follow(run: Run, name: str, first_step: int) -> Follower | None:
    """Open the tracker `name` for a run that has just finished `first_step`, its first step since
    it started or resumed. Returns None, with a warning, if the tracker cannot be opened."""
    try:
        return Follower(run, plugins.resolve("tracker", name)(run, first_step))
    except Exception as error:
        _warn_stopped(name, error)
        return None


class Tracking:
    """Forwards one run to any number of trackers, which are opened at the first call of `forward`.

    `announce` is called with one line of text for each open tracker. Raises InputError if a tracker
    cannot be used.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], announce: Callable[[str], object]
    ) -> None:
        self.run = Run(folder)
        self.names = list(dict.fromkeys(names))
        self.announce = announce
        self.followers: list[Follower] | None = None
        require(self.names)

    def forward(self, step: int) -> None:
        """Send the lines and images that the run has written up to this step."""
        if self.followers is None:
            # not before: the training first claims the folder and rewinds its log
            self.followers = self._open(step)
        for follower in self.followers:
            follower.forward()

    def close(self) -> None:
        """Send the rest and close the trackers."""
        for follower in self.followers or ():
            follower.close()

    def _open(self, step: int) -> list[Follower]:
        if not self.names or not first_rank():
            return []
        attempts = [follow(self.run, name, step) for name in self.names]
        followers = [follower for follower in attempts if follower]
        for follower in followers:
            self.announce(f"tracked: {follower.tracker.where}")
        return followers


def _warn_stopped(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    warnings.warn(f"{name} failed, training continues without it: {reason}", stacklevel=2)
