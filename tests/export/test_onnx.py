"""ONNX files compute the images of PyTorch, name their origin, and refuse in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from exporting import TEXT_TINY, OtherText, point_generator, text_generator, unet_generator
from fewstep import drawing, runs
from fewstep.backbones import DiTConfig, UNetConfig
from fewstep.backbones.base import Backbone
from fewstep.backbones.edm_unet import EDMUNetConfig
from fewstep.backbones.lucidrains_unet import LucidrainsUNetConfig
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.cli import main
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export import graph
from fewstep.export.checking import compare
from fewstep.export.onnx import OnnxExport
from fewstep.export.precision import round_weights
from fewstep.export.program import Unrolled
from fewstep.export.pytorch import TorchExport
from fewstep.export.source import Source
from fewstep.export.tracing import Network
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.sampling import Heun, Multistep, Renoise
from fewstep.times import FixedGrid

EXAMPLE = Path(__file__).parents[2] / "examples" / "export" / "onnx_alone.py"
TINY = UNetConfig(channels=(8,), layers=1, attention=(), groups=4, pace=0.03)


def differences(module, model, names, batches=(1, 2, 7)):
    session = graph.open_session(model.SerializeToString())
    for batch in batches:
        inputs = module.example_inputs(batch, seed=batch)
        yield (graph.run_session(session, names, inputs) - module(*inputs)).abs().max().item()


def test_the_command_writes_files_that_onnxruntime_runs(tmp_path, capsys):
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out"
    grid = FixedGrid(((1.0,), (1.0, 0.7)))
    generator = unet_generator(grid=grid, step=Renoise(), config=TINY)
    runs.save_generator(weights, generator, {"recipe": "of this test"}, {})
    words = ["export", weights, "--to", "onnx", "--out", out, "--dtype", "int8", "--steps", "2"]
    assert main([*map(str, words), "--license", "CC-BY-4.0"]) == 0
    assert "model-2.onnx: largest difference" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out / "model-2.onnx")
    rounded = round_weights(generator, "int8")
    module = Unrolled(rounded, 2)
    assert [i.name for i in session.get_inputs()] == ["noise", "label", "fresh_noise"]
    assert [i.shape[0] for i in session.get_inputs()] == ["batch"] * 3
    for batch in (1, 64):
        inputs = module.example_inputs(batch, seed=9)
        feed = {n: x.numpy() for n, x in zip(module.input_names, inputs, strict=True)}
        (images,) = session.run(["image"], feed)
        expected = rounded(inputs[0], steps=2, cond=Condition(inputs[1]), seed=9)
        torch.testing.assert_close(
            torch.from_numpy(images), (expected.clamp(-1, 1) + 1) / 2, rtol=0, atol=2e-6
        )
    check_example(out / "model-2.onnx", rounded, tmp_path)
    record = json.loads((out / "export.json").read_text())
    assert record["checks"]["model-2.onnx"]["largest_difference"] < 1e-5
    assert record["checks"]["model-2.onnx"]["rows"] == [1, 7]
    values = session.get_modelmeta().custom_metadata_map
    assert json.loads(values["fewstep.class_names"])[2] == "<b>two</b>"
    assert values["fewstep.weights"] == runs.weights_hash(generator) == record["weights"]
    assert (values["fewstep.license"], values["fewstep.draws"]) == ("CC-BY-4.0", "1")
    assert len(values["fewstep.recipe_hash"]) == 64
    assert json.loads(values["fewstep.about"])["recipe"] == {"recipe": "of this test"}


def check_example(model, generator, folder):
    """The example without PyTorch draws the image of `fewstep sample --seed 5 --label 2`."""
    words = [EXAMPLE, model, "2", folder / "example.png", "5"]
    subprocess.run([sys.executable, *map(str, words)], check=True)
    pixels = torch.from_numpy(np.array(Image.open(folder / "example.png"))[16::32, 16::32])
    seeds = drawing.seeds(5, range(1))
    noise, cond = noise_from_seeds(seeds, generator.spec.shape), Condition(torch.tensor([2]))
    expected = to_uint8(generator(noise, steps=2, cond=cond, seed=seeds))[0, 0]
    assert (pixels.int() - expected.int()).abs().max() <= 1
    imports = {line.split()[1] for line in EXAMPLE.read_text().splitlines() if "import " in line}
    assert not imports & {"torch", "fewstep"}


PROMPT_EXAMPLE = EXAMPLE.with_name("prompt_alone.py")


def test_a_prompt_has_its_image_without_fewstep(tmp_path):
    generator = round_weights(text_generator(config=TEXT_TINY).with_guidance(2.0), "f16")
    source = Source("text", generator, (1,), "0" * 64, dtype="f16")
    checks = OnnxExport().write(source, tmp_path)
    assert checks["model-1.onnx"]["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model-1.onnx")
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [
        ("noise", [1, 8, 8]), ("tokens", [8]), ("token_mask", [8])
    ]  # fmt: skip
    table = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    noise = noise_from_seeds(range(3), (1, 8, 8))
    null = {"noise": noise.numpy()}
    null |= {name: np.array([value] * 3) for name, value in table["null_prompt"].items()}
    (images,) = session.run(["image"], null)
    torch.testing.assert_close(
        torch.from_numpy(images), (generator(noise, steps=1).clamp(-1, 1) + 1) / 2,
        rtol=0, atol=2e-6,
    )  # fmt: skip
    for prompt in ("a Smiling CAT, 猫 and ﬁsh", "", "qqq\ud800 " * 9):
        check_prompt(tmp_path, generator, prompt)


def check_prompt(folder, generator, prompt):
    """The example draws the image of `fewstep sample --seed 5 --prompt PROMPT`."""
    code = f"import sys; sys.argv = ['', *{[str(folder / 'model-1.onnx'), prompt]!a}, "
    code += f"{str(folder / 'out.png')!a}, '5']\n" + PROMPT_EXAMPLE.read_text(encoding="utf-8")
    exec(compile(code, str(PROMPT_EXAMPLE), "exec"), {"__name__": "example"})
    pixels = torch.from_numpy(np.array(Image.open(folder / "out.png"))[16::32, 16::32])
    seeds = drawing.seeds(5, range(1))
    noise, cond = (
        noise_from_seeds(seeds, (1, 8, 8)),
        Condition(text=generator.spec.text.encode([prompt])),
    )
    expected = to_uint8(generator(noise, steps=1, cond=cond, seed=seeds))[0, 0]
    assert (pixels.int() - expected.int()).abs().max() <= 1
    imports = re.findall(r"^(?:import|from) (\w+)", PROMPT_EXAMPLE.read_text(), re.MULTILINE)
    assert len(imports) > 5 and not {*imports} & {"torch", "fewstep"}


def test_other_text_encoders_are_refused(tmp_path):
    source = Source("text", text_generator(text=OtherText(), config=TEXT_TINY), (1,), "0" * 64)
    for exporter in (OnnxExport(), TorchExport()):
        with pytest.raises(InputError, match=r'no text encoder ".*OtherText": only') as caught:
            exporter.write(source, tmp_path)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "generator",
    [
        lambda: text_generator(),
        lambda: text_generator(classes=3).with_guidance(2.0, negative="the hat"),
        lambda: text_generator(flow_map=True),
        lambda: text_generator(step=Renoise()),
        lambda: text_generator(config=DiTConfig(width=16, depth=1, text_width=16, head_dim=8)),
    ],
)
def test_networks_with_text(generator):
    rounded = round_weights(generator(), "int8")
    for module in (Unrolled(rounded, 2), Network(rounded)):
        model = graph.onnx_graph(module, dtype="int8")
        assert max(differences(module, model, module.input_names)) < 1e-4


@pytest.mark.slow
def test_a_graph_holds_each_weight_once_and_no_notes():
    guided = unet_generator(step=Multistep(), config=TINY).with_guidance(1.5, interval=(0.3, 0.8))
    generator = round_weights(guided, "f16")
    module = Unrolled(generator, 3)
    model = graph.onnx_graph(module, dtype="f16")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == graph.OPSET
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.graph.value_info
    arrays = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
    contents = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
    assert len(contents) == len(set(contents))
    count = sum(p.numel() for p in generator.parameters())
    large = [array for array in arrays if array.size > 256]
    assert {array.dtype.name for array in large} == {"float16"}
    assert sum(array.size for array in arrays) < 1.05 * count
    assert max(differences(module, model, module.input_names)) < 3e-6


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=pytest.mark.slow), "int8"])
def test_the_bare_network_of_a_guided_flow_map(dtype):
    generator = unet_generator(flow_map=True, config=TINY).with_guidance(2.0)
    network = Network(round_weights(generator, dtype))
    assert network.input_names == ["x", "level", "level_s", "label"]
    model = graph.onnx_graph(network, dtype=dtype)
    assert max(differences(network, model, network.input_names)) < 1e-4
    x, level, level_s, label = network.example_inputs(5)
    expected = network.backbone(x, level, level_s=level_s, cond=Condition(label))
    assert torch.equal(network(x, level, level_s, label), expected) and -1 in label


STATE = StateConfig(channels=8, shrink=2, groups=4)
DIT = DiTConfig(width=16, depth=2, head_dim=8)
EDM_UNET = EDMUNetConfig(
    width=8, channels=(8, 16), layers=1, attention=(4,), level_width=8, embedding=16, groups=4
)
LUCIDRAINS = LucidrainsUNetConfig(
    channels=(8, 8, 16), width=8, full_attention=(False, True), heads=(2, 2), head_dim=(4, 4)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "generator",
    [
        lambda: point_generator(step=Heun()),
        lambda: unet_generator(step=Heun()).with_guidance(1.5),
        lambda: unet_generator(classes=0),
        lambda: unet_generator(config=DIT),
        lambda: unet_generator(config=EDM_UNET),
        lambda: unet_generator(config=LUCIDRAINS),
        lambda: unet_generator(config=CircuitConfig(network=TINY, state=STATE, blocks=1)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
def test_every_backbone(generator, dtype):
    rounded = round_weights(generator(), dtype)
    module = Unrolled(rounded, 2)
    model = graph.onnx_graph(module, dtype=dtype)
    assert max(differences(module, model, module.input_names)) < 1e-4


class OwnBackbone(Backbone):
    """A stranger's network."""

    def __init__(self, function):
        super().__init__()
        self.shape, self.classes, self.level_scale, self.config = (1, 8, 8), 0, 1.0, None
        self.scale, self.function = nn.Parameter(torch.ones(1)), function

    def forward(self, x, level, *, level_s=None, cond=None):
        return self.scale * self.function(x, level)

    def features(self, x, level, *, cond=None):
        return []


