import pytest
import torch

from analytic import MEAN, PARAMETRIZATIONS, PROCESSES, SPREAD, TABLE, Exact, exact, posterior_mean
from fewstep.backbones import MLPConfig
from fewstep.denoiser import Denoiser
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.pretrained.parametrizations import EDMBoundary
from fewstep.process import VE, VP, Cosine, Flow

every = pytest.mark.parametrize(
    "parametrization",
    PARAMETRIZATIONS,
    ids=[
        f"{type(p).__name__}-{type(getattr(p, 'native', Flow())).__name__}"
        for p in PARAMETRIZATIONS
    ],
)
processes = pytest.mark.parametrize(
    "process", PROCESSES, ids=[f"{type(p).__name__}{i}" for i, p in enumerate(PROCESSES)]
)


def times_inside(denoiser, n=41, dtype=torch.float64):
    low, high = denoiser.span
    return low + (high - low) * torch.linspace(0.005, 0.995, n, dtype=dtype)


@processes
@every
def test_a_network_runs_under_any_process(process, parametrization):
    """The exact Gaussian denoiser of each native world says the same x0 everywhere."""
    model = exact(process, parametrization)
    t = times_inside(model)
    x_t = torch.linspace(-2, 2, 82, dtype=torch.float64).view(41, 2)
    alpha, sigma = process.at(t, like=x_t)
    x_t = x_t * torch.sqrt(alpha**2 * SPREAD**2 + sigma**2) + alpha * MEAN
    wanted = posterior_mean(x_t, alpha, sigma)
    torch.testing.assert_close(model(x_t, t).x0, wanted, rtol=1e-6, atol=1e-6)


@processes
@every
def test_conversions_return_to_where_they_began(process, parametrization):
    model = exact(process, parametrization)
    t = times_inside(model)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(41, 2, dtype=torch.float64, generator=generator)
    said = model(x_t, t)
    alpha, sigma = process.at(t, like=x_t)
    close = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(alpha * said.x0 + sigma * said.eps, x_t, **close)
    a, b = parametrization.target_coefficients(alpha, sigma)
    torch.testing.assert_close(a * said.x0 + b * said.eps, said.output, **close)
    norm = torch.sqrt(alpha**2 + sigma**2)
    torch.testing.assert_close((alpha * x_t - sigma * said.v * norm) / norm**2, said.x0, **close)
    torch.testing.assert_close(-said.score * sigma, said.eps, **close)
    alpha_rate, sigma_rate = process.rates_at(t, like=x_t)
    velocity = alpha_rate * said.x0 + sigma_rate * said.eps
    torch.testing.assert_close(said.velocity, velocity, **close)


@processes
@every
def test_finite_in_float32_on_the_whole_span(process, parametrization):
    model = exact(process, parametrization)
    low, high = model.span
    t = torch.linspace(low, high, 1001)
    x = torch.randn(1001, 2, generator=torch.Generator().manual_seed(0))
    alpha, sigma = process.at(t, like=x)
    for values in (
        parametrization.scale(alpha, sigma),
        parametrization.level(alpha, sigma),
        *parametrization.target_coefficients(alpha, sigma),
    ):
        assert values.isfinite().all()


@pytest.mark.parametrize("parametrization", [Velocity(Flow()), V(Flow()), EDM(), V(Cosine())])
def test_regular_at_both_ends(parametrization):
    alpha, sigma = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for values in (
        *parametrization.skip_out(alpha, sigma),
        *parametrization.target_coefficients(alpha, sigma),
    ):
        assert values.isfinite().all()
    skip, out = parametrization.skip_out(alpha, sigma)
    assert skip[0] == 1 and out[0] == 0  # without noise, the image is what it is given


