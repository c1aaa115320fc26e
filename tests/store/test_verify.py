import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard

from fewstep.errors import InputError
from fewstep.store import Manifest, Raw, Reader, Shard, Writer, verify
from fewstep.store.manifest import seal
from fewstep.store.shards import HEADER, SKIPPABLE


@pytest.fixture
def store(tmp_path):
    """As small as may be, so that every byte can be tried."""
    writer = Writer(
        tmp_path / "store",
        schema={"code": Raw(torch.uint8, (6,))},
        count=5,
        shard_size=3,
        provenance={},
    )
    codes = torch.arange(30, dtype=torch.uint8).reshape(5, 6) * 7
    for rows in writer.missing():
        writer.write(rows.start, {"code": codes[rows.start : rows.stop]})
    writer.finish()
    return tmp_path / "store"


def offsets(folder):
    """Of the first shard: three records."""
    reader = Reader(folder)
    return [*reader._starts[:3].tolist(), int(reader._stops[2])]


def read_all(folder):
    return {name: values.tolist() for name, values in Reader(folder)[:].items()}


def test_a_whole_store_has_nothing_to_tell(store):
    assert verify(store) == []


def test_every_flipped_byte_is_found_and_none_is_read(store):
    truth = read_all(store)
    for path in store.iterdir():
        whole = path.read_bytes()
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            assert len(verify(store)) == 1, (path.name, place)
            try:
                assert read_all(store) == truth, (path.name, place)
            except InputError as error:
                assert path.name in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
    assert verify(store) == []


@pytest.mark.parametrize("name", ["shard-00000.zst", "manifest.json"])
def test_every_truncation_is_found_and_refused(store, name):
    whole = (store / name).read_bytes()
    for length in range(len(whole)):
        (store / name).write_bytes(whole[:length])
        (line,) = verify(store)
        assert name in line
        with pytest.raises(InputError, match=name):
            Reader(store)


def test_what_follows_the_end_is_found(store):
    with (store / "shard-00001.zst").open("ab") as file:
        file.write(b"\0")
    (line,) = verify(store)
    assert "shard-00001.zst is damaged: it has" in line


def test_missing_and_extra_files_are_named(store):
    (store / "shard-00001.zst").rename(store / "shard-00002.zst")
    (store / "plan.json").touch()
    (store / "folder").mkdir()
    lines = verify(store)
    assert [line.rsplit("/", 1)[1] for line in lines] == [
        "folder does not belong to the store",
        "plan.json does not belong to the store; an interrupted recording left it: run it again "
        "to remove the file",
        "shard-00002.zst does not belong to the store",
        "shard-00001.zst is missing",
    ]


def test_a_folder_in_a_shards_place_is_a_line(store):
    (store / "shard-00001.zst").unlink()
    (store / "shard-00001.zst").mkdir()
    assert len(verify(store)) == 1


def test_every_damaged_record_is_a_line(store):
    shard = store / "shard-00000.zst"
    places = offsets(store)
    raw = bytearray(shard.read_bytes())
    for record in (0, 2):
        raw[places[record] + 20] ^= 8
    shard.write_bytes(raw)
    lines = verify(store)
    assert ["record 0" in lines[0], "record 2" in lines[1], len(lines)] == [True, True, 2]


def frames_of(shard, offsets):
    raw = shard.read_bytes()
    return [raw[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def rebuild(shard, frames):
    """The shard of other frames, under an index that is right for them."""
    index = np.cumsum([0, *map(len, frames)]).astype("<i8").tobytes()
    tail = HEADER.pack(SKIPPABLE, len(index) + 32) + index + hashlib.sha256(index).digest()
    shard.write_bytes(b"".join(frames) + tail)


def test_swapped_records_are_found(store):
    """A frame does not know its place; the shard's SHA-256 does."""
    shard = store / "shard-00000.zst"
    one, two, three = frames_of(shard, offsets(store))
    rebuild(shard, [two, one, three])
    assert verify(store) == [f"{shard} is damaged: its SHA-256 is not the manifest's"]


def test_a_bomb_is_refused_under_a_manifest_signed_for_it(store):
    shard = store / "shard-00000.zst"
    manifest = Reader(store).manifest
    frames = frames_of(shard, offsets(store))
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 28))
    rebuild(shard, [bomb, *frames[1:]])
    raw = shard.read_bytes()
    signed = Shard(shard.name, 3, len(raw), hashlib.sha256(raw).hexdigest())
    manifest = Manifest(manifest.plan, (signed, *manifest.shards[1:]))
    (store / "manifest.json").write_bytes(seal(manifest.describe()))
    (line,) = verify(store)
    assert "shard-00000.zst, record 0 is damaged" in line
    with pytest.raises(InputError, match=r"shard-00000.zst, record 0 is damaged"):
        Reader(store)[[0]]


def test_a_record_of_any_size_is_not_believed(store):
    """A manifest signed for records of eight terabytes: nothing is set aside for them."""
    manifest = Reader(store).manifest
    plan = replace(manifest.plan, schema={"code": Raw(torch.int64, (1 << 40,))})
    signed = replace(manifest, plan=plan)
    (store / "manifest.json").write_bytes(seal(signed.describe()))
    (line,) = verify(store)
    assert "at most 1073741824 are allowed" in line
    with pytest.raises(InputError, match="at most 1073741824 are allowed"):
        Reader(store)


def test_what_an_unfinished_store_holds_is_read_through(store):
    plan = Reader(store).manifest.plan
    (store / "manifest.json").unlink()
    (store / "plan.json").write_bytes(seal(plan.describe()))
    (last,) = verify(store)
    assert "is not finished: it has 2 of 2 shards" in last
    shard = store / "shard-00001.zst"
    raw = bytearray(shard.read_bytes())
    raw[20] ^= 8
    shard.write_bytes(raw)
    damaged, last = verify(store)
    assert "shard-00001.zst, record 3 is damaged" in damaged


def test_no_store_is_a_line(tmp_path):
    (line,) = verify(tmp_path)
    assert "holds no teacher data" in line
