"""Check every byte of a store."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fewstep.errors import InputError
from fewstep.store.folder import TEMPORARY, Address, Folder, open_folder
from fewstep.store.manifest import MANIFEST, PLAN, Shard, read_manifest, read_unfinished
from fewstep.store.records import Layout
from fewstep.store.shards import check_shard


class VerifyStep(NamedTuple):
    """Progress of a verification."""

    done: int
    """Number of shards that were checked."""
    total: int
    """Number of shards to check."""
    lines: list[str]
    """One line for each damage that was detected since the last step."""


def verify(folder: Address) -> list[str]:
    """One line for each file or record that is damaged, missing or unexpected; [] if none is.

    Any changed byte or truncation is detected by SHA-256. Malicious stores are detected too: every
    index is checked, and every record is decompressed within its known size. For an unfinished
    store, the existing shards are checked, and the last line gives their number and the total.
    """
    return [line for step in iter_verify(folder) for line in step.lines]


def iter_verify(folder: Address) -> Iterator[VerifyStep]:
    """Verify shard by shard; yields the progress at the start and after each shard."""
    try:
        root = open_folder(folder)
        partial = read_unfinished(root)
        if partial:
            plan, shards = partial
        else:
            manifest = read_manifest(root)
            plan, shards = manifest.plan, manifest.shards
        layout = Layout(plan.schema, root)
        sizes = root.sizes()
    except InputError as error:
        yield VerifyStep(0, 0, [str(error)])
        return
    total = len(shards)
    expected = {MANIFEST, *(shard.file for shard in shards)}
    extra = set[str]() if partial else set(sizes) - expected
    yield VerifyStep(0, total, [_extra_file(f"{root}/{name}") for name in sorted(extra)])
    for done, shard in enumerate(shards, start=1):
        first = plan.records(shard.number).start
        yield VerifyStep(done, total, _damages(root, shard, first, layout, sizes))
    if partial:
        line = (
            f"{root} is not finished: it has {total} of {plan.shards} shards; run the same "
            "recording again to complete it"
        )
        yield VerifyStep(total, total, [line])


def _extra_file(path: str) -> str:
    leftover = path.endswith((f"/{PLAN}", TEMPORARY))
    hint = "; an interrupted recording left it: run it again to remove the file" if leftover else ""
    return f"{path} does not belong to the store{hint}"


def _damages(
    folder: Folder, shard: Shard, first: int, layout: Layout, sizes: Mapping[str, int]
) -> list[str]:
    try:
        report = check_shard(folder, shard, first, layout, sizes)
    except InputError as error:
        return [str(error)]
    if not report.damages and shard.sha256 and report.sha256 != shard.sha256:
        return [f"{folder}/{shard.file} is damaged: its SHA-256 is not the manifest's"]
    return report.damages
