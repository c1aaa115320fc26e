from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.data import ImageSet
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.images import save_grid
from fewstep.metrics import EvalProtocol
from report.examples import Page, exhibits, score, tiles, write


def evaluator(count=40, shape=(1, 6, 5)):
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, *shape), generator=draw, dtype=torch.uint8)
    return Evaluator(ImageSet("made & up", images), EvalProtocol(4, "pixels"))


def nearest(samples, images):
    """Row numbers, nearest first, by the sum of squared differences."""
    a, b = (x.flatten(1).long().numpy() for x in (samples, images))
    return ((a[:, None] - b[None]) ** 2).sum(-1).argsort(1, kind="stable")


def test_the_neighbours_are_the_nearest_of_the_set(home, tmp_path):
    by, shown = evaluator(), exhibits()
    shown[1] = replace(shown[1], scores=[score(1, 7.4, measures={"copies": 0.012})])
    page = Page(write(tmp_path, shown, evaluator=by))
    strips = [(alt, image) for alt, image in page.images if "nearest training image" in alt]
    assert len(strips) == 2 * len(shown)
    for i, (entry, steps) in enumerate(zip(shown, (10, 1, 1), strict=True)):
        at = page.images.index(strips[2 * i])
        alt, sample = page.images[at - 1]
        assert alt.startswith(f"{entry.name}, {steps} step")
        if entry.name != "teacher":  # which is shown by another sampler than its own
            ((_, made),) = generate(entry.generator, 10, steps=steps)
            assert np.array_equal(tiles(sample, 10, 5)[..., 0], made[:, 0])
        sample = torch.from_numpy(tiles(sample, 10, 5)[..., 0])
        order = nearest(sample, by.images.images)
        for k in (0, 1):
            wanted = by.images.images[torch.from_numpy(order[:, k].copy()), 0]
            assert np.array_equal(tiles(strips[2 * i + k][1], 10, 5)[..., 0], wanted)
    assert "among 40 images of made & up, by the features of pixels" in page.text
    assert page.text.count("Possible copies") == 1
    assert (
        "Possible copies: 1.2 % of 2,000 samples. A sample counts if it is as near to a training "
        "image as the closest 1 % of the training images are to another one. New images give about "
        "1 %."
    ) in page.text


def test_a_copy_is_shown_beneath_itself(home, tmp_path):
    shown = [replace(exhibits()[2], scores=[])]
    ((_, made),) = generate(shown[0].generator, 10, steps=16)
    by = evaluator()
    images = torch.cat([by.images.images, made])
    page = Page(write(tmp_path, shown,
                      evaluator=Evaluator(ImageSet("s", images), by.protocol)))  # fmt: skip
    (at,) = (i for i, (alt, _) in enumerate(page.images) if alt.startswith("the nearest"))
    assert np.array_equal(page.images[at][1], page.images[at - 1][1])


def test_no_neighbours_without_images_to_look_among(tmp_path):
    assert "Nearest" not in Page(write(tmp_path)).text


def test_images_of_another_size_are_refused(home, tmp_path):
    with pytest.raises(
        InputError, match=r"shape \(1, 6, 5\), but those of made & up have shape \(1, 5, 6\)"
    ):
        write(tmp_path, evaluator=evaluator(shape=(1, 5, 6)))


def test_equal_bytes_with_neighbours(home, tmp_path):
    assert write(tmp_path / "a", evaluator=evaluator()) == write(
        tmp_path / "b", evaluator=evaluator()
    )


def test_before_and_after_are_the_first_and_the_last_grid(tmp_path):
    grids = []
    for step, shade in ((0, 10), (40, 120), (80, 250)):
        path = tmp_path / f"step-{step:07}.png"
        save_grid(torch.full((2, 1, 6, 5), shade, dtype=torch.uint8), path)
        grids.append(path)
    shown = exhibits()
    shown[1] = replace(shown[1], grids=grids)
    shown[2] = replace(shown[2], grids=grids[:1])
    page = Page(write(tmp_path, shown))
    found = {alt: image for alt, image in page.images if ", samples " in alt}
    assert list(found) == [
        "regress, samples before training",
        "regress, samples after 80 steps",
    ]
    assert [int(image[0, 0, 0]) for image in found.values()] == [10, 250]
