"""Pictures are enlarged without blur or stretching, and say where they come from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.studio import pictures, toys
from fewstep.studio.catalogue import Catalogue
from fewstep.studio.journey import travel
from fewstep.studio.starts import Start
from fewstep.studio.workshop import Request, Workshop


def pixels(picture):
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_sheet_is_a_pixel_of_its_image(channels):
    shape = (4, channels, 8, 8)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sheet = pixels(pictures.sheet(images, width=100))
    assert sheet.shape == (98, 98, 3)  # 2 × 6 · 8 and a gap of 2
    for number, image in enumerate(images):
        top, left = number // 2 * 50, number % 2 * 50
        tile = sheet[top : top + 48, left : left + 48]
        expected = image.expand(3, -1, -1).permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1)
        assert (tile == expected).all()


def test_a_dark_picture_stays_dark():
    dark = torch.full((1, 1, 8, 8), 3, dtype=torch.uint8)
    dark[0, 0, 0, 0] = 5
    assert {*np.unique(pixels(pictures.sheet(dark)))} == {3, 5}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_enlarging_repeats_pixels(channels):
    image = torch.randint(256, (channels, 5, 7)).to(torch.uint8)
    large = pixels(pictures.enlarge(pictures.picture_of(image), width=64))
    assert large.shape == (45, 63, 3)
    assert (large[::9, ::9, 0] == image[0].numpy()).all()
    assert (large == large[::9, ::9].repeat(9, 0).repeat(9, 1)).all()


def test_a_file_says_how_to_generate_it_again(folder):
    model = Workshop(Catalogue([str(folder)])).load("teacher")
    request = Request(model, (Start(7), Start(8, ((3, 0.5),))), (1, -1), 4, 1.5)
    file = pictures.png(Image.new("L", (1, 1)), pictures.metadata_of(request))
    text = Image.open(io.BytesIO(file)).text
    assert text["run"] == "teacher" and text["run_hash"] == model.hash and len(model.hash) == 64
    assert text["seed"] == "7, 8~3:0.5" and text["label"] == "1, -1"
    assert text["steps"] == "4" and text["guidance"] == "1.5"


def test_the_difference_has_one_scale_for_all_pairs():
    black, grey, white = (torch.full((1, 1, 2, 2), v, dtype=torch.uint8) for v in (0, 51, 255))
    same, text = pictures.difference(grey, grey)
    assert (pixels(same) == pixels(same)[0, 0]).all() and pixels(same).min() >= 253
    assert "0.00 %" in text
    full, text = pictures.difference(black, white)
    assert tuple(pixels(full)[0, 0]) == (255, 0, 0) and "largest 100 %" in text
    full, _ = pictures.difference(white, black)
    assert tuple(pixels(full)[0, 0]) == (0, 0, 255)
    fifth, text = pictures.difference(black, grey)
    assert abs(int(pixels(fifth)[0, 0, 2]) - 204) <= 2 and "20.0 %" in text


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_an_animation_has_all_pictures_pixel_by_pixel(kind):
    levels = (0, 90, 180, 255)
    images = torch.stack([torch.full((1, 8, 8), v, dtype=torch.uint8) for v in levels])
    images[:, 0, 0, 0] = 255
    film = Image.open(io.BytesIO(pictures.animation(images, kind)))
    assert film.format.lower() == kind.lower() and film.n_frames == 4 and film.size == (256, 256)
    for number, level in enumerate(levels):
        film.seek(number)
        frame = pixels(film)
        assert (frame[-1, -1] == level).all() and (frame[31, 31] == 255).all()


def test_a_film_divides_each_state_by_its_scale():
    states = [torch.full((2, 1, 2, 2), v) for v in (40.0, 0.5)]
    film = pictures.film(states, [80.0, 1.0])
    assert film.shape == (2, 1, 2, 2) and film.flatten().tolist() == [191] * 8


def test_toys_are_drawn(folder):
    model = Workshop(Catalogue([str(folder)])).load("toy")
    request = Request(model, tuple(Start(seed) for seed in range(20)), None, 3)
    journey = travel(request)
    frames = [pixels(toys.jumps(journey, request, index)) for index in range(4)]
    assert all(frame.shape == (480, 480, 3) for frame in frames)
    assert not (frames[0] == frames[3]).all()
    one, other = (toys.scatter(torch.tensor([[x, 0.0]])) for x in (-1.0, 1.0))
    assert not (pixels(one) == pixels(other)).all()
