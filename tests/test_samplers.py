"""Samplers against closed forms and published algorithms: order of convergence, and moments."""

import math

import numpy as np
import pytest
import torch

from analytic import Exact, as_flow_map, exact, posterior_mean
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.noise import RowNoise, noise_from_seeds
from fewstep.parametrization import EDM, Eps, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow
from fewstep.sampling import (
    Ancestral,
    Corrector,
    EulerMaruyama,
    Heun,
    Multistep,
    Step,
    StepContext,
    StochasticHeun,
    StochasticMultistep,
    Transfer,
    UniPC,
    iterate,
    path,
    sample,
)
from fewstep.spacing import TableGrid
from fewstep.tables import from_table
from fewstep.times import KarrasGrid, LogSNRGrid, UniformGrid

PROCESSES = [Flow(), VP(), Cosine(), VE()]
processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def processes_in_turn(*cases):
    """All cases under all processes: each under one of them in `make test`, the others slow."""
    turns = [(p, i, *case) for i, case in enumerate(cases) for p in range(len(PROCESSES))]
    return pytest.mark.parametrize(
        ("process", "step", "order"),
        [
            pytest.param(
                PROCESSES[p], *case, marks=() if p == i % len(PROCESSES) else pytest.mark.slow
            )
            for p, i, *case in turns
        ],
        ids=str,
    )


STOCHASTIC = [
    EulerMaruyama(),
    EulerMaruyama(eta=0.5),
    StochasticMultistep(),
    StochasticMultistep(order=1, eta=1.5),
    StochasticHeun(),
]


class Fixed(RowNoise):
    """Noise that is the same at every draw."""

    def __init__(self, z):
        self.z = z

    def like(self, x):
        return self.z


def single_steps(step, model, x, times, noise=None):
    """The state at the last of `times`, without a final jump to the image."""
    context = StepContext(model, None, noise or RowNoise(()), table=model.tabulate(times, like=x))
    for t, s in zip(times, times[1:], strict=False):
        x, context.memory = step(context, x, t, s)
    return x


@processes_in_turn(
    (Transfer(), 1),
    (Heun(), 2),
    (Multistep(), 2),
    # the authors' code weighs the curvature of three predictions by half
    (Multistep(order=3), 2),
    # a corrector raises the order of its predictor by one
    (UniPC(), 3),
    (UniPC(order=3), 4),
)
def test_order_of_convergence(process, step, order):
    """Slope of log error against log steps, on the closed-form flow of a Gaussian, 0.5 < t < 0.95.

    The final jump to the image, whose error does not shrink with the steps, is left out.
    """
    model, counts, errors = exact(process, Velocity()), (64, 128, 256), []
    x = torch.linspace(-1.5, 1.5, 20, dtype=torch.float64).view(10, 2)
    truth = as_flow_map(x, *process.at(0.95, like=x), *process.at(0.5, like=x))
    for n in counts:
        times = torch.linspace(0.95, 0.5, n + 1, dtype=torch.float64).tolist()
        errors.append(float((single_steps(step, model, x, times) - truth).abs().max()))
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert fitted == pytest.approx(order, abs=0.3 if order == 4 else 0.1)


def start_of(process, t=0.7):
    """An exact model, a state, its alpha and sigma at `t`, and noise."""
    model = exact(process, Velocity())
    x = torch.linspace(-1.5, 1.5, 14, dtype=torch.float64).view(7, 2)
    z = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return model, x, process.at(t, like=x), z


def test_euler_maruyama_under_vp_has_the_drift_and_diffusion_of_the_vp_sde():
    """Song et al. 2021, eq. 6 and 11: dx = (−½beta·x − beta·score)·dt + √beta·dw, backwards."""
    model, x, (_, sigma), z = start_of(VP())
    beta, h = 0.1 + 0.7 * 19.9, 0.1
    score = -model(x, 0.7).eps / sigma
    expected = x + h * (0.5 * beta * x + beta * score) + math.sqrt(h * beta) * z
    ours, _ = EulerMaruyama()(StepContext(model, None, Fixed(z)), x, 0.7, 0.6)
    torch.testing.assert_close(ours, expected)


def test_euler_maruyama_under_ve_with_less_noise():
    """g² = d(sigma²)/dt = 2·80²·t; eta scales g, and the score's part beyond the ODE by eta²."""
    model, x, (_, sigma), z = start_of(VE())
    variance, h = 2 * 80.0**2 * 0.7, 0.1
    score = -model(x, 0.7).eps / sigma
    expected = x + h * 0.5 * (1 + 0.25) * variance * score + 0.5 * math.sqrt(h * variance) * z
    ours, _ = EulerMaruyama(eta=0.5)(StepContext(model, None, Fixed(z)), x, 0.7, 0.6)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("process", [Flow(), Cosine()], ids=lambda p: type(p).__name__)
