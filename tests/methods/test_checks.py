"""Warnings before training: a network that turns too fast with the noise level."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from fewstep.backbones import Backbone, EDMUNetConfig, LucidrainsUNetConfig, MLPConfig, UNetConfig
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.methods.base import Task
from fewstep.methods.checks import level_turn, training_warnings
from fewstep.methods.consistency import Consistency, ConsistencyConfig
from fewstep.methods.meanflow import Meanflow, MeanflowConfig
from fewstep.methods.scm import Scm, ScmConfig
from fewstep.parametrization import EDM, V, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.sample_spec import SampleSpec

SMALL = UNetConfig(channels=(8, 16), layers=1, attention=(), groups=4)
MLP_64 = MLPConfig(width=64, depth=2)
NETWORKS = [
    (SMALL, (1, 8, 8)),
    (MLP_64, (2,)),
    (
        EDMUNetConfig(
            width=32, channels=(32, 32), layers=1, attention=(), level_width=32, embedding=64
        ),
        (1, 8, 8),
    ),
    (
        LucidrainsUNetConfig(
            channels=(16, 16, 32), full_attention=(False, False), heads=(1, 1), head_dim=(8, 8),
            width=32,
        ),
        (1, 8, 8),
    ),
    (CircuitConfig(network=SMALL, state=StateConfig(8, groups=1), blocks=1), (1, 8, 8)),
]  # fmt: skip


def with_pace(config, pace):
    if isinstance(config, CircuitConfig):
        return CircuitConfig(with_pace(config.network, pace), config.state, config.blocks)
    return type(config)(**{**vars(config), "pace": pace})


def edm(config, shape=(2,)):
    torch.manual_seed(0)
    return Denoiser(config.build(shape=shape), VE(80.0), EDM())


def velocity(config, shape=(2,)):
    torch.manual_seed(0)
    return Denoiser(config.build(shape=shape), Flow(), Velocity())


class Wave(Backbone):
    """A stranger's network, whose output is a sine of `periods` periods over the levels 0 … 1000.

    It has no `pace`, and its frequency is no setting.
    """

    def __init__(self, periods):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = None, (2,), 0, 1.0
        self.register_buffer("frequency", torch.tensor(2 * math.pi * periods / 1000))

    def forward(self, x, level, *, level_s=None, cond=None):
        angle = self.frequency * level[:, None]
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    def features(self, x, level, *, cond=None):
        return []


class Line(Wave):
    def forward(self, x, level, *, level_s=None, cond=None):
        return level[:, None].expand_as(x)


class Constant(Wave):
    def forward(self, x, level, *, level_s=None, cond=None):
        return torch.ones_like(x)


def test_the_turn_of_waves_is_known():
    for periods in (1, 5, 40):
        wave = Denoiser(Wave(periods), Flow(), Velocity())
        assert level_turn(wave, levels=7) == pytest.approx(2 * math.pi * periods, rel=0.02)
    line = Denoiser(Line(0), Flow(), Velocity())
    assert level_turn(line, levels=100) == pytest.approx(math.sqrt(12), rel=0.01)
    assert level_turn(Denoiser(Constant(0), Flow(), Velocity())) == 0


@pytest.mark.parametrize("config, shape", NETWORKS, ids=lambda value: type(value).__name__)
def test_every_network_is_as_fast_as_its_pace(config, shape):
    """With EDM's levels slow by default; an untrained network's zero layers hide nothing."""
    for build in (edm, velocity):
        fast, slow = (level_turn(build(with_pace(config, pace), shape)) for pace in (1.0, 0.02))
        assert fast > 250 and slow < 25
    assert level_turn(edm(config, shape)) < 25
    assert level_turn(velocity(config, shape)) > 250


@pytest.mark.parametrize("config, shape", NETWORKS, ids=lambda value: type(value).__name__)
def test_a_network_without_a_pace_gets_that_of_its_parametrization(config, shape):
    for build, pace in ((edm, 0.004), (velocity, 1.0)):
        default, same = build(config, shape), build(with_pace(config, pace), shape)
        # in full, so that the weights file says it, and all inner networks have it
        assert default.backbone.config == same.backbone.config == with_pace(config, pace)
        for one, other in zip(default.modules(), same.modules(), strict=True):
            assert getattr(one, "sinusoid", None) == getattr(other, "sinusoid", None)
        # its own stays
        slow = build(with_pace(config, 0.1), shape).backbone
        assert slow.config == with_pace(config, 0.1)
        assert Denoiser(slow, VP(), V()).backbone.config == with_pace(config, 0.1)


def test_random_frequencies_get_the_pace_too():
    config = EDMUNetConfig(width=32, channels=(32,), layers=1, attention=(), fourier=True)
    assert edm(config, (1, 8, 8)).backbone.sinusoid.pace == 0.004
    assert velocity(config, (1, 8, 8)).backbone.sinusoid.pace == 1


def method(kind, config, denoiser, **settings):
    student = Denoiser(deepcopy(denoiser.backbone), denoiser.process, denoiser.parametrization)
    spec = SampleSpec(denoiser.backbone.shape)
    return kind(config(**settings), Task(student, spec, Generator(denoiser, spec)))


@pytest.mark.parametrize(
    "kind, config", [(Scm, ScmConfig), (Meanflow, MeanflowConfig)], ids=["scm", "meanflow"]
)
def test_a_derivative_in_time_of_a_fast_network_is_warned_of(kind, config):
    for fast in (
        velocity(MLP_64),
        edm(with_pace(MLP_64, 1.0)),
        Denoiser(MLP_64.build(shape=(2,)), VP(), V()),
    ):
        (message,) = training_warnings(method(kind, config, fast))
        assert message.startswith(kind.__name__) and "\n" not in message
        pace = 0.004 if isinstance(fast.parametrization, EDM) else 0.03
        assert f"student.backbone.pace={pace}" in message
    for slow in (velocity(with_pace(MLP_64, 0.03)), edm(MLP_64), edm(with_pace(MLP_64, 0.02))):
        assert training_warnings(method(kind, config, slow)) == []


def test_it_is_measured_after_training_too_and_for_strangers_networks():
    """Weights that ignore the level now may follow it later."""
    trained = velocity(MLP_64)
    nn.init.zeros_(trained.backbone.time_embedding.linear_1.weight)
    before = deepcopy(trained.state_dict())
    made = method(Scm, ScmConfig, trained)
    assert len(training_warnings(made)) == 1
    assert all(value.equal(before[key]) for key, value in trained.state_dict().items())
    torch.manual_seed(5)
    training_warnings(made)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1).equal(drawn), "the warning draws from the generator of the training"
    for periods, count in ((2, 0), (100, 1)):
        wave = Denoiser(Wave(periods), Flow(), Velocity())
        assert len(training_warnings(method(Scm, ScmConfig, wave))) == count


def test_other_methods_say_nothing_of_it_and_a_strangers_method_can():
    class Stranger(Consistency):
        differentiates_in_time = True

    fast = velocity(MLP_64)
    assert not any(
        "derivative" in each
        for each in training_warnings(method(Consistency, ConsistencyConfig, fast))
    )
    (message,) = (
        each
        for each in training_warnings(method(Stranger, ConsistencyConfig, fast))
        if "derivative" in each
    )
    assert message.startswith("Stranger ")
