"""Animations and trajectories start at the noise, end at the images and skip no end."""

import numpy as np
import pytest
import torch
from PIL import Image

from exporting import unet_generator
from fewstep import Generator, SampleSpec, runs
from fewstep.backbones import UNetConfig
from fewstep.circuits.view import Ring
from fewstep.cli import main
from fewstep.drawing import conditions, seeds
from fewstep.images import grid, to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import V
from fewstep.process import VP
from fewstep.trajectory import evenly_spread_indices, state_images, trace
from stripes import autoencoder

TINY = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("trajectory") / "run.safetensors"
    runs.save_generator(path, unet_generator(classes=3, config=TINY), None, {})
    return path


def frames(path):
    """The frames as grey pixels."""
    times, pictures = [], []
    with Image.open(path) as film:
        assert film.format == "GIF" and film.info["loop"] == 0
        for number in range(film.n_frames):
            film.seek(number)
            times.append(film.info["duration"])
            pictures.append(np.asarray(film.convert("L")))
    assert times[-1] == 1500 and max(times[:-1]) <= 500
    return pictures


def animate(run, path, *more):
    return main(["sample", str(run), "--gif", str(path), "-n", "6", *more])


@pytest.mark.parametrize(
    ("steps", "count"), [(1, 2), (3, 4), pytest.param(70, 60, marks=pytest.mark.slow)]
)
def test_an_animation_goes_from_the_noise_to_the_images(run, steps, count, tmp_path):
    path = tmp_path / "x.gif"
    assert animate(run, path, "--steps", str(steps), "--seed", "3", "--label", "2,0") == 0
    film = frames(path)
    assert len(film) == count
    noise = noise_from_seeds([(3 << 32) + row for row in range(6)], (1, 8, 8))
    assert (film[0] == np.asarray(grid(to_uint8(noise)))[..., 0]).all()  # sigma = 1 at the start
    still = tmp_path / "x.png"
    words = ["-n", "6", "--steps", str(steps), "--seed", "3", "--label", "2,0"]
    assert main(["sample", str(run), "-o", str(still), *words]) == 0
    with Image.open(still) as picture:
        assert (film[-1] == np.asarray(picture.convert("L"))).all()


def test_equal_seeds_give_equal_bytes(run, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert animate(run, tmp_path / f"{name}.gif", "--steps", "3", "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.gif").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gif", "x.png"], "--gif x.png needs the suffix .gif"),
        (["-o", "x.gif"], "for an animation, give --gif x.gif"),
        (["--gif", "x.gif", "-n", "101"], "at most 100 images, not 101"),
        (["--gif", "x.gif", "--npz", "x.npz"], "give one of -o FILE, --gif FILE"),
        (["--gif", "none/", "-n", "1"], "--gif none needs the suffix .gif"),
        (["--gif", "x.gif", "--sampler", "ring"], "the sampler ring has no images between"),
    ],
)
def test_what_cannot_be_an_animation(run, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), *words]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_states_of_latents_are_decoded():
    network = autoencoder()
    latent = unet_generator(
        classes=0, shape=network.latent_shape, process=VP(), parametrization=V(), config=TINY
    )
    generator = latent.replace(decoder=network.frozen_decoder())
    noise = noise_from_seeds(range(3), network.latent_shape)
    first, *_, last = state_images(generator, noise, steps=4, most=9)
    assert first.shape == last.shape == (3, 1, 8, 8)
    torch.testing.assert_close(last, generator(noise, steps=4))
    t = torch.ones(1, dtype=torch.float64)
    alpha, sigma = VP().alpha(t).item(), VP().sigma(t).item()
    torch.testing.assert_close(first, network.decode(noise * sigma / (alpha + sigma)))
    way = trace(generator, noise, steps=4)
    torch.testing.assert_close(way.states[0] / way.scales[0], first)
    torch.testing.assert_close(way.predictions[-1], last)


def test_predictions_are_those_of_the_network():
    generator: Generator = unet_generator(classes=3)
    cond = conditions(SampleSpec((1, 8, 8), 3), range(4))
    noise = noise_from_seeds(seeds(0, range(4)), (1, 8, 8))
    way = trace(generator, noise, steps=3, cond=cond)
    assert way.times == pytest.approx([1, 2 / 3, 1 / 3]) and len(way.states) == 4
    x_t, t = way.states[1], 2 / 3
    velocity = generator.denoiser.backbone(x_t, torch.full((4,), 1000 * t), cond=cond)
    torch.testing.assert_close(way.predictions[1], x_t - t * velocity)
    ring = generator.with_sampler(step=Ring())
    with pytest.raises(Exception, match="a circuit"):  # which this network is not
        trace(ring, noise, steps=3)


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (81, 60), (1001, 60)])
def test_indices_are_spread_from_end_to_end(count, most):
    indices = evenly_spread_indices(count, most)
    assert indices[0] == 0 and indices[-1] == count - 1
    assert len({*indices}) == len(indices) == min(count, most)
    gaps = {b - a for a, b in zip(indices, indices[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1
