"""Pictures that explain show what they say: pixels, curves and trajectories against formulas."""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from math import pi

import numpy as np
import pytest
import torch
from PIL import Image

from analytic import as_flow_map
from exporting import unet_generator
from fewstep import data, recipe, runs
from fewstep.autoencoder_files import save_autoencoder
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.circuits.view import Ring
from fewstep.cli import main
from fewstep.data.toys import GaussianMixture
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.explain.mixture import exact_denoiser, three_gaussians
from fewstep.explain.model import Model, load_model
from fewstep.explain.noising import add_noise, even_times
from fewstep.explain.schedule import (
    density_curve,
    draw_schedule,
    log_snr,
    save_schedule,
    training_densities,
)
from fewstep.explain.sheets import layout, save_sheet
from fewstep.explain.trajectories import draw_plane, plane_trajectories, save_plane
from fewstep.generator import Generator
from fewstep.images import from_uint8, to_uint8
from fewstep.loading import LoadedRun
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import EDM, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow, LinearBetas
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun, path
from fewstep.spacing import TableGrid
from fewstep.times import FixedGrid, Karras, LogNormal, Uniform
from stripes import autoencoder

PICTURES = ["forward.png", "schedule.svg", "trajectory.png", "trajectories.svg"]


def model(generator, name=None):
    settings = recipe.read(name) if name else None
    return Model(LoadedRun("run", "run", generator, settings, None), True, "digits")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def save(folder, generator):
    address = str(folder / "run.safetensors")
    runs.save_generator(folder / "run.safetensors", generator, None, {})
    return address


def explain(address, folder, *more):
    return main(["explain", str(address), "--out", str(folder), *more])


@pytest.mark.parametrize(
    ("process", "parametrization"), [(VP(), V()), (Flow(), Velocity()), (VE(), EDM(0.5))]
)
def test_the_forward_process_in_pixels(process, parametrization, tmp_path):
    generator = unet_generator(process=process, parametrization=parametrization)
    noisy = add_noise(model(generator), seed=5)
    save_sheet(noisy.sheet(), tmp_path / "forward.png")
    sheet = pixels(tmp_path / "forward.png").astype(int)
    place = layout((1, 8, 8), 3)
    digits = data.load("digits").images
    for row in range(3):
        eps = noise_from_seeds([(5 << 32) + row], (1, 8, 8))[0, 0]
        tiles = []
        for column in range(6):
            left, top = place.corner(row, column)
            tiles.append(torch.tensor(sheet[top : top + 64 : 8, left : left + 64 : 8, 0]))
        # the first time has no noise, or 0.002: the image itself
        distance = (digits[:, 0].int() - tiles[0]).abs().flatten(1).amax(1)
        assert distance.min() <= 1
        x0 = from_uint8(digits[distance.argmin(), 0])
        for t, tile in zip(noisy.times, tiles, strict=True):
            integral = 9.95 * t**2 + 0.1 * t
            alpha, sigma = {
                VP: (np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))),
                Flow: (1 - t, t),
                VE: (1, 80 * t),
            }[type(process)]
            x_t = (alpha * x0 + sigma * eps) / (alpha + sigma)
            expected = (x_t.clamp(-1, 1) + 1) * 127.5
            assert float((tile - expected).abs().max()) <= 1
    assert noisy.times == tuple(sorted(noisy.times)) and noisy.alpha[-1] < 0.02 or process == VE()
    text = [f"{t:.3g}" for t in noisy.times]
    assert len({*text}) == 6


PROCESSES = [
    (Flow(), Velocity()), (VP(), V()), (VE(), EDM(0.5)), (Cosine(0.5), V()), (LinearBetas(), V()),
]  # fmt: skip


@pytest.mark.parametrize(("process", "parametrization"), PROCESSES)
@pytest.mark.parametrize(
    "density", [Uniform(), Uniform(0.02, 0.98), LogNormal(-1.2, 1.2), LogNormal(-0.4, 1.0)]
)
def test_a_density_is_that_of_random_times(process, parametrization, density):
    denoiser = unet_generator(process=process, parametrization=parametrization).denoiser
    curve = density_curve("density", density, denoiser)
    order = curve.log_snr.argsort()
    x, y = curve.log_snr[order], curve.density[order]
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = log_snr(process, density.times(u, denoiser))
    edges = torch.quantile(drawn, torch.linspace(0.01, 0.99, 21, dtype=torch.float64))
    for a, b in zip(edges, edges[1:], strict=False):
        inside = (x > a) & (x < b)
        share = torch.trapezoid(y[inside], x[inside])
        # what the curve lacks at both ends of the interval, between its points
        share += y[inside][0] * (x[inside][0] - a) + y[inside][-1] * (b - x[inside][-1])
        assert float(share) == pytest.approx(0.049, abs=0.0025)


