"""Starting noise by name: the noise of `fewstep sample`, and places between seeds."""

import pytest
import torch

from fewstep.drawing import seeds
from fewstep.errors import InputError
from fewstep.noise import noise_from_seeds
from fewstep.studio.starts import (
    MAX_SEED,
    MAX_TURNS,
    Between,
    Start,
    interpolate,
    neighbours,
    parse_start,
    shares_there_and_back,
)

SHAPE = (1, 8, 8)


def test_a_seed_is_the_first_row_of_that_seed():
    expected = noise_from_seeds(seeds(7, range(1)), SHAPE)
    assert torch.equal(Start(7).noise(SHAPE), expected)


@pytest.mark.parametrize("text", ["0", "7", f"{MAX_SEED}", "7~12:0.25", "7~12:0.25~5:1"])
def test_names_are_read_back(text):
    assert str(parse_start(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "1.5", "7~", "7~12", "7~12:2", "7~12:1.5", "7 ", "٣", f"{MAX_SEED + 1}"]
    + ["1" * 5000, "7" + "~1:0.5" * (MAX_TURNS + 1), f"7~{MAX_SEED + 1}:0.5"],
)
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(InputError) as error:
        parse_start(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_interpolation_runs_along_the_sphere():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = torch.tensor([[3**0.5 / 2, 0.5]])
    torch.testing.assert_close(interpolate(a, b, 1 / 3), third)
    assert torch.equal(interpolate(a, b, 0.0), a)
    torch.testing.assert_close(interpolate(a, b, 1.0), b)


def test_interpolation_of_parallel_rows_is_straight():
    a = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(interpolate(a, a, 0.3), a)
    torch.testing.assert_close(interpolate(a, 3 * a, 0.5), 2 * a)
    assert interpolate(a, 0 * a, 0.5).isfinite().all()


def test_noise_between_seeds_is_standard_normal():
    noise = torch.cat([Between((Start(i), Start(i + 999)), 0.5).noise((256,)) for i in range(200)])
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)


def test_corners_of_the_square_are_the_starts():
    corners = tuple(Start(seed) for seed in range(4))
    for corner, (x, y) in zip(corners, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
        torch.testing.assert_close(Between(corners, x, y).noise(SHAPE), corner.noise(SHAPE))


def test_neighbours_are_near_and_differ():
    start = parse_start("7~12:0.2")
    near = neighbours(start, 8, 0.1)
    assert near == neighbours(start, 8, 0.1) and len({*near}) == 8
    assert all(parse_start(str(place)) == place for place in near)
    for place in near:
        distance = (place.noise(SHAPE) - start.noise(SHAPE)).norm() / start.noise(SHAPE).norm()
        assert 0.05 < distance < 0.3
    assert neighbours(start, 1, 0.0)[0].noise(SHAPE).allclose(start.noise(SHAPE), atol=1e-6)


def test_neighbours_of_neighbours_stay_within_the_turns():
    place = Start(0)
    for _ in range(2 * MAX_TURNS):
        place = neighbours(place, 1, 0.3)[0]
    assert len(place.turns) == MAX_TURNS


def test_there_and_back_starts_at_one_end_and_passes_the_other():
    shares = shares_there_and_back(8)
    assert shares[0] == 0 and shares[4] == 1 and shares[2] == pytest.approx(0.5)
