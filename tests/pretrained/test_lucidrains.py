"""Files of denoising-diffusion-pytorch, written on the spot by a network of the same names."""

import pytest
import torch

import fewstep
from fewstep import runs
from fewstep.errors import InputError
from fewstep.parametrization import Clean, Eps, V
from fewstep.sampling import Transfer
from pretrained import lucid

NETWORKS = [
    {"dim": 8, "mults": (1, 2)},
    {"dim": 16, "mults": (1, 2), "groups": 8},
    {
        "dim": 8, "mults": (1, 2, 2), "channels": 1, "init": 12, "full": [True, False, True],
        "heads": [2, 4, 1], "head_dim": [8, 4, 6], "condition": True,
    },
]  # fmt: skip
SIZE = 8


def network(**settings):
    torch.manual_seed(0)
    net = lucid.Unet(**{**NETWORKS[0], **settings})
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net.eval()


def named(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def save(path, net, diffusion, *, raw=None):
    """A file as the package's Trainer writes it; the raw weights are other ones."""
    raw = raw or {name: value + 1 for name, value in net.state_dict().items()}
    ema = {
        "initted": torch.tensor(True),
        "step": torch.tensor(7),
        **named(diffusion, "online_model."),
        **named(raw, "online_model.model."),
        **named(diffusion, "ema_model."),
        **named(net.state_dict(), "ema_model.model."),
    }
    model = {**diffusion, **named(raw, "model.")}
    torch.save({"step": 70, "model": model, "opt": {}, "ema": ema, "scaler": None}, path)


def gap(generator, net, steps=100):
    """The largest difference of outputs at steps of the table, relative to their size."""
    x, worst = torch.randn(2, *generator.spec.shape, generator=torch.Generator().manual_seed(1)), 0
    with torch.no_grad():
        for i in (0, 1, steps // 2, steps - 1):
            theirs = net(x, torch.full((2,), i))
            ours = generator.denoiser(x, i / (steps - 1)).output
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)))
    return worst


@pytest.mark.parametrize("settings", NETWORKS)
def test_outputs_are_those_of_the_original(tmp_path, settings, capsys):
    net = network(**settings)
    save(tmp_path / "model-1.pt", net, lucid.buffers("cosine", "pred_noise"))
    address = f"lucidrains:{tmp_path}/model-1.pt?image_size={SIZE}"
    generator = fewstep.load(address)
    assert "using the averaged (EMA) weights of step 70" in capsys.readouterr().err
    assert gap(generator, net) < 1e-5
    assert generator.spec.shape == (settings.get("channels", 3), SIZE, SIZE)
    assert generator.step == Transfer(clip=1.0)
    assert not any(p.requires_grad for p in generator.parameters())
    path = tmp_path / "ours.safetensors"
    runs.save_generator(path, generator, None, {})
    assert gap(fewstep.load(path), net) < 1e-5


@pytest.mark.parametrize("clip_snr", [None, 5])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(
    ("objective", "kind"), [("pred_noise", Eps), ("pred_x0", Clean), ("pred_v", V)]
)
def test_schedule_and_objective_come_from_the_buffers(
    tmp_path, schedule, objective, kind, clip_snr
):
    net = network()
    buffers = lucid.buffers(schedule, objective, clip_snr=clip_snr)
    torch.save({**buffers, **named(net.state_dict(), "model.")}, tmp_path / "d.pt")
    generator = fewstep.load(f"lucidrains:{tmp_path}/d.pt?image_size={SIZE}")
    assert isinstance(generator.denoiser.parametrization, kind)
    steps = torch.arange(100).double()
    alpha, sigma = (
        f(steps / 99) for f in (generator.denoiser.process.alpha, generator.denoiser.process.sigma)
    )
    torch.testing.assert_close(alpha, buffers["sqrt_alphas_cumprod"].double(), rtol=1e-6, atol=0)
    wanted = buffers["sqrt_one_minus_alphas_cumprod"].double()
    torch.testing.assert_close(sigma, wanted, rtol=1e-6, atol=0)
    torch.save(net.state_dict(), tmp_path / "unet.pt")
    bare = fewstep.load(
        f"lucidrains:{tmp_path}/unet.pt?image_size={SIZE}&beta_schedule={schedule}&timesteps=100&objective={objective}"
    )
    assert gap(bare, net) < 1e-5 and isinstance(bare.denoiser.parametrization, kind)
    torch.testing.assert_close(bare.denoiser.process.alpha(steps / 99), alpha, rtol=1e-5, atol=0)


