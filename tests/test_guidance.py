import pytest
import torch

from fewstep.backbones import Backbone
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import Guided
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VP, Flow
from fewstep.sample_spec import SampleSpec


class Labelled(Backbone):
    """Says its label, plus a little of the input; 0.5 without a label."""

    def __init__(self):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = None, (2,), 4, 1.0

    def forward(self, x, level, *, level_s=None, cond=None):
        label = torch.full((len(x),), -1) if cond is None else cond.label
        said = torch.where(label < 0, 0.5, label.to(x.dtype))
        return said[:, None] + 0.1 * x

    def features(self, x, level, *, cond=None):
        return [x]


@pytest.mark.parametrize("parametrization", [Velocity(), EDM()])
def test_guiding_the_output_guides_x0_eps_and_velocity(parametrization):
    """w·D(cond) + (1 − w)·D(none), for every reading of the output, since the weights sum to 1."""
    plain = Denoiser(Labelled(), VP(), parametrization)
    guided = Denoiser(Guided(Labelled(), 2.5), VP(), parametrization)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 0.9]).double()
    cond = Condition(torch.tensor([0, 1, 2, 3]))
    asked, free, ours = plain(x, t, cond=cond), plain(x, t), guided(x, t, cond=cond)
    for of in ("x0", "eps", "velocity", "v", "score"):
        wanted = 2.5 * getattr(asked, of) - 1.5 * getattr(free, of)
        torch.testing.assert_close(getattr(ours, of), wanted, rtol=1e-6, atol=1e-6)


def test_a_weight_of_1_and_no_condition_mean_no_guidance():
    x, level = torch.randn(2, 2), torch.ones(2)
    cond = Condition(torch.tensor([1, 2]))
    plain = Labelled()
    assert torch.equal(Guided(plain, 1.0)(x, level, cond=cond), plain(x, level, cond=cond))
    assert torch.equal(Guided(plain, 3.0)(x, level), plain(x, level))


def test_a_generator_can_be_guided_anew():
    generator = Generator(Denoiser(Labelled(), Flow(), Velocity()), SampleSpec((2,), 4))
    twice = generator.with_guidance(2.0).with_guidance(3.0)
    assert twice.denoiser.backbone.weight == 3.0
    assert twice.denoiser.backbone.backbone is generator.denoiser.backbone
    with pytest.raises(InputError, match="needs classes or prompts"):
        Generator(Denoiser(Labelled(), Flow(), Velocity()), SampleSpec((2,))).with_guidance(2.0)
