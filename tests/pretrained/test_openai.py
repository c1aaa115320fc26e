"""State dicts of OpenAI's layout, written on the spot by a network of the same names."""

import json

import pytest
import torch

import fewstep
from fewstep import runs
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Clean, Eps
from fewstep.pretrained.parametrizations import EDMBoundary
from fewstep.process import VE, LinearBetas
from fewstep.sampling import Heun, Renoise, Transfer
from fewstep.times import KarrasGrid
from pretrained.adm import UNetModel

BASE = "image_size=8&noise_schedule=cosine&diffusion_steps=100"
LINEAR = "image_size=8&noise_schedule=linear&diffusion_steps=100&num_head_channels=16"
IMPROVED = {"film": False, "updown": False, "heads": 4, "head_channels": None}
CASES = [
    ({}, "num_head_channels=16"),
    ({"mults": (1, 1, 2), "layers": 2, "attends": (1, 4)}, "num_head_channels=16"),
    (
        {"mults": (2, 1), "updown": False, "learn_sigma": False, "channels": 1},
        "num_head_channels=16",
    ),
    ({**IMPROVED, "mults": (1, 2, 2), "attends": (2, 4), "dims": 2}, "num_heads=4"),
    ({"mults": (1,), "attends": (1,)}, "num_head_channels=16"),
    ({"new_order": True}, "num_head_channels=16&use_new_attention_order=true"),
]


def save(path, **settings):
    torch.manual_seed(0)
    net = UNetModel(**settings).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.03 * torch.randn_like(weight)
    torch.save(net.state_dict(), path)
    return net


