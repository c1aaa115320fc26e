import pytest
import torch

from analytic import Exact, exact
from fewstep.backbones import UNetConfig
from fewstep.denoiser import Denoiser, check_times
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.process import VE, VP, Flow, LinearBetas
from fewstep.sampling import Multistep, Transfer, sample


def test_span_is_where_the_network_was_trained():
    assert exact(Flow(), Velocity()).span == (0, 1)
    assert exact(VE(80.0), EDM()).span == pytest.approx((2.5e-5, 1))
    low, high = exact(Flow(), Eps(LinearBetas())).span
    assert low == pytest.approx(0.01 / 1.01, rel=1e-3) and high == pytest.approx(157.4 / 158.4)
    assert exact(LinearBetas(), Eps(LinearBetas())).span == pytest.approx((0, 1))


def test_a_span_of_its_own_keeps_its_ratios_under_another_process():
    model = exact(Flow(), Velocity()).replace(span=(0.1, 0.9))
    ends = torch.tensor([0.1, 0.9], dtype=torch.float64)
    other = model.under(VE())
    torch.testing.assert_close(
        VE().ratio(torch.tensor(other.span, dtype=torch.float64)), Flow().ratio(ends)
    )
    assert other.under(Flow()).span == pytest.approx((0.1, 0.9), abs=1e-12)
    assert model.replace(precision="bf16").span == (0.1, 0.9)
    assert model.natural_span == (0, 1)


@pytest.mark.parametrize("span", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan"))])
def test_refuses_a_span_that_is_none(span):
    with pytest.raises(InputError, match="0 <= low < high <= 1"):
        exact(Flow(), Velocity()).replace(span=span)


def test_a_target_is_the_output_of_the_exact_network():
    model = exact(VP(), Velocity())
    x0, eps, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.8])
    prediction = model(VP().add_noise(x0, eps, t), t)
    torch.testing.assert_close(prediction.target(x0, eps), eps - x0)
    torch.testing.assert_close(prediction.target(prediction.x0, prediction.eps), prediction.output)


def test_one_time_for_all_rows_is_as_that_time_for_each():
    """Numbers, computed in float64, and vectors of float32."""
    for process in (Flow(), VP(), VE(), LinearBetas()):
        for parametrization in (Velocity(), EDM(), Eps(VP())):
            model, x = exact(process, parametrization), torch.randn(5, 2)
            for t in (0.3, 0.7):
                one, rows = model(x, t), model(x, torch.full((5,), t))
                for name in ("output", "x0", "eps", "v", "score", "velocity"):
                    actual, expected = getattr(one, name), getattr(rows, name)
                    assert actual.dtype == torch.float32 and actual.shape == x.shape
                    scale = float(expected.abs().max())
                    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3 * scale)


def test_half_precision_states_are_predicted_in_float32():
    x = torch.ones(3, 2, dtype=torch.bfloat16)
    for t in (0.5, torch.full((3,), 0.5)):
        prediction = exact(Flow(), Velocity())(x, t)
        assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


def test_check_times_allows_a_tolerance_of_1e_5():
    check_times(torch.tensor([1.000009, 0.3]), (0.3, 1.0))
    for times in ([1.00002], [0.29998]):
        with pytest.raises(InputError, match="trained for"):
            check_times(torch.tensor(times), (0.3, 1.0))


def test_under_shares_the_weights():
    model = exact(VP(), Eps(VP()))
    other = model.under(Flow())
    assert other.backbone is model.backbone and other.process == Flow()
    assert other.span[1] < 0.995 and model.span[1] == pytest.approx(1)


class Recorder(Exact):
    """Notes in what type it was asked to compute."""

    def forward(self, x, level, *, level_s=None, cond=None):
        self.weight_type = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        self.levels = (level, level_s)
        return torch.mm(x, torch.eye(2))


def test_bf16_lives_inside_the_door_and_predictions_are_float32():
    model = Denoiser(Recorder(Velocity()), Flow(), Velocity(), precision="bf16")
    said = model(torch.ones(3, 2), 0.5)
    assert model.backbone.weight_type == torch.bfloat16
    assert said.output.dtype == said.x0.dtype == torch.float32
    assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.float32


def test_only_logarithmic_levels_are_scaled_for_the_backbone():
    for parametrization, factor in ((EDM(), 10.0), (Velocity(), 1.0)):
        backbone = Recorder(parametrization)
        model = Denoiser(backbone, Flow(), parametrization)
        model(torch.ones(1, 2), 0.5)
        plain = backbone.levels[0]
        backbone.level_scale = 10.0
        model(torch.ones(1, 2), 0.5)
        torch.testing.assert_close(backbone.levels[0], factor * plain)


def test_the_destination_of_a_flow_map_is_told_in_the_same_units():
    backbone = Recorder(Velocity())
    Denoiser(backbone, Flow(), Velocity())(torch.ones(2, 2), 0.75, s=torch.tensor([0.25, 0.5]))
    level, level_s = backbone.levels
    torch.testing.assert_close(level, torch.tensor([750.0, 750.0]))
    torch.testing.assert_close(level_s, torch.tensor([250.0, 500.0]))


def test_jvp_and_vmap_go_through_the_door():
    """d/dt of the exact x0 prediction, against a central difference."""
    model = exact(VP(), Velocity())
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8]).double()
    _, slope = torch.func.jvp(lambda t: model(x, t).x0, (t,), (torch.ones_like(t),))
    h = 1e-5
    wanted = (model(x, t + h).x0 - model(x, t - h).x0) / (2 * h)
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-7)
    rows = torch.func.vmap(lambda x, t: model(x[None], t[None]).x0[0])(x, t)
    torch.testing.assert_close(rows, model(x, t).x0)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Eps, V, Velocity, Clean, EDM])
def test_a_network_has_the_same_images_under_every_process(kind):
    """At the same ratios of noise and signal, the flows differ in the scale of x_t alone."""
    network = UNetConfig(channels=(16,), layers=1, attention=(), groups=4).build(shape=(1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():  # layers start at zero
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model = Denoiser(network, VP(), kind())
    noise = torch.randn(4, 1, 8, 8, generator=generator)
    ratios = torch.logspace(1.6, -1.5, 6, dtype=torch.float64)
    for step in (Transfer(), Multistep()):
        wanted = sample(model, noise, VP().time(ratios), step=step)
        assert wanted.std() > 0.05
        for process in (Flow(), VE(), LinearBetas()):
            images = sample(model.under(process), noise, process.time(ratios), step=step)
            assert (images - wanted).abs().max() < 1e-4 * wanted.abs().max()
