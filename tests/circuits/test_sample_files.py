"""Against files that a few lines of NumPy and zstandard make and read, without our code."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.circuits import sample_files
from fewstep.circuits.sample_files import from_store, read_sample, to_store, write_sample
from fewstep.errors import InputError
from fewstep.store import F16, Int8, Raw, Reader, Writer, verify

SPELLINGS = ("suffixed", "plain")
NAMES = ("noise", "x0", "rin0", "r_chunks")
STEPS = 1000


def values_of(seed, *, image=(3, 8, 8), state=(6, 8, 8), chunks=4, spread=1.0):
    """A sample's float32 values; the states' channels differ in size by up to `spread` decades."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-spread, spread, (chunks + 1, state[0], 1, 1))
    normal = rng.standard_normal((chunks + 1, *state)) * sizes
    images = rng.standard_normal((2, *image))
    return dict(
        zip(NAMES, (a.astype(np.float32) for a in (*images, normal[0], normal[1:])), strict=True)
    )


def quantised(x, percentile=99.5):
    scale = np.percentile(np.abs(x), percentile, axis=(-2, -1)) / 127
    scale = np.maximum(scale, 1e-8)
    codes = np.clip(np.round(x / scale[..., None, None]), -127, 127)
    return codes.astype(np.int8), scale.astype(np.float16)


