"""Description of a store: the plan, written before the first shard, and the final manifest.

Both are canonical JSON with its SHA-256, without dates or timings, so that equal content gives
equal files and any changed byte is detected.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fewstep.errors import InputError
from fewstep.paths import check_kind
from fewstep.store.codecs import Codec, codec_from
from fewstep.store.folder import Folder

FORMAT = 1
PLAN = "plan.json"
MANIFEST = "manifest.json"
SHARD_FILE = re.compile(r"shard-\d{5,}\.zst")
DAMAGE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
MAX_TENSORS = 1000
LONGEST = 300  # characters of a value in a message
MAX_RANK = 8  # dimensions of a tensor
MAX_RECORDS = 10**12  # more than a folder can hold, less than a range can count


@dataclass(frozen=True)
class Plan:
    """All settings that determine a store's bytes, except the records themselves.

    A writer resumes a store only if its plan is equal.
    """

    schema: Mapping[str, Codec]
    count: int
    shard_size: int
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not 1 <= len(self.schema) <= MAX_TENSORS:
            raise InputError(
                f"the schema has {len(self.schema)} tensors; a record needs 1 to {MAX_TENSORS}"
            )
        for name, codec in self.schema.items():
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InputError(f"tensor name {name!r}: use lower-case letters, digits and _")
            if len(codec.shape) > MAX_RANK or not all(_is_count(size) for size in codec.shape):
                raise InputError(
                    f"{name!r} has shape {codec.shape[:MAX_RANK]}; it must have at most {MAX_RANK} "
                    "entries, which are integers of at least 1"
                )
        for name in ("count", "shard_size"):
            number = getattr(self, name)
            if not _is_count(number) or number > MAX_RECORDS:
                raise InputError(f"{name} is {number!r}; it must be from 1 to {MAX_RECORDS}")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    def records(self, shard: int) -> range:
        """Numbers of the records in a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.count))

    def describe(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "format": FORMAT,
            "count": self.count,
            "shard_size": self.shard_size,
            "schema": {name: codec.describe() for name, codec in self.schema.items()},
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class Shard:
    """A complete shard: its file, number of records, length in bytes and SHA-256."""

    file: str
    count: int
    bytes: int
    sha256: str

    @property
    def number(self) -> int:
        return int(self.file.removeprefix("shard-").removesuffix(".zst"))


@dataclass(frozen=True)
class Manifest:
    """Description of a finished store: its plan and all shards."""

    plan: Plan
    shards: tuple[Shard, ...]

    def describe(self) -> dict[str, Any]:
        return {**self.plan.describe(), "shards": [vars(shard) for shard in self.shards]}

    @property
    def hash(self) -> str:
        """SHA-256 that identifies the store's content: it covers the SHA-256 of each shard."""
        return _digest(self.describe())


Document = TypeVar("Document", Plan, Manifest)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.zst"


def seal(content: Mapping[str, Any]) -> bytes:
    """Bytes of a plan's or manifest's file: canonical JSON and its SHA-256."""
    document = {"content": content, "sha256": _digest(content)}
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_plan(folder: Folder) -> Plan:
    """The plan of an unfinished store.  Raises: InputError if damaged."""
    return _read(folder, PLAN, _plan_from)


def read_unfinished(folder: Folder) -> tuple[Plan, tuple[Shard, ...]] | None:
    """The plan and the existing shards, without their SHA-256, of an unfinished store.

    Returns None if the store is finished or there is none.
    """
    sizes = folder.sizes()
    if MANIFEST in sizes or PLAN not in sizes:
        return None
    plan = read_plan(folder)
    files = (Shard(name, 0, size, "") for name, size in sizes.items() if SHARD_FILE.fullmatch(name))
    shards = sorted((s for s in files if s.number < plan.shards), key=lambda shard: shard.number)
    return plan, tuple(replace(s, count=len(plan.records(s.number))) for s in shards)


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a finished store.  Raises: InputError if unfinished, missing or damaged."""
    names = folder.sizes()
    if MANIFEST in names:
        return _read(folder, MANIFEST, _manifest_from)
    if PLAN in names:
        raise InputError(f"{folder} is not finished: run the same recording again to complete it")
    check_kind(str(folder), "store")
    raise InputError(f"{folder} holds no teacher data: it has no {MANIFEST}; record into it first")


def differences(old: Plan, new: Plan) -> list[str]:
    """A phrase for each setting in which the plan in the folder and the new plan differ."""
    stored, current = dict(_leaves(old.describe())), dict(_leaves(new.describe()))
    keys = stored | current
    pairs = {key: (stored.get(key, "absent"), current.get(key, "absent")) for key in keys}
    return [
        f"{key[:LONGEST]} is {_short(a)} there and {_short(b)} here"
        for key, (a, b) in sorted(pairs.items())
        if a != b
    ]


def _short(value: object) -> str:
    """The value as in Python, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}" if key else name)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1  # not True, nor 1.0


def _read(folder: Folder, name: str, parse: Callable[[dict[str, Any]], Document]) -> Document:
    raw = folder.read(name)
    try:
        content = json.loads(raw)["content"]
        # compared as bytes: the same JSON in another layout is also treated as damage
        if not isinstance(content, dict) or seal(content) != raw:
            raise ValueError("its checksum does not match")
        return parse(content)
    except InputError as error:
        raise InputError(f"{folder}/{name}: {error}") from None
    except DAMAGE_ERRORS as error:
        raise InputError(f"{folder}/{name} is damaged: {str(error)[:LONGEST]}") from None


def _plan_from(content: dict[str, Any]) -> Plan:
    if content["format"] != FORMAT:
        raise InputError(
            f"it has format {_short(content['format'])}; this version reads {FORMAT}: upgrade"
        )
    plan = Plan(
        schema={name: codec_from(entry) for name, entry in content["schema"].items()},
        count=content["count"],
        shard_size=content["shard_size"],
        provenance=content["provenance"],
    )
    if plan.describe() != content:
        raise ValueError("it has unknown entries")
    return plan


def _manifest_from(content: dict[str, Any]) -> Manifest:
    entries = content.pop("shards")
    plan = _plan_from(content)
    shards = tuple(Shard(**entry) for entry in entries)
    if len(shards) != plan.shards:
        raise ValueError(f"it lists {len(shards)} shards, but the plan has {plan.shards}")
    for number, shard in enumerate(shards):
        # only this name is allowed: no manifest can point outside its folder
        if shard.file != shard_name(number) or shard.count != len(plan.records(number)):
            raise ValueError(f"shard {number} is listed as {shard.file!r}, {shard.count!r} records")
        if not _is_count(shard.bytes) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"it gives no valid length or SHA-256 for {shard.file}")
    return Manifest(plan, shards)
