"""Snapshots of EDM's networks, written on the spot by a network of the same names."""

import pytest
import torch

import fewstep
from fewstep import runs
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Eps
from fewstep.pretrained.parametrizations import ScaledScore
from fewstep.process import VE, VP, Table
from fewstep.sampling import Heun
from fewstep.times import KarrasGrid
from pretrained import nvidia
from pretrained.snapshots import Module, dump

NCSN = {"fourier": True, "residual": True, "taps": (1, 3, 3, 1)}
CASES = [
    (nvidia.EDMPrecond, nvidia.SongUNet, {"layers": 2, "mults": (2, 2, 3), "attends": (8, 2)}),
    (nvidia.EDMPrecond, nvidia.SongUNet, {**NCSN, "mults": (1, 2, 2)}),
    (nvidia.EDMPrecond, nvidia.DhariwalUNet, {"layers": 2, "mults": (2, 1), "attends": (8,)}),
    (nvidia.VPPrecond, nvidia.SongUNet, {}),
    (nvidia.VEPrecond, nvidia.SongUNet, {**NCSN}),
    (nvidia.VPPrecond, nvidia.DhariwalUNet, {}),
    (nvidia.iDDPMPrecond, nvidia.DhariwalUNet, {"channels": 1}),
]


def write(path, kind, architecture, **settings):
    torch.manual_seed(0)
    net = kind(architecture, **settings).eval()
    path.write_bytes(dump({"ema": nvidia.snapshot(net), "loss_fn": None, "dataset_kwargs": {}}))
    return net


def sigmas(denoiser):
    """Noise levels over the whole span, and steps of the table if there is one."""
    process = denoiser.process
    points = torch.tensor([0.0, 0.1, 0.35, 0.8, 1.0], dtype=torch.float64)
    low, high = denoiser.span
    times = low + (high - low) * points
    if isinstance(process, Table):
        times = (times * (process.steps - 1)).round() / (process.steps - 1)
    return [(float(t), float(process.ratio(t))) for t in times]


def gap(generator, net, labels=None, cond=None, augment=None):
    """The largest difference of predicted images, relative to their size."""
    x, worst = torch.randn(2, *generator.spec.shape, generator=torch.Generator().manual_seed(1)), 0
    denoiser = generator.denoiser
    with torch.no_grad():
        for t, sigma in sigmas(denoiser):
            alpha = float(denoiser.process.alpha(torch.tensor(t).double()))
            theirs = net(x * sigma, sigma, labels, augment)
            ours = denoiser(alpha * x * sigma, t, cond=cond).x0
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)))
    return worst


@pytest.mark.parametrize(("kind", "architecture", "settings"), CASES)
def test_predictions_are_those_of_the_original(tmp_path, kind, architecture, settings):
    net = write(tmp_path / "net.pkl", kind, architecture, **settings)
    generator = fewstep.load(f"edm:{tmp_path}/net.pkl")
    assert gap(generator, net) < 1e-5
    assert not any(p.requires_grad for p in generator.parameters())
    runs.save_generator(tmp_path / "ours.safetensors", generator, None, {})
    again = fewstep.load(tmp_path / "ours.safetensors")
    noise = torch.randn(2, *generator.spec.shape)
    assert torch.equal(again(noise, steps=3), generator(noise, steps=3))


@pytest.mark.parametrize("architecture", [nvidia.SongUNet, nvidia.DhariwalUNet])
def test_classes_and_no_class(tmp_path, architecture):
    net = write(tmp_path / "net.pkl", nvidia.EDMPrecond, architecture, labels=5)
    generator = fewstep.load(f"edm:{tmp_path}/net.pkl")
    assert generator.spec.classes == 5
    labels = torch.nn.functional.one_hot(torch.tensor([4, 1]), 5).float()
    assert gap(generator, net, labels, Condition(torch.tensor([4, 1]))) < 1e-5
    assert gap(generator, net) < 1e-5
    assert gap(generator, net, labels) > 1e-3


@pytest.mark.parametrize("architecture", [nvidia.SongUNet, nvidia.DhariwalUNet])
def test_labels_of_augmentation_are_for_training_on(tmp_path, architecture):
    net = write(tmp_path / "net.pkl", nvidia.EDMPrecond, architecture, labels=5)
    generator = fewstep.load(f"edm:{tmp_path}/net.pkl")
    labels = torch.nn.functional.one_hot(torch.tensor([4, 1]), 5).float()
    augment = torch.randn(2, 9, generator=torch.Generator().manual_seed(2))
    cond = Condition(torch.tensor([4, 1]), augment)
    assert gap(generator, net, labels, cond, augment) < 1e-5
    assert gap(generator, net, labels, Condition(torch.tensor([4, 1])), augment) > 1e-3
    six = write(tmp_path / "six.pkl", nvidia.EDMPrecond, architecture, augment=6)
    generator = fewstep.load(f"edm:{tmp_path}/six.pkl")
    assert gap(generator, six) < 1e-5
    assert not generator.denoiser.backbone.config.augmented


