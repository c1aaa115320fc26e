import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fewstep.errors import InputError
from fewstep.store.codecs import DTYPES, F16, U8, Codec, Int8, Raw, codec_from

few = settings(max_examples=60, deadline=None)
shapes = array_shapes(min_dims=1, max_dims=4, max_side=5)


def floats(limit):
    elements = st.floats(-limit, limit, width=32)
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=elements))


def round_trip(codec, values):
    stored = codec.encode(values)
    assert {suffix: (part.dtype, part.shape[1:]) for suffix, part in stored.items()} == codec.parts
    decoded = codec.decode(stored)
    assert decoded.dtype == codec.dtype and decoded.shape == values.shape
    return decoded


@few
@given(st.sampled_from(sorted(DTYPES)), shapes, st.randoms(use_true_random=False))
def test_raw_keeps_every_bit(name, shape, random):
    dtype = DTYPES[name]
    bits = torch.tensor(list(random.randbytes(int(np.prod(shape)) * dtype.itemsize)))
    bits = (bits & 1 if dtype == torch.bool else bits).to(torch.uint8)
    values = bits.view(dtype).reshape(shape)
    decoded = round_trip(Raw(dtype, shape[1:]), values)
    assert decoded.contiguous().view(torch.uint8).flatten().equal(bits)


@few
@given(floats(60000.0))
def test_f16_is_numpys_nearest_half(values):
    decoded = round_trip(F16(values.shape[1:]), torch.from_numpy(values))
    assert np.array_equal(decoded.numpy(), values.astype(np.float16).astype(np.float32))


@few
@given(floats(1.0))
def test_u8_is_the_nearest_of_256_levels(values):
    decoded = round_trip(U8(values.shape[1:]), torch.from_numpy(values))
    assert np.abs(decoded.numpy() - values).max() <= 1 / 255 + 1e-6


def test_u8_keeps_all_bytes_and_clips():
    levels = torch.arange(256).float() / 127.5 - 1
    codec = U8(())
    assert codec.encode(levels)[""].equal(torch.arange(256, dtype=torch.uint8))
    assert codec.decode(codec.encode(levels)).equal(levels)
    assert codec.encode(torch.tensor([-7.0, 1.001]))[""].tolist() == [0, 255]


@few
@given(floats(1e6), st.integers(0, 3), st.floats(50, 100))
def test_int8_error_is_at_most_half_a_scale_inside_the_clip_range(values, channels, percentile):
    shape = values.shape[1:]
    codec = Int8(shape, channels=min(channels, len(shape)), percentile=percentile)
    x = torch.from_numpy(values)
    scale = codec.encode(x)[".scale"].double()
    scale = scale.reshape(scale.shape + (1,) * (x.dim() - scale.dim()))
    error = (round_trip(codec, x).double() - x.double()).abs()
    inside = x.abs() <= 127 * scale
    # float32 rounds the quotient: one part in 2^24 of a code up to 127
    assert (error <= scale * (0.5 + 1e-4))[inside].all()
    assert (error == x.abs() - 127 * scale)[~inside].all()
    if percentile == 100:
        assert inside.all()


@few
@given(floats(10.0), st.floats(50, 100))
def test_int8_scale_is_the_percentile_rounded_up_to_half(values, percentile):
    codec = Int8(values.shape[1:], channels=0, percentile=percentile)
    scale = codec.encode(torch.from_numpy(values))[".scale"].double().numpy()
    rows = np.abs(values.astype(np.float64)).reshape(len(values), -1)
    exact = np.maximum(np.percentile(rows, percentile, axis=1) / 127, 2.0**-24)
    assert (scale >= exact * (1 - 1e-6)).all()
    assert (scale <= exact * (1 + 2.0**-10) + 2.0**-24).all()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_int8_codes_are_those_of_torch_and_torchao_for_the_same_scale():
    from torchao.quantization.quant_primitives import quantize_affine

    x = (
        torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, 8)[:, None]
    )
    stored = Int8((8, 4096)).encode(x[None])
    codes, scale = stored[""][0], stored[".scale"][0].float()
    zero = torch.zeros(8, dtype=torch.int32)
    theirs = quantize_affine(x, (1, 4096), scale, zero, torch.int8, -127, 127)
    assert codes.equal(theirs)
    torchs = torch.quantize_per_channel(x, scale, zero, axis=0, dtype=torch.qint8)
    assert codes.equal(torchs.int_repr())
    assert codes.min() >= -127 and codes.abs().amax(dim=1).eq(127).all()


def test_a_channel_of_zeros_comes_back_as_zeros():
    assert round_trip(Int8((2, 3)), torch.zeros(1, 2, 3)).eq(0).all()


@pytest.mark.parametrize(
    ("codec", "values"),
    [
        (F16((1,)), [[65520.0]]),
        (F16((1,)), [[float("nan")]]),
        (U8((1,)), [[float("nan")]]),
        (Int8((1,)), [[float("inf")]]),
        (Int8((1,)), [[1e8]]),
    ],
)
def test_what_a_codec_cannot_hold_is_refused(codec, values):
    with pytest.raises(InputError, match="not finite, or beyond"):
        codec.encode(torch.tensor(values))


def test_a_dtype_that_no_file_holds_is_refused():
    with pytest.raises(InputError, match="complex128 cannot be stored; choose from BOOL"):
        Raw(torch.complex128)


@pytest.mark.parametrize("change", [{"percentile": 49.9}, {"percentile": 100.1}, {"channels": 3}])
def test_int8_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError, match="int8"):
        Int8((2, 2), **change)


@pytest.mark.parametrize(
    "codec",
    [Raw(torch.bfloat16, (2,)), F16((3, 4)), U8((1,)), Int8((5, 6), channels=2, percentile=99.5)],
)
def test_description_makes_the_same_codec(codec: Codec):
    assert codec_from(codec.describe()) == codec


def test_an_unknown_codec_is_named():
    with pytest.raises(InputError, match="'int4'"):
        codec_from({"codec": "int4", "shape": [1]})
