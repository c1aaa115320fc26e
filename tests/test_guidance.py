from dataclasses import replace

import pytest
import torch

from analytic import MEAN, PARAMETRIZATIONS, SPREAD, Exact
from circuits.test_network import circuit
from fewstep import runs
from fewstep.abilities import why_not_guidable, with_guidance
from fewstep.backbones import Backbone
from fewstep.circuits.view import Ring
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import count_evaluations
from fewstep.generator import Generator
from fewstep.guidance import Guided
from fewstep.parametrization import EDM, Eps, Velocity
from fewstep.process import VE, VP, Flow, LinearBetas
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun, Transfer, sample
from fewstep.times import FixedGrid
from prompted import CAPTIONS, ENCODER, SHAPE, prompted
from toy import network


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


def test_a_ring_has_no_guidance():
    """Its updates do not call the network that guidance changes; an ordinary sampler does."""
    table = {"method": {"name": "circuit", "condition_dropout": 0.1}}
    spec = SampleSpec((1, 8, 8), 3)
    ring = Generator(Denoiser(circuit(), Flow(), Velocity()), spec, step=Ring())
    assert why_not_guidable(ring, table) == "its sampler, ring, has no guidance"
    noise, cond = torch.randn(2, 1, 8, 8), Condition(torch.tensor([0, 1]))
    weak = ring.with_sampler(step=Transfer())
    for guided in (with_guidance(ring, 2.0, table), with_guidance(ring, 2.0, table, weak=weak)):
        with pytest.raises(InputError, match="ring has no guidance: .* train the circuit with"):
            guided(noise, steps=2, cond=cond)
        assert guided.with_sampler(step=Transfer())(noise, steps=2, cond=cond).isfinite().all()
    assert why_not_guidable(weak, table) == ""


def labelled(classes=4):
    return Generator(Denoiser(Labelled(), Flow(), Velocity()), SampleSpec((2,), classes))


CONDITION = Condition(torch.tensor([0, 1, 2, 3]))
WEAK = 0.8
"""Spread of the Gaussian that the worse network knows."""


def exact(parametrization, process, spread=SPREAD):
    return Generator(
        Denoiser(Exact(parametrization, (2,), spread), process, parametrization), POINTS
    )


POINTS = SampleSpec((2,))


def test_rows_outside_the_interval_are_not_guided():
    plain = labelled()
    everywhere, limited = plain.with_guidance(3), plain.with_guidance(3, interval=(0.2, 0.6))
    x, t = torch.randn(4, 2), torch.tensor([0.1, 0.2, 0.6, 0.7])
    rows = [each.denoiser(x, t, cond=CONDITION).output for each in (plain, everywhere, limited)]
    torch.testing.assert_close(rows[1], 3 * rows[0] - 2 * plain.denoiser(x, t).output)
    assert rows[2][[0, 3]].equal(rows[0][[0, 3]]) and rows[2][[1, 2]].equal(rows[1][[1, 2]])
    assert not rows[0].isclose(rows[1])[2:].any()


def test_an_interval_of_all_times_is_plain_guidance_bit_for_bit():
    x, plain = torch.randn(4, 2), labelled().with_guidance(3.0)
    whole, wide = (labelled().with_guidance(3.0, interval=i) for i in ((0, 1), (0.04, 0.96)))
    assert runs.weights_hash(whole) == runs.weights_hash(plain) != runs.weights_hash(wide)
    grid = FixedGrid((tuple(torch.linspace(0.95, 0.05, 9).tolist()),))
    images = [
        each.with_sampler(grid=grid, step=Heun())(x, steps=9, cond=CONDITION)
        for each in (plain, whole, wide)
    ]
    assert images[1].equal(images[0]) and images[2].equal(images[0])
    t = torch.rand(4) * 0.9 + 0.05
    rows = [each.denoiser(x, t, cond=CONDITION).output for each in (plain, whole, wide)]
    assert rows[1].equal(rows[0]) and rows[2].equal(rows[0])


def test_steps_outside_the_interval_call_the_network_once():
    plain = prompted(2).with_sampler(step=Transfer())
    generator = plain.with_guidance(2.0, interval=(0.3, 0.6))
    # of the times 1, 0.9, ..., 0.1, those from 0.6 to 0.3 are guided
    assert count_evaluations(generator, 10) == 14
    assert count_evaluations(plain.with_guidance(2.0), 10) == 20


