import weakref

import numpy as np
import pytest
import torch

from analytic import MEAN, SPREAD, TABLE, as_flow_map, exact
from fewstep import plugins
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.noise import RowNoise, noise_from_seeds
from fewstep.parametrization import EDM, Eps, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow
from fewstep.sampling import (
    Ancestral,
    Corrector,
    Heun,
    Multistep,
    Renoise,
    Step,
    Transfer,
    path,
    sample,
)
from fewstep.tables import from_table, to_table
from fewstep.times import KarrasGrid, UniformGrid

clocks = pytest.mark.parametrize(
    "process", [Flow(), VP(), Cosine(), VE()], ids=lambda p: type(p).__name__
)


def test_transfer_is_euler_under_flow_and_ve():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for process in (Flow(), VE()):
        model = exact(process, Velocity())
        times = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
        at = float(process.sigma(times[0])) * x
        for t, s in ((0.9, 0.6), (0.6, 0.3)):
            at = at + (s - t) * model(at, t).velocity
        torch.testing.assert_close(sample(model, x, times), model(at, 0.3).x0)


@pytest.mark.parametrize("step", [Transfer(), Heun(), Multistep(), Multistep(order=3)], ids=str)
def test_a_karras_grid_under_vp_leads_to_the_images_of_ddim(step):
    model = exact(VP(), V())
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    wanted = sample(model, noise, UniformGrid()(500, model))
    got = sample(model, noise, KarrasGrid()(60, model), step=step)
    assert (got - wanted).square().mean().sqrt() < 0.05


def test_heun_on_a_karras_grid_under_ve_is_edms_algorithm():
    """Algorithm 1/2 of Karras et al. 2022 (no churn), written out, for N = 18."""
    model = exact(VE(80.0), EDM(0.5))

    def denoised(x, sigma):
        return model(x, sigma / 80).x0

    n, rho, low, high = 18, 7, 0.002, 80.0
    steps = torch.arange(n, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + steps / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    sigmas = [*sigmas.tolist(), 0.0]
    noise = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = noise * sigmas[0]
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        d = (x - denoised(x, now)) / now
        ahead = x + (then - now) * d
        if then > 0:
            x = x + (then - now) * (0.5 * d + 0.5 * (ahead - denoised(ahead, then)) / then)
        else:
            x = ahead
    ours = sample(model, noise, KarrasGrid()(n, model), step=Heun())
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def ddpm_inputs():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    z = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    bars = torch.tensor(TABLE.alphas_cumprod, dtype=torch.float64)
    return exact(TABLE, Eps(TABLE)), x, z, bars


class Fixed(RowNoise):
    """Noise that is the same at every draw."""

    def __init__(self, z):
        self.z = z

    def like(self, x):
        return self.z


@pytest.mark.parametrize("i", [1, 2, 500, 999])
@pytest.mark.parametrize("variance", ["posterior", "large"])
def test_ancestral_is_ddpm(i, variance):
    """Ho et al. 2020, algorithm 2, with either choice of sigma_t, at T = 1000."""
    from fewstep.sampling import StepContext

    model, x, z, bars = ddpm_inputs()
    bar, before = bars[i], bars[i - 1]
    beta = 1 - bar / before
    eps = model(x, i / 999).eps
    mean = (x - beta / torch.sqrt(1 - bar) * eps) / torch.sqrt(1 - beta)
    spread = torch.sqrt(beta if variance == "large" else (1 - before) / (1 - bar) * beta)
    context = StepContext(model, None, Fixed(z))
    ours, _ = Ancestral(variance=variance)(context, x, i / 999, (i - 1) / 999)
    torch.testing.assert_close(ours, mean + spread * z, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variance", ["posterior", "large"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_with_eta_is_ddim(eta, variance):
    """Song et al. 2020, equations 12 and 16, over a stride of 100 steps.

    The larger noise has eta times the deviation of DDPM's beta_t: eta = 0 is DDIM in any case.
    """
    from fewstep.sampling import StepContext

    model, x, z, bars = ddpm_inputs()
    bar, before = bars[700], bars[600]
    eps = model(x, 700 / 999).eps
    x0 = (x - torch.sqrt(1 - bar) * eps) / torch.sqrt(bar)
    spread = eta * torch.sqrt((1 - before) / (1 - bar)) * torch.sqrt(1 - bar / before)
    wanted = torch.sqrt(before) * x0 + torch.sqrt(1 - before - spread**2) * eps + spread * z
    if variance == "large":
        wanted = wanted - spread * z + eta * torch.sqrt(1 - bar / before) * z
    context = StepContext(model, None, Fixed(z))
    ours, _ = Ancestral(variance, eta)(context, x, 700 / 999, 600 / 999)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("i", [1, 300, 999])
def test_a_clip_bounds_the_image_as_in_ddpm_and_ddim(i):
    """The image within ±0.2: DDPM's equation 7 in x0 and x_t, DDIM's equation 12 with its noise."""
    from fewstep.sampling import StepContext

    model, x, z, bars = ddpm_inputs()
    bar, before = bars[i], bars[i - 1]
    beta, said = 1 - bar / before, model(x, i / 999)
    x0 = said.x0.clamp(-0.2, 0.2)
    assert (x0 != said.x0).any()
    context, times = StepContext(model, None, Fixed(z)), (i / 999, (i - 1) / 999)
    mean = torch.sqrt(before) * beta / (1 - bar) * x0
    mean = mean + torch.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
    spread = torch.sqrt((1 - before) / (1 - bar) * beta)
    ours, _ = Ancestral(clip=0.2)(context, x, *times)
    torch.testing.assert_close(ours, mean + spread * z, rtol=1e-6, atol=1e-8)
    ours, _ = Transfer(clip=0.2)(context, x, *times)
    wanted = torch.sqrt(before) * x0 + torch.sqrt(1 - before) * said.eps
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-8)
    ours, _ = Renoise(clip=0.2)(context, x, *times)
    wanted = torch.sqrt(before) * x0 + torch.sqrt(1 - before) * z
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-8)
    for kind in (Ancestral, Transfer, Renoise):
        assert torch.equal(kind(clip=0.2)(context, x, i / 999, None)[0], x0)
        assert not torch.equal(kind(clip=0.2)(context, x, *times)[0], kind()(context, x, *times)[0])