def test_edm_is_karras_preconditioning():
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
    one, data = torch.ones_like(sigma), 0.5
    skip, out = EDM(data).skip_out(one, sigma)
    torch.testing.assert_close(skip, data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(out, sigma * data / torch.sqrt(sigma**2 + data**2))
    torch.testing.assert_close(EDM(data).scale(one, sigma), 1 / torch.sqrt(sigma**2 + data**2))
    torch.testing.assert_close(EDM(data).level(one, sigma), torch.log(sigma) / 4)


def test_unweighted_error_is_edms_weighted_one():
    """mean (output − target)² = (σ² + σ_d²)/(σσ_d)²·mean (x0 − target)²."""
    sigma, data = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), 0.5
    _, out = EDM(data).skip_out(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(1 / out**2, (sigma**2 + data**2) / (sigma * data) ** 2)


def test_clean_says_the_image_exactly():
    model = exact(Flow(), Clean(Flow()))
    x = torch.randn(3, 2)
    said = model(x, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(said.x0, said.output)


def test_eps_of_a_table_is_ddpm():
    """At step i the network sees x_t itself, is told i, and x0 = (x_t − √(1−ā)·eps)/√ā."""
    seen = {}

    class Network(Exact):
        def forward(self, x, level, *, level_s=None, cond=None):
            seen["x"], seen["level"] = x, level
            return 0.1 * x

    model = Denoiser(Network(Eps(TABLE), (3, 8, 8)), TABLE, Eps(TABLE))
    x, i = torch.randn(4, 3, 8, 8), torch.tensor([0, 37, 500, 999])
    said = model(x, i / 999)
    torch.testing.assert_close(seen["level"], i.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(seen["x"], x, rtol=1e-5, atol=1e-6)
    bar = torch.tensor(TABLE.alphas_cumprod)[i].view(-1, 1, 1, 1)
    wanted = (x - torch.sqrt(1 - bar) * 0.1 * x) / torch.sqrt(bar)
    torch.testing.assert_close(said.x0, wanted, rtol=1e-4, atol=1e-4)


def test_levels_fill_the_sinusoids_range():
    """A level in 0 … 1 would leave the embedding nearly constant."""
    t = torch.tensor([0.0, 0.25, 1.0])
    alpha, sigma = Flow().at(t, like=torch.zeros(3))
    torch.testing.assert_close(Velocity(Flow()).level(alpha, sigma), 1000 * t)
    table_alpha, table_sigma = TABLE.at(t, like=torch.zeros(3))
    level = Eps(TABLE).level(table_alpha, table_sigma)
    torch.testing.assert_close(level, 999 * t, rtol=0, atol=2e-3)


def test_levels_are_clamped_to_the_trained_ratios():
    alpha, sigma = torch.ones(2), torch.tensor([1e-5, 1e5])
    assert EDM().level(alpha, sigma).exp().pow(4).tolist() == pytest.approx([0.002, 80.0])
    assert Eps(TABLE).level(alpha, sigma).tolist() == pytest.approx([0, 999], abs=1e-3)


def test_a_network_is_told_its_native_state_whatever_the_process():
    """VE and VP clocks at one ratio show the network the same input and level."""
    native = Eps(VP())
    x0, eps = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    ratio = torch.tensor([0.05, 0.3, 1.0, 5.0, 60.0], dtype=torch.float64)
    shown = []
    for process in (VP(), VE(), Flow()):
        t = process.time(ratio)
        alpha, sigma = process.at(t, like=x0)
        x_t = alpha * x0 + sigma * eps
        shown.append((native.scale(alpha, sigma) * x_t, native.level(alpha, sigma)))
    for seen, level in shown[1:]:
        torch.testing.assert_close(seen, shown[0][0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(level, shown[0][1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", [Eps, V, Clean, Velocity])
def test_a_new_network_under_ve_has_inputs_of_the_size_of_images(kind):
    """x_t/√(1 + sigma²), as in EDM with sigma_data = 1, and not x_t, which is up to 80 large."""
    denoiser = Denoiser(MLPConfig().build(shape=(2,)), VE(), kind())
    sigma = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    parametrization = denoiser.parametrization
    scale = parametrization.scale(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(scale, 1 / torch.sqrt(1 + sigma**2))
    level = parametrization.level(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(level, 2000 / torch.pi * torch.atan(sigma))


def test_a_network_trained_under_ve_keeps_its_range_under_other_processes():
    trained = Denoiser(MLPConfig().build(shape=(2,)), VE(sigma_max=80.0), Eps())
    assert trained.under(Flow()).span == pytest.approx((0, 80 / 81))
    assert trained.under(VE(sigma_max=200.0)).span == pytest.approx((0, 0.4))
    cosine = Denoiser(MLPConfig().build(shape=(2,)), Cosine(), Eps())
    assert cosine.under(Flow()).span == (0, 1)


def test_the_boundary_is_the_input_and_far_from_it_edm():
    """c_skip and c_out of consistency models: 1 and 0 at the least noise."""
    sigma = torch.tensor([0.002, 0.01, 80.0], dtype=torch.float64)
    skip, out = EDMBoundary().skip_out(torch.ones_like(sigma), sigma)
    assert (skip[0], out[0]) == (1, 0)
    shift = sigma - 0.002
    torch.testing.assert_close(skip, 0.25 / (shift**2 + 0.25))
    torch.testing.assert_close(out, shift * 0.5 / torch.sqrt(sigma**2 + 0.25))
    _, far = EDM().skip_out(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(out[2], far[2], rtol=1e-4, atol=0)
