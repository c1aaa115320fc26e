"""Muon is torch's for matrices, and for kernels as matrices; AdamW is torch's for the rest."""

import pytest
import torch
from torch import nn

from fewstep import plugins
from fewstep.backbones import UNetConfig
from fewstep.muon import Muon, matrices
from fewstep.optimizers import FitConfig, PlayerConfig, make_optimizer


def parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def gradients(network, step):
    generator = torch.Generator().manual_seed(100 + step)
    for weight in network.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
        if not weight.is_contiguous():
            weight.grad = weight.grad.contiguous(memory_format=torch.channels_last)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 24), nn.Conv2d(18, 20, 3), nn.Conv2d(3, 20, 3))


def references(network, **settings):
    """torch's Muon on the matrices, and torch's AdamW on the rest."""
    linear, kernel, image = network
    flat = nn.Parameter(kernel.weight.detach().reshape(20, -1).clone())
    line = nn.Parameter(linear.weight.detach().clone())
    rest = [
        nn.Parameter(p.detach().clone()) for p in (linear.bias, kernel.bias, *image.parameters())
    ]
    muon = torch.optim.Muon([line, flat], adjust_lr_fn="match_rms_adamw", **settings)
    adamw = torch.optim.AdamW(rest, betas=(0.8, 0.9), fused=True, **settings)
    return line, flat, rest, (muon, adamw)


def test_updates_are_those_of_torch_bit_for_bit():
    settings = {"lr": 0.01, "weight_decay": 0.1}
    ours = network()
    line, flat, rest, references_ = references(ours, **settings)
    optimizer = Muon(ours, betas=(0.8, 0.9), **settings)
    for step in range(4):
        gradients(ours, step)
        linear, kernel, image = ours
        line.grad = linear.weight.grad.clone()
        flat.grad = kernel.weight.grad.reshape(20, -1).clone()
        for mine, theirs in zip((linear.bias, kernel.bias, *image.parameters()), rest, strict=True):
            theirs.grad = mine.grad.clone()
        for group in (*optimizer.param_groups, *(g for o in references_ for g in o.param_groups)):
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()
        for reference in references_:
            reference.step()
    assert torch.equal(linear.weight, line)
    assert torch.equal(kernel.weight.reshape(20, -1), flat)
    assert all(map(torch.equal, (linear.bias, kernel.bias, *image.parameters()), rest))
    assert not torch.equal(linear.weight, network()[0].weight)


def test_channels_last_is_the_same_up_to_the_rounding_of_bfloat16():
    plain, last = network(), network().to(memory_format=torch.channels_last)
    for each in (plain, last):
        start = each[1].weight.detach().clone()
        optimizer = Muon(each, 0.01, betas=(0.9, 0.999), weight_decay=0.0)
        for step in range(3):
            gradients(each, step)
            optimizer.step()
    assert last[1].weight.is_contiguous(memory_format=torch.channels_last)
    difference = (plain[1].weight - last[1].weight).norm() / (plain[1].weight - start).norm()
    assert difference < 0.02


def test_the_size_of_an_update_is_that_of_adamw():
    """So that one learning rate suits both: a root mean square of about 0.2·lr."""
    ours = network()
    before = ours[1].weight.detach().clone()
    gradients(ours, 0)
    Muon(ours, 0.01, betas=(0.9, 0.999), weight_decay=0.0).step()
    size = (ours[1].weight - before).square().mean().sqrt().item()
    assert size == pytest.approx(0.2 * 0.01, rel=0.3)


@pytest.mark.parametrize("name", plugins.names("backbone"))
def test_the_layers_that_touch_the_image_and_embeddings_are_left_to_adamw(name):
    settings = {"network": UNetConfig(channels=(32,), layers=1, attention=())}
    settings = settings if name in ("circuit", "residuals") else {}
    with torch.device("meta"):
        config = plugins.resolve("backbone", name)(**settings)
        net = config.build(shape=(2,) if name == "mlp" else (3, 16, 16), classes=5)
    own = {id(weight) for weight in matrices(net)}
    names = {name: weight for name, weight in net.named_parameters() if id(weight) in own}
    layers = dict(net.named_modules())
    for key, weight in names.items():
        assert weight.ndim >= 2 and not isinstance(layers[key[: -len(".weight")]], nn.Embedding)
        assert not {3, 12} & set(weight.shape[:2]), key
    count = sum(weight.numel() for weight in names.values())
    assert count > 0.8 * sum(weight.numel() for weight in net.parameters())


def test_a_network_without_matrices_is_trained_by_adamw_alone():
    line = nn.Linear(2, 1)
    optimizer = make_optimizer(line, FitConfig(optimizer="muon", lr=0.1))
    (line(torch.ones(1, 2))).sum().backward()
    before = line.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(line.weight.detach(), before - 0.1)


def test_a_player_may_have_muon():
    config = FitConfig(players={"student": PlayerConfig(optimizer="muon", lr=0.5)})
    optimizer = make_optimizer(network(), config.player("student"))
    assert isinstance(optimizer, Muon)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
