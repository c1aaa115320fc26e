"""The state of the page: what its address, such as `/?view=morph&seed=7`, contains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fewstep.errors import InputError
from fewstep.studio.starts import MAX_SEED, Start, parse_start

VIEWS = ("compare", "seeds", "morph", "paint", "path", "training", "data", "report")
IN_TURN = "in turn"
"""Label: the class of a picture is its seed modulo the number of classes."""
NO_CLASS = "none"
COUNTS = (1, 4, 9, 16, 25, 36)
"""Numbers of pictures that a view can show of each model."""
MAX_MODELS = 8
MAX_GUIDANCE = 6.0
MAX_PROMPT = 1000
"""Characters of a prompt: browsers and servers limit the length of addresses."""
MIN_NEAR = 0.02


@dataclass(frozen=True)
class State:
    """Everything that a visitor chose. Fields with their default values are not in the address."""

    view: str = "compare"
    models: tuple[str, ...] = ()
    """Names of the catalogue; none means the first ones."""
    steps: tuple[str, ...] = ()
    """Step counts that differ from a model's default, as `count@name`."""
    label: str = IN_TURN
    """A class number, `in turn` or `none`."""
    prompt: str = ""
    """What to draw; empty for captions in turn."""
    negative: str = ""
    guidance: float = 1.0
    seed: int = 0
    count: int = 9
    left: str = ""
    right: str = ""
    start: str = ""
    """Name of the start around which neighbours are shown; empty: that of `seed`."""
    pins: tuple[str, ...] = ()
    """Names of the pinned starts; the first four are the corners of the morph."""
    near: float = 0.25
    """Share of the way to a neighbour."""
    corners: int = 2
    x: float = 0.5
    y: float = 0.5
    freedom: float = 0.5
    model: str = ""
    """The one model of views that show a single one."""
    run: str = ""
    """The run whose training is shown."""
    store: str = ""
    page: int = 1
    report: str = ""

    def steps_of(self, name: str, default: int) -> int:
        """Step count of the model `name`."""
        for entry in self.steps:
            count, _, model = entry.partition("@")
            if model == name:
                return int(count)
        return default

    def pinned(self) -> list[Start]:
        """The pinned starts."""
        return [parse_start(text) for text in self.pins]

    def corner_starts(self, count: int) -> list[Start]:
        """The first `count` pinned starts; the seeds from `seed` on stand in for missing ones."""
        pinned = self.pinned()[:count]
        others = (Start(seed % (MAX_SEED + 1)) for seed in range(self.seed, self.seed + 2 * count))
        while len(pinned) < count:
            other = next(others)
            if other not in pinned:
                pinned.append(other)
        return pinned

    def selected_start(self) -> Start:
        """The start whose neighbours are shown."""
        return parse_start(self.start) if self.start else Start(self.seed)


def to_query(state: State) -> dict[str, list[str]]:
    """The parameters of the page's address; those with default values are left out."""
    query: dict[str, list[str]] = {}
    for field in fields(State):
        value = getattr(state, field.name)
        if value != field.default:
            values: Sequence[Any] = value if isinstance(value, tuple) else (value,)
            query[field.name] = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return query


def from_query(query: Mapping[str, Sequence[str]]) -> tuple[State, list[str]]:
    """The state of an address, and one line for each parameter that is wrong and left out."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, texts in query.items():
        read = _READERS.get(name)
        if read is None:
            problems.append(f"the address has an unknown parameter {name[:40]!r}")
            continue
        try:
            values[name] = read(texts)
        except (ValueError, IndexError) as error:
            reason = str(error) if isinstance(error, InputError) else "it cannot be read"
            problems.append(f"{name} in the address is left out: {reason}")
    return State(**values), problems


Reader = Callable[[Sequence[str]], Any]


def _one_of(*choices: Any) -> Reader:
    def read(texts: Sequence[str]) -> Any:
        for choice in choices:
            if str(choice) == texts[-1]:
                return choice
        raise InputError(f"{texts[-1][:40]!r} is not one of {', '.join(map(str, choices))}")

    return read


def _number(low: float, high: float, kind: Callable[[str], Any] = float) -> Reader:
    def read(texts: Sequence[str]) -> Any:
        value = kind(texts[-1])
        if not low <= value <= high:
            raise InputError(f"{texts[-1][:40]} is not within {low:,} to {high:,}")
        return value

    return read


def _text(texts: Sequence[str]) -> str:
    return texts[-1]


def _prompt(texts: Sequence[str]) -> str:
    if len(texts[-1]) > MAX_PROMPT:
        raise InputError(f"it has {len(texts[-1]):,} characters, and at most {MAX_PROMPT:,} fit")
    return texts[-1]


def _models(texts: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(texts))
    if len(names) > MAX_MODELS:
        raise InputError(f"it has {len(names)} runs, and at most {MAX_MODELS} fit")
    return names


def _label(texts: Sequence[str]) -> str:
    if texts[-1] in (IN_TURN, NO_CLASS):
        return texts[-1]
    return str(_number(0, 10**6, int)(texts))


def _step_counts(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        _number(1, 1000, int)([text.partition("@")[0]])
    return tuple(texts)


def _starts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(parse_start(text)) for text in texts)


_READERS: dict[str, Reader] = {
    "view": _one_of(*VIEWS),
    "models": _models,
    "steps": _step_counts,
    "label": _label,
    "prompt": _prompt,
    "negative": _prompt,
    "guidance": _number(0, MAX_GUIDANCE),
    "seed": _number(0, MAX_SEED, int),
    "count": _one_of(*COUNTS),
    "left": _text,
    "right": _text,
    "start": lambda texts: _starts(texts)[-1],
    "pins": _starts,
    "near": _number(MIN_NEAR, 1),
    "corners": _one_of(2, 4),
    "x": _number(0, 1),
    "y": _number(0, 1),
    "freedom": _number(0, 1),
    "model": _text,
    "run": _text,
    "store": _text,
    "page": _number(1, 10**12, int),
    "report": _text,
}