def test_euler_maruyama_replaces_all_noise_where_there_is_no_signal(process):
    model, x, _, z = start_of(process)
    ours, _ = EulerMaruyama()(StepContext(model, None, Fixed(z)), x, 1.0, 0.9)
    alpha, sigma = process.at(0.9, like=x)
    torch.testing.assert_close(ours, alpha * model(x, 1.0).x0 + sigma * z)


def test_stochastic_multistep_is_sde_dpm_solver():
    """Lu et al. 2022, section 6, two steps: lambda = ln(alpha/sigma), h its growth."""
    model, x, (alpha0, sigma0), z = start_of(VP(), 0.9)
    (alpha1, sigma1), (alpha2, sigma2) = (VP().at(t, like=x) for t in (0.6, 0.4))
    log_snr = [torch.log(alpha0 / sigma0), torch.log(alpha1 / sigma1), torch.log(alpha2 / sigma2)]
    h0, h1 = log_snr[1] - log_snr[0], log_snr[2] - log_snr[1]
    image0 = model(x, 0.9).x0
    x1 = sigma1 / sigma0 * torch.exp(-h0) * x + alpha1 * (1 - torch.exp(-2 * h0)) * image0
    x1 = x1 + sigma1 * torch.sqrt(1 - torch.exp(-2 * h0)) * z
    image1 = model(x1, 0.6).x0
    slope = (image1 - image0) / (h0 / h1)
    x2 = sigma2 / sigma1 * torch.exp(-h1) * x1
    x2 = x2 + alpha2 * (1 - torch.exp(-2 * h1)) * (image1 + 0.5 * slope)
    x2 = x2 + sigma2 * torch.sqrt(1 - torch.exp(-2 * h1)) * z
    ours = single_steps(StochasticMultistep(), model, x, [0.9, 0.6, 0.4], Fixed(z))
    torch.testing.assert_close(ours, x2)


@processes
def test_stochastic_multistep_without_memory_is_ancestral_and_without_noise_multistep(process):
    model, noise = exact(process, Velocity()), noise_from_seeds(range(4), (2,)).double()
    times = UniformGrid()(6, model)
    one, other = (
        sample(model, noise, times, step=step)
        for step in (StochasticMultistep(order=1), Ancestral())
    )
    torch.testing.assert_close(one, other)
    times = LogSNRGrid()(6, model)  # no infinite one
    still = sample(model, noise, times, step=StochasticMultistep(eta=1e-15))
    torch.testing.assert_close(
        still, sample(model, noise, times, step=Multistep()), atol=1e-5, rtol=0
    )


def test_stochastic_heun_is_edms_algorithm():
    """Algorithm 2 of Karras et al. 2022, written out, for N = 18 and sigma = 80·t."""
    model, n, z = exact(VE(), EDM()), 18, torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)

    def denoised(x, sigma):
        return model(x, sigma / 80).x0

    grid = KarrasGrid()(n, model)
    sigmas, x = [*(80 * grid).tolist(), 0.0], 80 * z.flip(0)
    start = x
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        gamma = min(30 / n, math.sqrt(2) - 1) if 0.01 <= now <= 1 else 0.0
        raised = now + gamma * now
        x = x + math.sqrt(raised**2 - now**2) * 1.007 * z
        slope = (x - denoised(x, raised)) / raised
        ahead = x + (then - raised) * slope
        if then > 0:
            slope = 0.5 * slope + 0.5 * (ahead - denoised(ahead, then)) / then
        x = x + (then - raised) * slope
    step = StochasticHeun(s_churn=30.0, s_min=0.01, s_max=1.0, s_noise=1.007)
    states = iterate(step, StepContext(model, None, Fixed(z)), start, grid.tolist())
    torch.testing.assert_close([*states][-1], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [Flow(), VP(), Cosine()], ids=lambda p: type(p).__name__)
def test_stochastic_heun_under_another_process_is_that_under_ve(process):
    """In x_t/alpha as a function of sigma/alpha, all processes are one."""
    model, ve = exact(process, EDM()), exact(VE(), EDM())
    sigmas = torch.tensor([20.0, 5.0, 1.0, 0.3], dtype=torch.float64)
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    x, step, images = 20 * z.flip(0), StochasticHeun(s_churn=1.0, s_max=10.0), []
    for each in (model, ve):
        times = each.process.time(sigmas).tolist()
        alpha, _ = each.process.at(times[0], like=x)
        *_, image = iterate(step, StepContext(each, None, Fixed(z)), alpha * x, times)
        images.append(image)
    torch.testing.assert_close(*images)