def test_the_uniform_density_of_a_flow_is_logistic():
    denoiser = unet_generator().denoiser
    curve = density_curve("density", Uniform(), denoiser)
    expected = 1 / (8 * torch.cosh(curve.log_snr / 4).square())
    torch.testing.assert_close(curve.density, expected, rtol=2e-3, atol=1e-12)


def test_a_karras_density_is_uniform_in_its_root():
    denoiser = unet_generator(process=VE(), parametrization=EDM(0.5)).denoiser
    curve = density_curve("density", Karras(rho=7.0), denoiser)
    ratio = torch.exp(-curve.log_snr / 2)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = ratio ** (1 / 7) / (14 * (high - low))
    torch.testing.assert_close(curve.density, expected, rtol=1e-3, atol=1e-9)


def test_the_schedule_has_the_numbers_of_the_process():
    generator = unet_generator(process=Cosine(0.5), parametrization=V())
    figure = draw_schedule(model(generator), 4)
    scales, snr = figure.axes
    (t, alpha), (_, sigma) = (line.get_xydata().T for line in scales.lines)
    np.testing.assert_allclose(alpha, np.cos(pi * t / 2), atol=1e-12)
    np.testing.assert_allclose(sigma, 0.5 * np.sin(pi * t / 2), atol=1e-12)
    curve, dots = (line.get_xydata().T for line in snr.lines)
    inside = slice(1, -1)
    expected = 2 * np.log(2 / np.tan(pi * t[inside] / 2))
    np.testing.assert_allclose(curve[1][inside], expected, rtol=1e-9, atol=1e-9)
    assert dots[0].tolist() == [1, 0.75, 0.5, 0.25] and dots[1][2] == pytest.approx(np.log(4))
    assert dots[1][0] == -15  # log-SNR is −∞ at t = 1


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("digits-flow", ["density"]),
        ("digits-meanflow", ["density", "density_s"]),
        ("digits-dmd", ["density", "fake.density"]),
        ("digits-progressive", []),
    ],
)
def test_methods_name_their_densities(name, names):
    settings = recipe.read(name).method
    if getattr(settings, "density_s", "") is None:
        names = names[:1]
    found = [curve.name for curve in training_densities(model(unet_generator(), name))]
    assert found == names


def test_distribution_matching_trains_at_the_times_of_its_teacher():
    """Not at those of a student whose first time is earlier."""
    late = unet_generator()
    late = late.replace(denoiser=late.denoiser.replace(span=(0.0, 0.5)))
    curves = training_densities(model(late, "digits-dmd"))
    assert float(curves[0].log_snr.min()) == pytest.approx(-2 * np.log(0.98 / 0.02), abs=0.01)


@pytest.mark.parametrize(("process", "_"), PROCESSES)
def test_the_exact_flow_is_that_of_the_closed_form(process, _):
    mean, spread = torch.tensor([[0.3, 0.3]], dtype=torch.float64), 0.5
    one = GaussianMixture(mean, spread, torch.ones(1, dtype=torch.float64))
    exact = exact_denoiser(one, process, (0.0, 1.0))
    times = even_times(process, (0.0, 1.0), 65)
    times = times[times > times[-1]]
    noise = noise_from_seeds(range(20), (2,)).double()
    states = [*path(exact, noise, times, step=Heun())]
    ends = [process.at(float(t), like=noise) for t in (times[0], times[40])]
    expected = as_flow_map(states[0], *ends[0], *ends[1])
    torch.testing.assert_close(states[40], expected, rtol=2e-3, atol=2e-3)


def test_one_exact_step_from_noise_alone_ends_at_the_mean():
    way = plane_trajectories(model(unet_generator()), 1)
    mixture = three_gaussians()
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    assert way.sampled is not None and way.sampled.shape == (2, 12, 2)
    torch.testing.assert_close(way.sampled[-1], mean.expand(12, 2))


def test_noisy_latents_are_decoded(tmp_path):
    network = autoencoder()
    address = tmp_path / "ae.safetensors"
    save_autoencoder(address, network, None, {})
    config = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)
    latent = unet_generator(classes=0, shape=network.latent_shape, config=config)
    generator = latent.replace(decoder=network.frozen_decoder())
    settings = recipe.read("digits-flow", [f"data.autoencoder={address}"])
    model = Model(LoadedRun("run", "run", generator, settings, None), True)
    noisy = add_noise(model, seed=1)
    assert noisy.images.shape == (3, 6, 1, 8, 8) and noisy.times[:2] == pytest.approx((0, 0.2))
    eps = noise_from_seeds([(1 << 32) + row for row in range(3)], network.latent_shape)
    assert noisy.images[:, 5].equal(to_uint8(network.decode(eps)))
    images = data.load("digits").images
    decoded = to_uint8(network(from_uint8(images)))
    assert all((decoded == image).flatten(1).all(1).any() for image in noisy.images[:, 0])
    other = generator.replace(decoder=autoencoder(seed=1).frozen_decoder())
    with pytest.raises(InputError, match="is not the autoencoder that run was trained with"):
        add_noise(model.with_generator(other))


