import hashlib
import io

import numpy as np
import pytest
import zstandard

from fewstep.errors import InputError
from fewstep.store.folder import LocalFolder
from fewstep.store.manifest import Shard
from fewstep.store.records import Layout
from fewstep.store.shards import HEADER, SKIPPABLE, check_shard, read_offsets, shard_chunks


def write(tmp_path, frames, offsets):
    """A shard put together by hand: any frames under any index, with a valid checksum."""
    index = np.array(offsets, dtype="<i8").tobytes()
    tail = HEADER.pack(SKIPPABLE, len(index) + 32) + index + hashlib.sha256(index).digest()
    content = b"".join(frames) + tail
    (tmp_path / "shard-00000.zst").write_bytes(content)
    return Shard("shard-00000.zst", len(offsets) - 1, len(content), "")


@pytest.fixture
def frames(schema, records):
    return list(shard_chunks([Layout(schema).pack(records(3))]))[:-1]


def test_a_shard_is_a_legal_zstd_stream_of_its_records(schema, records):
    packed = Layout(schema).pack(records(5))
    stream = io.BytesIO(b"".join(shard_chunks([packed[:2], packed[2:]])))
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    assert reader.read() == packed.numpy().tobytes()


def test_every_frame_stands_alone(schema, records, frames):
    packed = Layout(schema).pack(records(3))
    for frame, row in zip(frames, packed, strict=True):
        alone = zstandard.ZstdDecompressor().decompress(frame)
        assert alone == row.numpy().tobytes()
        assert zstandard.get_frame_parameters(frame).has_checksum


def test_offsets_are_where_the_frames_are(tmp_path, frames):
    places = np.cumsum([0, *map(len, frames)]).tolist()
    shard = write(tmp_path, frames, places)
    assert (
        read_offsets(LocalFolder(tmp_path), [shard], LocalFolder(tmp_path).sizes(), 1000)[
            0
        ].tolist()
        == places
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda o: [o[0], -1, o[2], o[3]],  # negative
        lambda o: [-4, *o[1:]],
        lambda o: [o[0], o[2], o[1], o[3]],  # overlapping
        lambda o: [o[0], o[1], o[1], o[3]],  # empty
        lambda o: [*o[:3], o[3] + 5000],  # beyond the end
        lambda o: [o[0], o[1], o[3] + 5000, o[3]],
        lambda o: [*o[:3], o[3] - 1],  # bytes that belong to no record
        lambda o: [o[0], 2**63 - 1, -2, o[3]],  # differences that overflow to positive ones
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, frames, change):
    shard = write(tmp_path, frames, change(np.cumsum([0, *map(len, frames)]).tolist()))
    with pytest.raises(InputError, match="shard-00000.zst is damaged: its index does not rise"):
        read_offsets(LocalFolder(tmp_path), [shard], LocalFolder(tmp_path).sizes(), 1000)


def test_a_shard_shorter_than_its_index_is_refused(tmp_path):
    (tmp_path / "s").write_bytes(b"short")
    with pytest.raises(InputError, match="index does not match its checksum"):
        read_offsets(LocalFolder(tmp_path), [Shard("s", 3, 5, "")], {"s": 5}, 1000)


def frame_of(content, **settings):
    return zstandard.ZstdCompressor(write_checksum=True, **settings).compress(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda size: frame_of(bytes(1 << 28)), "does not declare"),  # a bomb
        (lambda size: frame_of(bytes(size), write_content_size=False), "does not declare"),
        (lambda size: zstandard.ZstdCompressor().compress(bytes(size)), "does not declare"),
        (lambda size: frame_of(bytes(size)) + b"tail", ""),
        (lambda size: frame_of(bytes(size))[:-1], ""),
        (lambda size: b"not zstd at all", ""),
        (lambda size: frame_of(bytes(size)), "another schema"),
    ],
)
def test_a_frame_that_is_no_record_is_named(tmp_path, schema, frames, make, message):
    layout = Layout(schema)
    frames = [frames[0], make(layout.size), frames[2]]
    shard = write(tmp_path, frames, np.cumsum([0, *map(len, frames)]).tolist())
    sizes = LocalFolder(tmp_path).sizes()
    (line,) = check_shard(LocalFolder(tmp_path), shard, 100, layout, sizes).damages
    assert "shard-00000.zst, record 101 is damaged" in line and message in line


def test_a_frame_that_lies_about_its_size_is_refused(tmp_path, schema, frames):
    layout = Layout(schema)
    bomb = bytearray(frame_of(bytes(1 << 20)))
    honest = frame_of(bytes(layout.size))
    # the bomb's blocks under the header of an honest record
    lie = honest[:7] + bytes(bomb[9:])
    frames = [lie, *frames[1:]]
    shard = write(tmp_path, frames, np.cumsum([0, *map(len, frames)]).tolist())
    sizes = LocalFolder(tmp_path).sizes()
    (line,) = check_shard(LocalFolder(tmp_path), shard, 0, layout, sizes).damages
    assert "record 0 is damaged" in line