def own(function):
    generator = unet_generator(classes=0)
    generator.denoiser.backbone = OwnBackbone(function)
    return Unrolled(generator, 1)


def by_value(x, level):
    return x * 2 if x.sum() > 0 else x


def by_item(x, level):
    return x if (x.mean().item() > 0) else -x


REFUSED = [
    (lambda x, level: torch.linalg.svd(x)[0], "ONNX cannot express.*linalg_svd"),
    (lambda x, level: torch.special.bessel_j0(x), "ONNX cannot express.*bessel_j0"),
    (by_value, r"cannot be traced: the value of a tensor decides.*`return x \* 2 if x.sum\(\) > 0"),
    (by_item, "cannot be traced: the value of a tensor decides.*x.mean"),
    (lambda x, level: torch.stack([row * 2 for row in x]), "fixes the number of rows"),
    (lambda x, level: torch.from_numpy(x.numpy()), "cannot be traced.*numpy"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_what_onnx_lacks_is_named_in_one_line(function, message, capsys):
    with pytest.raises(InputError, match=message) as caught:
        graph.onnx_graph(own(function))
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().err


def test_a_network_with_random_numbers_fails_the_check():
    module = own(lambda x, level: x + torch.randn_like(x))
    session = graph.open_session(graph.onnx_graph(module).SerializeToString())
    with pytest.raises(InputError, match=r"model.onnx differs.*more than 0.001"):
        compare("model.onnx", lambda x: graph.run_session(session, ["noise"], x), module)


def test_a_generator_without_finite_images_fails_the_check():
    module = own(lambda x, level: x * torch.nan)
    with pytest.raises(InputError, match="images of this generator in 1 step are infinite or not"):
        compare("model.onnx", lambda x: module(*x), module)


def by_rows(x, level):
    """Operations on the level that mix its rows, or do not."""
    doubled = torch.stack([level, level + 1], dim=1)
    table = torch.linspace(0, 1, 3)[:, None] * level  # (3, b): rows are the second dimension
    mixed = level.cumsum(0)[:, None] + doubled @ torch.ones(2, 4) + table.T.sum(1, keepdim=True)
    return x * torch.cat([mixed, torch.sin(doubled)], dim=1).mean(1)[:, None, None, None]


def by_level(x, level):
    return x + torch.sin(level[:, None] * torch.arange(4.0)).sum(1)[:, None, None, None]


@pytest.mark.parametrize("function", [by_rows, by_level])
def test_equal_rows_are_computed_once_only_where_that_changes_nothing(function):
    module = own(function)
    model = graph.onnx_graph(module)
    assert max(differences(module, model, ["noise"])) < 1e-5


def test_a_truncated_file_gets_one_line(tmp_path):
    with pytest.raises(InputError, match="onnxruntime cannot load the graph"):
        graph.open_session(graph.onnx_graph(own(by_level)).SerializeToString()[:-100])
