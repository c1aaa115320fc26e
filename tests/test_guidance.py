import pytest
import torch

from fewstep import runs
from fewstep.abilities import why_not_guidable, with_guidance
from fewstep.backbones import Backbone
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import Guided
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VP, Flow
from fewstep.sample_spec import SampleSpec
from prompted import CAPTIONS, ENCODER, SHAPE, prompted


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


@pytest.mark.parametrize("classes", [0, 2])
def test_a_negative_prompt_takes_the_place_of_no_prompt(tmp_path, classes):
    generator = prompted(classes)
    guided = generator.with_guidance(2.5, negative="a blue dog")
    label = torch.tensor([0, 1, -1]) if classes else None
    cond = Condition(label, text=ENCODER.encode([CAPTIONS[0], "", CAPTIONS[1]]))
    away = Condition(
        None if label is None else torch.full((3,), -1), text=ENCODER.encode(["a blue dog"] * 3)
    )
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    x, t = noise, torch.tensor(0.7)
    plain, negative = (generator.denoiser(x, t, cond=c).x0 for c in (cond, away))
    ours = guided.denoiser(x, t, cond=cond).x0
    torch.testing.assert_close(ours, 2.5 * plain - 1.5 * negative, rtol=1e-3, atol=1e-3)
    assert (ours - plain).abs().amax((1, 2, 3))[:2].min() > 0.1

    runs.save_generator(tmp_path / "g.safetensors", guided, None, {})
    again = runs.load(tmp_path / "g.safetensors")
    assert again.denoiser.backbone.negative.prompt == "a blue dog"
    assert again(noise, steps=2, cond=cond).equal(guided(noise, steps=2, cond=cond))
    assert runs.weights_hash(again) == runs.weights_hash(guided)
    assert runs.weights_hash(guided) != runs.weights_hash(generator.with_guidance(2.5))
    assert runs.network_hash(guided) == runs.network_hash(generator)


def test_a_negative_prompt_needs_text_and_guidance():
    plain = Generator(Denoiser(Labelled(), Flow(), Velocity()), SampleSpec((2,), 4))
    with pytest.raises(InputError, match="takes no text: leave out the negative prompt"):
        plain.with_guidance(2.0, negative="a dog")
    for weight in (1.0, 1):
        with pytest.raises(InputError, match="a negative prompt has no effect without guidance"):
            with_guidance(prompted(), weight, None, negative="a dog")
    assert prompted().with_guidance(2.0, negative="").denoiser.backbone.negative is None


def test_guidance_of_prompts_needs_condition_dropout():
    table = {"method": {"name": "denoise", "condition_dropout": 0.0}}
    for classes, conditions in ((0, "prompts"), (2, "labels and prompts")):
        reason = f"its method, denoise, trained it with {conditions} only"
        assert why_not_guidable(prompted(classes), table) == reason
    table["method"]["condition_dropout"] = 0.1
    assert why_not_guidable(prompted(), table) == ""
