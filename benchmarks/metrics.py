"""Scores against torchmetrics, and features against the bare network, in one run.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py

Each row is timed alternately over several rounds; ratios are theirs over ours (above 1: we are
faster), of medians. Features are random; the networks hold random weights, which cost the same.
The extractor's share is the bare network's time over that of the whole way from uint8 images to
moments: 0.9 means a tenth is spent on anything but the network. torchmetrics has no precision and
recall; there the other side is scikit-learn's pairwise distances in float64.
"""

import argparse
import statistics
import time

import torch
from sklearn.metrics import pairwise_distances
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import maximum_mean_discrepancy

from fewstep import metrics
from fewstep.metrics.extractors.inception import Inception, InceptionNetwork
from fewstep.metrics.extractors.resize import resize_images
from fewstep.metrics.extractors.resnet import ResNet56, ResNet56Cifar10


class Flat(torch.nn.Module):
    """A network for torchmetrics that passes on features made before."""

    num_features = 64

    def __init__(self, features):
        super().__init__()
        self.num_features = features

    def forward(self, x):
        return x.flatten(1)


def alternating(rounds, **ways):
    """The median seconds of each way."""
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def row(what, seconds, ours="ours", theirs="theirs"):
    print(
        f"| {what} | {1000 * seconds[ours]:.1f} | {1000 * seconds[theirs]:.1f} "
        f"| {seconds[theirs] / seconds[ours]:.2f} |",
        flush=True,
    )


def frechet(n, d, rounds):
    """From features in batches to the distance."""
    real, fake = torch.randn(n, d), torch.randn(n, d) + 0.1

    def ours():
        a, b = metrics.Moments(d), metrics.Moments(d)
        for x, y in zip(real.split(256), fake.split(256), strict=True):
            a.update(x)
            b.update(y)
        return metrics.frechet_distance(a, b)

    def theirs():
        # with a network of its own it takes float images of any shape and keeps float64 sums
        fid = FrechetInceptionDistance(Flat(d), input_img_size=(1, 1, d), normalize=True)
        fid.set_dtype(torch.float64)
        for x, y in zip(real.split(256), fake.split(256), strict=True):
            fid.update(x[:, None, None], real=True)
            fid.update(y[:, None, None], real=False)
        return fid.compute()

    assert abs(ours() - float(theirs())) < 1e-5 * ours()
    row(f"Fréchet, 2 x {n:,} x {d}", alternating(rounds, ours=ours, theirs=theirs))


def kernel(n, d, rounds):
    """The kernel distance of all rows; theirs has no interval."""
    real, fake = torch.randn(n, d).double(), torch.randn(n, d).double() + 0.1

    def ours():
        return metrics.kernel_distance(fake, real).value

    def theirs():
        k = [((x @ y.T) / d + 1) ** 3 for x, y in ((real, real), (real, fake), (fake, fake))]
        return float(maximum_mean_discrepancy(*k))

    assert abs(ours() - theirs()) < 1e-6 * abs(theirs())
    row(f"kernel, 2 x {n:,} x {d}", alternating(rounds, ours=ours, theirs=theirs))


def precision(n, d, rounds):
    """Precision and recall."""
    real, fake = torch.randn(n, d), torch.randn(n, d) * 0.9

    def theirs():
        x, y = real.double().numpy(), fake.double().numpy()
        radii = [torch.from_numpy(pairwise_distances(z)).kthvalue(4, 1).values for z in (x, y)]
        across = torch.from_numpy(pairwise_distances(x, y))
        precise = (across <= radii[0][:, None]).any(0).double().mean().item()
        return precise, (across <= radii[1]).any(1).double().mean().item()

    def ours():
        return metrics.precision_recall(real, fake)

    assert tuple(ours()) == theirs()
    row(f"precision and recall, 2 x {n:,} x {d}", alternating(rounds, ours=ours, theirs=theirs))


def features(kind, network, images, rounds):
    """From uint8 images to moments, and the bare network on floats of its own size."""
    for parameter in network.state_dict().values():
        if parameter.is_floating_point():
            parameter.normal_(0, 0.02)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.fill_(1.0)
    extractor = kind(network)
    resized = resize_images(images.float(), kind.size, kind.standard_resize)

    @torch.no_grad()
    def bare():
        return network(resized)

    def ours():
        moments = metrics.Moments(bare_width)
        moments.update(extractor(images))

    with torch.no_grad():
        bare_width = network(resized[:1]).features.shape[1]
    seconds = alternating(rounds, ours=ours, theirs=bare)
    what = f"{kind.name}, {len(images)} images of {images.shape[-1]}, share of the bare network"
    row(what, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, eager, {rounds} rounds\n")
    print("| what | ours, ms | theirs, ms | theirs / ours |\n|---|---|---|---|")
    frechet(10_000, 64, rounds)
    frechet(5_000, 512, rounds)
    frechet(5_000, 2048, 3)
    kernel(5_000, 64, rounds)
    kernel(2_000, 2048, rounds)
    precision(5_000, 64, rounds)
    precision(2_000, 2048, rounds)
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    features(ResNet56Cifar10, ResNet56(), images, rounds)
    features(Inception, InceptionNetwork(), images[:16], rounds)


if __name__ == "__main__":
    main()
