import pytest
import safetensors.torch
import torch

from fewstep.errors import InputError
from fewstep.store import F16, Int8, Raw
from fewstep.store.records import Layout


def test_the_safetensors_library_reads_every_row(schema, records):
    layout = Layout(schema)
    content = records(5)
    packed = layout.pack(content)
    for row in range(5):
        stored = safetensors.torch.load(packed[row].numpy().tobytes())
        assert set(stored) == {"image", "label", "latent", "latent.scale"}
        assert stored["label"].equal(content["label"][row])
        codes = schema["latent"].encode(content["latent"])
        assert stored["latent"].equal(codes[""][row])
        assert stored["latent.scale"].equal(codes[".scale"][row])


def test_rows_are_the_librarys_own_bytes():
    layout = Layout({"seed": Raw(torch.int64), "image": F16((3, 5))})
    image, seed = torch.randn(1, 3, 5), torch.tensor([-9])
    theirs = safetensors.torch.save({"image": image[0].half(), "seed": seed[0]})
    assert layout.pack({"image": image, "seed": seed}).numpy().tobytes() == theirs


def test_unpack_undoes_pack(schema, records):
    layout = Layout(schema)
    content = records(4)
    packed = layout.pack(content)
    assert layout.matches(packed).all()
    unpacked = layout.unpack(packed)
    assert unpacked["image"].equal(content["image"])
    assert unpacked["label"].equal(content["label"])
    latent = schema["latent"]
    assert unpacked["latent"].equal(latent.decode(latent.encode(content["latent"])))


def test_a_row_of_another_schema_does_not_fit():
    ours, other = Layout({"a": F16((4,))}), Layout({"b": F16((4,))})
    assert not ours.matches(other.pack({"b": torch.zeros(2, 4)})).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.zeros(2)}, "extra"),
        ({"label": torch.zeros(2, dtype=torch.int32)}, "'label' has dtype torch.int32"),
        (
            {"latent": torch.zeros(2, 3, 2)},
            r"'latent' has dtype torch.float32 and row shape \(3, 2\)",
        ),
        ({"label": torch.zeros(3, dtype=torch.int64)}, r"\[2, 3\] rows"),
    ],
)
def test_records_that_are_not_the_schemas_are_named(schema, records, change, message):
    with pytest.raises(InputError, match=message):
        Layout(schema).check({**records(2), **change})


def test_what_cannot_be_encoded_is_named():
    layout = Layout({"latent": Int8((1,))})
    with pytest.raises(InputError, match="'latent' cannot be recorded"):
        layout.pack({"latent": torch.tensor([[float("nan")]])})