def test_a_clip_bounds_the_images_behind_heuns_slopes():
    """EDM's algorithm 1 with a denoiser D clamped to ±0.3: d = (x − D)/sigma, sigma = 80·t."""
    from fewstep.sampling import StepContext

    model, x = exact(VE(), EDM()), torch.linspace(-30, 30, 20, dtype=torch.float64).view(10, 2)

    def slope(x, t):
        image = model(x, t).x0
        assert (image.abs() > 0.3).any() and (image.abs() < 0.3).any()
        return 80 * (x - image.clamp(-0.3, 0.3)) / (80 * t)

    ahead = x - 0.2 * slope(x, 0.5)
    expected = x - 0.2 * (slope(x, 0.5) + slope(ahead, 0.3)) / 2
    context = StepContext(model, None, RowNoise(()))
    torch.testing.assert_close(Heun(clip=0.3)(context, x, 0.5, 0.3)[0], expected)
    last, _ = Heun(clip=0.3)(context, x, 0.5, None)
    assert torch.equal(last, model(x, 0.5).x0.clamp(-0.3, 0.3))


def test_a_clip_bounds_the_images_that_multistep_combines():
    """Lu et al. 2022, algorithm 2, with images clamped to ±0.3, lambda = ln(alpha/sigma)."""
    from fewstep.sampling import StepContext

    model = exact(VP(), Eps(VP()))
    x = torch.linspace(-1.5, 1.5, 20, dtype=torch.float64).view(10, 2)
    times, context = (0.9, 0.6, 0.4), StepContext(model, None, RowNoise(()))
    (alpha0, sigma0), (alpha1, sigma1), (alpha2, sigma2) = (VP().at(t, like=x) for t in times)
    log_snr = [torch.log(a / s) for a, s in ((alpha0, sigma0), (alpha1, sigma1), (alpha2, sigma2))]
    h, last_h = log_snr[2] - log_snr[1], log_snr[1] - log_snr[0]
    image0 = model(x, 0.9).x0.clamp(-0.3, 0.3)
    x1 = sigma1 / sigma0 * x - alpha1 * torch.expm1(-last_h) * image0
    image1 = model(x1, 0.6).x0
    assert (image1.abs() > 0.3).any() and (image1.abs() < 0.3).any()
    image1 = image1.clamp(-0.3, 0.3)
    r = last_h / h
    combined = (1 + 1 / (2 * r)) * image1 - 1 / (2 * r) * image0
    x2 = sigma2 / sigma1 * x1 - alpha2 * torch.expm1(-h) * combined
    ours, context.memory = Multistep(clip=0.3)(context, x, 0.9, 0.6)
    torch.testing.assert_close(ours, x1)
    ours, context.memory = Multistep(clip=0.3)(context, ours, 0.6, 0.4)
    torch.testing.assert_close(ours, x2)
    last, _ = Multistep(clip=0.3)(context, ours, 0.4, None)
    assert torch.equal(last, model(ours, 0.4).x0.clamp(-0.3, 0.3))


