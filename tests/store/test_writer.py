import pytest
import torch

from fewstep.errors import InputError
from fewstep.store import F16, U8, Raw, Reader, Writer, verify


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def writer(schema):
    def open_writer(folder, **change):
        settings = {"schema": schema, "count": 8, "shard_size": 3, "provenance": {"steps": 18}}
        return Writer(folder, **{**settings, **change})

    return open_writer


@pytest.fixture
def write(records):
    whole = records(8)

    def write_rows(writer, rows):
        part = {name: values[rows.start : rows.stop] for name, values in whole.items()}
        writer.write(rows.start, part)

    return write_rows


def test_equal_content_gives_equal_files_in_any_order(tmp_path, recorded):
    forward = recorded(tmp_path / "a", 8)
    backward = recorded(tmp_path / "b", 8, order=-1)
    assert content(forward) == content(backward)
    assert set(content(forward)) == {"manifest.json", *(f"shard-0000{k}.zst" for k in range(3))}


def test_two_writers_of_disjoint_shards_give_the_same_store(tmp_path, recorded, writer, write):
    first, second = writer(tmp_path / "b"), writer(tmp_path / "b")
    zero, one, two = first.missing()
    write(second, one)
    write(first, two)
    write(first, zero)
    first.finish()
    assert content(tmp_path / "b") == content(recorded(tmp_path / "a", 8))


def test_writers_that_sum_their_tallies_read_nothing_again(
    tmp_path, recorded, writer, write, monkeypatch
):
    first, second = writer(tmp_path / "b"), writer(tmp_path / "b")
    zero, one, two = first.missing()
    write(second, one)
    write(first, zero)
    write(first, two)
    wanted = content(recorded(tmp_path / "a", 8))

    def read(*_):
        raise AssertionError("a shard was read again")

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.store.writer.check_shard", read)
        with pytest.raises(AssertionError, match="read again"):
            first.finish()
        first.finish(first.tally() + second.tally())
    assert content(tmp_path / "b") == wanted


def test_a_killed_writer_loses_only_the_shard_it_was_at(tmp_path, recorded, writer, write):
    folder = tmp_path / "b"
    killed = writer(folder)
    write(killed, killed.missing()[0])
    whole = (folder / "shard-00000.zst").stat().st_mtime_ns
    (folder / "shard-00001.zst.0badcafe.tmp").write_bytes(b"half a sha")
    (folder / "manifest.json.0badcafe.tmp").write_bytes(b"{")

    resumed = writer(folder)
    assert not resumed.complete
    assert resumed.missing() == [range(3, 6), range(6, 8)]
    for rows in resumed.missing():
        write(resumed, rows)
    resumed.finish()
    assert (folder / "shard-00000.zst").stat().st_mtime_ns == whole
    assert content(folder) == content(recorded(tmp_path / "a", 8))


def test_a_finished_store_opens_as_complete(tmp_path, recorded, writer):
    folder = recorded(tmp_path, 8)
    (folder / "plan.json").write_bytes(b"left by a writer killed after the manifest")
    again = writer(folder)
    assert again.complete and again.missing() == []
    assert again.finish() == Reader(folder).manifest
    assert verify(folder) == []


def test_damage_in_an_earlier_writers_shard_is_not_sealed(tmp_path, writer, write):
    killed = writer(tmp_path)
    for rows in killed.missing():
        write(killed, rows)
    shard = tmp_path / "shard-00001.zst"
    raw = bytearray(shard.read_bytes())
    raw[20] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(InputError, match=r"shard-00001.zst, record 3 is damaged.*; delete that"):
        writer(tmp_path).finish()
    shard.unlink()
    resumed = writer(tmp_path)
    write(resumed, range(3, 6))
    resumed.finish()
    assert verify(tmp_path) == []


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 9}, "count is 8 there and 9 here"),
        ({"shard_size": 4}, "shard_size is 3 there and 4 here"),
        ({"provenance": {"steps": 20}}, "provenance.steps is 18 there and 20 here"),
        ({"schema": {"image": F16((1, 4, 4))}}, "schema.image.codec is 'u8' there and 'f16' here"),
    ],
)
def test_another_plan_is_refused_and_told(tmp_path, writer, recorded, finished, change, message):
    if finished:
        recorded(tmp_path, 8)
    else:
        writer(tmp_path)
    before = content(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        writer(tmp_path, **change)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_provenance_resumes_as_json_gives_it_back(tmp_path, writer):
    told = {"grid": (1.0, 0.5), "seeds": {"first": 0}}
    writer(tmp_path, provenance=told)
    assert writer(tmp_path, provenance=told).plan.provenance["grid"] == [1.0, 0.5]


def test_a_folder_of_other_files_is_refused(tmp_path, writer):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InputError, match="holds other files"):
        writer(tmp_path)


def test_only_whole_missing_shards_are_written(tmp_path, writer, write, records):
    one = writer(tmp_path)
    with pytest.raises(InputError, match="no missing shard starts at record 1"):
        write(one, range(1, 4))
    with pytest.raises(InputError, match="there are 2 records at 0; this shard holds 3"):
        one.write(0, records(2))
    with pytest.raises(InputError, match="3 shards are missing"):
        one.finish()
    write(one, range(0, 3))
    with pytest.raises(InputError, match="no missing shard starts at record 0"):
        write(one, range(0, 3))


def test_a_cifar_pair_takes_at_most_3300_bytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(256, 3, 32, 32, generator=generator) * 2 - 1  # nothing to compress
    one = Writer(
        tmp_path,
        schema={"image": U8((3, 32, 32)), "label": Raw(torch.int64), "seed": Raw(torch.int64)},
        count=256,
        provenance={"teacher": "0" * 64},
    )
    seeds = torch.randint(0, 2**62, (256,), generator=generator)
    one.write(0, {"image": noise, "label": torch.arange(256) % 10, "seed": seeds})
    one.finish()
    assert sum(map(len, content(tmp_path).values())) <= 3300 * 256


def test_a_finished_store_gets_a_lost_shard_back(tmp_path, recorded, writer, write):
    folder = recorded(tmp_path, 8)
    before = content(folder)
    (folder / "shard-00001.zst").unlink()
    (folder / "shard-00002.zst").write_bytes(before["shard-00002.zst"][:-5])
    again = writer(folder)
    assert not again.complete and again.missing() == [range(3, 6), range(6, 8)]
    with pytest.raises(InputError, match="2 shards are missing; run the recording again"):
        again.finish()
    for rows in again.missing():
        write(again, rows)
    again.finish()
    assert again.complete and content(folder) == before


def test_a_shard_that_comes_out_otherwise_is_not_taken_for_the_lost_one(
    tmp_path, recorded, writer, records
):
    folder = recorded(tmp_path, 8)
    (folder / "shard-00001.zst").unlink()
    other = {name: values[:3] for name, values in records(8).items()}
    with pytest.raises(InputError, match=r"shard-00001.zst differs from its first"):
        writer(folder).write(3, other)


def test_a_damaged_index_of_an_earlier_writer_tells_what_to_do(tmp_path, writer, write):
    killed = writer(tmp_path)
    for rows in killed.missing():
        write(killed, rows)
    shard = tmp_path / "shard-00001.zst"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="delete that file and run the recording again"):
        writer(tmp_path).finish()
