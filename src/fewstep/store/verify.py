"""Is every byte of a store what was recorded?"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fewstep.errors import InputError
from fewstep.store.folder import TEMPORARY, Address, Folder, open_folder
from fewstep.store.manifest import MANIFEST, PLAN, Shard, read_manifest, unfinished
from fewstep.store.records import Layout
from fewstep.store.shards import examine


class Verified(NamedTuple):
    """How many shards were read through, of how many, and a line for each damage found last."""

    done: int
    total: int
    lines: list[str]


def verify(folder: Address) -> list[str]:
    """One line for each damaged, missing or foreign thing in a finished store; none if it is whole.

    A changed byte and a cut anywhere are found, by SHA-256; so is a store made to harm: every index
    is checked and every record decompressed, within its known size. Of an unfinished store, the
    shards that are there are read through, and a last line tells how much is missing.
    """
    return [line for step in verifying(folder) for line in step.lines]


def verifying(folder: Address) -> Iterator[Verified]:
    """What `verify` does, shard by shard, for those who want to see it go on."""
    try:
        root = open_folder(folder)
        begun = unfinished(root)
        if begun:
            plan, shards = begun
        else:
            manifest = read_manifest(root)
            plan, shards = manifest.plan, manifest.shards
        layout = Layout(plan.schema)
        sizes = root.sizes()
    except InputError as error:
        yield Verified(0, 0, [str(error)])
        return
    total = len(shards)
    foreign = set[str]() if begun else set(sizes) - {MANIFEST, *(shard.file for shard in shards)}
    named = [_foreign(f"{root}/{name}") for name in sorted(foreign)]
    yield Verified(0, total, named)
    for done, shard in enumerate(shards, start=1):
        first = plan.records(shard.number).start
        yield Verified(done, total, _damages(root, shard, first, layout, sizes))
    if begun:
        told = f"{total} of {plan.shards} shards are there; run the same recording again"
        yield Verified(total, total, [f"{root} is not finished: {told} to complete it"])


def _foreign(place: str) -> str:
    left = place.endswith((f"/{PLAN}", TEMPORARY))
    told = "; a killed recording left it: the same command again removes it" if left else ""
    return f"{place} does not belong to the store{told}"


def _damages(
    folder: Folder, shard: Shard, first: int, layout: Layout, sizes: Mapping[str, int]
) -> list[str]:
    try:
        found = examine(folder, shard, first, layout, sizes)
    except InputError as error:
        return [str(error)]
    if not found.damages and shard.sha256 and found.sha256 != shard.sha256:
        return [f"{folder}/{shard.file} is damaged: it has another SHA-256"]
    return found.damages
