"""Stores that claim more than they hold, under manifests whose checksums match, or are no files."""

import hashlib
import json
import os
import resource
import time

import numpy as np
import pytest
import zstandard

from fewstep.circuits.sample_files import read_sample, to_store
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.store import Reader, seal, verify
from fewstep.store.shards import DIGEST, HEADER, SKIPPABLE
from fewstep.value_range import stored_range

GIB = 2**30


@pytest.fixture
def store(recorded, tmp_path):
    return recorded(tmp_path / "store", 6)


def forge(store, *, size=None, shard=None, schema=None, **changes):
    """Change the manifest, and with `size` the length that the first shard has and claims."""
    manifest = store / "manifest.json"
    content = json.loads(manifest.read_text())["content"] | changes
    content["schema"] = {**content["schema"], **(schema or {})}
    if size is not None:
        content["shards"] = content["shards"][:1]
        content["shards"][0] |= {"bytes": size, "count": content["count"]}
        os.truncate(store / "shard-00000.zst", size)
    if shard is not None:
        content["shards"][0] |= shard
    manifest.write_bytes(seal(content))


def refusals(store):
    """What each way to open a store says about it, in little time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    lines = verify(store)
    with pytest.raises(InputError) as error:
        Reader(store)[:]
    assert lines and all("\n" not in line and len(line) < 1000 for line in lines)
    assert time.process_time() - start < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB
    return str(error.value)


RAW = {"codec": "raw", "dtype": "U8"}
CLAIMS = {
    "a terabyte": {"shard": {"bytes": 10**12}},
    "a terabyte, in a sparse file": {"size": 10**12},
    "10^12 records": {"count": 10**12, "shard_size": 10**12, "size": 10**13},
    "10^11 records": {"count": 10**11, "shard_size": 10**12, "size": 10**12},
    "10^12 shards": {"count": 10**12, "shard_size": 1},
    "10^7 records in 100 MB": {"count": 10**7, "shard_size": 10**7, "size": 10**8},
    "records of 1 GiB": {"schema": {"image": RAW | {"shape": [2**29]}}},
    "records of 100 MB": {"schema": {"image": RAW | {"shape": [10**8]}}},
    "records of 2^70 bytes": {"schema": {"image": RAW | {"shape": [2**35, 2**35]}}},
    "100 dimensions": {"schema": {"image": RAW | {"shape": [1] * 100}}},
    "10^5 dimensions": {"schema": {"image": RAW | {"shape": [1] * 10**5}}},
    "5000 tensors": {"schema": {f"t{i}": RAW | {"shape": [1]} for i in range(5000)}},
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_claims_are_compared_with_the_files(store, claim):
    forge(store, **claim)
    assert str(store) in refusals(store)


def forge_shard(store, frames, *, offsets=None):
    """Write these frames as the only shard, with an index that matches its checksum."""
    if offsets is None:
        offsets = np.cumsum([0, *map(len, frames)])
    index = np.array(offsets, "<i8").tobytes()
    tail = HEADER.pack(SKIPPABLE, len(index) + DIGEST) + index + hashlib.sha256(index).digest()
    content = b"".join(frames) + tail
    (store / "shard-00000.zst").write_bytes(content)
    sha256, count = hashlib.sha256(content).hexdigest(), len(offsets) - 1
    entry = {"file": "shard-00000.zst", "count": count, "bytes": len(content), "sha256": sha256}
    (store / "shard-00001.zst").unlink()
    forge(store, count=count, shard_size=count, shards=[entry])


def bomb(size, *, level=19):
    """A frame of `size` zeros."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return compressor.compress(bytes(size))


@pytest.mark.parametrize(
    ("frames", "offsets"),
    [
        ([bomb(2**28)], None),
        ([bomb(100), bomb(2**27)], None),
        ([bytes(10**7)], None),
        ([b"x" * 100], [0, 50, 10**15, 100]),
        ([b"x" * 100], [0, 50, -(2**63), 100]),
        ([b"x" * 100], [0, 2**63 - 1, 100]),
        ([b"x" * 100], [50, 60, 100]),
        ([b""], [0, 0]),
    ],
)
def test_frames_are_no_larger_than_records(store, frames, offsets):
    forge_shard(store, frames, offsets=offsets)
    assert "shard-00000.zst" in refusals(store)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge", "link"])
@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.zst"])
def test_what_is_no_file_is_refused_without_waiting(store, kind, name):
    path = store / name
    size = path.stat().st_size
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path)
    else:
        path.touch()
        os.truncate(path, 2**41 if name == "manifest.json" else size + 1)
    assert name in refusals(store)
    assert main(["record", "--verify", str(store)]) in (1, 2)


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_a_plan_is_bounded(store, kind):
    (store / "manifest.json").unlink()
    if kind == "pipe":
        os.mkfifo(store / "plan.json")
    else:
        (store / "plan.json").touch()
        os.truncate(store / "plan.json", 2**41)
    assert "plan.json" in verify(store)[0]
    with pytest.raises(InputError, match=r"plan\.json"):
        stored_range(store)


@pytest.mark.parametrize("kind", ["pipe", "huge", "bomb", "device", "window"])
def test_samples_of_circuits_are_bounded(tmp_path, kind):
    path = tmp_path / "sample_00000000.zst"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**41)
    elif kind == "bomb":
        path.write_bytes(bomb(2**30 + 2**20, level=1))
    else:
        path.write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(100))  # 2 GiB of window
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for use in (read_sample, lambda path: list(to_store(path.parent, tmp_path / "store"))):
        with pytest.raises(InputError, match=r"sample_00000000\.zst"):
            use(path)
    assert time.process_time() - start < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB
