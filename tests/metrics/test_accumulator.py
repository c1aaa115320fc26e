"""All measures of images at once: equal to each function by itself, and in bounded memory."""

import subprocess
import sys

import pytest
import torch

from fewstep.data import ImageSet
from fewstep.evaluation import exhaust
from fewstep.metrics import accumulator as module
from fewstep.metrics.accumulator import ScoreAccumulator
from fewstep.metrics.distances.coverage import density_coverage, precision_recall
from fewstep.metrics.distances.frechet import MomentBlocks, frechet_estimate
from fewstep.metrics.distances.kernel import kernel_distance
from fewstep.metrics.extractors import Extractor, ExtractorOutput, Pixels
from fewstep.metrics.reference import build_reference


class Sorted(Extractor):
    """Two features, and the class of the brighter half."""

    name, hash, classifies = "sorted", "0", True

    def extract(self, images):
        halves = images.flatten(1).unflatten(1, (2, -1)).mean(2)
        return ExtractorOutput(halves / 255, halves)


def images(n, seed=0, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=generator)


def reference(extractor, n=600):
    real = ImageSet("toys", images(n))
    return exhaust(build_reference(extractor, real, cache=None))


def measured(extractor, real, made, *, batch, labels=None):
    assessment = ScoreAccumulator(real, len(made))
    for first in range(0, len(made), batch):
        asked = None if labels is None else labels[first : first + batch]
        assessment.update(made[first : first + batch], asked)
    return assessment.measures()


def test_each_measure_is_its_functions_own():
    real, made = reference(Pixels()), images(400, seed=1)
    found = measured(Pixels(), real, made, batch=64)
    rows = Pixels()(made)
    blocks = MomentBlocks(16, 400)
    blocks.update(rows)
    frechet = frechet_estimate(blocks, real.moments)
    kernel = kernel_distance(rows, real.features)
    precise = precision_recall(real.features[:400], rows)
    dense = density_coverage(real.features[:400], rows)
    near = real.nearest(rows).distances[:, 0]
    assert found.frechet == pytest.approx(frechet.value, rel=1e-9)
    assert found.frechet_high == pytest.approx(frechet.high, rel=1e-6)
    assert found.frechet_infinite == pytest.approx(frechet.infinite, rel=1e-6)
    assert (found.kernel, found.kernel_low) == pytest.approx((kernel.value, kernel.low), rel=1e-9)
    assert (found.precision, found.recall) == tuple(precise)
    assert (found.density, found.coverage) == tuple(dense)
    assert found.copies == (near <= real.copy_radius).double().mean().item()
    assert found.class_score is None and found.accuracy is None


def test_batches_do_not_matter():
    real, made = reference(Sorted()), images(300, seed=1)
    labels = torch.arange(300) % 2
    one = measured(Sorted(), real, made, batch=300, labels=labels)
    many = measured(Sorted(), real, made, batch=7, labels=labels)
    assert one.accuracy == many.accuracy
    assert one.frechet == pytest.approx(many.frechet, rel=1e-9)
    assert one.class_score == pytest.approx(many.class_score, rel=1e-9)
    assert (one.precision, one.coverage, one.copies) == (many.precision, many.coverage, many.copies)


def test_accuracy_is_the_share_of_right_classes_where_the_classes_are_the_sets_own():
    made = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    made[:15, :, 0] = 255  # class 0
    made[15:, :, 1] = 255
    labels = torch.zeros(20, dtype=torch.long)
    real = reference(Sorted())
    assert measured(Sorted(), real, made, batch=6, labels=labels).accuracy == 0.75
    assert measured(Sorted(), real, made, batch=6).accuracy is None
    real.extractor.classifies = False
    assert measured(Sorted(), real, made, batch=6, labels=labels).accuracy is None


def test_copies_of_the_training_set_are_found_and_fresh_images_are_not():
    real = reference(Pixels(), 3000)
    fresh = measured(Pixels(), real, images(2000, seed=1), batch=500)
    stolen = measured(Pixels(), real, images(3000)[:2000], batch=500)
    assert stolen.copies == 1.0
    assert 0.002 <= fresh.copies <= 0.025  # 1 % of 2,000, against a 1 % quantile of 2,000


def test_rows_that_are_kept_are_the_first_ones_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 100)
    real, made = reference(Pixels()), images(300, seed=1)
    found = measured(Pixels(), real, made, batch=64)
    rows = Pixels()(made)
    assert found.kernel == pytest.approx(
        kernel_distance(rows[:100], real.features[:100]).value, rel=1e-9
    )
    assert tuple(precision_recall(real.features[:100], rows[:100])) == (
        found.precision,
        found.recall,
    )


def test_few_images_are_told_what_they_can_tell():
    found = measured(Pixels(), reference(Pixels(), 50), images(3, seed=1), batch=2)
    assert found.frechet > 0 and found.kernel is not None
    assert found.precision is None and found.copies is None and found.frechet_low is None


MEMORY = """
import resource, sys, torch
from fewstep.data import ImageSet
from fewstep.evaluation import exhaust
from fewstep.metrics import ScoreAccumulator, Pixels, build_reference
torch.set_num_threads(1)
def images(n, seed):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))
real = exhaust(build_reference(Pixels(), ImageSet("t", images(2000, 0)), cache=None))
total = int(sys.argv[1])
seen = ScoreAccumulator(real, total)
for first in range(0, total, 500):
    seen.update(images(500, 1 + first))
seen.measures()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples():
    def peak(total):
        told = [sys.executable, "-c", MEMORY, str(total)]
        return int(subprocess.run(told, capture_output=True, text=True, check=True).stdout)

    few, many = peak(10_000), peak(90_000)
    # 80,000 more rows of 192 features would be 61 MB in float32; two equal runs differ by some 10
    assert many - few < 30_000, (few, many)
