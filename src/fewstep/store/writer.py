"""Record teacher data into a folder, shard by shard, so that nothing whole is ever lost.

Shard k holds exactly the records k·S … min((k+1)·S, n): what lies on disk depends neither on batch
sizes nor on how many processes wrote it or how often they were killed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.codecs import Codec
from fewstep.store.folder import TEMPORARY, Address, open_folder
from fewstep.store.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Plan,
    Shard,
    differences,
    read_manifest,
    read_plan,
    seal,
    shard_name,
)
from fewstep.store.records import Layout
from fewstep.store.shards import examine, shard_chunks

BLOCK = 4 << 20  # bytes of records that are encoded at a time: what a processor's cache holds


class Writer:
    """Opens a new store or resumes the same one; another plan in the folder is an `InputError`.

    Several processes may write one store, each its own shards: divide them by number, as in
    `records.start // shard_size % world == rank`; what `missing` lists changes as others write.
    One of them calls `finish`, when all are done.
    """

    def __init__(
        self,
        folder: Address,
        *,
        schema: Mapping[str, Codec],
        count: int,
        shard_size: int = 1024,
        provenance: Mapping[str, Any],
    ) -> None:
        # through JSON, so that a tuple equals the list it is resumed from
        told = json.loads(json.dumps(dict(provenance), allow_nan=False))
        self.plan = Plan(dict(schema), count, shard_size, told)
        self._folder = open_folder(folder)
        self._layout = Layout(self.plan.schema)
        self._written: dict[int, Shard] = {}
        self._manifest = self._open()

    @property
    def complete(self) -> bool:
        """Whether the store is finished: the manifest written, and every shard there."""
        return self._manifest is not None and not self.missing()

    def missing(self) -> list[range]:
        """The records of each shard that is not yet whole, in order; also of those that a finished
        store has lost since."""
        sizes = self._folder.sizes()
        if self._manifest:
            shards = [s.number for s in self._manifest.shards if sizes.get(s.file) != s.bytes]
        else:
            shards = [shard for shard in range(self.plan.shards) if shard_name(shard) not in sizes]
        return [self.plan.records(shard) for shard in shards]

    def write(self, start: int, records: Mapping[str, Shaped[Tensor, "rows ..."]]) -> None:
        """Write one whole missing shard: the tensors of its records, from record `start` on."""
        wanted = {missing.start: missing for missing in self.missing()}.get(start)
        if wanted is None:
            raise InputError(f"no missing shard starts at record {start}; take one of missing()")
        rows = self._layout.check(records)
        if rows != len(wanted):
            raise InputError(f"{rows} records at {start}; this shard holds {len(wanted)}")
        number = start // self.plan.shard_size
        name = shard_name(number)
        self._folder.sweep(name)
        digest, sizes = hashlib.sha256(), list[int]()

        def noted() -> Iterator[bytes]:
            for chunk in shard_chunks(self._blocks(records, rows)):
                digest.update(chunk)
                sizes.append(len(chunk))
                yield chunk

        self._folder.publish(name, noted())
        shard = Shard(name, rows, sum(sizes), digest.hexdigest())
        if self._manifest and self._manifest.shards[number] != shard:
            raise InputError(
                f"{self._folder}/{name} came out otherwise than it was first recorded: on another "
                "kind of machine? Record into another folder"
            )
        self._written[number] = shard

    def tally(self) -> Int64[Tensor, "shards 5"]:
        """Length and SHA-256, as four words, of each shard that this writer wrote; zeros elsewhere.
        The sum of several writers' tallies tells what all of them wrote."""
        table = torch.zeros(self.plan.shards, 5, dtype=torch.int64)
        for number, shard in self._written.items():
            words = np.frombuffer(bytes.fromhex(shard.sha256), "<i8")
            table[number] = torch.tensor([shard.bytes, *words.tolist()])
        return table

    def finish(self, tally: Int64[Tensor, "shards 5"] | None = None) -> Manifest:
        """Seal the store once all shards are whole: write the manifest, remove the plan.

        Shards that are not in `tally`, by default this writer's own, are read through first: they
        are of an earlier run, and no damage may be sealed as good.
        """
        if missing := self.missing():
            raise InputError(
                f"{self._folder}: {len(missing)} shards are missing; run the recording again"
            )
        if self._manifest is None:
            rows = (self.tally() if tally is None else tally).numpy()
            sizes = self._folder.sizes()
            shards = [self._told(n, row) or self._found(n, sizes) for n, row in enumerate(rows)]
            self._manifest = Manifest(self.plan, tuple(shards))
            self._folder.publish(MANIFEST, [seal(self._manifest.describe())])
            self._tidy()
        return self._manifest

    def _open(self) -> Manifest | None:
        names = self._folder.sizes()
        if MANIFEST in names:
            manifest = read_manifest(self._folder)
            self._must_match(manifest.plan)
            self._tidy()
            return manifest
        if PLAN in names:
            self._must_match(read_plan(self._folder))
        elif any(not name.endswith(TEMPORARY) for name in names):
            raise InputError(f"{self._folder} holds other files; record into a new or empty folder")
        else:
            self._folder.publish(PLAN, [seal(self.plan.describe())])
        return None

    def _must_match(self, found: Plan) -> None:
        if told := differences(found, self.plan):
            raise InputError(
                f"{self._folder} was begun with other settings: {'; '.join(told)}: use those of "
                "the folder, or another folder"
            )

    def _blocks(self, records: Mapping[str, Tensor], rows: int) -> Iterator[Tensor]:
        length = max(1, BLOCK // self._layout.size)
        for start in range(0, rows, length):
            part = slice(start, start + length)
            yield self._layout.pack({name: values[part] for name, values in records.items()})

    def _told(self, number: int, row: npt.NDArray[np.int64]) -> Shard | None:
        """The shard that a row of a tally tells of, if it does."""
        digest = row[1:].astype("<i8").tobytes().hex()
        records = len(self.plan.records(number))
        return Shard(shard_name(number), records, int(row[0]), digest) if row[0] else None

    def _found(self, number: int, sizes: Mapping[str, int]) -> Shard:
        """A shard that an earlier writer left: read through, lest damage be sealed as good."""
        name, records = shard_name(number), self.plan.records(number)
        shard = Shard(name, len(records), sizes[name], "")
        try:
            found = examine(self._folder, shard, records.start, self._layout, sizes)
            if found.damages:
                raise InputError(found.damages[0])
        except InputError as error:
            raise InputError(f"{error}; delete that file and run the recording again") from None
        return replace(shard, sha256=found.sha256)

    def _tidy(self) -> None:
        self._folder.sweep()
        self._folder.remove(PLAN)
