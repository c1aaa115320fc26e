"""Teacher data on disk: compact, resumable, randomly accessible, and verifiable."""

from fewstep.store.codecs import F16, U8, Codec, Int8, Raw
from fewstep.store.folder import Address, open_folder
from fewstep.store.manifest import Manifest, Plan, Shard, read_unfinished, seal
from fewstep.store.reader import Reader
from fewstep.store.verify import iter_verify, verify
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
    "iter_verify",
    "open_folder",
    "read_unfinished",
    "seal",
    "verify",
]