def test_processes_and_samplers(tmp_path):
    path = tmp_path / "net.pkl"

    def load(kind, architecture):
        write(path, kind, architecture)
        generator = fewstep.load(f"edm:{path}")
        return generator, generator.denoiser.process, generator.denoiser.parametrization

    edm, process, parametrization = load(nvidia.EDMPrecond, nvidia.SongUNet)
    assert (process, parametrization) == (VE(80.0), EDM(0.4, 0.002, 80.0))
    assert (edm.step, edm.grid) == (Heun(), KarrasGrid())
    _, process, parametrization = load(nvidia.VEPrecond, nvidia.SongUNet)
    assert (process, parametrization) == (VE(100.0), ScaledScore(0.02, 100.0))
    vp, process, parametrization = load(nvidia.VPPrecond, nvidia.SongUNet)
    assert (process, parametrization) == (VP(0.2, 15.2), Eps(VP(0.2, 15.2)))
    assert vp.denoiser.span == (1e-3, 1.0)
    _, process, _ = load(nvidia.iDDPMPrecond, nvidia.DhariwalUNet)
    assert isinstance(process, Table) and process.steps == 20


def test_heun_is_edms_own_sampler(tmp_path):
    """Algorithm 1 of Karras et al. 2022 without churn, with their steps."""
    net = write(tmp_path / "net.pkl", nvidia.EDMPrecond, nvidia.SongUNet)
    generator, steps = fewstep.load(f"edm:{tmp_path}/net.pkl"), 4
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    times = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    noise = torch.randn(2, *generator.spec.shape, generator=torch.Generator().manual_seed(1))
    x = noise * float(times[0])
    with torch.no_grad():
        for t, after in zip(times.tolist(), [*times[1:].tolist(), 0.0], strict=True):
            slope = (x - net(x, t)) / t
            ahead = x + (after - t) * slope
            if after:
                slope = (slope + (ahead - net(ahead, after)) / after) / 2
            x = x + (after - t) * slope
        torch.testing.assert_close(generator(noise, steps=steps), x, rtol=1e-4, atol=1e-4)


def test_snapshots_that_do_not_fit_are_named_in_one_line(tmp_path):
    path = tmp_path / "net.pkl"
    net = nvidia.EDMPrecond(nvidia.SongUNet)
    other = nvidia.snapshot(net)
    other.class_name = "Precond"
    skip = nvidia.snapshot(net)
    skip.attributes["_modules"]["model"].attributes["_modules"]["enc"]._modules["4x4_aux_skip"] = (
        None
    )
    skip.attributes["_modules"]["model"].attributes["_modules"]["enc"]._modules["4x4_aux_skip"] = (
        nvidia.snapshot(nvidia.Conv2d(3, 16, 1))
    )
    less = nvidia.snapshot(net)
    del less.attributes["img_channels"]
    odd, empty = (
        Module(
            "EDMPrecond",
            children={"model": Module("SongUNet", children={"enc": Module("ModuleDict", **enc)})},
            **{"img_channels": 3, "label_dim": 0, "img_resolution": 8},
            **{"sigma_min": 0.0, "sigma_max": 80.0, "sigma_data": 0.5},
        )
        for enc in ({"children": {"first": Module("Conv2d")}}, {})
    )
    cases = [
        ({"ema": other}, "holds a SongUNet in a Precond, but fewstep reads SongUNet and Dhariwal"),
        ({"ema": skip}, "an encoder of type 'skip' is not supported"),
        ({"ema": less}, "is damaged: its network lacks 'img_channels'"),
        ({"net": 3}, "holds no network of NVIDIA's EDM: it lacks ema"),
        (
            {"ema": Module("Precond", children={"unet": Module("UNet")})},
            "lacks a model, as in EDM2",
        ),
        ({"ema": odd}, "is damaged, or its network is not one of NVIDIA's EDM: invalid literal"),
        ({"ema": empty}, "is damaged, or its network is not one of NVIDIA's EDM: StopIteration"),
        ({"ema": Module("EDMPrecond", _modules=[1])}, "is a damaged pickle.*of a EDMPrecond are"),
        ({"ema": nvidia.snapshot(nvidia.Linear(2, 2))}, "holds no network of NVIDIA's EDM"),
    ]
    for content, message in cases:
        path.write_bytes(dump(content))
        with pytest.raises(InputError, match=message) as error:
            fewstep.load(f"edm:{path}")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="takes no options: leave out size"):
        fewstep.load(f"edm:{path}?size=3")
