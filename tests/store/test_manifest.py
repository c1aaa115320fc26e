import json

import pytest
import torch

from fewstep.errors import InputError
from fewstep.store import F16, Raw
from fewstep.store.folder import LocalFolder
from fewstep.store.manifest import (
    Manifest,
    Plan,
    Shard,
    differences,
    read_manifest,
    read_unfinished,
    seal,
)


def plan(**change):
    settings = {
        "schema": {"image": F16((2, 2)), "seed": Raw(torch.int64)},
        "count": 5,
        "shard_size": 2,
        "provenance": {"grid": [1.0, 0.5], "teacher": {"hash": "é"}},
    }
    return Plan(**{**settings, **change})


def manifest():
    shards = [Shard(f"shard-{k:05d}.zst", n, 90, "ab" * 32) for k, n in enumerate([2, 2, 1])]
    return Manifest(plan(), tuple(shards))


def reread(tmp_path, raw):
    (tmp_path / "manifest.json").write_bytes(raw)
    return read_manifest(LocalFolder(tmp_path))


def test_round_trip_is_exact(tmp_path):
    found = reread(tmp_path, seal(manifest().describe()))
    assert found == manifest()
    assert seal(found.describe()) == seal(manifest().describe())
    assert json.loads(seal(found.describe()))["sha256"] == found.hash


def test_records_of_a_shard():
    assert [plan().records(k) for k in range(plan().shards)] == [
        range(0, 2),
        range(2, 4),
        range(4, 5),
    ]


def test_key_order_does_not_matter():
    turned = plan(schema={"seed": Raw(torch.int64), "image": F16((2, 2))})
    assert seal(turned.describe()) == seal(plan().describe())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": {}}, "has 0 tensors"),
        ({"schema": {"../x": F16((1,))}}, "'../x'"),
        ({"schema": {"a": F16((0, 2))}}, r"\(0, 2\)"),
        ({"schema": {"a": F16((-1,))}}, r"\(-1,\)"),
        ({"count": 0}, "count is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
    ],
)
def test_impossible_plans_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        plan(**change)


def test_differences_are_named_to_the_leaf():
    other = plan(count=6, provenance={"grid": [1.0], "teacher": {"hash": "é", "name": "x"}})
    assert differences(plan(), other) == [
        "count is 5 there and 6 here",
        "provenance.grid is [1.0, 0.5] there and [1.0] here",
        "provenance.teacher.name is 'absent' there and 'x' here",
    ]
    assert differences(plan(), plan()) == []


@pytest.mark.parametrize(
    "file", ["../shard-00000.zst", "/etc/passwd", "shard-00001.zst", "a/../shard-00000.zst", ""]
)
def test_a_manifest_cannot_point_elsewhere(tmp_path, file):
    content = manifest().describe()
    content["shards"] = [{**content["shards"][0], "file": file}, *content["shards"][1:]]
    with pytest.raises(InputError, match="manifest.json is damaged: shard 0 is listed as"):
        reread(tmp_path, seal(content))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 6},
        {"count": "5"},
        {"count": -5},
        {"shards": []},
        {"shards": 3},
        {"extra": 1},
        {"schema": {"image": {"codec": "f16", "shape": [2, 2]}}},
        {"schema": {"image": {"codec": "raw", "dtype": "C128", "shape": [2]}}},
        {"schema": {"image": {"codec": "f16", "dtype": "F32", "shape": [2.5]}}},
        {"schema": [1]},
        {"provenance": None},
    ],
)
def test_well_signed_nonsense_is_refused(tmp_path, change):
    with pytest.raises(InputError, match="manifest.json"):
        reread(tmp_path, seal({**manifest().describe(), **change}))


@pytest.mark.parametrize("entry", [{"bytes": -1}, {"bytes": 1.5}, {"sha256": "x"}, {"count": 3}])
def test_well_signed_shards_of_nonsense_are_refused(tmp_path, entry):
    content = manifest().describe()
    content["shards"] = [{**content["shards"][0], **entry}, *content["shards"][1:]]
    with pytest.raises(InputError, match="manifest.json is damaged"):
        reread(tmp_path, seal(content))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"content": NaN}'])
def test_what_is_no_manifest_is_refused(tmp_path, raw):
    with pytest.raises(InputError, match=r"manifest.json is damaged") as caught:
        reread(tmp_path, raw)
    assert "\n" not in str(caught.value)


def test_a_newer_format_asks_to_upgrade(tmp_path):
    with pytest.raises(InputError, match="format 2; .* upgrade"):
        reread(tmp_path, seal({**manifest().describe(), "format": 2}))


def test_an_empty_folder_and_an_unfinished_store_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="holds no teacher data"):
        read_manifest(LocalFolder(tmp_path))
    (tmp_path / "plan.json").write_bytes(seal(plan().describe()))
    with pytest.raises(InputError, match="not finished"):
        read_manifest(LocalFolder(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 2**70, "shard_size": 2**70},
        {"count": 10**13},
        {"schema": {"latent": {"codec": "int8", "shape": [2, 2], "channels": 1.0}}},
    ],
)
def test_numbers_made_to_harm_are_one_line(tmp_path, change):
    told = plan().describe() | change
    for entry in told["schema"].values():
        entry.setdefault("percentile", 100.0) if entry["codec"] == "int8" else None
    (tmp_path / "plan.json").write_bytes(seal(told))
    with pytest.raises(InputError, match=r"plan.json") as caught:
        read_unfinished(LocalFolder(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unfinished_store_costs_what_it_holds_not_what_it_plans(tmp_path):
    (tmp_path / "plan.json").write_bytes(seal(plan(count=10**12, shard_size=1).describe()))
    for name in ("shard-00007.zst", "shard-123456.zst", "shard-7.zst", "other"):
        (tmp_path / name).write_bytes(b"12345")
    told, shards = read_unfinished(LocalFolder(tmp_path))
    assert told.shards == 10**12
    assert [(s.number, s.count, s.bytes) for s in shards] == [(7, 1, 5), (123456, 1, 5)]