def test_an_interval_keeps_its_noise_levels_under_another_process():
    guided = labelled().with_guidance(3.0, interval=(0.2, 0.6))
    for process in (VP(), VE(), LinearBetas()):
        other = guided.denoiser.under(process)
        low, high = torch.tensor(other.backbone.interval, dtype=torch.float64)
        assert process.ratio(low).item() == pytest.approx(0.25, rel=1e-6)
        assert process.ratio(high).item() == pytest.approx(1.5, rel=1e-6)
        assert other.under(Flow()).backbone.interval == pytest.approx((0.2, 0.6), rel=1e-6)
    half = labelled().with_guidance(3.0, interval=(0.0, 0.6)).denoiser.under(VE())
    assert half.backbone.interval[0] == 0


def test_an_interval_is_saved(tmp_path):
    guided = prompted(2).with_guidance(2.0, interval=(0.25, 0.75))
    runs.save_generator(tmp_path / "g.safetensors", guided, None, {})
    again = runs.load(tmp_path / "g.safetensors")
    assert again.denoiser.backbone.interval == (0.25, 0.75)
    assert runs.weights_hash(again) == runs.weights_hash(guided)
    assert runs.network_hash(again) == runs.network_hash(prompted(2))


@pytest.mark.parametrize(
    ("weight", "interval", "problem"),
    [
        (2.0, (0.8, 0.2), "interval of guidance is 0.8, 0.2; it must be two times"),
        (2.0, (0.2, 1.2), "interval of guidance is 0.2, 1.2; it must be two times"),
        (2.0, (0.2,), "interval of guidance is 0.2; it must be two times"),
        (2.0, (), "interval of guidance is ; it must be two times"),
        (1.0, (0.2, 0.8), "an interval has no effect without guidance"),
    ],
)
def test_wrong_intervals_are_refused(weight, interval, problem):
    with pytest.raises(InputError, match=problem):
        labelled().with_guidance(weight, interval=interval)
    with pytest.raises(InputError, match=problem):
        with_guidance(labelled(), weight, None, interval=interval)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("process", [Flow(), VE(), LinearBetas()], ids=lambda p: type(p).__name__)