def arrays_of(sample, spelling="suffixed", steps=STEPS):
    half, q, s = ("_f16", "_q", "_scale_f16") if spelling == "suffixed" else ("", "", "_scale")
    arrays = {
        f"x_T{half}": sample["noise"].astype(np.float16),
        f"x0_teacher{half}": sample["x0"].astype(np.float16),
    }
    for name in ("rin0", "r_chunks"):
        arrays[f"{name}{q}"], arrays[f"{name}{s}"] = quantised(sample[name])
    if spelling == "suffixed":
        arrays["T"] = np.array([steps], np.int16)
        arrays["chunk_size"] = np.array([steps // len(sample["r_chunks"])], np.int16)
    return arrays


def packed(arrays, save=np.savez, **settings):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return zstandard.ZstdCompressor(level=10, **settings).compress(buffer.getvalue())


def streamed(chunks, size=-1):
    stream = zstandard.ZstdCompressor(level=10).compressobj(size=size)
    return b"".join([*map(stream.compress, chunks), stream.flush()])


def unpacked(path):
    payload = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        return dict(archive)


def truth(arrays):
    """Code · scale of arrays in either spelling."""
    plain = {name.removesuffix("_f16").removesuffix("_q"): array for name, array in arrays.items()}
    float32 = {name: array.astype(np.float32) for name, array in plain.items()}
    return {
        "noise": float32["x_T"],
        "x0": float32["x0_teacher"],
        "rin0": float32["rin0"] * float32["rin0_scale"][:, None, None],
        "r_chunks": float32["r_chunks"] * float32["r_chunks_scale"][..., None, None],
    }


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[name].dtype == torch.float32 and np.array_equal(found[name].numpy(), wanted[name])
        for name in wanted
    )


def tensors(sample):
    return {name: torch.from_numpy(values) for name, values in sample.items()}


@pytest.fixture
def layout(tmp_path):
    """A folder of their files."""

    def make(count, spelling="suffixed", name="layout", **shape):
        folder = tmp_path / name
        folder.mkdir()
        for row in range(count):
            content = packed(arrays_of(values_of(row, **shape), spelling))
            (folder / f"sample_{row:08d}.zst").write_bytes(content)
        return folder

    return make


@pytest.fixture
def refused(tmp_path):
    """Reading these bytes is one line that names the file; it is returned."""

    def read(content):
        path = tmp_path / "sample_00000000.zst"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_sample(path)
        line = str(caught.value)
        assert line.startswith(f"{path}: ") and "\n" not in line
        return line.removeprefix(f"{path}: ")

    return read


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_their_files_are_code_times_scale(tmp_path, spelling):
    arrays = arrays_of(values_of(0), spelling)
    (tmp_path / "s").write_bytes(packed(arrays))
    assert same(read_sample(tmp_path / "s"), truth(arrays))


def test_spellings_mix_and_order_and_frame_do_not_matter(tmp_path):
    suffixed, plain = (arrays_of(values_of(0), spelling) for spelling in SPELLINGS)
    mixed = {name: suffixed[name] for name in ("r_chunks_q", "rin0_scale_f16", "x_T_f16")}
    mixed |= {name: plain[name] for name in ("x0_teacher", "rin0", "r_chunks_scale")}
    mixed["rin0"] = np.asfortranarray(mixed["rin0"])
    buffer = io.BytesIO()
    np.savez(buffer, **mixed)
    content = streamed([buffer.getvalue()])
    assert zstandard.get_frame_parameters(content).content_size == zstandard.CONTENTSIZE_UNKNOWN
    (tmp_path / "s").write_bytes(content)
    assert same(read_sample(tmp_path / "s"), truth(suffixed))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_numpy_reads_ours(tmp_path, spelling):
    sample, path = values_of(1), tmp_path / "new" / "sample_00000000.zst"
    write_sample(path, tensors(sample), spelling=spelling, steps=STEPS)
    arrays, theirs = unpacked(path), arrays_of(sample, spelling)
    assert {n: (a.dtype, a.shape) for n, a in arrays.items()} == {
        n: (a.dtype, a.shape) for n, a in theirs.items()
    }
    for name in ("T", "chunk_size") if spelling == "suffixed" else ():
        assert arrays[name] == theirs[name]
    found = truth(arrays)
    assert np.array_equal(found["noise"], sample["noise"].astype(np.float16).astype(np.float32))
    assert np.array_equal(found["x0"], sample["x0"].astype(np.float16).astype(np.float32))
    for name in ("rin0", "r_chunks"):
        (scale,) = (array for key, array in arrays.items() if key.startswith(f"{name}_scale"))
        scale = scale.astype(np.float64)[..., None, None]
        # theirs, rounded up to half instead of to the nearest
        exact = np.percentile(np.abs(sample[name]), 99.5, axis=(-2, -1), keepdims=True) / 127
        assert (scale >= exact * (1 - 1e-6)).all() and (scale <= exact * (1 + 2.0**-10)).all()
        error = np.abs(found[name].astype(np.float64) - sample[name])
        inside = np.abs(sample[name]) <= 127 * scale
        assert (error <= scale * (0.5 + 1e-4))[inside].all() and not inside.all()
        clipped = np.abs(sample[name]) - 127 * scale
        assert np.allclose(error[~inside], clipped[~inside], rtol=1e-6, atol=0)
    assert same(read_sample(path), found)


def test_nothing_but_the_file_is_left_and_it_is_replaced_whole(tmp_path):
    path = tmp_path / "sample_00000000.zst"
    write_sample(path, tensors(values_of(0)))
    assert "T" not in unpacked(path) and "chunk_size" not in unpacked(path)
    write_sample(path, tensors(values_of(1)), steps=8)
    assert unpacked(path)["T"] == 8 and unpacked(path)["chunk_size"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_percentile_100_clips_nothing(tmp_path):
    sample = values_of(0)
    write_sample(tmp_path / "s", tensors(sample), percentile=100)
    arrays = unpacked(tmp_path / "s")
    scale = arrays["rin0_scale_f16"].astype(np.float64)[:, None, None]
    error = np.abs(truth(arrays)["rin0"].astype(np.float64) - sample["rin0"])
    assert (error <= scale * (0.5 + 1e-4)).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"steps": 10}, "T = 10 must be a multiple of 4"),
        ({}, {"steps": 0}, "T = 0 must be"),
        ({}, {"steps": 40000}, "at most 32767; use the plain"),
        ({}, {"percentile": 49.0}, "percentile is 49.0"),
        (
            {"x0": None},
            {},
            "a sample has noise, x0, rin0, r_chunks, not noise, r_chunks, rin0",
        ),
        ({"seed": torch.zeros(1)}, {}, "seed"),
        ({"x0": torch.zeros(3, 8, 4)}, {}, "x0 must have the shape of noise, and"),
        ({"rin0": torch.zeros(5, 8, 8)}, {}, "each chunk that of rin0"),
        ({"rin0": torch.zeros(8, 8)}, {}, r"'rin0' has shape \(8, 8\); it needs 3"),
        ({"noise": torch.zeros(3, 8, 8).double()}, {}, "'noise': its dtype is torch.float64"),
        ({"x0": torch.full((3, 8, 8), 1e6)}, {}, "'x0': the values are not finite, or beyond"),
        ({"rin0": torch.full((6, 8, 8), float("nan"))}, {}, "'rin0': the values are not finite"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, change, options, message):
    sample = {n: v for n, v in {**tensors(values_of(0)), **change}.items() if v is not None}
    with pytest.raises(InputError, match=f"sample.zst: .*{message}"):
        write_sample(tmp_path / "sample.zst", sample, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/s: "):
        write_sample(tmp_path / "file" / "s", tensors(values_of(0)))
    with pytest.raises(InputError, match="absent: No such file"):
        read_sample(tmp_path / "absent")


halves = np.zeros((3, 8, 8), np.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rin0_q": None, "x_T_f16": None}, "it lacks x_T_f16 or x_T, rin0_q or rin0"),
        ({"x_T": halves}, "it holds 'x_T' twice"),
        ({"more": halves}, "it holds 'more'; the arrays of a sample are x_T_f16"),
        (
            {"x_T_f16": halves.astype(np.float32)},
            "'x_T_f16' has dtype '<f4', but must have '<f2' (float16)",
        ),
        ({"x_T_f16": halves.astype(">f2")}, "'x_T_f16' has dtype '>f2'"),
        (
            {"rin0_q": np.zeros((6, 8, 8), np.uint8)},
            "'rin0_q' has dtype '|u1', but must have '|i1'",
        ),
        ({"T": np.array([1000])}, "'T' has dtype '<i8', but must have '<i2' (int16)"),
        ({"T": np.zeros((), np.int16)}, "'T' has shape (); it must be (1,)"),
        ({"chunk_size": np.zeros(2, np.int16)}, "'chunk_size' has shape (2,)"),
        ({"x_T_f16": halves[0]}, "'noise' has shape (8, 8); it needs 3"),
        ({"x_T_f16": halves[:, :4]}, "x0 must have the shape of noise"),
        ({"r_chunks_q": np.zeros((4, 6, 8, 7), np.int8)}, "each chunk that of rin0; shapes:"),
        ({"r_chunks_q": np.zeros((0, 6, 8, 8), np.int8)}, "it needs 4 dimensions of at least 1"),
        ({"rin0_scale_f16": np.ones(5, np.float16)}, "'rin0.scale' has shape (5,); it must be (6,"),
        ({"r_chunks_scale_f16": np.ones(24, np.float16)}, "it must be (4, 6)"),
        ({"rin0_scale_f16": np.full(6, np.inf, np.float16)}, "'rin0.scale' has values that are"),
        ({"r_chunks_scale_f16": np.full((4, 6), np.nan, np.float16)}, "'r_chunks.scale' has valu"),
        ({"rin0_scale_f16": -np.ones(6, np.float16)}, "'rin0.scale' has negative values"),
        ({"x0_teacher_f16": halves + np.float16(np.inf)}, "'x0' has values that are not finite"),
        ({"x_T_f16": np.array([print], dtype=object)}, "'x_T_f16' has dtype '|O'"),
        ({"x_T_f16": np.zeros(3, [("a", "f2")])}, "'x_T_f16' is not a plain array"),
    ],
)
def test_files_of_other_content_are_named(refused, change, message):
    arrays = {**arrays_of(values_of(0)), **change}
    assert message in refused(packed({n: a for n, a in arrays.items() if a is not None}))