def outputs(generator, net, steps=100, label=None):
    """(ours, theirs) at steps of the table."""
    x = torch.randn(2, *generator.spec.shape, generator=torch.Generator().manual_seed(1))
    cond = None if label is None else Condition(label)
    with torch.no_grad():
        for i in (0, 1, steps // 2, steps - 1):
            theirs = net(x, torch.full((2,), i), label)[:, : x.shape[1]]
            yield generator.denoiser(x, i / (steps - 1), cond=cond).output, theirs


def gap(*arguments, **options):
    pairs = outputs(*arguments, **options)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize(("settings", "options"), CASES)
def test_outputs_are_those_of_the_original(tmp_path, settings, options):
    net = save(tmp_path / "net.pt", **settings)
    address = f"openai:{tmp_path}/net.pt?{BASE}&{options}"
    generator = fewstep.load(address)
    assert gap(generator, net) < 1e-5
    assert generator.spec.shape == (settings.get("channels", 3), 8, 8)
    assert generator.step == Transfer(clip=1.0)
    runs.save_generator(tmp_path / "ours.safetensors", generator, None, {})
    assert gap(fewstep.load(tmp_path / "ours.safetensors"), net) < 1e-5


def test_another_order_of_heads_is_another_network(tmp_path):
    """The options have an effect: a wrong one is a wrong network."""
    net = save(tmp_path / "net.pt")
    for options in ("num_head_channels=32", "num_head_channels=16&use_new_attention_order=true"):
        address = f"openai:{tmp_path}/net.pt?{BASE}&{options}"
        assert gap(fewstep.load(address), net) > 1e-4


def test_classes_and_no_class(tmp_path):
    net = save(tmp_path / "net.pt", classes=5)
    generator = fewstep.load(f"openai:{tmp_path}/net.pt?{LINEAR}")
    assert generator.spec.classes == 5
    assert gap(generator, net, label=torch.tensor([0, 4])) < 1e-5
    assert gap(generator, net) < 1e-5


def test_schedules_objectives_and_options_beside_the_file(tmp_path):
    save(tmp_path / "net.pt")
    beside = tmp_path / "net.json"
    settings = {"image_size": [8], "noise_schedule": "linear", "num_head_channels": 16}
    settings["num_heads"] = None
    beside.write_text(json.dumps(settings))

    def parts(options):
        generator = fewstep.load(f"openai:{tmp_path}/net.pt{options}")
        denoiser = generator.denoiser
        return denoiser.process, denoiser.parametrization, generator.step, generator.grid

    process = LinearBetas(1000, 1e-4, 0.02)
    assert parts("")[:2] == (process, Eps(process))
    assert parts("?predict_xstart=true")[1] == Clean(process)
    shorter = parts("?diffusion_steps=500")[0]
    assert shorter == LinearBetas(500, 2e-4, 0.04)
    assert parts("?noise_schedule=edm&sigma_max=90") == (
        VE(90.0),
        EDM(0.5, 0.002, 90.0),
        Heun(),
        KarrasGrid(),
    )
    consistency = (VE(80.0), EDMBoundary(), Renoise(clip=1.0), KarrasGrid())
    assert parts("?noise_schedule=consistency") == consistency
    with pytest.raises(InputError, match="unknown option 'image_sise'"):
        beside.write_text(json.dumps({"image_sise": 8}))
        parts("")
    for text, message in (("[1]", "not a JSON object"), ("{", "is not JSON")):
        beside.write_text(text)
        with pytest.raises(InputError, match=message):
            parts("")


@pytest.mark.parametrize("schedule", ["edm", "consistency"])
def test_consistency_models_predict_as_the_original(tmp_path, schedule):
    """Song et al. 2023, arXiv:2303.01469: inputs, levels and outputs, by their formulas."""
    net = save(tmp_path / "cd.pt", new_order=True, learn_sigma=False, dims=2)
    address = f"openai:{tmp_path}/cd.pt?image_size=8&noise_schedule={schedule}&num_head_channels=16"
    generator = fewstep.load(address)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for sigma in (0.002, 0.1, 1.0, 80.0):
        shift = sigma - (0.002 if schedule == "consistency" else 0)
        total = (sigma**2 + 0.25) ** 0.5
        level = torch.full((2,), 250 * float(torch.tensor(sigma).double().log()))
        with torch.no_grad():
            raw = net(sigma * noise / total, level)
            wanted = 0.25 / (shift**2 + 0.25) * sigma * noise + shift * 0.5 / total * raw
            ours = generator.denoiser(sigma * noise, sigma / 80).x0
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    if schedule == "consistency":
        image = generator(noise, steps=1)
        torch.testing.assert_close(image, wanted.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_files_that_do_not_fit_are_named_in_one_line(tmp_path):
    path = tmp_path / "x.pt"
    state = save(path).state_dict()
    every = f"?{LINEAR}"
    part = "?image_size=8&noise_schedule=linear"
    cases = [
        (state, "", "the image size is not in .*: add it, as in openai:.*x.pt.image_size=64"),
        (state, "?image_size=8", "the noise schedule is not in .*: add noise_schedule=linear"),
        (state, part, "the number of attention heads is not in"),
        (state, part + "&num_heads=5", "64 channels have no 5 attention heads"),
        (state, every.replace("8", "9", 1), "9x9 pixels cannot be halved 1 times"),
        ({"w": torch.zeros(2)}, every, "holds no U-Net of OpenAI's layout"),
        ({k: v for k, v in state.items() if "out" not in k}, every, "holds no whole U-Net"),
        ({k: v for k, v in state.items() if "input_blocks.3" not in k}, every, "is no plain U-Net"),
        ({**state, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, every, "super-resolution"),
        ({**state, "out.2.weight": torch.zeros(9, 32, 3, 3)}, every, "input and 9 output"),
        ({k: v for k, v in state.items() if "time_embed.2" not in k}, every, "is missing in"),
        ({k: v for k, v in state.items() if "time_embed.0" not in k}, every, "layout: no 'time"),
        ({k: v for k, v in state.items() if "blocks.1.0" not in k}, every, "layout: no 'in"),
        ({**state, "middle_block.7.x": torch.zeros(2)}, every, "no whole U-Net.*does not belong"),
        ({**state, "input_blocks.0.0.weight": torch.zeros(())}, every, "no whole.*not belong"),
        (state, every + "&dropout=1", "dropout=1 in .* is not supported"),
        (state, every + "&sigma_max=0", "sigma_max=0 in .* is not supported"),
    ]  # fmt: skip
    for content, options, message in cases:
        torch.save(content, path)
        with pytest.raises(InputError, match=message) as error:
            fewstep.load(f"openai:{path}{options}")
        assert "\n" not in str(error.value)


def test_options_that_the_weights_determine_are_compared(tmp_path):
    """OpenAI's own flags may all be there, and must fit."""
    net = save(tmp_path / "net.pt", mults=(1, 2, 2), layers=2, attends=(2, 4))
    flags = {
        "num_channels": "32", "num_res_blocks": "2", "attention_resolutions": "2,4",
        "class_cond": "False", "learn_sigma": "True", "use_scale_shift_norm": "True",
        "resblock_updown": "True", "num_heads": "4", "dropout": "0.1",
    }  # fmt: skip
    address = f"openai:{tmp_path}/net.pt?{LINEAR}"
    query = "&".join(f"{key}={value}" for key, value in flags.items())
    generator = fewstep.load(f"{address}&{query}")
    assert gap(generator, net) < 1e-5
    assert generator.denoiser.backbone.config.dropout == 0.1
    opposite = {"True": "False", "False": "True", "32": "64", "2": "3", "2,4": "4"}
    for key in list(flags)[:7]:
        with pytest.raises(InputError, match=f"{key} is .*, but in the weights it is"):
            fewstep.load(f"{address}&{key}={opposite[flags[key]]}")
    heads = address.replace("num_head_channels=16", "num_head_channels=-1&num_heads=4")
    assert fewstep.load(heads).denoiser.backbone.config.heads == 4


def test_a_state_dict_in_another_object(tmp_path):
    net = save(tmp_path / "net.pt")
    wrapped = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "net.pt")
    address = f"openai:{tmp_path}/net.pt?{LINEAR}"
    assert gap(fewstep.load(address), net) < 1e-5