def test_a_clip_bounds_the_correctors_image():
    from fewstep.sampling import StepContext

    model, x = (
        exact(VP(), Eps(VP())),
        torch.linspace(-1.5, 1.5, 20, dtype=torch.float64).view(10, 2),
    )
    z = torch.randn(10, 2, dtype=torch.float64)
    context = StepContext(model, None, Fixed(z))
    assert torch.equal(
        Corrector(clip=0.3)(context, x, 0.5, None)[0], model(x, 0.5).x0.clamp(-0.3, 0.3)
    )
    x_s, _ = Transfer(clip=0.3)(context, x, 0.5, 0.4)
    eps, sigma = model(x_s, 0.4).eps, VP().at(0.4, like=x)[1]
    length = 2 * (0.16 * z.norm(dim=1, keepdim=True) / eps.norm(dim=1, keepdim=True)) ** 2
    expected = x_s - length * sigma * eps + (2 * length).sqrt() * sigma * z
    torch.testing.assert_close(Corrector(clip=0.3)(context, x, 0.5, 0.4)[0], expected)


@pytest.mark.parametrize("step", [Heun, Multistep])
@clocks
def test_a_wide_clip_changes_nothing(step, process):
    model, noise = exact(process, Velocity()), noise_from_seeds(range(4), (2,)).double()
    times = UniformGrid()(8, model)
    images = [sample(model, noise, times, step=step(clip=clip)) for clip in (None, 50.0)]
    torch.testing.assert_close(*images)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_of_noise_are_0_to_1(share):
    for kind, setting in ((Renoise, "share"), (Ancestral, "eta")):
        with pytest.raises(InputError, match=f"{setting} is .*; it must be a number from 0 to 1"):
            kind(**{setting: share})


def test_renoise_is_consistency_sampling():
    """x_s = alpha_s·f(x_t, t) + sigma_s·z: Song et al. 2023, algorithm 1."""
    from fewstep.sampling import StepContext

    model, z = exact(VE(), EDM()), torch.randn(4, 2, dtype=torch.float64)
    x = 40 * torch.randn(4, 2, dtype=torch.float64)
    ours, _ = Renoise()(StepContext(model, None, Fixed(z)), x, 0.5, 0.01)
    torch.testing.assert_close(ours, model(x, 0.5).x0 + 0.8 * z)


@pytest.mark.parametrize(
    "step",
    [Ancestral(), Ancestral(variance="large"), Corrector()],
    ids=["ancestral", "large", "corrector"],
)
def test_stochastic_samplers_end_in_the_data_distribution(step):
    model = exact(VP(), Eps(VP()), shape=(64,))
    noise = noise_from_seeds(range(400), (64,)).double()
    images = sample(model, noise, UniformGrid()(400, model), step=step)
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(images.std()) == pytest.approx(SPREAD, rel=0.05)


def test_a_sample_keeps_no_state_that_it_has_left_behind():
    """A thousand steps of a large batch would fill the memory with them."""
    left = []

    class Watched(Transfer):
        def __call__(self, context, x_t, t, s):
            left.append(weakref.ref(x_t))
            alive = [state for state in left[:-2] if state() is not None]
            assert not alive, f"{len(alive)} states of {len(left)} are still there"
            return super().__call__(context, x_t, t, s)

    model = exact(Flow(), Velocity())
    sample(model, noise_from_seeds(range(3), (2,)), UniformGrid()(8, model), step=Watched())
    assert len(left) == 8