def test_many_steps_end_where_the_exact_flow_does():
    generator = unet_generator(process=VP(), parametrization=V()).with_sampler(step=Heun())
    way = plane_trajectories(model(generator), 200)
    assert way.sampled is not None and way.flow is not None
    torch.testing.assert_close(way.sampled[0], way.flow[0])
    # the last of 48 steps is Euler's, to the image that is seen from a level of 2 %
    gap = (way.sampled[-1] - way.flow[-1]).norm(dim=1)
    assert float(gap.median()) < 0.02
    nearest = torch.cdist(way.flow[-1], three_gaussians().means).amin(1)
    assert float(nearest.max()) < 0.5


def test_points_have_their_own_trajectories():
    network = MLPConfig(width=8, depth=1).build(shape=(2,))
    generator = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((2,)))
    way = plane_trajectories(model(generator), 3, seed=4)
    noise = noise_from_seeds([(4 << 32) + row for row in range(12)], (2,))
    assert way.sampled is not None and way.flow is None
    torch.testing.assert_close(way.sampled[0], noise)
    torch.testing.assert_close(way.sampled[-1], generator(noise, steps=3))
    figure = draw_plane(replace(way, title="points of $x_{"), generator)
    figure.savefig(io.BytesIO())  # a name of a run is no formula
    lines = figure.axes[0].lines
    np.testing.assert_allclose(lines[5].get_xydata(), way.sampled[:, 5].numpy())


def replan(model, steps):
    return save_plane(plane_trajectories(model, steps), model.generator)


def test_a_recipe_is_explained_without_weights(tmp_path, capsys):
    assert explain("digits-flow", tmp_path, "--steps", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({*PICTURES} - {PICTURES[2]})
    assert len(lines) == 4 and "trajectory.png is left out: a recipe has no" in lines[2]
    for name in ("schedule.svg", "trajectories.svg"):
        text = (tmp_path / name).read_text()
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("aria-label")
        assert "prefers-color-scheme:dark" in text and 'class="page"' in text
        used = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
        assert used <= {*re.findall(r'id="([^"]+)"', text)} and len(text) < 60_000
        drawn = {"schedule.svg": save_schedule, "trajectories.svg": replan}[name]
        assert drawn(load_model("digits-flow"), 4) == text


def test_one_step_students_and_circuits(tmp_path, capsys):
    address = save(tmp_path, unet_generator(grid=FixedGrid(((1.0,),))))
    assert explain(address, tmp_path / "a", "--data", "digits") == 0
    out = capsys.readouterr().out
    assert "states and predicted images of 1 step" in out and "left out" not in out
    assert "which no recipe in the file tells" in out
    # two columns: the noise and the image
    width = pixels(tmp_path / "a" / "trajectory.png").shape[1]
    assert width == layout((1, 8, 8), 3).corner(0, 2)[0]
    unet = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)
    config = CircuitConfig(network=unet, state=StateConfig(8, groups=1), blocks=0)
    network = config.build(shape=(1, 8, 8))
    circuit = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((1, 8, 8)), step=Ring())
    address = save(tmp_path, circuit)
    capsys.readouterr()
    assert explain(address, tmp_path / "b", "--data", "digits", "--steps", "3") == 0
    out = capsys.readouterr().out
    assert "trajectory.png is left out: the sampler ring has no images between its steps" in out
    assert "steps of" not in (tmp_path / "b" / "trajectories.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-flwo"], "digits-flwo is no run, and no recipe; did you mean digits-flow?"),
        (["digits-flow", "--weights", "best"], "digits-flow is a recipe, which has no weights"),
        (["cifar10-autoencoder"], "trains an autoencoder, which adds no noise"),
        (["none.toml"], "no such recipe file: none.toml"),
        (["r.toml"], "nowhere"),
        (["digits-flow", "--data", "nothing"], "unknown data set 'nothing'"),
        (["digits-flow", "--sampler", "euler"], "unknown sampler 'euler'"),
    ],
)
def test_what_cannot_be_explained(words, message, tmp_path, monkeypatch, capsys, home):
    monkeypatch.chdir(tmp_path)
    text = recipe.read("digits-flow", ["data.name=folder", "data.path=nowhere"]).toml()
    (tmp_path / "r.toml").write_text(text)
    assert explain(*words[:1], tmp_path / "out", *words[1:]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and "Traceback" not in line


def test_steps_that_a_grid_does_not_have(tmp_path, capsys):
    address = save(tmp_path, unet_generator(grid=TableGrid(levels=10)))
    assert explain(address, tmp_path / "out", "--steps", "20") == 2
    assert "20 steps do not fit into 10 noise levels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_are_missing_are_left_out(home, tmp_path, capsys):
    assert explain("fashion-flow", tmp_path / "out") == 0
    out = capsys.readouterr().out.splitlines()
    assert "forward.png is left out: the images of fashion-mnist are not on this machine" in out[0]
    assert not (home / "data").exists() and len(out) == 4
