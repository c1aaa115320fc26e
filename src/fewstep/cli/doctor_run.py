"""`fewstep doctor RUN`: check every file of a run, or a weights file; what the run still owes."""

from collections.abc import Callable, Iterator
from pathlib import Path

from fewstep import runs
from fewstep.autoencoder_files import load_autoencoder
from fewstep.averaging import read_note
from fewstep.errors import InputError
from fewstep.formatting import quantity
from fewstep.images import read_picture
from fewstep.likelihood_score import likelihood_from
from fewstep.models import find_model
from fewstep.paths import identify
from fewstep.plugins import name_of
from fewstep.run_folder import Run
from fewstep.scores import score_from
from fewstep.text.base import TextEncoder, encoder_hash
from fewstep.weights_file import AUTOENCODER, AVERAGES, read_weights_file

Line = tuple[str, str]
DAMAGED = "damaged"
"""Name of a line about a file that cannot be used."""


def find_weights(address: str) -> Path | None:
    """The run folder or weights file at an address; None if it is something else."""
    path = Path(address)
    if not path.exists():
        return find_model(address)
    return path if identify(path) == "run" or path.suffix == ".safetensors" else None


def describe_run(path: Path) -> Iterator[Line]:
    """Lines about a run folder or weights file, as (name, text)."""
    if not path.is_dir():
        yield _check(path.name, path, lambda: _weights(path))
        return
    run = Run(path)
    yield "run", str(run.folder)
    yield "lock", run.owner() or "free: no process trains it"
    yield _check("recipe", run.recipe_file, lambda: _recipe(run))
    state = _check("state", run.state_file, lambda: _state(run))
    yield state
    for name, file in (("model", run.model_file), ("best", run.best_file)):
        yield _check(name, file, lambda file=file: _weights(file))
    yield _check("log", run.progress_file, lambda: _log(run))
    yield _check("scores", run.scores_file, lambda: _scores(run))
    snapshots = [*run.snapshots().values()]
    for file in snapshots:
        if (line := _check("averages", file, lambda file=file: _snapshot(file)))[0] == DAMAGED:
            yield line
    if snapshots:
        yield "averages", quantity(len(snapshots), "snapshot")
    for file in run.grids():
        if (line := _check("samples", file, lambda file=file: _picture(file)))[0] == DAMAGED:
            yield line
    yield "samples", quantity(len(run.grids()), "picture")
    yield "owes", _owes(run, state)


def _check(name: str, file: Path, describe: Callable[[], str]) -> Line:
    """A line on a file, which `describe` reads."""
    if not file.exists() and not file.is_symlink():
        return name, f"none: there is no {file.name}"
    try:
        return name, describe()
    except InputError as error:
        return DAMAGED, str(error)
    except OSError as error:
        return DAMAGED, f"{file} cannot be read: {error.strerror or error}"


def _recipe(run: Run) -> str:
    table = run.recipe() or {}
    method = table.get("method", {}).get("name", "")
    return f"checksum matches; method {method}, {table.get('fit', {}).get('steps')} steps"


def _state(run: Run) -> str:
    state = run.state()
    assert state
    tensors, note = state
    progress = f"step {note.get('step')} of {note.get('total')}"
    return f"SHA-256 matches; {progress}, {quantity(len(tensors), 'tensor')}"


def _snapshot(file: Path) -> str:
    read_weights_file(file)
    step = read_note(file)["step"]
    return f"SHA-256 matches; snapshot of averages, step {step}"


def _weights(file: Path) -> str:
    tensors, note = read_weights_file(file)
    if note.get("kind") == AUTOENCODER:
        autoencoder = load_autoencoder(file)
        shapes = ("x".join(map(str, s)) for s in (autoencoder.shape, autoencoder.latent_shape))
        text = f"autoencoder {autoencoder.hash[:16]}, images {' to latents '.join(shapes)}"
        return f"SHA-256 matches; {text}"
    if note.get("kind") == AVERAGES:
        return _snapshot(file)
    generator = runs.load(file, verify=False)  # which finds a description that is of no use
    count = sum(tensor.numel() for tensor in tensors.values())
    digest = runs.weights_hash(generator)[:16]
    step = f", step {note['step']}" if "step" in note else ""
    encoder = generator.spec.text
    text = f", prompts of {encoder.length} tokens by {_name(encoder)}" if encoder else ""
    return f"SHA-256 matches; {count:,} numbers, weights {digest}{step}{text}"


def _name(encoder: TextEncoder) -> str:
    """The name of a text encoder, with the start of its hash."""
    return f"{name_of('text-encoder', type(encoder))} ({encoder_hash(encoder)[:12]})"


def _log(run: Run) -> str:
    lines = run.progress()
    last = f", the last of step {lines[-1]['step']}" if lines else ""
    return f"checksums match; {quantity(len(lines), 'line')}{last}"


def _scores(run: Run) -> str:
    lines = run.scores()
    for line in lines:
        if "likelihood" in line:
            likelihood_from(line["likelihood"])
        else:
            score_from(line.get("score", {}))
    return f"checksums match; {quantity(len(lines), 'score')}"


def _picture(file: Path) -> str:
    read_picture(file)
    return "intact"


def _owes(run: Run, state: Line) -> str:
    if state[0] == DAMAGED:
        return "unknown, because the state is damaged"
    names = run.missing()
    if not names:
        return "nothing" if run.state_file.exists() else "unknown, because there is no state"
    return f"{', '.join(names)}: the same `fewstep train` command writes what is missing"