def test_the_start_is_sigma_times_noise_at_an_earlier_time_too():
    model = exact(VE(), EDM())
    noise = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(sample(model, noise, [0.25]), model(20 * noise, 0.25).x0)


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    whole = noise_from_seeds(range(10, 20), (3, 4, 4))
    parts = torch.cat([noise_from_seeds([seed], (3, 4, 4)) for seed in range(10, 20)])
    assert torch.equal(whole, parts)
    assert float(noise_from_seeds(range(2000), (50,)).mean()) == pytest.approx(0, abs=0.015)
    assert float(noise_from_seeds(range(2000), (50,)).std()) == pytest.approx(1, abs=0.01)


def test_noise_is_numpys_philox():
    """Written down, so that stores recorded today are read alike tomorrow."""
    bits = np.random.Philox(key=np.array([7, 0], dtype=np.uint64))
    wanted = np.random.Generator(bits).standard_normal(6, dtype=np.float32)
    assert noise_from_seeds([7], (6,))[0].tolist() == wanted.tolist()
    assert noise_from_seeds([1 << 62, 7], (6,))[1].tolist() == wanted.tolist()


@pytest.mark.parametrize("step", [Transfer(), Heun(), Multistep(), Multistep(order=3)])
def test_a_path_ends_in_the_sample_and_goes_through_the_flow(step):
    model, noise = exact(Flow(), Velocity()), noise_from_seeds(range(4), (2,))
    times = UniformGrid()(256, model)
    states = list(path(model, noise, times, step=step))
    assert len(states) == 257 and torch.equal(states[-1], sample(model, noise, times, step=step))
    for t, x_t in zip(times.float(), states, strict=False):
        wanted = as_flow_map(noise, torch.tensor(0.0), torch.tensor(1.0), 1 - t, t)
        torch.testing.assert_close(x_t, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("step", [Ancestral(), Renoise(), Corrector()])
def test_draws_belong_to_the_row_not_to_the_batch(step):
    model = exact(VP(), Velocity())
    noise = noise_from_seeds(range(6), (2,))
    times = UniformGrid()(5, model)
    whole = sample(model, noise, times, step=step, seed=range(6))
    parts = [sample(model, noise[i : i + 2], times, step=step, seed=i) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    other = sample(model, noise, times, step=step, seed=100)
    assert not torch.equal(whole, other)


def test_refuses_times_outside_the_span():
    model, noise = exact(VE(80.0), EDM()), torch.randn(1, 2)
    for times in ([1.1], [1.0, 0.0], [0.5, 1e-6]):
        with pytest.raises(InputError, match=r"trained for t in \[2.5e-05, 1\]"):
            sample(model, noise, times)
    assert sample(model, noise, [1.000009]).shape == (1, 2)


def test_refuses_times_that_do_not_fall_and_no_times():
    model, noise = exact(Flow(), Velocity()), torch.randn(1, 2)
    with pytest.raises(InputError, match="must decrease"):
        sample(model, noise, [0.5, 0.5])
    with pytest.raises(InputError, match="at least 1"):
        sample(model, noise, [])
    with pytest.raises(TypeError):
        sample(model, noise, [0.5], time_steps=3)


class Midpoint(Step):
    """A step as a user of the package would write it, with a time that is not in the grid."""

    def __call__(self, context, x_t, t, s):
        if s is None:
            return context.predict_to(x_t, t, None).x0, None
        middle = (t + s) / 2
        slope = context.predict(x_t, t).velocity
        prediction = context.predict(x_t + (middle - t) * slope, middle)
        alpha, sigma = context.at(middle, like=x_t)
        assert alpha.shape == sigma.shape == (len(x_t), 1)
        assert alpha.dtype == prediction.x0.dtype == x_t.dtype
        rest = (prediction.x_t - alpha * prediction.x0) / sigma
        torch.testing.assert_close(rest, prediction.eps, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prediction.sigma.square(), sigma[0, 0].square())
        return x_t + (s - t) * prediction.velocity, t


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_users_step_may_leave_the_grid(dtype):
    model, noise = exact(VP(), Velocity()), noise_from_seeds(range(4), (2,)).to(dtype)
    times = UniformGrid()(64, model)
    *_, last, image = path(model, noise, times, step=Midpoint())
    assert image.dtype == dtype
    expected = as_flow_map(
        noise, *(torch.tensor(end) for end in (0.0, 1.0)), *VP().at(float(times[-1]), like=noise)
    )
    torch.testing.assert_close(last, expected, atol=5e-3, rtol=0)


class Counted(VP):
    """A process that counts how often it is called."""

    def alpha(self, t):
        self.calls.append("alpha")
        return super().alpha(t)

    def rates(self, t):
        self.calls.append("rates")
        return super().rates(t)


@pytest.mark.parametrize("step", [Transfer(), Heun(), Multistep(), Ancestral(), Corrector()])
def test_coefficients_are_computed_once_a_sample(step):
    process = Counted()
    object.__setattr__(process, "calls", calls := [])
    model, noise, counts = exact(process, Velocity()), torch.randn(2, 2), []
    for steps in (3, 30):
        calls.clear()
        sample(model, noise, UniformGrid()(steps, model), step=step)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
    assert calls.count("rates") == isinstance(step, Heun)


@pytest.mark.parametrize("name", [n for n in plugins.names("sampler") if n != "ring"])
@clocks
def test_a_step_by_itself_is_that_of_a_sample(name, process):
    from fewstep.sampling import StepContext

    step, model = plugins.resolve("sampler", name)(), exact(process, Velocity())
    noise, times = noise_from_seeds(range(3), (2,)), UniformGrid()(4, model).tolist()
    states = list(path(model, noise, times, step=step))
    context = StepContext(model, None, RowNoise(range(3)))
    for i, (t, s) in enumerate(zip(times, [*times[1:], None], strict=True)):
        state, context.memory = step(context, states[i], t, s)
        torch.testing.assert_close(state, states[i + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in plugins.names("sampler") if n != "ring"])
def test_coefficients_meet_states_of_another_device(name):
    """Meta tensors refuse operations with tensors of the CPU, as a GPU's do, but for numbers."""
    step, model = plugins.resolve("sampler", name)(), exact(VP(), Velocity())
    model.backbone.forward = lambda x, level, *, level_s=None, cond=None: x * level[:, None]
    noise = torch.randn(3, 2, device="meta")
    images = sample(model, noise, UniformGrid()(4, model), step=step)
    assert (images.device, images.dtype, images.shape) == (noise.device, noise.dtype, noise.shape)


def test_a_state_of_another_type_has_coefficients_of_its_own():
    from fewstep.sampling import StepContext

    model, single = exact(VP(), Velocity()), torch.randn(2, 2)
    context = StepContext(model, None, RowNoise([0]), table=model.tabulate([0.3], like=single))
    alpha, _ = context.at(0.3, like=single.double())
    assert float(alpha[0]) == float(VP().alpha(torch.tensor(0.3, dtype=torch.float64)))


def test_a_step_is_a_table_of_its_settings():
    half = Renoise(share=0.5)
    assert to_table(half) == {"name": "renoise", "share": 0.5, "clip": None}
    assert from_table(Step, to_table(half), "step") == half
    with pytest.raises(InputError, match="unknown sampler 'heum'; did you mean heun"):
        from_table(Step, {"name": "heum"}, "step")


@pytest.mark.parametrize("name", [n for n in plugins.names("sampler") if n != "ring"])
def test_what_a_step_says_of_itself_is_so(name):
    """Its network calls, and whether it draws noise."""
    step, model = plugins.resolve("sampler", name)(), exact(VP(), Velocity())
    noise, times, calls = noise_from_seeds(range(3), (2,)), UniformGrid()(6, model), []
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    first = sample(model, noise, times, step=step, seed=0)
    assert len(calls) == 5 * step.evaluations + 1
    assert torch.equal(first, sample(model, noise, times, step=step, seed=9)) == step.deterministic


def test_float32_sampling_is_finite_from_the_very_ends():
    for process, parametrization in ((Flow(), Velocity()), (VE(), EDM()), (TABLE, Eps(TABLE))):
        model = exact(process, parametrization)
        assert isinstance(model, Denoiser)
        for step in (Transfer(), Heun(), Multistep(), Ancestral(), Renoise(), Corrector()):
            images = sample(model, torch.randn(8, 2), UniformGrid()(6, model), step=step)
            assert images.isfinite().all(), (process, step)
