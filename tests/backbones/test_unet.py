"""The U-Net against diffusers' own, and against finite differences."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap
from torch.nn import functional

from fewstep.backbones import UNetConfig
from fewstep.backbones.attention import attention, group_norm
from fewstep.backbones.blocks import Upsample
from fewstep.condition import Condition
from fewstep.errors import InputError

# one attention head at 8 pixels, two at 4
SMALL = UNetConfig(channels=(16, 32), groups=8, attention=(8, 4), layers=1, head_dim=16)
TWO_TIMES = replace(SMALL, two_times=True)
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def diffusers_unet():
    from diffusers import UNet2DModel

    def make(config, shape, classes):
        sizes = [shape[1] >> i for i in range(len(config.channels))]
        attends = ["Attn" if size in config.attention else "" for size in sizes]
        return UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=config.channels,
            down_block_types=tuple(f"{a}DownBlock2D" for a in attends),
            up_block_types=tuple(f"{a}UpBlock2D" for a in reversed(attends)),
            layers_per_block=config.layers,
            downsample_padding=config.downsample_padding,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
            norm_eps=config.norm_eps,
            norm_num_groups=config.groups,
            attention_head_dim=config.head_dim,
            add_attention=config.middle_attention,
            dropout=config.dropout,
            num_class_embeds=classes + 1 if classes else None,
        )

    return make


def scrambled(config=SMALL, shape=SHAPE, classes=0, dtype=torch.float32):
    """A network in which no weight is zero, so that everything has an effect."""
    net = config.build(shape=shape, classes=classes).to(dtype).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=dtype)
    return net


def inputs(shape=SHAPE, rows=3, dtype=torch.float32):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *shape, generator=draw, dtype=dtype)
    return x, 1000 * torch.rand(rows, generator=draw, dtype=dtype)


VARIANTS = [
    (SMALL, 0),
    (replace(SMALL, layers=2, head_dim=None), 10),
    (UNetConfig(channels=(16, 16, 32), groups=4, attention=(), middle_attention=False), 0),
    (
        UNetConfig(
            channels=(32, 16),
            groups=8,
            attention=(8,),
            head_dim=16,
            downsample_padding=1,
            flip_sin_to_cos=True,
            freq_shift=0.0,
            norm_eps=1e-5,
        ),
        3,
    ),
    (UNetConfig(channels=(8, 32), groups=4, attention=(4,), layers=1, head_dim=16), 0),
]


@pytest.mark.parametrize(("config", "classes"), VARIANTS)
def test_outputs_and_gradients_are_those_of_diffusers(diffusers_unet, config, classes):
    ours = scrambled(config, classes=classes)
    theirs = diffusers_unet(config, SHAPE, classes).eval()
    theirs.load_state_dict(ours.state_dict())
    x, level = inputs()
    label = torch.tensor([0, classes - 1, classes]) if classes else None
    cond = Condition(torch.tensor([0, classes - 1, -1])) if classes else None
    expected, output = theirs(x, level, label).sample, ours(x, level, cond=cond)
    assert (output - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)

    for y in (expected, output):
        y.square().sum().backward()
    wanted = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        scale = wanted[name].abs().max() + 1e-2  # the keys' bias has no effect: noise in diffusers
        assert (weight.grad - wanted[name]).abs().max() < 1e-3 * scale, name


def test_weights_load_strictly_in_both_directions(diffusers_unet):
    theirs, ours = diffusers_unet(SMALL, SHAPE, 10).eval(), SMALL.build(shape=SHAPE, classes=10)
    ours.load_state_dict(theirs.state_dict())
    x, level = inputs()
    label = torch.tensor([1, 2, 3])
    gap = theirs(x, level, label).sample - ours.eval()(x, level, cond=Condition(label))
    assert gap.abs().max() < 1e-5
    theirs.load_state_dict(ours.state_dict())


def test_the_defaults_are_the_public_cifar10_network(diffusers_unet):
    config, shape = UNetConfig(), (3, 32, 32)
    theirs, ours = diffusers_unet(config, shape, 0).eval(), scrambled(config, shape)
    assert sum(weight.numel() for weight in ours.parameters()) == 35_746_307
    ours.load_state_dict(theirs.state_dict())
    x, level = inputs(shape, rows=1)
    with torch.no_grad():
        assert (theirs(x, level).sample - ours(x, level)).abs().max() < 1e-5


def test_training_keeps_less_in_memory_than_diffusers(diffusers_unet):
    config = UNetConfig(channels=(16, 32), groups=8, attention=(4,))
    x, level = inputs(rows=32)

    def kept(net):
        storages = {}

        def remember(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # kept alive: no reuse
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            output = net(x, level)
        assert output is not None
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    assert kept(config.build(shape=SHAPE)) < kept(diffusers_unet(config, SHAPE, 0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward_mode_agrees_with_finite_differences(layout):
    shape = (2, 8, 8)
    net = scrambled(TWO_TIMES, shape, dtype=torch.float64).to(memory_format=layout)
    x, level = inputs(shape, dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    at = (x, level, 0.5 * level)
    draw = torch.Generator().manual_seed(3)
    toward = tuple(torch.randn(a.shape, generator=draw, dtype=a.dtype) for a in at)

    def f(x, level, level_s):
        return net(x, level, level_s=level_s)

    output, tangent = jvp(f, at, toward)
    step = 1e-5
    ahead, behind = (
        f(*(a + sign * step * d for a, d in zip(at, toward, strict=True))) for sign in (1, -1)
    )
    slope = (ahead - behind) / (2 * step)
    assert (tangent - slope).abs().max() < 1e-6 * slope.abs().max()
    torch.testing.assert_close(output, f(*at))


def test_derivatives_compose_with_vmap_and_reverse_mode():
    net = scrambled(dtype=torch.float64)
    x, level = inputs(dtype=torch.float64)

    def slope(x, level):
        return jvp(lambda at: net(x[None], at[None]), (level,), (torch.ones_like(level),))[1]

    alone = torch.stack([slope(x[i], level[i]) for i in range(len(x))])
    torch.testing.assert_close(vmap(slope)(x, level), alone)
    loss = sum(slope(x[i], level[i]).square().sum() for i in range(len(x)))
    loss.backward()
    assert net.conv_in.weight.grad.abs().max() > 0

    def energy(x):
        return net(x, level).square().sum()

    curvature = jvp(torch.func.grad(energy), (x,), (x,))[1]
    step = 1e-5
    ahead, behind = (torch.func.grad(energy)(x * (1 + sign * step)) for sign in (1, -1))
    slope_of_gradient = (ahead - behind) / (2 * step)
    gap = (curvature - slope_of_gradient).abs().max()
    assert gap < 1e-6 * slope_of_gradient.abs().max()


def test_memory_formats_and_precisions():
    shape = (3, 8, 8)
    net = scrambled(SMALL, shape)
    x, level = inputs(shape)
    expected = net(x, level)
    last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last), level), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, level)
    rounded.float().square().sum().backward()
    assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()
    double = net.double()(x.double(), level.double())
    assert (double - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_is_normalised_in_float32(layout, dtype, monkeypatch):
    dtypes, norm = [], functional.group_norm
    spy = lambda x, *args: (dtypes.append(x.dtype), norm(x, *args))[1]  # noqa: E731
    monkeypatch.setattr(functional, "group_norm", spy)
    x = (3 + torch.randn(2, 8, 64, 64)).bfloat16().contiguous(memory_format=layout)
    weight, bias = torch.randn(8, dtype=dtype), torch.randn(8, dtype=dtype)
    actual = group_norm(x.requires_grad_(), 4, weight, bias)
    assert dtypes == [torch.float32]
    exact = norm(x.detach().double(), 4, weight.double(), bias.double())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, exact.bfloat16(), rtol=2**-7, atol=1e-3)
    actual.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_has_the_outputs_and_gradients_of_float64(masked):
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4]) if masked else None
    rounded = [torch.randn(2, 3, n, 16).bfloat16().requires_grad_() for n in (5, 7, 7)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    actual, expected = attention(*rounded, mask), attention(*exact, mask)
    torch.testing.assert_close(actual.double(), expected, rtol=0.02, atol=0.02)
    assert "ScaledDotProduct" not in actual.grad_fn.name()  # whose backward pass is slow
    weight = torch.randn(expected.shape)
    actual.backward(weight.bfloat16())
    expected.backward(weight.bfloat16().double())
    for x, y in zip(rounded, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=0.03, atol=0.03)


def test_upsampling_is_its_definition():
    """On CPUs it is one transposed convolution; other devices repeat the pixels and convolve."""
    layer = Upsample(4).double()
    x = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(layer(x), layer.conv(twice))
    elsewhere = TWO_TIMES.build(shape=SHAPE).to("meta")
    assert elsewhere(*(tensor.to("meta") for tensor in inputs())).shape == (3, *SHAPE)


def test_dropout_replays_under_the_same_seed():
    net = scrambled(replace(SMALL, dropout=0.3)).train()
    x, level = inputs()

    def output(seed):
        torch.manual_seed(seed)
        return net(x, level)

    assert torch.equal(output(5), output(5))
    assert not torch.equal(output(5), output(6))
    assert torch.equal(net.eval()(x, level), net(x, level))


def test_a_new_network_says_zero_and_every_weight_hears_of_the_loss():
    net = SMALL.build(shape=SHAPE, classes=4)
    x, level = inputs()
    assert torch.equal(net(x, level), torch.zeros_like(x))
    trained = scrambled(SMALL, classes=4)
    trained(x, level).sum().backward()
    assert all(weight.grad is not None for weight in trained.parameters())
    keys = trained.down_blocks[0].attentions[0].to_k
    assert keys.bias.grad.abs().max() == 0 < keys.weight.grad.abs().max()


def test_no_label_is_the_last_row():
    net = scrambled(classes=10)
    x, level = inputs()
    none = Condition(torch.full((3,), -1))
    assert torch.equal(net(x, level), net(x, level, cond=none))
    assert not torch.equal(net(x, level), net(x, level, cond=Condition(torch.tensor([9, 9, 9]))))
    mixed = net(x, level, cond=Condition(torch.tensor([-1, 3, -1])))
    torch.testing.assert_close(mixed[[0, 2]], net(x, level)[[0, 2]])
    with pytest.raises(IndexError):
        net(x, level, cond=Condition(torch.tensor([0, 11, 0])))


def test_a_second_time_starts_without_effect():
    teacher, student = scrambled(), TWO_TIMES.build(shape=SHAPE).eval()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"time_embedding_s"} and not unexpected
    x, level = inputs()
    for level_s in (None, level, 0 * level):
        assert torch.equal(student(x, level, level_s=level_s), teacher(x, level))
    other = scrambled(TWO_TIMES)
    assert torch.equal(other(x, level), other(x, level, level_s=level))
    assert not torch.equal(other(x, level), other(x, level, level_s=0 * level))


def test_what_a_network_was_not_made_for_is_an_error():
    net = SMALL.build(shape=SHAPE)
    x, level = inputs()
    with pytest.raises(ValueError, match="two_times"):
        net(x, level, level_s=level)
    with pytest.raises(ValueError, match="no classes"):
        net(x, level, cond=Condition(torch.zeros(3, dtype=torch.int64)))


@settings(max_examples=15, deadline=None)
@given(sizes=st.integers(1, 3), layers=st.integers(1, 2), middle=st.booleans())
def test_features_are_each_size_and_the_bottleneck(sizes, layers, middle):
    widths = (8, 16, 24)[:sizes]
    config = UNetConfig(
        channels=widths, groups=4, attention=(), layers=layers, middle_attention=middle
    )
    x, level = inputs()
    found = config.build(shape=SHAPE).features(x, level)
    wanted = [(3, width, 8 >> i, 8 >> i) for i, width in enumerate(widths)]
    assert [tuple(each.shape) for each in found] == [*wanted, wanted[-1]]


@pytest.mark.parametrize(
    ("change", "shape", "told"),
    [
        ({"groups": 12}, SHAPE, "multiple of groups; their greatest common divisor is 16"),
        ({"attention": (16,)}, SHAPE, r"\[8, 4\]"),
        ({"head_dim": 24}, SHAPE, "must divide"),
        ({"channels": (16, 16, 16, 16, 16)}, SHAPE, "cannot be halved 4 times"),
        ({}, (2,), "use the mlp"),
    ],
)
def test_impossible_networks_are_refused(change, shape, told):
    with pytest.raises(InputError, match=told) as refused:
        replace(SMALL, **change).build(shape=shape)
    assert "\n" not in str(refused.value)


def in_a_plain_interpreter(body):
    """Run where no import hook checks shapes: graph capture does not go through it."""
    head = """
    import torch
    from fewstep.backbones import UNetConfig
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = UNetConfig(channels=(16, 32), groups=8, attention=(8, 4), layers=1, head_dim=16)
    net = config.build(shape=(1, 8, 8)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)

    def inputs(rows):
        return torch.randn(rows, 1, 8, 8), 1000 * torch.rand(rows)
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow  # tests/export traces whole samples
def test_export_with_a_dynamic_batch():
    in_a_plain_interpreter("""
    dynamic = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    program = torch.export.export(net, inputs(2), dynamic_shapes=dynamic).module()
    for rows in (1, 64, 100):
        given = inputs(rows)
        torch.testing.assert_close(program(*given), net(*given), rtol=1e-5, atol=1e-5)
    """)


@pytest.mark.slow
def test_capture_for_compilation_has_no_graph_break():
    in_a_plain_interpreter("""
    compiled = torch.compile(net.train(), fullgraph=True, backend="aot_eager")
    given = inputs(4)
    output = compiled(*given)
    torch.testing.assert_close(output, net(*given), rtol=1e-5, atol=1e-5)
    output.square().sum().backward()
    """)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_bfloat16_attention_runs_on_the_part_of_a_processor_that_pytorch_uses(capability):
    code = """if True:
        import torch
        from fewstep.backbones.attention import attention
        q, k, v = (torch.randn(2, 1, 64, 8) for _ in range(3))
        half = attention(*(x.bfloat16() for x in (q, k, v)))
        torch.testing.assert_close(half.float(), attention(q, k, v), rtol=0.02, atol=0.02)
    """
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
