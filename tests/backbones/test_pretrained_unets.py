"""The U-Nets of other projects: what every backbone must do, beside the original's outputs."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch.func import jvp

from fewstep.backbones import set_dropout, with_two_times
from fewstep.backbones.edm_unet import EDMUNetConfig
from fewstep.backbones.lucidrains_unet import LucidrainsUNetConfig
from fewstep.condition import Condition
from fewstep.errors import InputError

SHAPE = (2, 8, 8)
CONFIGS = {
    "lucidrains": LucidrainsUNetConfig(
        channels=(8, 8, 16), width=8, full_attention=(False, True), heads=(2, 2), head_dim=(4, 4)
    ),
    "ncsn++": EDMUNetConfig(
        width=8, channels=(8, 16), layers=1, attention=(4,), level_width=8, embedding=16,
        fourier=True, taps=(1, 3, 3, 1), image_skips=True,
    ),
    "adm": EDMUNetConfig(
        width=8, channels=(8, 16), layers=1, attention=(8,), level_width=8, embedding=16, heads=2,
        decoder_attention="all", adaptive=True, class_first=False, residual_scale=1.0,
        shortcut=False, cosine_first=True, freq_shift=0.0,
    ),
    "improved": EDMUNetConfig(
        width=8, channels=(8, 16), layers=1, attention=(), level_width=8, embedding=16,
        resampling="convolution", decoder_attention="all",
    ),
}  # fmt: skip
FEATURES = {
    "lucidrains": [(8, 8), (8, 4), (16, 4)],
    "ncsn++": [(8, 8), (16, 4), (16, 4)],
    "adm": [(8, 8), (16, 4), (16, 4)],
    "improved": [(8, 8), (16, 4), (16, 4)],
}

every = pytest.mark.parametrize("name", CONFIGS)


def scrambled(config, classes=0):
    """A network in double precision in which no weight is zero."""
    torch.manual_seed(0)
    net = config.build(shape=SHAPE, classes=classes).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


def inputs(rows=3):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *SHAPE, generator=draw, dtype=torch.float64)
    return x, 10 * torch.rand(rows, generator=draw, dtype=torch.float64)


@every
def test_forward_mode_agrees_with_finite_differences(name):
    net = scrambled(replace(CONFIGS[name], two_times=True))
    x, level = inputs()
    at = (x, level, 0.5 * level)
    draw = torch.Generator().manual_seed(3)
    toward = tuple(torch.randn(a.shape, generator=draw, dtype=a.dtype) for a in at)

    def f(x, level, level_s):
        return net(x, level, level_s=level_s)

    output, tangent = jvp(f, at, toward)
    step = 1e-6
    ahead, behind = (
        f(*(a + sign * step * d for a, d in zip(at, toward, strict=True))) for sign in (1, -1)
    )
    slope = (ahead - behind) / (2 * step)
    assert (tangent - slope).abs().max() < 1e-6 * slope.abs().max()
    torch.testing.assert_close(output, f(*at))


@every
def test_a_second_time_starts_without_effect(name):
    net = scrambled(CONFIGS[name]).float()
    flow_map = with_two_times(net).eval()
    x, level = (tensor.float() for tensor in inputs())
    assert torch.equal(flow_map(x, level, level_s=0 * level), net(x, level))
    other = scrambled(replace(CONFIGS[name], two_times=True)).float()
    assert torch.equal(other(x, level), other(x, level, level_s=level))
    assert not torch.equal(other(x, level), other(x, level, level_s=0 * level))
    with pytest.raises(ValueError, match="two_times"):
        net(x, level, level_s=level)


@every
def test_classes_and_no_class(name):
    net = scrambled(CONFIGS[name], classes=4)
    x, level = inputs()
    none = Condition(torch.full((3,), -1))
    assert torch.equal(net(x, level), net(x, level, cond=none))
    labels = net(x, level, cond=Condition(torch.tensor([0, 3, -1])))
    torch.testing.assert_close(labels[2], net(x, level)[2])
    assert not torch.isclose(labels[:2], net(x, level)[:2]).all()
    with pytest.raises(ValueError, match="no classes"):
        scrambled(CONFIGS[name])(x, level, cond=none)


@every
def test_dropout_and_gradients(name):
    net = scrambled(CONFIGS[name]).train()
    set_dropout(net, 0.5)
    x, level = inputs()

    def output(seed):
        torch.manual_seed(seed)
        return net(x, level)

    assert torch.equal(output(5), output(5))
    assert not torch.equal(output(5), output(6))
    assert torch.equal(net.eval()(x, level), net(x, level))
    net(x, level).square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


@every
def test_features_are_each_size_and_the_bottleneck(name):
    found = scrambled(CONFIGS[name]).features(*inputs())
    assert [(f.shape[1], f.shape[2]) for f in found] == FEATURES[name]


@every
def test_rows_do_not_depend_on_the_batch_and_bfloat16_is_near(name):
    net = scrambled(CONFIGS[name])
    x, level = inputs()
    torch.testing.assert_close(net(x[1:2], level[1:2]), net(x, level)[1:2])
    net, x, level = net.float(), x.float(), level.float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, level)
    exact = net(x, level)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.slow  # tests/export traces whole samples
def test_export_with_a_dynamic_batch():
    """In a plain interpreter, where no import hook checks shapes: graph capture goes around it."""
    code = f"""
    import torch
    from fewstep.backbones.edm_unet import EDMUNetConfig
    from fewstep.backbones.lucidrains_unet import LucidrainsUNetConfig
    def inputs(rows):
        return torch.randn(rows, *{SHAPE}), 10 * torch.rand(rows)
    dynamic = ({{0: torch.export.Dim.DYNAMIC}}, {{0: torch.export.Dim.DYNAMIC}})
    for config in {[CONFIGS["lucidrains"], CONFIGS["ncsn++"]]!r}:
        torch.manual_seed(0)
        net = config.build(shape={SHAPE}).eval()
        program = torch.export.export(net, inputs(2), dynamic_shapes=dynamic).module()
        other = inputs(5)
        torch.testing.assert_close(program(*other), net(*other), rtol=1e-4, atol=1e-5)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "change", "shape", "message"),
    [
        ("lucidrains", {}, (2,), "use the mlp"),
        ("lucidrains", {}, (1, 9, 8), "9x8 pixels cannot be halved 1 times"),
        ("lucidrains", {"heads": (2,)}, SHAPE, "heads has 1 entries, but there are 2 sizes"),
        ("lucidrains", {"width": 7}, SHAPE, "width is 7"),
        ("adm", {}, (2,), "use the mlp"),
        ("adm", {}, (1, 9, 8), "9x8 pixels cannot be halved 1 times"),
        ("adm", {"attention": (16,)}, SHAPE, "attention is at height 16"),
        ("adm", {"channels": (8, 2)}, SHAPE, "2 channels cannot be split into 0 groups"),
        ("adm", {"heads": 5}, SHAPE, "the attention of 16 channels cannot have heads of 3 cha"),
    ],
)
def test_impossible_networks_are_refused(name, change, shape, message):
    with pytest.raises(InputError, match=message) as error:
        replace(CONFIGS[name], **change).build(shape=shape)
    assert "\n" not in str(error.value)