def test_raw_weights_and_sizes_that_are_no_square(tmp_path, capsys):
    net = network()
    save(tmp_path / "m.pt", network(), lucid.buffers("linear", "pred_v"), raw=net.state_dict())
    generator = fewstep.load(f"lucidrains:{tmp_path}/m.pt?image_size=8,16&weights=raw")
    assert "using the raw weights" in capsys.readouterr().err
    assert generator.spec.shape == (3, 8, 16)
    assert gap(generator, net) < 1e-5


def test_checkpoints_of_other_trainers(tmp_path):
    """What is recognised is loaded: in an entry, with names of wrappers, beside an optimiser."""
    net = network()
    state = {**lucid.buffers("cosine", "pred_v"), **named(net.state_dict(), "model.")}
    path = tmp_path / "last.ckpt"
    for key, wrapper in (("state_dict", "diffusion."), ("net", "module."), ("net", "")):
        optimizer = {"state": {0: torch.zeros(2)}, "param_groups": []}
        torch.save({"epoch": 3, key: named(state, wrapper), "optimizer": optimizer}, path)
        with pytest.raises(InputError, match="load it as lucidrains:"):
            fewstep.load(path)
        assert gap(fewstep.load(f"lucidrains:{path}?image_size={SIZE}"), net) < 1e-5


def test_files_that_do_not_fit_are_named_in_one_line(tmp_path):
    net, diffusion = network(), lucid.buffers("cosine", "pred_v")
    state = {**diffusion, **named(net.state_dict(), "model.")}
    path = tmp_path / "x.pt"
    old = {**state, "model.downs.0.2.fn.norm.g": torch.ones(8)}
    variance = {**state, "model.final_conv.weight": torch.zeros(6, 8, 1, 1)}
    grouped = {**diffusion, **named(network(dim=16, groups=8).state_dict(), "model.")}
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    no_noise = dict(zip(names, (torch.ones(100), torch.zeros(100)), strict=True))
    cases = [
        (state, "", "the image size is not in .*: add it, as in lucidrains:.*x.pt.image_size=32"),
        (state, "?image_size=9", "9x9 pixels cannot be halved 1 times"),
        (state, "?image_size=8&objective=eps", "objective=eps in .* is not supported"),
        (net.state_dict(), "?image_size=8", "add it, as in beta_schedule=cosine"),
        (net.state_dict(), "?image_size=8&beta_schedule=linear&objective=pred_v&timesteps=10",
         "10 steps are too few for the noise schedule 'linear'"),
        ({0: torch.zeros(2)}, "?image_size=8", "holds no network of lucidrains"),
        ({k: v for k, v in state.items() if k != "loss_weight"}, "?image_size=8", "add objective="),
        (old, "?image_size=8", "written by a version before 1.9"),
        (variance, "?image_size=8", "3 input and 6 output channels"),
        ({**state, "model.extra": torch.zeros(2), "model.extra.w": torch.zeros(2)}, "?image_size=8",
         "extra.w. is .2,. in the file, but missing"),
        ({k: v for k, v in state.items() if "mid_block2" not in k}, "?image_size=8", "is missing"),
        ({k: v for k, v in state.items() if "downs" not in k}, "?image_size=8", "no whole network"),
        ({"w": torch.zeros(2)}, "?image_size=8", "holds no network of lucidrains"),
        ({**state, **no_noise}, "?image_size=8", "are no noise schedule"),
        ({**state, names[0]: torch.ones(3)}, "?image_size=8", "are no noise schedule"),
        ({**state, names[1]: torch.full((100,), torch.nan)}, "?image_size=8", "no noise schedule"),
        ({**state, "loss_weight": torch.ones(())}, "?image_size=8", "add objective="),
        (grouped, "?image_size=8&resnet_block_groups=5", "16 channels cannot be split"),
    ]  # fmt: skip
    for content, options, message in cases:
        torch.save(content, path)
        with pytest.raises(InputError, match=message) as error:
            fewstep.load(f"lucidrains:{path}{options}")
        assert "\n" not in str(error.value)