def test_stochastic_heun_stays_in_the_span():
    model = exact(VE(), EDM())
    context = StepContext(model, None, RowNoise(()))
    assert context.noisier(0.5, 1.2) == pytest.approx(0.6)
    assert context.noisier(0.9, 1.2) == 1
    noise = noise_from_seeds(range(3), (2,))
    step = StochasticHeun(s_max=1e9)
    assert sample(model, noise, KarrasGrid()(6, model), step=step).isfinite().all()


class Correlated(Exact):
    """The exact network of Gaussian data whose deviations differ along two turned axes."""

    mean, spreads = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.9, 0.2]).double()
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()

    @property
    def covariance(self):
        return self.turn @ torch.diag(self.spreads**2) @ self.turn.T

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level[:, None])
        along = (x_t - alpha * self.mean) @ self.turn
        along = posterior_mean(along, alpha, sigma, mean=0.0, spread=self.spreads)
        x0 = self.mean + along @ self.turn.T
        a, b = self.parametrization.target_coefficients(alpha, sigma)
        return a * x0 + b * (x_t - alpha * x0) / sigma


class OneSource(RowNoise):
    """Row 0 has no noise; every other row is 1 in one number of one draw, and 0 elsewhere."""

    def __init__(self):
        self.draws = 0

    def like(self, x):
        self.draws += 1
        z = torch.zeros_like(x)
        z[2 * self.draws + 1, 0] = z[2 * self.draws + 2, 1] = 1
        return z


def moments(step, process, steps):
    """Mean and covariance of a sampler's images, without any sampling error.

    For Gaussian data the image is a linear function of all noise. Each row of the batch has one
    source of noise alone, so that the sum of their squares is the covariance. The start is that of
    the data at the first time: pure noise there would bias all steps alike.
    """
    network = Correlated(Velocity(Flow()))
    model = Denoiser(network, process, Velocity(Flow()))
    times = LogSNRGrid()(steps, model).tolist()
    start = torch.zeros(2 * steps + 3, 2, dtype=torch.float64)
    alpha, sigma = process.at(times[0], like=start[:1])
    variances = alpha**2 * network.spreads**2 + sigma**2
    start[1:3] = variances.sqrt().mT * network.turn.T
    start += alpha * network.mean
    context = StepContext(
        model, None, OneSource(), table=model.tabulate([*times, model.span[0]], like=start)
    )
    *_, images = iterate(step, context, start, times)
    mean, rows = images[0], images[1:] - images[0]
    return mean, rows.T @ rows


LIMITS = [
    (Ancestral(), 1),
    (EulerMaruyama(), 1),
    (EulerMaruyama(eta=0.5), 1),
    (StochasticMultistep(order=1), 1),
    (StochasticMultistep(), 2),
    (StochasticHeun(s_churn=4.0, s_min=0.0, s_max=1e9, s_noise=1.0), 2),
]


@processes_in_turn(*LIMITS)
def test_mean_and_covariance_converge_to_those_of_the_data(process, step, order):
    """Each doubling of the steps divides the error of the covariance by 2^order."""
    truth = Correlated(Velocity(Flow())).covariance
    means, covariances = zip(*(moments(step, process, n) for n in (50, 100)), strict=True)
    torch.testing.assert_close(means[1], Correlated.mean, rtol=0, atol=2e-3)
    coarse, fine = (float((covariance - truth).abs().max()) for covariance in covariances)
    assert fine < (0.06 if order == 1 else 0.003)
    assert coarse / fine > 0.9 * 2**order


