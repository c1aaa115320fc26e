"""The MLP against finite differences and a function that it must be able to learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap

from fewstep.backbones import MLPConfig
from fewstep.backbones.embedding import Sinusoid
from fewstep.condition import Condition
from fewstep.errors import InputError


def scrambled(config, shape=(2,), classes=0):
    """A network in double precision in which no weight is zero."""
    net = config.build(shape=shape, classes=classes).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return net


def inputs(shape=(2,), rows=4):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *shape, generator=draw, dtype=torch.float64)
    return x, 1000 * torch.rand(rows, generator=draw, dtype=torch.float64)


def test_forward_mode_agrees_with_finite_differences():
    net = scrambled(MLPConfig(width=32, two_times=True))
    x, level = inputs()
    at = (x, level, 0.3 * level)
    toward = (x.flip(0), torch.ones_like(level), -torch.ones_like(level))

    def f(x, level, level_s):
        return net(x, level, level_s=level_s)

    tangent = jvp(f, at, toward)[1]
    step = 1e-5
    ahead, behind = (
        f(*(a + sign * step * d for a, d in zip(at, toward, strict=True))) for sign in (1, -1)
    )
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


def test_rows_are_independent_under_vmap():
    net = scrambled(MLPConfig(width=32))
    x, level = inputs()
    alone = vmap(lambda x, level: net(x[None], level[None])[0])(x, level)
    torch.testing.assert_close(alone, net(x, level))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    depth=st.integers(0, 3),
    classes=st.sampled_from([0, 5]),
)
def test_shapes(shape, depth, classes):
    net = MLPConfig(width=8, depth=depth).build(shape=shape, classes=classes)
    x, level = (tensor.float() for tensor in inputs(shape))
    assert torch.equal(net(x, level), torch.zeros_like(x))
    assert [tuple(each.shape) for each in net.features(x, level)] == [(4, 8)] * depth


def test_conditions_and_times():
    net = scrambled(MLPConfig(width=32, two_times=True), classes=3)
    x, level = inputs()
    none = Condition(torch.full((4,), -1))
    assert torch.equal(net(x, level), net(x, level, level_s=level, cond=none))
    assert not torch.equal(net(x, level), net(x, level, cond=Condition(torch.tensor([0] * 4))))
    assert not torch.equal(net(x, level), net(x, level, level_s=0 * level))
    plain = scrambled(MLPConfig(width=32))
    with pytest.raises(ValueError, match="two_times"):
        plain(x, level, level_s=level)
    with pytest.raises(ValueError, match="no classes"):
        plain(x, level, cond=none)


def test_a_second_time_starts_without_effect():
    teacher = scrambled(MLPConfig(width=32))
    student = MLPConfig(width=32, two_times=True).build(shape=(2,)).double()
    student.load_state_dict(teacher.state_dict(), strict=False)
    x, level = inputs()
    assert torch.equal(student(x, level, level_s=0 * level), teacher(x, level))


@pytest.mark.slow
def test_it_learns_a_rotation_by_its_level():
    torch.manual_seed(0)
    net = MLPConfig(width=64).build(shape=(2,))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(400):
        x, turn = torch.randn(256, 2, generator=draw), torch.rand(256, generator=draw)
        cos, sin = torch.cos(3 * turn), torch.sin(3 * turn)
        truth = torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)
        loss = (net(x, 1000 * turn) - truth).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02  # saying zero costs 1


def test_the_sinusoid_is_the_published_one():
    width, position = 8, 3
    angle = [position / 10_000 ** (k / (width / 2 - 1)) for k in range(width // 2)]
    angle = torch.tensor(angle, dtype=torch.float64)
    wanted = torch.cat([angle.sin(), angle.cos()])
    level = torch.tensor([float(position)], dtype=torch.float64)
    torch.testing.assert_close(Sinusoid(width)(level)[0], wanted)
    flipped = Sinusoid(width, cosine_first=True)(level)[0]
    torch.testing.assert_close(flipped, wanted.roll(width // 2))
    assert Sinusoid(width)(level.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("width", [2, 7])
def test_impossible_networks_are_refused(width):
    with pytest.raises(InputError, match="even width"):
        MLPConfig(width=width).build(shape=(2,))
