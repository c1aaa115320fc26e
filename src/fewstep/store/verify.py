"""Is every byte of a store what was recorded?"""

import os

from fewstep.errors import InputError
from fewstep.store.folder import Folder
from fewstep.store.manifest import MANIFEST, Shard, read_manifest
from fewstep.store.records import Layout
from fewstep.store.shards import examine, sha256


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """One line for each damaged, missing or foreign thing in a finished store; none if it is whole.

    A changed byte and a cut anywhere are found, by SHA-256; so is a store made to harm: every index
    is checked and every record decompressed, within its known size.
    """
    root = Folder(folder)
    try:
        manifest = read_manifest(root)
        names = root.names()
    except InputError as error:
        return [str(error)]
    layout = Layout(manifest.plan.schema)
    known = {MANIFEST, *(shard.file for shard in manifest.shards)}
    lines = [f"{root}/{name} does not belong to the store" for name in sorted(names - known)]
    for number, shard in enumerate(manifest.shards):
        lines += _damages(root, shard, manifest.plan.records(number).start, layout)
    return lines


def _damages(folder: Folder, shard: Shard, first: int, layout: Layout) -> list[str]:
    try:
        damages = list(examine(folder, shard, first, layout))
        if not damages and sha256(folder, shard.file) != shard.sha256:
            damages = [f"{folder}/{shard.file} is damaged: it has another SHA-256"]
    except InputError as error:
        damages = [str(error)]
    return damages
