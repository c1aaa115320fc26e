"""The circuit's parts: a normalised state, a first update that is nothing, adopted trunks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.backbones import UNetConfig
from fewstep.backbones.blocks import Attention
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.errors import InputError

NETWORK = UNetConfig(channels=(16, 32), layers=1, attention=(4,), groups=8)


def circuit(seed=0, shape=(1, 8, 8), classes=3, shake=0.0, **settings):
    """A small one; `shake` moves every weight, so that nothing is zero."""
    config = CircuitConfig(
        **{"network": NETWORK, "state": StateConfig(12, groups=4), "blocks": 1, **settings}
    )
    torch.manual_seed(seed)
    net = config.build(shape=shape, classes=classes)
    for parameter in net.parameters():
        parameter.data += shake * torch.randn_like(parameter)
    return net


def levels(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("shrink", [1, 2])
def test_every_state_has_mean_0_and_variance_1_in_each_group(shrink):
    net = circuit(state=StateConfig(12, shrink=shrink, groups=4), shake=0.1)
    level, level_s = levels(900.0, 500.0, 3.0), levels(800.0, 490.0, 0.0)
    z = net.encode(torch.randn(3, 1, 8, 8), level)
    assert z.shape == (3, 12, 8 // shrink, 8 // shrink)
    for _ in range(20):
        grouped = z.reshape(3, 4, -1)
        assert grouped.mean(-1).abs().max() < 1e-5
        assert (grouped.var(-1, unbiased=False) - 1).abs().max() < 1e-3
        before, z = z, net.advance(z, level, level_s)
        assert (z - before).abs().max() > 1e-2  # or the test would tell nothing


def test_the_first_update_is_near_identity_and_the_gate_half_open():
    net = circuit()
    level, level_s = levels(900.0, 500.0), levels(0.0, 499.0)
    z = net.encode(torch.randn(2, 1, 8, 8), level)
    assert (net.advance(z, level, level_s) - z).abs().max() < 1e-3
    assert net.gate(level, level_s).equal(torch.zeros(2))
    assert net.read(z, level).abs().max() < 1e-3 and net.image(z, level).abs().max() < 1e-3


def test_the_update_knows_where_it_goes_and_for_which_class():
    from fewstep.condition import Condition

    net = circuit(shake=0.1)
    z = net.encode(torch.randn(2, 1, 8, 8), levels(900.0, 900.0))
    z = z[:1].expand(2, -1, -1, -1)
    far = net.advance(z, levels(900.0, 900.0), levels(890.0, 100.0))
    assert (far[0] - far[1]).abs().max() > 1e-3
    one = net.advance(z, levels(9.0, 9.0), levels(8.0, 8.0), Condition(torch.tensor([0, 1])))
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_it_says_what_its_parts_say():
    net = circuit(shake=0.1)
    x, level = torch.randn(2, 1, 8, 8), levels(100.0, 700.0)
    assert net(x, level).equal(net.read(net.encode(x, level), level))
    assert len(net.features(x, level)) == 4  # two sizes, the bottleneck, the state


def test_the_published_sizes():
    """38.6 M, 43.3 M and 2.66 M parameters of Rin, R and a read-out, of the original's code."""
    with torch.device("meta"):
        net = CircuitConfig().build(shape=(3, 32, 32))
    count = [
        sum(p.numel() for part in parts for p in part.parameters())
        for parts in (
            (net.encoder, net.encoder_out),
            (net.update, net.adapter_in, net.adapter_out, net.gate),
            (net.output_readout,),
        )
    ]
    assert count[0] == pytest.approx(38.6e6, rel=3e-3)
    assert count[1] == pytest.approx(43.3e6, rel=3e-3)
    assert count[2] == pytest.approx(2.66e6, rel=3e-3)


