import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewstep.errors import InputError
from fewstep.store import Reader, Writer


@pytest.fixture
def store(tmp_path, recorded):
    return recorded(tmp_path / "store", 20)


@pytest.fixture
def truth(schema, records):
    return {name: c.decode(c.encode(records(20)[name])) for name, c in schema.items()}


def same(found, truth, rows):
    return found.keys() == truth.keys() and all(
        found[name].dtype == truth[name].dtype and found[name].equal(truth[name][rows])
        for name in truth
    )


@pytest.mark.parametrize(
    "indices",
    [[0], [19, 0, 7, 7, 3], torch.tensor([5, 4]), slice(None), slice(2, 17, 4), slice(-3, None)],
)
def test_records_come_back_in_the_order_asked(store, truth, indices):
    assert same(Reader(store)[indices], truth, indices)


@pytest.mark.parametrize("indices", [[], slice(4, 4)])
def test_no_records_are_empty_tensors(store, indices):
    found = Reader(store)[indices]
    assert found["image"].shape == (0, 1, 4, 4) and found["label"].dtype == torch.int64


@pytest.mark.parametrize("indices", [[20], [-1], torch.tensor([0, 99])])
def test_numbers_out_of_range(store, indices):
    with pytest.raises(IndexError, match="0 to 19"):
        Reader(store)[indices]


@pytest.mark.parametrize("indices", [torch.ones(20, dtype=torch.bool), torch.tensor([0.5])])
def test_masks_are_no_numbers(store, indices):
    with pytest.raises(TypeError):
        Reader(store)[indices]


def test_what_it_knows(store, schema, recorded, tmp_path):
    reader = Reader(store)
    assert len(reader) == 20
    assert reader.schema == schema
    assert reader.provenance == {"steps": 18}
    assert reader.manifest.plan.shard_size == 3
    assert reader.hash == Reader(recorded(tmp_path / "twin", 20)).hash
    assert reader.hash != Reader(recorded(tmp_path / "other", 19)).hash


def test_threads_and_pickled_copies_share_it(store, truth):
    reader = pickle.loads(pickle.dumps(Reader(store)))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 20, (16,), generator=generator) for _ in range(50)]
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(batches, pool.map(reader.__getitem__, batches), strict=True):
            assert same(found, truth, rows)


def test_a_damaged_record_is_named_and_its_neighbours_are_read(store, truth):
    reader = Reader(store)
    shard = store / "shard-00002.zst"
    raw = bytearray(shard.read_bytes())
    raw[20] ^= 4
    shard.write_bytes(raw)
    with pytest.raises(InputError, match="shard-00002.zst, record 6 is damaged"):
        reader[[0, 6]]
    assert same(reader[[0, 7, 8]], truth, [0, 7, 8])


def test_a_shard_cut_or_gone_after_opening_is_named(store):
    reader = Reader(store)
    shard = store / "shard-00002.zst"
    shard.write_bytes(shard.read_bytes()[:10])
    with pytest.raises(InputError, match="shard-00002.zst, record 6 is damaged"):
        reader[[6]]
    shard.unlink()
    with pytest.raises(InputError, match="shard-00002.zst: No such file"):
        reader[[6]]


def test_an_unfinished_store_is_refused(tmp_path, schema):
    Writer(tmp_path, schema=schema, count=1, provenance={})
    with pytest.raises(InputError, match="not finished"):
        Reader(tmp_path)


def test_a_missing_or_shortened_shard_is_refused_at_once(store):
    shard = store / "shard-00001.zst"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="shard-00001.zst is damaged: it has"):
        Reader(store)
    shard.unlink()
    with pytest.raises(InputError, match="shard-00001.zst is missing"):
        Reader(store)
