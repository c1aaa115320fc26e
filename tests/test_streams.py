"""What training is given of a store, and what it is not."""

import pytest
import torch

from fewstep import store, streams
from fewstep.batching import Batches
from fewstep.errors import InputError
from fewstep.noise import noise_from_seeds
from fewstep.sample_spec import SampleSpec
from fewstep.streams import PairStream

IMAGES = (1, 4, 4)
CPU = torch.device("cpu")


def stored(folder, count=23):
    """Images that tell their number, in shards of ten."""
    schema = {
        "x0": store.U8(IMAGES),
        "label": store.Raw(torch.int64),
        "seed": store.Raw(torch.int64),
    }
    writer = store.Writer(folder, schema=schema, count=count, shard_size=10, provenance={})
    number = torch.arange(count)
    x0 = (number / 127.5 - 1).view(-1, 1, 1, 1).expand(count, *IMAGES)
    for rows in writer.missing():
        part = slice(rows.start, rows.stop)
        told = {"x0": x0[part], "label": number[part] % 3, "seed": number[part] + 100}
        writer.write(rows.start, told)
    writer.finish()
    return store.Reader(folder)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_are_the_records_and_the_noise_of_their_seeds(tmp_path, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr(streams, "CACHE_BYTES", 0)
    stream = PairStream(stored(tmp_path), classes=3)
    for index in (torch.tensor([22, 0, 7]), torch.tensor([0, 1, 22, 1]), torch.arange(23)):
        rows = stream.rows(index, torch.zeros(len(index)), CPU)
        number = ((rows.x0 + 1) * 127.5).round().long()
        assert number.eq(index.view(-1, 1, 1, 1)).all()
        assert rows.cond.label.equal(index % 3)
        assert rows.noise.equal(noise_from_seeds([100 + i for i in index.tolist()], IMAGES))


def test_a_small_store_is_read_once(tmp_path):
    stream = PairStream(stored(tmp_path))
    index = torch.arange(23)
    first = stream.rows(index, torch.zeros(23), CPU)
    for path in tmp_path.iterdir():
        path.unlink()
    again = stream.rows(index.flip(0), torch.zeros(23), CPU)
    assert again.x0.equal(first.x0.flip(0)) and again.noise.equal(first.noise.flip(0))


def test_a_damaged_record_never_reaches_training(tmp_path):
    stored(tmp_path)
    shard = tmp_path / "shard-00001.zst"
    raw = bytearray(shard.read_bytes())
    raw[30] ^= 1  # in record 10, the shard's first
    shard.write_bytes(raw)
    stream = PairStream(store.Reader(tmp_path))
    batches = Batches({"pairs": stream}, SampleSpec(IMAGES, 3), batch=23, seed=0)
    with pytest.raises(InputError, match="shard-00001.zst, record 10 is damaged"):
        batches.step(0)


def test_recorded_noise_takes_the_place_of_seeds(tmp_path):
    noise, x0 = torch.randn(2, 5, *IMAGES, generator=torch.Generator().manual_seed(0))
    schema = {"noise": store.Raw(torch.float32, IMAGES), "x0": store.Raw(torch.float32, IMAGES)}
    writer = store.Writer(tmp_path, schema=schema, count=5, provenance={})
    writer.write(0, {"noise": noise, "x0": x0})
    writer.finish()
    rows = PairStream(store.Reader(tmp_path)).rows(torch.tensor([3, 1]), torch.zeros(2), CPU)
    assert torch.equal(rows.noise, noise[[3, 1]]) and torch.equal(rows.x0, x0[[3, 1]])
    assert rows.cond is None


def test_a_store_without_pairs_is_refused(tmp_path):
    writer = store.Writer(tmp_path, schema={"x0": store.U8(IMAGES)}, count=1, provenance={})
    writer.write(0, {"x0": torch.zeros(1, *IMAGES)})
    writer.finish()
    with pytest.raises(InputError, match="holds x0, but pairs need"):
        PairStream(store.Reader(tmp_path))


def pairs_of(folder, **tensors):
    given = {"x0": torch.zeros(2, *IMAGES), **tensors}
    schema = {name: store.Raw(value.dtype, tuple(value.shape[1:])) for name, value in given.items()}
    writer = store.Writer(folder, schema=schema, count=2, provenance={})
    writer.write(0, given)
    writer.finish()
    return store.Reader(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"seed": torch.tensor([0, -5])}, "has a record with seed -5"),
        (
            {"seed": torch.tensor([0, 1]), "label": torch.tensor([0, 7])},
            "label 7; it must be",
        ),
        ({"noise": torch.zeros(2, 3)}, "the store's noise is"),
        ({"seed": torch.tensor([0.5, 1.0])}, "the store's seed is"),
    ],
)
def test_pairs_that_no_student_could_learn_from_are_refused(tmp_path, tensors, message):
    with pytest.raises(InputError, match=message):
        PairStream(pairs_of(tmp_path, **tensors), classes=3).rows(
            torch.arange(2), torch.zeros(2), CPU
        )