def test_a_pretrained_network_is_adopted_and_kept():
    torch.manual_seed(1)
    source = NETWORK.build(shape=(1, 8, 8), classes=3)
    for parameter in source.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net = circuit(lora=2)
    net.load_teacher(source)
    x, level = torch.randn(2, 1, 8, 8), levels(100.0, 700.0)
    seen = net.encoder(x, level)
    # the low-rank change is zero at first: what the source's last layer sees
    torch.testing.assert_close(source.conv_out(seen), source(x, level))
    trained = {name for name, _ in net.encoder.named_parameters()}
    norms = {n for n, m in source.named_modules() if isinstance(m, nn.GroupNorm)}
    attends = [n for n, m in source.named_modules() if isinstance(m, Attention)]
    for name in trained:
        at = name.rpartition(".")[0]
        told = ("time_embedding.", "class_embedding.", "conv_in.")
        assert name.startswith(told) or at in norms or name.endswith(("0.down", "0.up")), name
    assert sum(name.endswith("0.up") for name in trained) == 4 * len(attends)
    assert norms <= {name.rpartition(".")[0] for name in trained}
    kept = dict(net.encoder.named_buffers())
    assert kept["mid_block.resnets.0.conv1.weight"].equal(source.mid_block.resnets[0].conv1.weight)
    # one built anew takes its state: what was kept is saved too
    again = circuit(seed=5, lora=2)
    again.load_state_dict(net.state_dict())
    assert again.encode(x, level).equal(net.encode(x, level))
    # a step moves the attention, and leaves the buffers
    before = {name: value.clone() for name, value in net.named_buffers()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.encode(x, level).square().mul(torch.randn(2, 12, 8, 8)).mean().backward()
    optimizer.step()
    assert all(value.equal(before[name]) for name, value in net.named_buffers())
    layer = net.encoder.mid_block.attentions[0].to_v
    assert not layer.weight.equal(source.mid_block.attentions[0].to_v.weight)


@pytest.mark.parametrize("patch", [1, 2])
def test_both_trunks_start_from_a_teacher(patch):
    """Also without low-rank adapters, and on squares of pixels: all weights are then trained."""
    torch.manual_seed(1)
    network = replace(NETWORK, patch=patch, attention=(4,) if patch == 1 else (2,))
    source = network.build(shape=(1, 8, 8), classes=3)
    for parameter in source.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net = circuit(network=network, state=StateConfig(12, shrink=2, groups=4))
    net.load_teacher(source)
    x, level = torch.randn(2, 1, 8, 8), levels(100.0, 700.0)
    hidden = net.encoder(x, level)
    assert hidden.shape == (2, 16, 8 // patch, 8 // patch)
    torch.testing.assert_close(source.unfold(source.conv_out(hidden)), source(x, level))
    assert net.update.mid_block.resnets[0].conv1.weight.equal(
        source.mid_block.resnets[0].conv1.weight
    )
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.encode(x, level).shape == (2, 12, 4, 4) and net(x, level).shape == x.shape


def test_squares_of_pixels_are_at_most_as_large_as_the_states():
    network = replace(NETWORK, patch=2, attention=())
    with pytest.raises(InputError, match="shrink 1 is not divisible by the patch 2"):
        CircuitConfig(network=network)
    net = circuit(network=network, state=StateConfig(12, shrink=4, groups=4), shake=0.1)
    assert net.encode(torch.randn(2, 1, 8, 8), levels(1.0, 2.0)).shape == (2, 12, 2, 2)


def test_what_does_not_fit_is_refused():
    before = circuit().state_dict()
    for teacher in (None, replace(NETWORK, channels=(16, 64)).build(shape=(1, 8, 8)), circuit()):
        net = circuit()
        net.load_teacher(teacher)  # another network has no weights for it
        assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    net = circuit(lora=2)
    with pytest.raises(InputError, match="there is none"):
        net.load_teacher(None)
    with pytest.raises(InputError, match="not a unet, but a CircuitNet"):
        net.load_teacher(circuit())
    for other in ({"channels": (16, 64)}, {"pace": 0.03}, {"flip_sin_to_cos": True}):
        with pytest.raises(InputError, match=f"{next(iter(other))} = .* and the teacher's"):
            net.load_teacher(replace(NETWORK, **other).build(shape=(1, 8, 8), classes=3))
    for wrong in ({"lora": -1}, {"blocks": -1}, {"step": 0.0}):
        with pytest.raises(InputError, match="student.backbone"):
            circuit(**wrong)
    with pytest.raises(InputError, match="groups must divide"):
        StateConfig(12, groups=5)
    with pytest.raises(InputError, match="does not fit"):
        circuit(state=StateConfig(12, shrink=16, groups=4))
    with pytest.raises(ValueError, match="one time"):
        net(torch.randn(1, 1, 8, 8), levels(1.0), level_s=levels(0.0))


def test_the_update_can_start_from_the_encoders_trunk():
    net = circuit(shake=0.1)
    kept = {name: w.clone() for name, w in net.encoder.state_dict().items()}
    own = net.update.time_embedding_s.linear_1.weight.clone()
    net.copy_encoder()
    mine = net.update.state_dict()
    shared = set(kept) & set(mine)
    assert {"mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight"} <= shared
    for name in shared:
        assert mine[name].equal(kept[name])
    assert mine["time_embedding_s.linear_1.weight"].equal(own)
    for name, w in net.encoder.state_dict().items():
        assert w.equal(kept[name])


def test_compiled_it_is_compiled_in_parts():
    net = circuit()
    net.compile(backend="eager")
    assert net._compiled_call_impl is None
    for part in net.children():
        assert part._compiled_call_impl is not None
