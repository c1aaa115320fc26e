"""Starting noise by short names: `7` is the noise of seed 7, `7~12:0.2` a place near it.

`7~12:0.2` turns the noise of seed 7 by a fifth of the way towards the noise of seed 12, along the
sphere, so that the result is still standard normal. Turns follow one another.
"""

import math
import re
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.drawing import seeds
from fewstep.errors import InputError
from fewstep.noise import noise_from_seeds

MAX_SEED = (1 << 30) - 1
MAX_TURNS = 16
_PATTERN = re.compile(r"(\d{1,10})((?:~\d{1,10}:[01](?:\.\d{1,6})?)*)", re.ASCII)


@dataclass(frozen=True)
class Start:
    """Starting noise: that of `seed`, turned towards the noise of other seeds.

    Raises: InputError for seeds outside 0 … 2³⁰ − 1, shares outside 0 … 1, or too many turns.
    """

    seed: int
    turns: tuple[tuple[int, float], ...] = ()
    """Pairs of a seed, and the share of the way to its noise, from 0 to 1."""

    def __post_init__(self) -> None:
        for seed in (self.seed, *(seed for seed, _ in self.turns)):
            if not 0 <= seed <= MAX_SEED:
                raise InputError(f"seed {seed} is out of range; choose one from 0 to {MAX_SEED}")
        if any(not 0 <= share <= 1 for _, share in self.turns):
            raise InputError(f"the shares of {self} must be from 0 to 1")
        if len(self.turns) > MAX_TURNS:
            raise InputError(f"{self.seed} has {len(self.turns)} turns; at most {MAX_TURNS} fit")

    def __str__(self) -> str:
        return str(self.seed) + "".join(f"~{seed}:{share:g}" for seed, share in self.turns)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """The noise (1, *shape); without turns, that of `fewstep sample --seed` in its row 0."""
        noise = seed_noise(self.seed, shape)
        for seed, share in self.turns:
            noise = interpolate(noise, seed_noise(seed, shape), share)
        return noise


@dataclass(frozen=True)
class Between:
    """A place within four corners: top left, top right, bottom left, bottom right.

    `x` and `y` are from 0, top left, to 1, bottom right. With two corners, a place between them.
    """

    corners: tuple[Start, ...]
    x: float
    y: float = 0.0

    @property
    def seed(self) -> int:
        """The seed of its class, if classes take turns, and of the noise that a sampler adds."""
        return self.corners[0].seed

    def __str__(self) -> str:
        names = " ".join(map(str, self.corners))
        return f"between {names} at {self.x:g}" + f", {self.y:g}" * (len(self.corners) > 2)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        corners = [corner.noise(shape) for corner in self.corners]
        top = interpolate(corners[0], corners[1], self.x)
        if len(corners) == 2:
            return top
        return interpolate(top, interpolate(corners[2], corners[3], self.x), self.y)


Place = Start | Between


def parse_start(text: str) -> Start:
    """The start with this name.  Raises: InputError for text that names none."""
    match = _PATTERN.fullmatch(text)
    if not match:
        raise InputError(
            f"{text[:80]!r} names no starting noise: write a seed, such as 7, or a place near it, "
            "such as 7~12:0.2"
        )
    turns = re.findall(r"~(\d+):([\d.]+)", match[2])
    return Start(int(match[1]), tuple((int(seed), float(share)) for seed, share in turns))


def seed_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (1, *shape) of a seed."""
    return noise_from_seeds(seeds(seed, range(1)), shape)


def interpolate(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation between the rows of `a` and `b` (n, ...): `a` at 0, `b` at 1.

    Shoemake 1985, doi:10.1145/325334.325242.
    """
    rows, others = a.flatten(1).double(), b.flatten(1).double()
    norms = rows.norm(dim=1) * others.norm(dim=1)
    cosine = (rows * others).sum(1) / norms.clamp(min=1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    # (nearly) parallel rows have no arc between them: the straight line is the limit
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    near = torch.where(straight, 1 - share, torch.sin((1 - share) * angle) / safe)
    far = torch.where(straight, share, torch.sin(share * angle) / safe)
    return (near[:, None] * rows + far[:, None] * others).to(a.dtype).view_as(a)


def neighbours(start: Start, count: int, share: float) -> list[Start]:
    """`count` starts around `start`: it is turned by `share` towards random seeds of its own."""
    share = min(max(round(share, 6), 0.0), 1.0)
    directions = [
        zlib.crc32(f"{start} {number}".encode()) % (MAX_SEED + 1) for number in range(count)
    ]
    turns = start.turns if len(start.turns) < MAX_TURNS else start.turns[1:]
    return [Start(start.seed, (*turns, (direction, share))) for direction in directions]


def shares_there_and_back(count: int) -> list[float]:
    """Shares of a morph there and back in `count` pictures, slower at both ends."""
    return [0.5 - 0.5 * math.cos(2 * math.pi * number / count) for number in range(count)]
