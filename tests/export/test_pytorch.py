"""`torch.export` files compute the images of PyTorch, with weights in fewer bits."""

import json

import pytest
import torch

from exporting import TEXT_TINY, text_generator, unet_generator
from fewstep.backbones import UNetConfig
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export import pytorch
from fewstep.export.precision import round_weights
from fewstep.export.program import Unrolled
from fewstep.export.pytorch import TorchExport
from fewstep.export.source import Source
from fewstep.noise import noise_from_seeds

WIDE = UNetConfig(channels=(32,), layers=1, attention=(), middle_attention=False, groups=4)


def source(dtype):
    generator = round_weights(unet_generator(config=WIDE), dtype)
    return Source("test", generator, (1,), "0" * 64, dtype)


def images(generator, inputs):
    images = generator(inputs[0], steps=1, cond=Condition(inputs[1]))
    return (images.clamp(-1, 1) + 1) / 2


@pytest.mark.parametrize(
    ("dtype", "share"),
    [
        pytest.param("f32", 1.0, marks=pytest.mark.slow),
        pytest.param("f16", 0.5, marks=pytest.mark.slow),
        ("int8", 0.3),
    ],
)
def test_weights_in_fewer_bits_make_a_smaller_file_that_computes_the_same(tmp_path, dtype, share):
    exported = source(dtype)
    checks = TorchExport().write(exported, tmp_path)
    assert checks["model-1.pt2"]["largest_difference"] < 1e-5
    program = torch.export.load(tmp_path / "model-1.pt2")
    size = sum(weight.nbytes for weight in program.state_dict.values())
    assert size <= share * sum(p.nbytes for p in exported.generator.parameters())
    inputs = Unrolled(exported.generator, 1).example_inputs(64, seed=3)
    expected = images(exported.generator, inputs)
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_program_of_a_network_with_text(tmp_path):
    generator = round_weights(text_generator(config=TEXT_TINY).with_guidance(2.0), "int8")
    TorchExport().write(Source("test", generator, (1,), "0" * 64, "int8"), tmp_path)
    program = torch.export.load(tmp_path / "model-1.pt2").module()
    text = generator.spec.text.encode(["a smiling cat", "", "the hat"])
    noise = noise_from_seeds(range(3), (1, 8, 8))
    expected = generator(noise, steps=1, cond=Condition(text=text))
    expected = (expected.clamp(-1, 1) + 1) / 2
    output = program(noise, text.tokens, text.mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["length"] == 8


def test_a_missing_compiler_gets_one_line(tmp_path):
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("a-compiler-that-nobody-has",)}):
        with pytest.raises(InputError, match=r"needs a C\+\+ compiler.*leave out --aot"):
            TorchExport(aot=True).write(source("f32"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_compiled_package_computes_the_same(tmp_path):
    exported = source("int8")
    checks = TorchExport(aot=True).write(exported, tmp_path)
    assert checks["model-1-aot.pt2"]["largest_difference"] < 1e-5
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "model-1-aot.pt2"))
    for batch in (1, 5):
        inputs = Unrolled(exported.generator, 1).example_inputs(batch, seed=3)
        expected = images(exported.generator, inputs)
        torch.testing.assert_close(loaded(*inputs), expected, rtol=0, atol=1e-5)


def test_a_compiler_that_fails_gets_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the compiler gave up\nafter long")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    module = Unrolled(source("f32").generator, 1)
    program = pytorch.trace(module, module.example_inputs(2))
    with pytest.raises(InputError, match="cannot compile the program: RuntimeError: the compiler"):
        pytorch.compile_program(program, tmp_path / "x.pt2")
