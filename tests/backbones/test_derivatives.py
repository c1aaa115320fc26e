"""Faster tangents are the same tangents."""

import torch

from fewstep.backbones import UNetConfig
from fewstep.backbones.derivatives import value_and_tangent


def unet(dropout=0.0):
    torch.manual_seed(0)
    config = UNetConfig(channels=(8, 16), layers=1, attention=(2,), groups=4, dropout=dropout)
    network = config.build(shape=(2, 4, 4)).double()
    with torch.no_grad():  # layers that start at zero would hide the others
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


def inputs():
    torch.manual_seed(1)
    x, level = torch.randn(3, 2, 4, 4).double(), 3 * torch.rand(3).double()
    return (x, level), (torch.randn_like(x), torch.randn_like(level))


def test_they_are_torchs_own_and_the_value_keeps_its_gradient():
    network, (at, ways) = unet(), inputs()
    wanted = torch.func.jvp(network, at, ways)
    found = value_and_tangent(network, at, ways)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert found[0].requires_grad and not found[1].requires_grad
    seen, theirs = (
        torch.autograd.grad(value.square().sum(), list(network.parameters()))
        for value in (found[0], wanted[0])
    )
    for a, b in zip(seen, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_value_and_tangent_share_the_dropout():
    network, ((x, level), (way, _)) = unet(dropout=0.5).train(), inputs()
    h = 1e-6

    def at(shift):
        """In forward mode too: the order of a mask depends on how memory lies."""
        torch.manual_seed(0)
        return value_and_tangent(lambda x: network(x, level), (x + shift * way,), (way,))

    change = (at(h)[0] - at(-h)[0]) / (2 * h)
    torch.testing.assert_close(at(0)[1], change, rtol=1e-5, atol=1e-4)