def test_every_truncation_is_refused(tmp_path, refused):
    tiny = values_of(0, image=(1, 2, 2), state=(1, 2, 2), chunks=2)
    content = packed(arrays_of(tiny))
    for length in range(len(content)):
        refused(content[:length])
    assert "damaged" in refused(content[:-1]) and "damaged" in refused(content + b"\0")
    assert "damaged" in refused(content + content)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_flipped_bit_is_refused_or_changes_no_value(tmp_path, checksum):
    """Without a checksum of the frame, as theirs are, the zip's own guard the arrays."""
    tiny = values_of(0, image=(1, 2, 2), state=(1, 2, 2), chunks=2)
    arrays, path = arrays_of(tiny), tmp_path / "sample_00000000.zst"
    content = packed(arrays, write_checksum=checksum)
    found = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert same(read_sample(path), truth(arrays)), place
        except InputError as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error), place
    assert found > 0.6 * len(content)


@pytest.mark.slow
def test_flips_inside_the_zip_are_refused_or_change_no_value(tmp_path):
    tiny = values_of(0, image=(1, 2, 2), state=(1, 2, 2), chunks=2)
    arrays, path = arrays_of(tiny), tmp_path / "sample_00000000.zst"
    payload = zstandard.ZstdDecompressor().decompress(packed(arrays))
    for place in range(len(payload)):
        flipped = bytearray(payload)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(zstandard.ZstdCompressor(level=1).compress(bytes(flipped)))
        try:
            assert same(read_sample(path), truth(arrays)), place
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error), place


