"""Write teacher data shard by shard; complete shards survive if the process is killed.

Shard k holds exactly the records k·S … min((k+1)·S, n), so that the files depend neither on batch
sizes nor on the number of processes or interruptions.
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
from fewstep.store.shards import check_shard, shard_chunks

BLOCK = 4 << 20  # bytes of records that are encoded at a time, to fit into a CPU's cache


class Writer:
    """Create a store, or resume one of the same plan: write each range of `missing`, then `finish`.

    Several processes may write one store. `missing` changes while others write, so assign shards to
    processes by number, as in `records.start // shard_size % world == rank`. When all are done, one
    process calls `finish`.  Raises: InputError if the folder has another plan.
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
        # through JSON, so that a tuple equals the list that is read when resuming
        metadata = json.loads(json.dumps(dict(provenance), allow_nan=False))
        self.plan = Plan(dict(schema), count, shard_size, metadata)
        self._folder = open_folder(folder)
        self._layout = Layout(self.plan.schema)
        self._new_shards: dict[int, Shard] = {}
        self._manifest = self._open()

    @property
    def complete(self) -> bool:
        """Whether the manifest and all shards are written."""
        return self._manifest is not None and not self.missing()

    def missing(self) -> list[range]:
        """Record range of each missing shard, in order; includes shards that were lost later."""
        sizes = self._folder.sizes()
        if self._manifest:
            shards = [s.number for s in self._manifest.shards if sizes.get(s.file) != s.bytes]
        else:
            shards = [shard for shard in range(self.plan.shards) if shard_name(shard) not in sizes]
        return [self.plan.records(shard) for shard in shards]

    def write(self, start: int, records: Mapping[str, Shaped[Tensor, "rows ..."]]) -> None:
        """Write the missing shard that starts at record `start`; `records` are all of its records.

        Raises: InputError if no missing shard starts there, or the records do not fit the schema.
        """
        expected = {missing.start: missing for missing in self.missing()}.get(start)
        if expected is None:
            raise InputError(f"no missing shard starts at record {start}; use a range of missing()")
        rows = self._layout.check(records)
        if rows != len(expected):
            raise InputError(
                f"there are {rows} records at {start}; this shard holds {len(expected)}"
            )
        number = start // self.plan.shard_size
        name = shard_name(number)
        self._folder.sweep(name)
        digest, sizes = hashlib.sha256(), list[int]()

        def hashed_chunks() -> Iterator[bytes]:
            for chunk in shard_chunks(self._blocks(records, rows)):
                digest.update(chunk)
                sizes.append(len(chunk))
                yield chunk

        self._folder.publish(name, hashed_chunks())
        shard = Shard(name, rows, sum(sizes), digest.hexdigest())
        if self._manifest and self._manifest.shards[number] != shard:
            raise InputError(
                f"{self._folder}/{name} differs from its first recording, perhaps because it was "
                "made on other hardware: record into another folder"
            )
        self._new_shards[number] = shard

    def tally(self) -> Int64[Tensor, "shards 5"]:
        """Length and SHA-256 (as four integers) of each shard; zeros for those of other writers.

        Add the tallies of all writers to get the table of the whole store.
        """
        table = torch.zeros(self.plan.shards, 5, dtype=torch.int64)
        for number, shard in self._new_shards.items():
            words = np.frombuffer(bytes.fromhex(shard.sha256), "<i8")
            table[number] = torch.tensor([shard.bytes, *words.tolist()])
        return table

    def finish(self, tally: Int64[Tensor, "shards 5"] | None = None) -> Manifest:
        """Finish the store when no shard is missing: write the manifest and remove the plan.

        `tally` defaults to this writer's own. Shards that it lacks come from an earlier run and are
        checked first.  Raises: InputError if a shard is missing or damaged.
        """
        if missing := self.missing():
            raise InputError(
                f"{self._folder}: {len(missing)} shards are missing; run the recording again"
            )
        if self._manifest is None:
            rows = (self.tally() if tally is None else tally).numpy()
            sizes = self._folder.sizes()
            shards = [
                self._from_tally(n, row) or self._check(n, sizes) for n, row in enumerate(rows)
            ]
            self._manifest = Manifest(self.plan, tuple(shards))
            self._folder.publish(MANIFEST, [seal(self._manifest.describe())])
            self._clean_up()
        return self._manifest

    def _open(self) -> Manifest | None:
        names = self._folder.sizes()
        if MANIFEST in names:
            manifest = read_manifest(self._folder)
            self._check_plan(manifest.plan)
            self._clean_up()
            return manifest
        if PLAN in names:
            self._check_plan(read_plan(self._folder))
        elif any(not name.endswith(TEMPORARY) for name in names):
            raise InputError(f"{self._folder} holds other files; record into a new or empty folder")
        else:
            self._folder.publish(PLAN, [seal(self.plan.describe())])
        return None

    def _check_plan(self, plan: Plan) -> None:
        if phrases := differences(plan, self.plan):
            raise InputError(
                f"{self._folder} was begun with other settings: {'; '.join(phrases)}: record with "
                "the folder's settings, or into another folder"
            )

    def _blocks(self, records: Mapping[str, Tensor], rows: int) -> Iterator[Tensor]:
        length = max(1, BLOCK // self._layout.size)
        for start in range(0, rows, length):
            part = slice(start, start + length)
            yield self._layout.pack({name: values[part] for name, values in records.items()})

    def _from_tally(self, number: int, row: npt.NDArray[np.int64]) -> Shard | None:
        digest = row[1:].astype("<i8").tobytes().hex()
        records = len(self.plan.records(number))
        return Shard(shard_name(number), records, int(row[0]), digest) if row[0] else None

    def _check(self, number: int, sizes: Mapping[str, int]) -> Shard:
        """Check a shard from an earlier run."""
        name, records = shard_name(number), self.plan.records(number)
        shard = Shard(name, len(records), sizes[name], "")
        try:
            report = check_shard(self._folder, shard, records.start, self._layout, sizes)
            if report.damages:
                raise InputError(report.damages[0])
        except InputError as error:
            raise InputError(f"{error}; delete that file and run the recording again") from None
        return replace(shard, sha256=report.sha256)

    def _clean_up(self) -> None:
        self._folder.sweep()
        self._folder.remove(PLAN)
