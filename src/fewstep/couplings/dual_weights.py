"""The dual weights of semidiscrete optimal transport, by stochastic ascent, in a cache of files."""

import hashlib
import math
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from fewstep import distributed
from fewstep.download import cache
from fewstep.errors import InputError
from fewstep.tensor_file import NotOurs, read_tensor_file, write_tensor_file

BATCH = 256
"""Largest number of noises in a step."""
FEWEST = 1 << 14
"""Smallest number of noises for a set, which takes a second."""
RECIPE = "dual weights 1"
"""Changes when the same set would get other weights."""


def set_weights(points: Tensor, classes: list[Tensor], noises: int, device: torch.device) -> Tensor:
    """The dual weights (n,) of a set of `points` (n, d), each class for itself, from the cache.

    `classes` are the row numbers of each class. All ranks must call this; the first computes them.
    """
    weights = None
    if distributed.first_rank():
        digest = hashlib.sha256(f"{RECIPE} {noises} {tuple(points.shape)}".encode())
        for tensor in (points, *classes):
            digest.update(tensor.contiguous().numpy().data)
        path = cache() / f"dual-weights-{digest.hexdigest()[:16]}.safetensors"
        weights = _read(path, len(points))
        if weights is None:
            print(
                f"fewstep: computing the dual weights of {len(points):,} images, once for this set",
                file=sys.stderr,
            )
            weights = torch.empty(len(points))
            for rows in classes:
                weights[rows] = dual_weights(points[rows].to(device), noises).cpu()
            with suppress(OSError):  # the cache is optional
                write_tensor_file(path, {"weights": weights}, {"kind": RECIPE})
    weights = distributed.gather(weights)[0]
    assert weights is not None
    return weights


def _read(path: Path, count: int) -> Tensor | None:
    """The weights in a file; None if it is missing, damaged or another."""
    try:
        tensors, note = read_tensor_file(path)
    except (InputError, NotOurs):
        return None
    weights = tensors.get("weights")
    if note != {"kind": RECIPE} or weights is None or weights.shape != (count,):
        return None
    return weights


def dual_weights(points: Tensor, noises: int = 32) -> Tensor:
    """Weights g (n,) under which argmax_j (z·x_j + g_j) is each of the `points` x (n, d) alike.

    z is standard normal. g maximises the concave function mean(g) − E max_j (z·x_j + g_j), whose
    gradient is 1/n minus the probability of each point. It is climbed with at least `noises`·n
    draws of z from seed 0, and the second half of the way is averaged.
    """
    count = len(points)
    points = points - points.mean(0)  # moves all products with a noise alike
    # about the largest of n normal products, so that no point takes all at first
    weights = -points.norm(dim=1) * math.sqrt(2 * math.log(max(count, 2)))
    batch = min(max(count // 8, 4), BATCH)
    steps = math.ceil(max(noises * count, FEWEST) / batch)
    generator, average = torch.Generator().manual_seed(0), torch.zeros_like(weights)
    lead: Tensor | None = None
    for step in range(steps):
        noise = torch.randn(batch, points.shape[1], generator=generator).to(points.device)
        products = torch.addmm(weights, noise, points.T)
        if step % 8 == 0 and count > 1:
            best = products.topk(2).values
            leads = (best[:, 0] - best[:, 1]).mean()
            lead = leads if lead is None else torch.lerp(lead, leads, 0.1)
        surplus = torch.bincount(products.argmax(1), minlength=count) * (count / batch) - 1
        # a step is in units of the winners' lead, the difference that changes who wins
        rate = batch / count / (1 + 0.16 * batch * step / count) ** 0.6
        weights = weights - rate * surplus * (0.0 if lead is None else lead)
        if step >= steps // 2:
            average += weights
    average /= steps - steps // 2
    return average - average.mean()