GIBIBYTE = 1 << 30


def zeros(size):
    return (bytes(1 << 24) for _ in range(size >> 24))


def lying(declared, content):
    """A frame of any blocks under a header that declares that many bytes."""
    descriptor, window = 0b11000000, content[5:6]
    assert content[4] == 0  # a streamed frame's descriptor: no size, a window
    header = content[:4] + bytes([descriptor]) + window + struct.pack("<Q", declared)
    return header + content[6:]


def payload_of(save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays_of(values_of(0)))
    return buffer.getvalue()


def swollen_member():
    """The directory says that the first member has 2 GiB, and so does its header."""
    payload = bytearray(payload_of())
    for signature, place in ((b"PK\x01\x02", 20), (b"PK\x03\x04", 18)):
        at = payload.index(signature) + place
        payload[at : at + 8] = struct.pack("<LL", 2 * GIBIBYTE, 2 * GIBIBYTE)
    return bytes(payload)


def swollen_array():
    """A .npy whose header claims far more than follows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = io.BytesIO()
        shape = {"descr": "<f2", "fortran_order": False, "shape": (3, 1 << 20, 1 << 20)}
        np.lib.format.write_array_header_1_0(header, shape)
        archive.writestr("x_T_f16.npy", header.getvalue() + bytes(64))
    return buffer.getvalue()


def deflated_bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_T_f16.npy", bytes(1 << 26))
    return buffer.getvalue()


def wide_directory():
    """A million entries; zipfile would make a million objects."""
    entry = b"PK\x01\x02" + bytes(42)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry) << 20, 0, 0)
    return entry * (1 << 20) + end


def wide_directory_of_a_zip64():
    payload = wide_directory()
    directory = len(payload) - 22
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, directory, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, directory, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 46, 0, 0)
    return payload[:directory] + end64 + locator + end


def compressed(payload):
    return zstandard.ZstdCompressor(level=1).compress(payload)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: streamed(zeros(2 * GIBIBYTE)), "decompresses to more than 1073741824 bytes"),
        pytest.param(
            lambda: streamed(zeros(2 * GIBIBYTE), 2 * GIBIBYTE),
            "decompresses to more than",
            marks=pytest.mark.slow,
        ),
        (lambda: lying(1 << 62, streamed([bytes(99)])), "damaged"),
        (lambda: lying(GIBIBYTE, streamed([bytes(99)])), "damaged"),  # much declared, little there
        pytest.param(  # little declared, much there
            lambda: lying(99, streamed(zeros(2 * GIBIBYTE))), "", marks=pytest.mark.slow
        ),
        (lambda: compressed(swollen_member()), "declares more bytes than it has"),
        (lambda: compressed(swollen_array()), "declares shape (3, 1048576, 1048576), but has 64"),
        (lambda: compressed(deflated_bomb()), "is compressed; write it with numpy.savez"),
        (lambda: packed(arrays_of(values_of(0)), np.savez_compressed), "is compressed"),
    ],
)
def test_bombs_are_refused_before_they_are_held(refused, make, message):
    content = make()
    assert len(content) < 1 << 18
    assert message in refused(content)  # once before, so that no import is measured
    tracemalloc.start()
    refused(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize("make", [wide_directory, wide_directory_of_a_zip64])
def test_a_directory_is_not_believed(refused, make):
    content = compressed(make())
    tracemalloc.start()
    assert "is not an .npz" in refused(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(make())


def test_a_file_larger_than_the_limit_is_not_read(tmp_path):
    path = tmp_path / "sample_00000000.zst"
    with path.open("wb") as file:
        file.truncate(GIBIBYTE + 1)  # sparse: it takes no disk
    with pytest.raises(InputError, match="has 1073741825 bytes"):
        read_sample(path)


@pytest.mark.parametrize(
    "payload", [b"", b"no zip", bytes(100), payload_of()[:-30], payload_of() + b"comment"]
)
def test_what_is_no_npz_is_refused(refused, payload):
    assert "damaged" in refused(compressed(payload))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_layout_to_store_to_layout_keeps_codes_scales_and_values(tmp_path, layout, spelling):
    source = layout(5, spelling)
    assert list(to_store(source, tmp_path / "store")) == [0, 5]
    assert verify(tmp_path / "store") == []
    reader = Reader(tmp_path / "store")
    steps = STEPS if spelling == "suffixed" else None
    told = dict(reader.provenance)
    assert len(told.pop("samples")) == 64
    assert told == {"source": "denoising-circuits", "steps": steps}
    assert reader.schema == {
        "noise": F16((3, 8, 8)),
        "x0": F16((3, 8, 8)),
        "rin0": Int8((6, 8, 8), channels=1, percentile=100),
        "r_chunks": Int8((4, 6, 8, 8), channels=2, percentile=100),
    }
    for row in range(5):
        found = {name: values[0] for name, values in reader[[row]].items()}
        assert same(found, truth(arrays_of(values_of(row))))

    assert list(from_store(tmp_path / "store", tmp_path / "back", spelling=spelling)) == [*range(6)]
    for row in range(5):
        name = f"sample_{row:08d}.zst"
        theirs, ours = unpacked(source / name), unpacked(tmp_path / "back" / name)
        assert theirs.keys() == ours.keys()
        for key in theirs:
            assert theirs[key].dtype == ours[key].dtype and np.array_equal(theirs[key], ours[key])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    side=st.integers(1, 9),
    channels=st.integers(1, 4),
    chunks=st.integers(1, 3),
    spread=st.floats(0, 4),
    tiny=st.sampled_from([0.0, 1e-9, 1e-7, 3e-6, 1e-5, 3e-5, 1.0]),
)
def test_conversion_is_lossless_down_to_the_smallest_scales(
    tmp_path_factory, seed, side, channels, chunks, spread, tiny
):
    """Scales that float16 rounds to 0 or holds coarsely, one-pixel channels, channels of zeros."""
    folder = tmp_path_factory.mktemp("layout")
    sample = values_of(
        seed, image=(1, 1, side), state=(channels, side, 2), chunks=chunks, spread=spread
    )
    sample["rin0"] *= tiny
    sample["r_chunks"][0, 0] *= tiny
    arrays = arrays_of(sample)
    arrays = {n: a for n, a in arrays.items() if n not in ("T", "chunk_size")}
    (folder / "sample_00000000.zst").write_bytes(packed(arrays))
    list(to_store(folder, folder / "store"))
    list(from_store(folder / "store", folder / "back"))
    back = folder / "back" / "sample_00000000.zst"
    assert same(read_sample(back), truth(arrays))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_store_to_layout_to_store_keeps_every_value(tmp_path, spelling):
    """Also of a store whose own quantiser clipped."""
    schema = {
        "noise": F16((3, 8, 8)),
        "x0": F16((3, 8, 8)),
        "rin0": Int8((6, 8, 8), percentile=99.0),
        "r_chunks": Int8((4, 6, 8, 8), channels=2),
    }
    samples = [values_of(row) for row in range(3)]
    writer = Writer(
        tmp_path / "a", schema=schema, count=3, provenance={"steps": 400, "teacher": "x"}
    )
    rows = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in NAMES}
    writer.write(0, rows)
    writer.finish()
    *_, done = from_store(tmp_path / "a", tmp_path / "layout", spelling=spelling)
    *_, again = to_store(tmp_path / "layout", tmp_path / "b")
    assert done == again == 3
    first, second = Reader(tmp_path / "a")[:], Reader(tmp_path / "b")[:]
    assert all(first[name].equal(second[name]) for name in NAMES)
    steps = 400 if spelling == "suffixed" else None
    assert Reader(tmp_path / "b").provenance["steps"] == steps


def test_any_numbers_are_taken_in_the_order_of_names(tmp_path, layout):
    source = layout(3)
    (source / "sample_00000000.zst").rename(source / "sample_00000777.zst")
    (source / "notes.txt").touch()
    list(to_store(source, tmp_path / "store"))
    noise = Reader(tmp_path / "store")[:]["noise"].numpy()
    wanted = [truth(arrays_of(values_of(row)))["noise"] for row in (1, 2, 0)]
    assert np.array_equal(noise, np.stack(wanted))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_to_store_resumes_and_memory_bounds_the_shard(tmp_path, layout, monkeypatch):
    source = layout(5)
    floats = 2 * 3 * 64 + 5 * 6 * 64
    monkeypatch.setattr(sample_files, "SHARD", 2 * 4 * floats + 1)
    assert list(to_store(source, tmp_path / "whole")) == [0, 2, 4, 5]
    killed = to_store(source, tmp_path / "store")
    assert [next(killed), next(killed)] == [0, 2]
    killed.close()
    kept = (tmp_path / "store" / "shard-00000.zst").stat().st_mtime_ns
    assert list(to_store(source, tmp_path / "store")) == [2, 4, 5]
    assert (tmp_path / "store" / "shard-00000.zst").stat().st_mtime_ns == kept
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    assert list(to_store(source, tmp_path / "store")) == [5]


def test_shards_of_their_real_size_stay_below_256_mebibytes(tmp_path, layout):
    source = layout(1, image=(3, 32, 32), state=(128, 32, 32), chunks=10)
    list(to_store(source, tmp_path / "store"))
    size = Reader(tmp_path / "store").manifest.plan.shard_size
    sample = 4 * (2 * 3 + 11 * 128) * 1024
    assert size * sample < 1 << 28 <= (size + 1) * sample


def test_from_store_resumes_and_keeps_whole_files(tmp_path, layout):
    list(to_store(layout(4), tmp_path / "store"))
    target = tmp_path / "back"
    killed = from_store(tmp_path / "store", target)
    assert [next(killed), next(killed), next(killed)] == [0, 1, 2]
    killed.close()
    kept = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert set(kept) == {"sample_00000000.zst", "sample_00000001.zst"}
    (target / "sample_00000002.zst.0badcafe.tmp").write_bytes(b"half a sa")
    assert list(from_store(tmp_path / "store", target)) == [0, 1, 2, 3, 4]
    assert all((target / name).stat().st_mtime_ns == time for name, time in kept.items())
    list(from_store(tmp_path / "store", tmp_path / "whole"))
    assert content(target) == content(tmp_path / "whole")


def test_a_target_of_other_things_is_refused(tmp_path, layout):
    source = layout(2)
    list(to_store(source, tmp_path / "store"))
    with pytest.raises(InputError, match="holds manifest.json; convert into a new or empty"):
        list(from_store(tmp_path / "store", tmp_path / "store"))
    with pytest.raises(InputError, match="holds other files"):
        list(to_store(source, source))
    other = layout(3, name="other")
    with pytest.raises(InputError, match="holds sample_00000002.zst"):
        list(from_store(tmp_path / "store", other))
    (other / "sample_00000002.zst").unlink()
    (other / "sample_00000000.zst").rename(other / "sample_00000001.zst")
    with pytest.raises(InputError, match="sample_00000001.zst holds another sample"):
        list(from_store(tmp_path / "store", other))
    (other / "sample_00000001.zst").write_bytes(b"damage")
    with pytest.raises(InputError, match="sample_00000001.zst: it is damaged"):
        list(from_store(tmp_path / "store", other))
    bytewise = stored(tmp_path / "bytewise", {"x0": Raw(torch.uint8, (3, 2, 2))}, {})
    (other / "sample_00000001.zst").unlink()
    (other / "sample_00000000.zst").write_bytes(packed(arrays_of(values_of(0))))
    with pytest.raises(InputError, match="sample_00000000.zst holds another sample"):
        list(from_store(bytewise, other))
    with pytest.raises(InputError, match="holds no sample_"):
        list(to_store(tmp_path / "store", tmp_path / "new"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x0_teacher_f16": halves[:, :4], "x_T_f16": halves[:, :4]},
            "its shapes or T differ from those of",
        ),
        ({"T": np.array([400], np.int16), "chunk_size": None}, "its shapes or T differ"),
        ({"T": None, "chunk_size": None}, "its shapes or T differ"),
        ({"T": None}, "T is None, but it has 4 chunks of chunk_size 250"),
        (
            {"chunk_size": np.array([142], np.int16)},
            "T is 1000, but it has 4 chunks of chunk_size 142",
        ),
        ({"rin0_q": np.full((6, 8, 8), 95, np.int8)}, "'rin0': its values would change"),
        ({"rin0_q": np.full((6, 8, 8), -128, np.int8)}, "'rin0': its values would change"),
        ({"x_T_f16": None}, "it lacks x_T_f16"),
    ],
)
def test_a_sample_that_the_store_cannot_hold_is_named(tmp_path, layout, change, message):
    source = layout(3)
    arrays = {**arrays_of(values_of(2)), **change}
    if "would change" in message:
        # where float16 is coarse, the largest code decides which scales can be told apart
        arrays["rin0_scale_f16"] = np.full(6, 4 * 2.0**-24, np.float16)
    arrays = {n: a for n, a in arrays.items() if a is not None}
    (source / "sample_00000002.zst").write_bytes(packed(arrays))
    with pytest.raises(InputError, match=f"sample_00000002.zst: .*{message}"):
        list(to_store(source, tmp_path / "store"))
    assert "manifest.json" not in content(tmp_path / "store")


def stored(folder, change, provenance, **records):
    codecs = {
        "noise": F16((3, 2, 2)),
        "x0": F16((3, 2, 2)),
        "rin0": Int8((2, 2, 2)),
        "r_chunks": Int8((3, 2, 2, 2), channels=2),
    }
    schema = {n: c for n, c in {**codecs, **change}.items() if c is not None}
    generator = torch.Generator().manual_seed(0)
    rows = {
        name: records.get(name, torch.randn(1, *codec.shape, generator=generator).to(codec.dtype))
        for name, codec in schema.items()
    }
    writer = Writer(folder, schema=schema, count=1, provenance=provenance)
    writer.write(0, rows)
    writer.finish()
    return folder


@pytest.mark.parametrize(
    ("change", "provenance", "message"),
    [
        (
            {"noise": Raw(torch.float32, (3, 2, 2))},
            {},
            "store, record 0: 'noise': its values would change",
        ),
        (
            {"x0": Raw(torch.uint8, (3, 2, 2))},
            {},
            "store, record 0: 'x0': its dtype is torch.uint8",
        ),
        ({"rin0": F16((2, 2, 2))}, {}, "store, record 0: 'rin0': its values would change"),
        (
            {"rin0": Int8((2, 2, 2), channels=0)},
            {},
            "store, record 0: 'rin0': its values would change",
        ),
        (
            {"label": Raw(torch.int64)},
            {},
            "store: a sample has noise, x0, rin0, r_chunks, not label,",
        ),
        ({"extra": F16((1,))}, {}, "store: a sample has noise, .*, not extra,"),
        ({"x0": None}, {}, "store: a sample has"),
        ({"x0": F16((3, 4))}, {}, r"store: 'x0' has shape \(3, 4\)"),
        ({}, {"steps": 100}, "store, record 0: T = 100 must be a multiple of 3"),
    ],
)
def test_a_store_that_the_layout_cannot_hold_is_named(tmp_path, change, provenance, message):
    store = stored(tmp_path / "store", change, provenance)
    with pytest.raises(InputError, match=message):
        list(from_store(store, tmp_path / "layout"))
    assert not (tmp_path / "layout").exists()


@pytest.mark.parametrize("told", [{}, {"steps": None}, {"steps": "many"}, {"steps": 100}])
def test_steps_that_cannot_be_told_are_left_out(tmp_path, told):
    spelling = "plain" if told.get("steps") == 100 else "suffixed"
    store = stored(tmp_path / "store", {}, told)
    list(from_store(store, tmp_path / "layout", spelling=spelling))
    assert "T" not in unpacked(tmp_path / "layout" / "sample_00000000.zst")


def test_other_samples_are_not_taken_for_those_of_a_store(tmp_path, layout):
    """Equal shapes, steps and count: the store of the first ones may not pass for the second."""
    list(to_store(layout(3, "suffixed"), tmp_path / "store"))
    other = tmp_path / "other"
    other.mkdir()
    for row in range(3):
        write_sample(other / f"sample_{row:08d}.zst", tensors(values_of(row + 77)), steps=STEPS)
    with pytest.raises(InputError, match="provenance.samples is"):
        list(to_store(other, tmp_path / "store"))


def test_samples_lie_in_local_folders(tmp_path, layout):
    with pytest.raises(InputError, match="s3://b/x: sample_.* local folder"):
        list(to_store("s3://b/x", tmp_path / "store"))
    list(to_store(layout(1, "plain"), tmp_path / "store"))
    with pytest.raises(InputError, match="s3://b/x: sample_.* local folder"):
        list(from_store(tmp_path / "store", "s3://b/x"))
