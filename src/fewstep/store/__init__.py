"""Teacher data on disk: compact, resumable, read at random, and provably whole."""

from fewstep.store.codecs import F16, U8, Codec, Int8, Raw
from fewstep.store.folder import Address, open_folder
from fewstep.store.manifest import Manifest, Plan, Shard, seal, unfinished
from fewstep.store.reader import Reader
from fewstep.store.verify import verify, verifying
from fewstep.store.writer import Writer

__all__ = [
    "F16",
    "U8",
    "Address",
    "Codec",
    "Int8",
    "Manifest",
    "Plan",
    "Raw",
    "Reader",
    "Shard",
    "Writer",
    "open_folder",
    "seal",
    "unfinished",
    "verify",
    "verifying",
]
