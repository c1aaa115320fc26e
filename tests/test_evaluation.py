import pytest
import torch

from analytic import MEAN, SPREAD, Exact, exact
from fewstep import data, metrics
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import Yardstick, evaluations, generate, seconds_per_image, straightness
from fewstep.generator import Generator, Subject
from fewstep.images import to_uint8
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.sampling import corrector, heun, multistep, noise_from_seeds, renoise, transfer

SHAPE = (1, 8, 8)


def generator(classes=0, **settings):
    return Generator(exact(Flow(), Velocity(), SHAPE), Subject(SHAPE, classes), **settings)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_images_do_not_depend_on_the_batch_size():
    def whole(batch):
        made = generate(generator(10, step=renoise), 23, steps=3, seed=4, batch=batch)
        return torch.cat([images for _, images in made])

    assert torch.equal(whole(23), whole(5))
    wanted = generator()(noise_from_seeds([4 << 32], SHAPE))
    assert torch.equal(next(generate(generator(), 1, steps=1, seed=4))[1], to_uint8(wanted))


@pytest.mark.parametrize(
    ("step", "calls"), [(transfer, 5), (heun, 9), (multistep, 5), (corrector, 9)]
)
def test_evaluations_are_counted(step, calls):
    assert evaluations(generator(step=step), 5) == calls


def test_guidance_counts_twice():
    assert evaluations(generator(10).guided(2.0), 3) == 6


def test_a_score_is_the_distance_of_its_samples_and_says_what_it_depends_on(digits):
    yardstick = Yardstick(digits, "pixels")
    score = yardstick.score(generator(), steps=2, samples=300, seed=1, batch=70)
    images = torch.cat([x for _, x in generate(generator(), 300, steps=2, seed=1)])
    made = metrics.moments(metrics.Pixels(), [images])
    real = metrics.moments(metrics.Pixels(), [digits.images])
    assert score.frechet == pytest.approx(metrics.frechet_distance(made, real), rel=1e-9)
    assert (score.steps, score.evaluations, score.samples, score.seed) == (2, 2, 300, 1)
    assert score.sampler == "transfer" and score.accuracy is None
    assert score.extractor_hash == metrics.Pixels.hash
    assert digits.fingerprint[:12] in score.reference and "1797" in score.reference
    assert score.table().keys() >= {"frechet", "accuracy", "seconds_per_image", "extractor"}


def test_real_images_score_better_than_noise(digits):
    yardstick = Yardstick(digits, "pixels")
    real = metrics.moments(metrics.Pixels(), [digits.images[::2]])
    noise = yardstick.score(generator(), steps=1, samples=900)
    assert metrics.frechet_distance(real, yardstick.moments) < 0.1 * noise.frechet


def test_what_cannot_be_scored_is_refused(digits):
    yardstick = Yardstick(digits, "pixels")
    with pytest.raises(InputError, match="at least 2"):
        yardstick.score(generator(), steps=1, samples=1)
    other = Generator(exact(Flow(), Velocity(), (3, 8, 8)), Subject((3, 8, 8)))
    with pytest.raises(InputError, match=r"makes \(3, 8, 8\)"):
        yardstick.score(other, steps=1, samples=4)
    for count, seed in ((0, 0), (3, -1)):
        with pytest.raises(InputError, match="at least 1"):
            next(generate(generator(), count, steps=1, seed=seed))


def test_time_is_a_median_in_seconds():
    assert 0 < seconds_per_image(generator(), 1, repeats=3) < 1


@pytest.mark.parametrize("world", [(Flow(), Velocity()), (VE(), EDM())])
def test_straightness_is_that_of_the_closed_form_flow(world):
    """x_t = (1 − t)·mean + r(t)·noise with r² = (1 − t)²·spread² + t²: what bends is r."""
    t = torch.linspace(1, 0, 20_001, dtype=torch.float64)
    rate = torch.sqrt((1 - t).square() * SPREAD**2 + t.square()).diff() / t.diff()
    wanted = (rate.square().mean() - rate.mean() ** 2) / (MEAN**2 + (1 - SPREAD) ** 2)
    made = Generator(exact(*world, SHAPE), Subject(SHAPE))
    assert straightness(made, samples=1500, steps=200) == pytest.approx(float(wanted), rel=0.03)


def test_lines_are_straight():
    class Lines(Exact):
        """The velocity of lines that all end in one point: x_t = t·noise."""

        def forward(self, x, level, *, level_s=None, cond=None):
            return x / (level.reshape(-1, 1, 1, 1) / 1000)

    model = Denoiser(Lines(Velocity(), SHAPE), Flow(), Velocity())
    assert straightness(Generator(model, Subject(SHAPE)), samples=20) < 1e-12
