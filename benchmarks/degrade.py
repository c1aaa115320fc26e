"""Do scores rise with damage? CIFAR-10's training images against copies that are ever worse.

    OMP_NUM_THREADS=1 python benchmarks/degrade.py classifier resnet56-cifar10
    OMP_NUM_THREADS=1 python benchmarks/degrade.py --size 16 pixels
    OMP_NUM_THREADS=1 python benchmarks/degrade.py --samples 5000 squeezenet

Each set of samples is measured against all 50,000 training images. A row that names the training
set is a seeded choice of its own images, damaged or not; `test` is the other 10,000. Within each
series the Fréchet and the kernel distance must rise from row to row; the last column says so.
"""

import argparse

import torch
from torch.nn import functional as F

from fewstep import data, metrics, plugins
from fewstep.download import cache
from fewstep.evaluation import exhaust


def blurred(images, width):
    """Gaussian, `width` pixels of standard deviation."""
    reach = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-((reach / width) ** 2) / 2)
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1)
    x = F.pad(images.float(), (6, 6, 6, 6), mode="reflect")
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(kernel))
    x = F.conv2d(x, kernel[:, None, None, :], groups=len(kernel))
    return x.round().clamp(0, 255).to(torch.uint8)


def add_noise(images, level):
    """Gaussian noise of `level` grey values, clipped."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def series(images, labels, test, samples):
    """(series, what is done, images), each series from sound to worst."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    own = images[order[:samples]]
    yield "held out", "train", own
    yield "held out", "test", test[:samples]
    for width in (0.5, 0.75, 1.0, 2.0):
        yield "blur", f"{width} px", blurred(own, width)
    for level in (4, 8, 16, 32, 64):
        yield "noise", f"{level}", add_noise(own, level)
    for dropped in (1, 2, 4, 8):
        left = order[labels[order] >= dropped]
        yield "classes dropped", f"{dropped} of 10", images[left[:samples].repeat(5)][:samples]
    for share in (25, 50, 75, 100):
        lost = (labels[order] < 5) & (torch.arange(len(order)) % 100 < share)
        yield "of five classes", f"{share} % lost", images[order[~lost][:samples]]
    for share in (2, 10, 100, 1000):
        few = own[: samples // share].repeat(share, 1, 1, 1)
        mixed = torch.randperm(len(few), generator=torch.Generator().manual_seed(2))
        yield "each image", f"{share} times", few[mixed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extractors", nargs="+", choices=plugins.names("extractor"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--series", help="measure only this one")
    options = parser.parse_args()
    train, test = (data.load("cifar10", split=s, size=options.size) for s in ("train", "test"))
    for name in options.extractors:
        extractor = metrics.make_extractor(name, train, cache=cache())
        measure(extractor, train, test, options.samples, options.series)


def measure(extractor, train, test, samples, only):
    reference = exhaust(metrics.build_reference(extractor, train, cache=cache()))
    print(f"\n{extractor.name} ({extractor.hash}), resize {extractor.resize}, {samples} samples\n")
    print(
        "| series | damage | Fréchet | ± | extrapolated | kernel x1000 | ± | precision | recall "
        "| density | coverage | copies | class score | rises |"
    )
    print("|---" * 14 + "|")
    sound, before, last = None, None, ""
    for kind, damage, images in series(train.images, train.labels, test.images, samples):
        if only not in (None, kind) and sound is not None:
            continue
        accumulator = metrics.ScoreAccumulator(reference, len(images))
        for part in images.split(1000):
            accumulator.update(part)
        m = accumulator.measures()
        sound = sound or m
        before = before if kind == last else sound
        last = kind
        rises = m is sound or (m.frechet > before.frechet and m.kernel > before.kernel)
        before = m
        limit = "" if m.frechet_infinite is None else f"{m.frechet_infinite:.4g}"
        score = "" if m.class_score is None else f"{m.class_score:.2f}"
        shares = (m.precision, m.recall, m.density, m.coverage, m.copies)
        cells = (
            kind,
            damage,
            f"{m.frechet:.4g}",
            f"{m.frechet_high - m.frechet:.2g}",
            limit,
            f"{1000 * m.kernel:.4g}",
            f"{1000 * (m.kernel_high - m.kernel):.2g}",
            *(f"{share:.3f}" for share in shares),
            score,
            "yes" if rises else "NO",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