def test_autoguidance_mixes_the_scores_of_two_networks(process, parametrization):
    """w·score + (1 − w)·score of the worse one, whatever rows both networks have."""
    main = exact(Velocity(Flow()), process)
    weak = exact(parametrization, VP(), WEAK)
    guided = main.with_autoguidance(2.5, weak).denoiser
    # a time at which all of these networks were trained, and those of the process with its ratio
    t = process.time(torch.tensor([0.1, 0.7, 1.5, 5.0], dtype=torch.float64))
    x = torch.randn(4, 2, dtype=torch.float64)
    alpha, sigma = process.at(t, like=x)
    scores = [-(x - alpha * MEAN) / (alpha**2 * spread**2 + sigma**2) for spread in (SPREAD, WEAK)]
    truth = 2.5 * scores[0] - 1.5 * scores[1]
    torch.testing.assert_close(guided(x, t).score, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interval", [None, (0.3, 0.7)])
def test_the_flow_under_autoguidance_is_that_of_the_mixed_scores(interval):
    """x/alpha − mean is proportional to √(spread² + r²)^w·√(weak² + r²)^(1 − w), with the ratio r
    of noise to signal, where there is guidance."""
    main = exact(Velocity(Flow()), Flow())
    guided = main.with_autoguidance(2.0, exact(Eps(LinearBetas()), VP(), WEAK), interval=interval)
    edges = torch.tensor([0.95, *(interval or ())[::-1], 0.02], dtype=torch.float64)
    # steps that end beside the edges, on which a step would be guided at one of its ends
    times = [
        torch.cat([torch.linspace(high - 1e-4, low + 1e-4, 100).double(), low[None]])
        for high, low in zip(edges[:-1], edges[1:], strict=True)
    ]
    grid = torch.cat([edges[:1], *times]).tolist()
    noise = torch.randn(5, 2, dtype=torch.float64)
    ours = sample(guided.denoiser, noise, grid, step=Heun())

    def growth(t, weight):
        ratio = t / (1 - t)
        return (SPREAD**2 + ratio**2) ** (weight / 2) * (WEAK**2 + ratio**2) ** ((1 - weight) / 2)

    factor = 1.0
    for i, (high, low) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        weight = 2.0 if interval is None or i == 1 else 1.0
        factor = factor * growth(low, weight) / growth(high, weight)
    # the state at the last time, of which the sample is the predicted image
    start = edges[0] * noise / (1 - edges[0]) - MEAN
    ratio = edges[-1] / (1 - edges[-1])
    weight = 1.0 if interval else 2.0
    shrink = weight * SPREAD**2 / (SPREAD**2 + ratio**2)
    shrink = shrink + (1 - weight) * WEAK**2 / (WEAK**2 + ratio**2)
    torch.testing.assert_close(ours, MEAN + start * factor * shrink, rtol=2e-4, atol=2e-4)


def test_a_worse_network_that_is_the_same_changes_nothing():
    generator = Generator(Denoiser(network(), Flow(), Velocity()), POINTS)
    noise = torch.randn(8, 2)
    plain = generator(noise, steps=6)
    # the second has other rows, so that it is mixed as image and noise
    for weak in (generator, replace_process(generator, VP())):
        guided = generator.with_autoguidance(3.0, weak)
        torch.testing.assert_close(guided(noise, steps=6), plain, rtol=1e-6, atol=1e-6)
        assert count_evaluations(guided, 6) == 12
    assert generator.with_autoguidance(1.0, weak)(noise, steps=6).equal(plain)


def replace_process(generator, process):
    return generator.replace(denoiser=generator.denoiser.under(process))


def test_a_worse_network_guides_only_where_it_was_trained():
    main = exact(Velocity(Flow()), Flow())
    weak = exact(Velocity(Flow()), Flow(), WEAK)
    weak = weak.replace(denoiser=weak.denoiser.replace(span=(0.25, 0.75)))
    x, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.8])
    plain, ours = (each.denoiser(x, t).x0 for each in (main, main.with_autoguidance(2.0, weak)))
    assert ours[[0, 2]].equal(plain[[0, 2]]) and not ours[1].equal(plain[1])


def test_autoguidance_needs_networks_of_the_same_data(tmp_path):
    named = SampleSpec(SHAPE, 2, ("a", "b"), text=ENCODER)
    main = prompted(2).replace(spec=named)
    others = {
        "generates samples of shape .* with 0 classes": prompted(0),
        "has other classes": main.replace(spec=replace(named, class_names=("b", "a"))),
        "reads prompts in another way": main.replace(spec=replace(named, text=None)),
    }
    for problem, weak in others.items():
        with pytest.raises(InputError, match=f"the network of autoguidance {problem}"):
            main.with_autoguidance(2.0, weak)
    points = Generator(Denoiser(network(), Flow(), Velocity()), POINTS)
    for weight, problem in ((-1.0, "weight of guidance is -1.0"), (float("nan"), "is nan")):
        with pytest.raises(InputError, match=problem):
            points.with_autoguidance(weight, points)
    flow_map = points.replace(denoiser=points.denoiser.as_flow_map())
    with pytest.raises(InputError, match="a flow map predicts a state"):
        flow_map.with_autoguidance(2.0, points)
    with pytest.raises(InputError, match="a negative prompt has no effect on autoguidance"):
        with_guidance(main, 2.0, None, weak=main, negative="a dog")
    with pytest.raises(InputError, match="a weight of 1 has no effect on autoguidance"):
        with_guidance(main, 1.0, None, weak=main)
    with pytest.raises(InputError, match="under autoguidance cannot be saved"):
        runs.save_generator(tmp_path / "g", points.with_autoguidance(2.0, points), None, {})


def test_a_generator_is_described_with_its_worse_network():
    a, b = (Generator(Denoiser(network(i), Flow(), Velocity()), POINTS) for i in range(2))
    guided = [a.with_autoguidance(2.0, weak) for weak in (a, b)]
    assert len({runs.weights_hash(each) for each in (a, *guided)}) == 3
    assert runs.network_hash(guided[0]) == runs.network_hash(guided[1]) == runs.network_hash(a)
    # guided anew, it has the new kind alone
    assert runs.weights_hash(guided[0].with_autoguidance(2.0, b)) == runs.weights_hash(guided[1])
