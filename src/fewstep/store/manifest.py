"""What a store is: the plan, pinned before the first shard; the manifest, which seals the last.

Both are JSON beside its own SHA-256, in one canonical spelling without dates or timings, so that
equal content gives equal files and a changed byte anywhere is noticed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fewstep.errors import InputError
from fewstep.store.codecs import Codec, codec_from
from fewstep.store.folder import Folder

FORMAT = 1
PLAN = "plan.json"
MANIFEST = "manifest.json"
NAMED = re.compile(r"shard-\d{5,}\.zst")
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
MOST = 10**12  # records: beyond what a folder can hold, and within what a range can count


@dataclass(frozen=True)
class Plan:
    """All that decides a store's bytes but the records; a writer resumes only an equal plan."""

    schema: Mapping[str, Codec]
    count: int
    shard_size: int
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.schema:
            raise InputError("the schema is empty; a record needs at least one tensor")
        for name, codec in self.schema.items():
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InputError(f"tensor name {name!r}: use small letters, digits and _")
            if not all(_whole(size, least=1) for size in codec.shape):
                raise InputError(
                    f"{name!r} has shape {codec.shape}; sizes are whole and at least 1"
                )
        for what in ("count", "shard_size"):
            if not _whole(getattr(self, what), least=1) or getattr(self, what) > MOST:
                raise InputError(f"{what} is {getattr(self, what)!r}; it counts from 1 to {MOST}")

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def records(self, shard: int) -> range:
        """The records of a shard: it depends on nothing but the plan."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.count))

    def describe(self) -> dict[str, Any]:
        """Plain JSON, from which `plan_from` makes an equal plan."""
        return {
            "format": FORMAT,
            "count": self.count,
            "shard_size": self.shard_size,
            "schema": {name: codec.describe() for name, codec in self.schema.items()},
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class Shard:
    """A whole shard's file, and what it must be."""

    file: str
    count: int
    bytes: int
    sha256: str

    @property
    def number(self) -> int:
        return int(self.file.removeprefix("shard-").removesuffix(".zst"))


@dataclass(frozen=True)
class Manifest:
    """A finished store: its plan and every shard. `hash` identifies the content."""

    plan: Plan
    shards: tuple[Shard, ...]

    def describe(self) -> dict[str, Any]:
        return {**self.plan.describe(), "shards": [vars(shard) for shard in self.shards]}

    @property
    def hash(self) -> str:
        return _digest(self.describe())


Sealed = TypeVar("Sealed", Plan, Manifest)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.zst"


def seal(content: Mapping[str, Any]) -> bytes:
    """The file of a plan or manifest: its content in one spelling, and that content's SHA-256."""
    document = {"content": content, "sha256": _digest(content)}
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_plan(folder: Folder) -> Plan:
    """What an unfinished store was begun with."""
    return _read(folder, PLAN, _plan_from)


def unfinished(folder: Folder) -> tuple[Plan, tuple[Shard, ...]] | None:
    """The plan of a store still being recorded, and the shards that are there, without their
    SHA-256; None for a finished store, or none."""
    sizes = folder.sizes()
    if MANIFEST in sizes or PLAN not in sizes:
        return None
    plan = read_plan(folder)
    found = (Shard(name, 0, size, "") for name, size in sizes.items() if NAMED.fullmatch(name))
    ours = sorted((s for s in found if s.number < plan.shards), key=lambda shard: shard.number)
    return plan, tuple(replace(s, count=len(plan.records(s.number))) for s in ours)


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a finished store, checked; `InputError` for what is unfinished or damaged."""
    names = folder.sizes()
    if MANIFEST in names:
        return _read(folder, MANIFEST, _manifest_from)
    if PLAN in names:
        raise InputError(f"{folder} is not finished: run the same recording again to complete it")
    raise InputError(f"{folder} holds no teacher data: it has no {MANIFEST}; record some into it")


def differences(found: Plan, asked: Plan) -> list[str]:
    """What a resumed writer asks otherwise than the plan it found, a phrase each."""
    there, here = dict(_leaves(found.describe())), dict(_leaves(asked.describe()))
    pairs = {key: (there.get(key, "absent"), here.get(key, "absent")) for key in there | here}
    return [
        f"{key} is {old!r} there and {new!r} here"
        for key, (old, new) in sorted(pairs.items())
        if old != new
    ]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}" if key else name)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(value: object, *, least: int) -> bool:
    return type(value) is int and value >= least


def _read(folder: Folder, name: str, parse: Callable[[dict[str, Any]], Sealed]) -> Sealed:
    raw = folder.read(name)
    try:
        content = json.loads(raw)["content"]
        if (
            not isinstance(content, dict) or seal(content) != raw
        ):  # another spelling is a changed byte too
            raise ValueError("its checksum does not match")
        return parse(content)
    except InputError as error:
        raise InputError(f"{folder}/{name}: {error}") from None
    except DAMAGE as error:
        raise InputError(f"{folder}/{name} is damaged: {error}") from None


def _plan_from(content: dict[str, Any]) -> Plan:
    if content["format"] != FORMAT:
        raise InputError(f"format {content['format']}; this fewstep reads {FORMAT}: upgrade it")
    plan = Plan(
        schema={name: codec_from(entry) for name, entry in content["schema"].items()},
        count=content["count"],
        shard_size=content["shard_size"],
        provenance=content["provenance"],
    )
    if plan.describe() != content:
        raise ValueError("it holds more than a plan")
    return plan


def _manifest_from(content: dict[str, Any]) -> Manifest:
    entries = content.pop("shards")
    plan = _plan_from(content)
    shards = tuple(Shard(**entry) for entry in entries)
    if len(shards) != plan.shards:
        raise ValueError(f"it lists {len(shards)} shards of {plan.shards}")
    for number, shard in enumerate(shards):
        # the one name allowed, so that no manifest can point outside its folder
        if shard.file != shard_name(number) or shard.count != len(plan.records(number)):
            raise ValueError(f"shard {number} is listed as {shard.file!r}, {shard.count!r} records")
        if not _whole(shard.bytes, least=1) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{shard.file} is listed without its length and SHA-256")
    return Manifest(plan, shards)
