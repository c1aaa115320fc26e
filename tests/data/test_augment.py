"""EDM's augmentation: transforms against closed forms, labels, distributions, independence."""

import math

import pytest
import torch
from scipy import stats

from fewstep.condition import AUGMENT_LABELS
from fewstep.data.augment import (
    ALL_KINDS,
    ENLARGING_TAPS,
    RANDOM_NUMBERS,
    SHRINKING_TAPS,
    Augmentation,
    Transform,
)

SIDE = 16
NOISE = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def transform(**parameters):
    """A transform of two images, with these parameters and no others."""
    zero = torch.zeros(2)
    values = {
        name: torch.full((2,), value) if isinstance(value, float | bool) else value
        for name, value in parameters.items()
    }
    fields = dict.fromkeys(("scale", "angle", "stretch", "stretch_angle"), zero)
    flips = {"x_flip": zero > 0, "y_flip": zero > 0}
    return Transform(**{**flips, **fields, "shift": torch.zeros(2, 2), **values})


def bump(right, down):
    """A smooth, lopsided image."""
    return torch.exp(-((right - 1.5) ** 2 + 1.5 * (down + 1) ** 2 + (right + down) ** 2) / 32)


def picture(function):
    """The image (2, 1, side, side) of a function of the position from the centre."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    return function(right, down).expand(2, 1, -1, -1)


def inside(x, border=3):
    return x[..., border:-border, border:-border]


def test_the_two_filters_are_dual():
    for lag in range(-5, 6):
        enlarging = {i - 2 * lag: tap for i, tap in enumerate(ENLARGING_TAPS)}
        overlap = sum(tap * enlarging.get(i, 0.0) for i, tap in enumerate(SHRINKING_TAPS))
        assert overlap == pytest.approx(float(lag == 0), abs=1e-10)


def test_flips_and_quarter_turns_are_exact():
    assert transform(x_flip=True).apply(NOISE).equal(NOISE.flip(-1))
    assert transform(y_flip=True).apply(NOISE).equal(NOISE.flip(-2))
    for quarters in (1, 2, 3):
        turned = transform(angle=quarters * math.pi / 2).apply(NOISE)
        torch.testing.assert_close(
            turned, NOISE.rot90(quarters, (-2, -1)), rtol=0, atol=2e-5, msg=str(quarters)
        )


def test_whole_pixels_move_exactly_and_edges_are_mirrored():
    impulse = torch.zeros(2, 1, SIDE, SIDE)
    impulse[..., 4, 9] = 1
    pixels = torch.tensor([[2.0, -3.0], [-1.0, 0.0]])
    moved = transform(shift=pixels / (0.125 * SIDE)).apply(impulse)
    expected = torch.zeros_like(impulse)
    expected[0, 0, 1, 11] = expected[1, 0, 4, 8] = 1
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    right = transform(shift=torch.tensor([[1.0, 0.0]]).expand(2, 2)).apply(NOISE)  # by 2 pixels
    mirrored = NOISE[..., [2, 1, *range(SIDE - 2)]]
    torch.testing.assert_close(right, mirrored, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("parameters", "source"),
    [
        ({"scale": 1.3}, lambda x, y, m: (x / m, y / m)),
        ({"scale": -1.3}, lambda x, y, m: (x * m, y * m)),
        ({"stretch": 1.3}, lambda x, y, m: (x / m, y * m)),
        ({"stretch": 1.3, "stretch_angle": math.pi / 2}, lambda x, y, m: (x * m, y / m)),
        (
            {"stretch": 1.3, "stretch_angle": math.pi / 4},
            lambda x, y, m: (
                ((x - y) / m + (x + y) * m) / 2,
                ((y - x) / m + (x + y) * m) / 2,
            ),
        ),
        ({"shift": torch.tensor([[0.3, -0.4]] * 2)}, lambda x, y, m: (x - 0.6, y + 0.8)),
        (
            {"angle": 0.5},
            lambda x, y, m: (
                math.cos(0.5) * x - math.sin(0.5) * y,
                math.sin(0.5) * x + math.cos(0.5) * y,
            ),
        ),
    ],
)
def test_a_smooth_image_is_read_at_the_transformed_place(parameters, source):
    m = 2 ** (0.2 * 1.3)
    moved = transform(**parameters).apply(picture(bump))
    expected = picture(lambda x, y: bump(*source(x, y, m)))
    assert (inside(expected) - inside(picture(bump))).abs().max() > 0.08
    torch.testing.assert_close(inside(moved), inside(expected), rtol=0, atol=0.012)


def test_transforms_are_composed_in_edms_order():
    """Scaled, rotated and stretched first, then shifted: at p is what was at M(p − shift)."""
    parameters = {"scale": 0.5, "angle": math.pi / 2, "stretch": 0.8}
    moved = transform(**parameters, shift=torch.tensor([[0.5, 0.0]] * 2)).apply(picture(bump))
    scale, stretch = 2**0.1, 2**0.16

    def source(x, y):
        x, y = (x - 1) / stretch, y * stretch
        return -y / scale, x / scale

    expected = picture(lambda x, y: bump(*source(x, y)))
    torch.testing.assert_close(inside(moved), inside(expected), rtol=0, atol=0.012)


def test_shrinking_does_not_alias():
    """Fine stripes fade where the image is made smaller; samples alone would show coarse ones."""
    stripes = picture(lambda x, y: torch.cos(0.9 * math.pi * x))
    samples = picture(lambda x, y: torch.cos(0.9 * math.pi * math.sqrt(2) * x))
    smaller = transform(scale=-2.5).apply(stripes)
    assert inside(samples).square().mean() > 0.4
    assert inside(smaller).square().mean() < 0.05


def test_labels_are_edms():
    assert transform().labels().equal(torch.zeros(2, AUGMENT_LABELS))
    parts = {"scale": 0.5, "angle": 0.6, "stretch": -2.0, "stretch_angle": 0.7}
    shift = torch.tensor([[1.5, -0.25]] * 2)
    labels = transform(x_flip=True, y_flip=True, shift=shift, **parts).labels()
    rotation = [math.cos(0.6) - 1, math.sin(0.6)]
    anisotropy = [-2 * math.cos(0.7), -2 * math.sin(0.7)]
    expected = torch.tensor([1, 1, 0.5, *rotation, *anisotropy, 1.5, -0.25])
    torch.testing.assert_close(labels, expected.expand(2, -1))


def test_shares_and_distributions():
    n, p = 20_000, 0.3
    uniform = torch.rand(n, RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0))
    random = Augmentation(p).draw(uniform)

    def share(mask, expected):
        error = 4 * math.sqrt(expected * (1 - expected) / n)
        assert float(mask.float().mean()) == pytest.approx(expected, abs=error)

    share(random.x_flip, 0.5)  # always
    share(random.y_flip, p / 2)
    share(random.stretch_angle != 0, p / 2)
    normal, turn = stats.norm.cdf, stats.uniform(-math.pi, 2 * math.pi).cdf
    for values, cdf in (
        (random.scale, normal),
        (random.angle, turn),
        (random.stretch, normal),
        (random.shift[:, 0], normal),
        (random.shift[:, 1], normal),
    ):
        share(values != 0, p)
        assert stats.kstest(values[values != 0].numpy(), cdf).pvalue > 1e-3
    tilts = random.stretch_angle[random.stretch_angle != 0]
    assert stats.kstest(tilts.numpy(), turn).pvalue > 1e-3
    gates = [random.scale != 0, random.angle != 0, random.stretch != 0, random.shift[:, 0] != 0]
    share(torch.stack([*gates, random.x_flip]).all(0), p**4 / 2)  # independent
    assert (random.shift[:, 0] != 0).equal(random.shift[:, 1] != 0)


def test_kinds_that_are_left_out_have_labels_of_zero():
    uniform = torch.rand(500, RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0))
    columns = {"x-flip": [0], "y-flip": [1], "scale": [2], "rotation": [3, 4]}
    columns |= {"anisotropy": [5, 6], "translation": [7, 8]}
    for kind in ALL_KINDS:
        _, labels = Augmentation(0.5, (kind,))(NOISE[:1].expand(500, -1, -1, -1), uniform)
        assert labels.ne(0).any(0).nonzero().flatten().tolist() == columns[kind]


def test_a_row_depends_on_its_own_numbers_alone():
    x = torch.rand(37, 1, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    uniform = torch.rand(37, RANDOM_NUMBERS, generator=torch.Generator().manual_seed(2))
    augment = Augmentation(0.5)
    whole, labels = augment(x, uniform)
    for size in (1, 5, 36):
        parts = [augment(a, b) for a, b in zip(x.split(size), uniform.split(size), strict=True)]
        images, parts_labels = (torch.cat(column) for column in zip(*parts, strict=True))
        assert images.equal(whole) and parts_labels.equal(labels)
    still = labels.eq(0).all(1)
    assert 0 < still.sum() < 37 and whole[still].equal(x[still])
    assert whole.isfinite().all()


def test_a_random_number_of_zero_gives_a_finite_image():
    image, labels = Augmentation(0.5)(NOISE[:1], torch.zeros(1, RANDOM_NUMBERS))
    assert image.isfinite().all() and labels.isfinite().all()