@pytest.mark.slow
@pytest.mark.parametrize(("step", "order"), LIMITS, ids=str)
@processes
def test_mean_and_covariance_in_the_limit(process, step, order):
    truth = Correlated(Velocity(Flow())).covariance
    mean, covariance = moments(step, process, 3000 if order == 1 else 800)
    torch.testing.assert_close(mean, Correlated.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(covariance, truth, rtol=0, atol=2e-3 if order == 1 else 5e-5)


@pytest.mark.parametrize("step", STOCHASTIC, ids=str)
def test_draws_belong_to_the_row_not_to_the_batch(step):
    model, noise = exact(VP(), Velocity()), noise_from_seeds(range(6), (2,))
    times = UniformGrid()(5, model)
    together = sample(model, noise, times, step=step, seed=range(6))
    parts = [sample(model, noise[i : i + 2], times, step=step, seed=i) for i in (0, 2, 4)]
    assert torch.equal(together, torch.cat(parts))
    assert not torch.equal(together, sample(model, noise, times, step=step, seed=100))


@pytest.mark.parametrize("step", [*STOCHASTIC, UniPC(), UniPC(order=3)], ids=str)
def test_float32_samples_are_finite_from_the_very_ends(step):
    for process, parametrization in ((Flow(), Velocity()), (VE(), EDM()), (Cosine(), V())):
        model, noise = exact(process, parametrization), noise_from_seeds(range(8), (2,))
        for steps in (1, 2, 3, 6):
            images = sample(model, noise, UniformGrid()(steps, model), step=step)
            assert images.dtype == torch.float32
            assert images.isfinite().all() and images.abs().max() < 20, (process, steps)


@pytest.mark.parametrize(
    "step", [*STOCHASTIC, UniPC(order=3), Multistep(order=3), Heun(clip=1.0), Corrector()], ids=str
)
def test_a_step_to_a_time_without_noise_is_the_last(step):
    """The log-SNR is infinite there: nothing can be extrapolated to it."""
    for process, parametrization in ((Flow(), Velocity()), (VP(), Eps()), (Cosine(), V())):
        model, noise = exact(process, parametrization), noise_from_seeds(range(4), (2,))
        images = sample(model, noise, [0.9, 0.6, 0.3], step=step)
        *_, before, after = path(model, noise, [0.9, 0.6, 0.3, 0.0], step=step)
        assert torch.equal(images, after) and torch.equal(before, after)
        assert after.isfinite().all()


def test_a_sample_cannot_start_without_noise():
    model, noise = exact(Flow(), Velocity()), noise_from_seeds(range(2), (2,))
    with pytest.raises(InputError, match="starts at t = 0, which has no noise: take more steps"):
        sample(model, noise, TableGrid()(1, model))
    with pytest.raises(InputError, match="'exponential' cannot run from the noise level 3 to 0"):
        TableGrid(levels=5, curve="exponential")(4, model)
    with pytest.raises(InputError, match="'karras' cannot run from the noise level inf to 0"):
        TableGrid(curve="karras", open_end=True)(4, model)


@pytest.mark.parametrize("step", [*STOCHASTIC, UniPC(), UniPC(order=3)], ids=str)
@processes
def test_a_clip_bounds_the_image(step, process):
    model, noise = exact(process, Velocity()), noise_from_seeds(range(4), (2,)).double()
    times = UniformGrid()(6, model)
    plain, clipped, wide = (
        sample(model, noise, times, step=type(step)(**{**vars(step), "clip": clip}))
        for clip in (None, 0.1, 50.0)
    )
    assert plain.abs().max() > 0.1 and clipped.abs().max() <= 0.1
    torch.testing.assert_close(wide, plain)


def test_moments_of_unipc_are_continuous_where_the_series_begins():
    from fewstep.sampling.unipc import SERIES_BELOW, _moments

    for gain in (SERIES_BELOW, 1.0):
        u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        density = torch.exp(gain * u)
        for power in (1, 2, 3):
            mean = float(torch.trapezoid(density * u**power, u) / torch.trapezoid(density, u))
            assert _moments(gain, 3)[power - 1] == pytest.approx(mean, rel=1e-8)
            below = _moments(SERIES_BELOW * (1 - 1e-12), 3)[power - 1]
            assert below == pytest.approx(_moments(SERIES_BELOW, 3)[power - 1], rel=1e-11)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("euler-maruyama", {"eta": 0.0}),
        ("stochastic-multistep", {"eta": -1.0}),
        ("stochastic-multistep", {"order": 3}),
        ("stochastic-heun", {"s_churn": -1.0}),
        ("stochastic-heun", {"s_noise": 0.0}),
        ("unipc", {"order": 1}),
    ],
)
def test_settings_have_ranges(name, settings):
    (setting,) = settings
    with pytest.raises(InputError, match=rf"step.{setting} is {settings[setting]}; it must be"):
        from_table(Step, {"name": name, **settings}, "step")


def test_a_log_snr_grid_has_equal_steps_of_the_log_snr():
    for process in PROCESSES:
        model = exact(process, Velocity())
        ratio = process.ratio(LogSNRGrid()(9, model))
        steps = torch.log(ratio).diff()
        torch.testing.assert_close(steps, steps[:1].expand(8))
        high = float(process.ratio(torch.tensor(1.0, dtype=torch.float64)))
        assert ratio[[0, -1]].tolist() == pytest.approx([min(80, high), 0.002])
    narrow = exact(VE(), EDM(0.5, 0.01, 10.0))
    assert (80 * LogSNRGrid()(2, narrow)).tolist() == pytest.approx([10, 0.01])
    assert LogSNRGrid()(1, narrow).tolist() == pytest.approx([0.125])
    with pytest.raises(InputError, match=r"low = 1 and high = 0.5; it needs low < high"):
        LogSNRGrid(low=1.0, high=0.5)
    with pytest.raises(InputError, match="no time of this network has such a sigma/alpha"):
        LogSNRGrid(low=20.0, high=30.0)(4, narrow)
