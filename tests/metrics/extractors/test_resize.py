"""Resizing against Pillow, plain loops, torch's own and closed forms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fewstep.metrics.extractors.resize import resize_images

BOTH = ["tf1-bilinear", "clean-bicubic"]


def pictures(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).to(dtype)


def ramp(height, width):
    """Pixel (y, x) is 3 + 5 y + 2 x."""
    y, x = torch.arange(height).double(), torch.arange(width).double()
    return (3 + 5 * y[:, None] + 2 * x).expand(1, 1, height, width)


def by_pillow(images, size):
    channels = images.flatten(0, 1).numpy()
    found = [
        np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
        for channel in channels
    ]
    return torch.from_numpy(np.stack(found)).view(*images.shape[:2], size, size)


def by_loops(image, size):
    """TensorFlow 1's resize_bilinear of a matrix, a pixel at a time."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize(
    "height, width, size",
    [(32, 32, 299), (28, 28, 224), (64, 64, 24), (100, 100, 37), (40, 90, 60), (5, 3, 7)]
    + [(60, 31, 60), (31, 60, 60), (512, 512, 299), (1, 1, 4), (9, 9, 1)],
)
def test_clean_bicubic_is_pillows(height, width, size):
    images = pictures(2, 3, height, width)
    theirs = by_pillow(images, size)
    # Pillow sums in float64 and keeps float32
    exact = resize_images(images.double(), size, "clean-bicubic")
    assert (exact - theirs).abs().max().item() < 4e-5
    assert (resize_images(images, size, "clean-bicubic") - theirs).abs().max().item() < 4e-4


def test_clean_bicubic_is_neither_clipped_nor_rounded():
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 255
    found = resize_images(step, 32, "clean-bicubic")
    assert found.min().item() < -5
    assert found.max().item() > 260
    assert not torch.equal(found, found.round())


@pytest.mark.parametrize("height, width, size", [(8, 8, 19), (19, 19, 8), (6, 11, 9), (1, 1, 3)])
def test_tf1_bilinear_is_the_plain_loop(height, width, size):
    images = pictures(2, 2, height, width, dtype=torch.float64)
    found = resize_images(images, size, "tf1-bilinear").flatten(0, 1)
    for channel, image in zip(found, images.flatten(0, 1), strict=True):
        assert np.allclose(channel, by_loops(image.numpy(), size), rtol=0, atol=1e-11)


@pytest.mark.parametrize("given, size", [(32, 299), (64, 24)])
def test_tf1_bilinear_of_a_ramp_in_closed_form(given, size):
    """The ramp is read at i given / size, and ends at the last pixel."""
    position = (torch.arange(size).double() * given / size).clamp(max=given - 1)
    expected = 3 + 5 * position[:, None] + 2 * position
    found = resize_images(ramp(given, given), size, "tf1-bilinear")[0, 0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("factor", [2, 5])
def test_tf1_bilinear_is_torchs_where_the_grids_meet(factor):
    """Grown by a whole factor f, i / f are the points of align_corners=True up to the last pixel.

    After it comes the last pixel again, f - 1 times.
    """
    images = pictures(2, 3, 6, 6, dtype=torch.float64)
    found = resize_images(images, 6 * factor, "tf1-bilinear")
    inner = 5 * factor + 1
    theirs = F.interpolate(images, size=inner, mode="bilinear", align_corners=True)
    theirs = F.pad(theirs, (0, factor - 1, 0, factor - 1), mode="replicate")
    assert torch.allclose(found, theirs, rtol=0, atol=1e-11)


def test_tf1_bilinear_shrinks_by_a_whole_factor_without_smoothing():
    images = pictures(2, 3, 24, 12)
    assert torch.equal(resize_images(images, 12, "tf1-bilinear"), images[:, :, ::2])
    assert torch.equal(resize_images(images, 4, "tf1-bilinear"), images[:, :, ::6, ::3])


def test_clean_bicubic_is_torchs_antialiased():
    """Another implementation of the same filter, with the same kernel when it antialiases."""
    images = pictures(1, 2, 30, 50, dtype=torch.float64)
    for size in (12, 77):
        theirs = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        assert torch.allclose(
            resize_images(images, size, "clean-bicubic"), theirs, rtol=0, atol=1e-9
        )


def test_tf1_bilinear_at_the_corners():
    images = pictures(1, 1, 32, 32)
    found = resize_images(images, 299, "tf1-bilinear")
    assert found[0, 0, 0, 0] == images[0, 0, 0, 0]
    # 298 * 32 / 299 > 31: already past the last pixel's place
    assert found[0, 0, -1, -1].item() == pytest.approx(images[0, 0, -1, -1].item(), rel=1e-6)
    assert found[0, 0, 0, -1].item() == pytest.approx(images[0, 0, 0, -1].item(), rel=1e-6)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("height, width, size", [(4, 4, 7), (7, 5, 3)])
def test_gradients(how, height, width, size):
    images = pictures(1, 2, height, width, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize_images(x, size, how), images)


@pytest.mark.parametrize("how", BOTH)
def test_gradients_after_a_first_use_in_inference_mode(how):
    images = pictures(1, 1, 13, 13, dtype=torch.float64)
    with torch.inference_mode():
        resize_images(images, 17, how)
    images.requires_grad_()
    resize_images(images, 17, how).square().sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("height, width, size", [(32, 32, 299), (100, 37, 24), (1, 1, 9)])
def test_a_constant_image_stays_constant(how, height, width, size):
    images = torch.full((1, 3, height, width), 0.7, dtype=torch.float64)
    found = resize_images(images, size, how)
    assert torch.allclose(found, torch.full_like(found, 0.7), rtol=1e-14, atol=0)


@pytest.mark.parametrize("how", BOTH)
def test_what_has_the_size_is_returned_as_it_is(how):
    images = pictures(2, 3, 20, 20)
    assert resize_images(images, 20, how) is images
    tall = pictures(2, 3, 30, 20)
    assert torch.equal(
        resize_images(tall, 20, how)[..., 3], resize_images(tall[..., 3:4], 20, how)[..., 0]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_type(dtype):
    assert resize_images(pictures(1, 1, 4, 4, dtype=dtype), 6, "clean-bicubic").dtype == dtype
