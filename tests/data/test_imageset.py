import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.data import ImageSet
from fewstep.errors import InputError


def random_images(n=5, c=3, h=6, w=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, c, h, w), dtype=torch.uint8, generator=generator)


def test_shape_length_and_classes():
    images = ImageSet("a", random_images(5, 3, 4, 6))
    assert (len(images), images.shape, images.classes) == (5, (3, 4, 6), 0)
    labelled = ImageSet("a", random_images(2), torch.tensor([0, 4]))
    assert labelled.classes == 5
    named = ImageSet("a", random_images(2), torch.tensor([0, 1]), ("cat", "dog", "fox"))
    assert named.classes == 3


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_named_classes_are_refused(label):
    with pytest.raises(InputError, match="classes allow only 0 to"):
        ImageSet("a", random_images(2), torch.tensor([0, label]), ("cat", "dog"))


def test_fingerprint_is_sha256_of_shape_pixels_and_labels():
    images, labels = random_images(2), torch.tensor([1, 0])
    content = b"(2, 3, 6, 6) labelled=True" + images.numpy().tobytes()
    content += b"\1" + bytes(7) + bytes(8)
    assert ImageSet("a", images, labels).fingerprint == hashlib.sha256(content).hexdigest()


def test_fingerprint_ignores_names_and_memory_layout():
    images = random_images()
    strided = images.contiguous(memory_format=torch.channels_last)
    assert ImageSet("a", images).fingerprint == ImageSet("b", strided).fingerprint


def test_fingerprint_sees_shape_pixels_labels_and_order():
    images, labels = random_images(4), torch.tensor([0, 1, 1, 0])
    changed = images.clone()
    changed[3, 2, 5, 5] ^= 1
    sets = [
        ImageSet("a", images),
        ImageSet("a", changed),
        ImageSet("a", images.reshape(4, 3, 4, 9)),
        ImageSet("a", images.flip(0)),
        ImageSet("a", images, labels),
        ImageSet("a", images, 1 - labels),
    ]
    assert len({one.fingerprint for one in sets}) == len(sets)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 255), st.integers(2, 20), st.integers(2, 20), st.integers(1, 20))
def test_a_flat_colour_stays_itself_at_any_size(value, h, w, size):
    images = ImageSet("a", torch.full((2, 1, h, w), value, dtype=torch.uint8))
    assert torch.equal(
        images.resize(size).images, torch.full((2, 1, size, size), value, dtype=torch.uint8)
    )


def test_resized_is_pillows_bicubic():
    images = random_images(3, 3, 17, 17)
    expected = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((7, 7), Image.BICUBIC))
        for image in images
    ]
    resized = ImageSet("a", images).resize(7).images
    assert torch.equal(resized, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_resized_is_antialiased():
    # the finest checkerboard: any sampler that skips pixels gives black and white again
    board = (torch.arange(32).reshape(-1, 1) + torch.arange(32)) % 2 * 255
    small = ImageSet("a", board.to(torch.uint8).reshape(1, 1, 32, 32)).resize(8).images
    assert (small.double() - 127.5).abs().max() < 10


def test_resized_keeps_the_middle_of_the_longer_side():
    images = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    images[..., 4:8] = 200
    assert ImageSet("a", images).resize(4).images.eq(200).all()


def test_resized_keeps_everything_else():
    images = ImageSet("a", random_images(2), torch.tensor([0, 1]), ("x", "y"), {"text": ("p", "q")})
    small = images.resize(3)
    assert images.resize(6) is images
    assert (small.name, small.class_names, small.columns) == ("a", ("x", "y"), images.columns)
    assert torch.equal(small.labels, images.labels)
    assert small.fingerprint != images.fingerprint


def test_grey_and_colour_are_converted_as_pillow_does():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    colour = ImageSet("c", torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    grey = colour.with_channels(1)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    assert torch.equal(grey.images[:, 0], torch.from_numpy(expected))
    again = grey.with_channels(3)
    assert again.shape == (3, 5, 6) and torch.equal(again.with_channels(1).images, grey.images)
    assert again.with_channels(3) is again
    with pytest.raises(InputError) as refusal:
        colour.with_channels(4)
    assert str(refusal.value) == (
        "the images of c have shape (3, 5, 6), and 4 channels are needed; only grey and RGB images "
        "are converted into each other"
    )


def test_captions_are_one_tuple_for_each_image():
    images = random_images(2)
    with pytest.raises(InputError) as refusal:
        ImageSet("a", images, captions=(("x",),))
    assert str(refusal.value) == (
        "a has 2 images, but captions of 1: list one tuple of captions for each image"
    )
    assert ImageSet("a", images, captions=((), ("x", "y"))).resize(3).captions == ((), ("x", "y"))


def test_fingerprint_sees_captions_and_whose_they_are():
    images = random_images(2)
    captions = [(), (("x",), ()), ((), ("x",)), (("x", "y"), ()), (("x",), ("y",)), (("xy",), ())]
    sets = [ImageSet("a", images, captions=each) for each in captions]
    assert len({one.fingerprint for one in sets}) == len(sets)
    content = b"(2, 3, 6, 6) labelled=False" + images.numpy().tobytes()
    content += b'[["\\ud83d\\ude00", "\\u732b"], []]'
    emoji = ImageSet("a", images, captions=(("😀", "猫"), ()))
    assert emoji.fingerprint == hashlib.sha256(content).hexdigest()
