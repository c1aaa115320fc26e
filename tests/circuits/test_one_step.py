"""The one-step sum: its size, where its chunks come from, and the frozen read-out."""

import pytest
import torch

from circuits.test_network import NETWORK, circuit
from fewstep.backbones import UNetConfig
from fewstep.circuits.network import StateConfig
from fewstep.circuits.one_step import ResidualsConfig, split_chunks
from fewstep.condition import Condition
from fewstep.errors import InputError

STATE = StateConfig(12, groups=4)


def residuals(**settings):
    config = ResidualsConfig(
        **{"network": NETWORK, "state": STATE, "blocks": 1, "chunks": 5, **settings}
    )
    torch.manual_seed(0)
    return config.build(shape=(1, 8, 8), classes=3)


def test_the_published_size():
    """42.98 M parameters with 10 chunks, 4, 3 and 3 on 8, 16 and 32 pixels."""
    with torch.device("meta"):
        net = ResidualsConfig().build(shape=(3, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(42.98e6, rel=2e-4)
    assert split_chunks(10, 3) == (4, 3, 3)
    expected = [(0, 0, 0), (1, 0, 0), (2, 2, 1), (3, 3, 3)]
    assert [split_chunks(k, 3) for k in (0, 1, 5, 9)] == expected


@pytest.mark.parametrize("chunks", [1, 5, 8])
@pytest.mark.parametrize("channels", [(16,), (16, 32), (16, 16, 32)])
@pytest.mark.parametrize("shrink", [1, 2])
def test_it_says_the_read_out_of_its_sum(chunks, channels, shrink):
    network = UNetConfig(channels=channels, layers=1, attention=(), groups=8)
    state = StateConfig(12, shrink=shrink, groups=4)
    net = residuals(network=network, state=state, chunks=chunks)
    source = circuit(state=state, shake=0.1)
    net.copy_readout(source, torch.tensor(7.0))
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([1000.0, 1000.0])
    first, told = net.parts(x, level)
    assert first.shape == (2, 12, 8 // shrink, 8 // shrink)
    assert told.shape == (2, chunks, *first.shape[1:])
    assert first.reshape(2, 4, -1).mean(-1).abs().max() < 1e-5
    wanted = source.image(first + told.sum(1), torch.tensor([7.0, 7.0]))
    assert net(x, level).equal(wanted) and net(x, level).shape == x.shape
    # all of it is trained but the read-out, which still lets gradients through
    net(x, level, cond=Condition(torch.tensor([0, 1]))).square().mean().backward()
    parts = (net.branches, net.first, net.heads, net.trunk.mid_block)
    assert all(p.grad is not None for part in parts for p in part.parameters())
    assert not [name for name, _ in net.named_parameters() if name.startswith("image_readout")]


def test_a_network_on_squares_of_pixels():
    network = UNetConfig(channels=(16, 32), layers=1, attention=(), groups=8, patch=2)
    state = StateConfig(12, shrink=2, groups=4)
    net = residuals(network=network, state=state)
    net.copy_readout(circuit(network=network, state=state, shake=0.1), torch.tensor(7.0))
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([1000.0, 1000.0])
    first, chunks = net.parts(x, level)
    assert first.shape == (2, 12, 4, 4) and chunks.shape == (2, 5, 12, 4, 4)
    assert net(x, level).shape == x.shape
    with pytest.raises(InputError, match="not divisible by the patch 2"):
        residuals(network=network, state=STATE)


@pytest.mark.parametrize("channels", [(16,), (16, 32), (16, 16, 32), (16, 16, 16, 32)])
def test_each_head_sees_a_size_of_the_network(channels):
    """Told a fixed first state, only the chunks of the coarsest of several sizes stand still."""
    network = UNetConfig(channels=channels, layers=1, attention=(), groups=8)
    net = residuals(network=network)
    with torch.no_grad():
        net.first[-1].conv.weight.zero_()
        net.first[-1].conv.bias.normal_()
    level = torch.tensor([1000.0, 1000.0])
    first, chunks = net.parts(torch.randn(2, 1, 8, 8), level)
    torch.testing.assert_close(first[0], first[1])
    sizes = max(len(channels) - 1, 1)
    kept = [(a - b).abs().max() < 1e-6 for a, b in zip(*chunks, strict=True)]
    coarsest = split_chunks(5, sizes)[0] if sizes > 1 else 0
    assert kept == [k < coarsest for k in range(5)]


def test_another_circuit_is_refused():
    with pytest.raises(InputError, match="blocks"):
        residuals().copy_readout(circuit(blocks=2), torch.tensor(0.0))
    with pytest.raises(InputError, match="from 0"):
        ResidualsConfig(chunks=-1)


@pytest.mark.parametrize("net", [circuit(shake=0.1), residuals()], ids=["circuit", "residuals"])
def test_tangents_come_in_every_memory_format(net):
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([900.0, 100.0])
    given = (x, level), (torch.randn_like(x), torch.randn_like(level))
    wanted = torch.func.jvp(net, *given)
    found = torch.func.jvp(net.to(memory_format=torch.channels_last), *given)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
