"""Are the claims of Denoising Circuits true of this circuit? Straightness, predictability, errors.

    python benchmarks/circuits.py CIRCUIT SUM [LAST] --steps 8 [--rings 512] [--plot FILE]

CIRCUIT is a run of `circuit`; SUM one of `residual_sum`; LAST one with `chunks = 0`, which predicts
the last latent alone. Everything is measured on fresh rings of `--steps` updates: of seeds that no
store holds.

1. How straight is a way from noise to image, in the latent (the ring) and in pixels (the ordinary
   sampler)?  length / chord, 1 for a straight line, and the mean cosine of neighbouring steps. Also
   how far the ring gets from the latents of the sampler's own states: of as many steps, so ask this
   with the most that the ring takes.
2. What share of its variance is explained (R², 1 minus error over variance about the mean of each
   element) of the first latent, each chunk, and the last latent?
3. Do errors average out?  The error of the sum over the root of the summed squares of the parts'
   errors: 1 if they are independent, below if they cancel, above if they agree.
"""

import argparse
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fewstep import Generator, UniformGrid, runs
from fewstep.circuit import Circuit
from fewstep.drawing import class_labels
from fewstep.methods.residual_sum import parts
from fewstep.recording import Recording, Tiles
from fewstep.sampling import path, ring, transfer

SEED = 1 << 20  # of rings that were never recorded
SHOWN = 6  # ways that are drawn
RING, ENCODED = "latent, the ring", "latent, of the sampler's states"


class Errors(NamedTuple):
    """Of one network, on the same rings."""

    explained: dict[str, float]
    rms: dict[str, float]
    growth: list[tuple[float, float]]
    """Of the sum of the first 1, 2, ... parts: its rms error, and what independent errors give."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("circuit")
    parser.add_argument("sum")
    parser.add_argument("last", nargs="?")
    parser.add_argument("--rings", type=int, default=512)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--plot", metavar="FILE")
    told = parser.parse_args()
    teacher = runs.load(told.circuit).eval().with_sampler(step=ring, grid=UniformGrid())
    networks = {name: runs.load(run).eval()
                for name, run in (("sum", told.sum), ("last latent alone", told.last))
                if run}  # fmt: skip
    chunks: int = networks["sum"].denoiser.backbone.config.chunks
    with torch.inference_mode():
        tiles = Tiles(teacher, Recording(told.rings, told.steps, chunks=chunks, seed=SEED))
        made = [tiles.records(piece) for piece in tiles.pieces(range(told.rings), None)]
        rings = {key: torch.cat([tile[key] for tile in made]) for key in made[0]}
        ways = followed(teacher, rings["noise"], told.steps)
        found = {name: errors(network, rings) for name, network in networks.items()}
    straightness(ways)
    predictability(found)
    if told.plot:
        draw(ways, found).savefig(told.plot, dpi=110)


def conditions(generator: Generator, count: int):
    return class_labels(generator.spec.classes, range(count))


def followed(teacher: Generator, noise: Tensor, steps: int) -> dict[str, Tensor]:
    """(steps + 1, b, values) of each way from the same noise."""
    cond, model = conditions(teacher, len(noise)), teacher.denoiser
    circuit, (low, _) = Circuit(model), model.span
    times = [*UniformGrid()(steps, model).tolist(), low]
    states = list(path(model, noise, times[:-1], step=transfer, cond=cond))
    ways = {
        "pixels, the sampler": states,
        RING: list(circuit.ring(noise, times, cond=cond)),
        ENCODED: [circuit.encode(x, t, cond=cond) for x, t in zip(states, times, strict=True)],
    }
    return {name: torch.stack(way).flatten(2) for name, way in ways.items()}


def straightness(ways: dict[str, Tensor]) -> None:
    print("| way | length / chord | mean cosine of neighbouring steps | steps, least to most |")
    print("|---|---|---|---|")
    for name, way in ways.items():
        moves = way.diff(dim=0)
        sizes = moves.norm(dim=-1)
        bent = (sizes.sum(0) / (way[-1] - way[0]).norm(dim=-1)).mean()
        cosine = torch.cosine_similarity(moves[1:], moves[:-1], dim=-1).mean()
        least, most = sizes.mean(1).aminmax()
        print(f"| {name} | {bent:.3f} | {cosine:.3f} | {least:.2f} to {most:.2f} |")
    drift = (ways[RING] - ways[ENCODED]).square().mean((1, 2)).tolist()
    print("\nthe ring's distance from the encoder's latents, of their variance:")
    print(", ".join(f"{share:.4f}" for share in drift), end="\n\n")


def errors(generator: Generator, rings: dict[str, Tensor]) -> Errors:
    noise = rings["noise"]
    cond = conditions(generator, len(noise))
    first, chunks, last, image = parts(generator.denoiser, noise, cond)
    said = torch.cat([first[:, None], chunks], dim=1)
    wanted = torch.cat([rings["rin0"][:, None], rings["r_chunks"]], dim=1)
    pairs = {"last latent": (last, wanted.sum(1)), "image": (image, rings["x0"])}
    if chunks.shape[1]:
        names = ["first latent", *(f"chunk {k + 1}" for k in range(chunks.shape[1]))]
        pairs = {n: (said[:, k], wanted[:, k]) for k, n in enumerate(names)} | pairs
    rms = {name: float((a - b).square().mean().sqrt()) for name, (a, b) in pairs.items()}
    spread = {name: float((b - b.mean(0)).square().mean()) for name, (_, b) in pairs.items()}
    explained = {name: 1 - rms[name] ** 2 / spread[name] for name in pairs}
    growth = []
    if chunks.shape[1]:
        wrong = said - wanted
        together = wrong.cumsum(1).square().mean((0, 2, 3, 4)).sqrt()
        alone = wrong.square().mean((0, 2, 3, 4)).cumsum(0).sqrt()
        growth = list(zip(together.tolist(), alone.tolist(), strict=True))
    return Errors(explained, rms, growth)


def predictability(found: dict[str, Errors]) -> None:
    for name, told in found.items():
        print(f"| {name} | R² | error (rms) |")
        print("|---|---|---|")
        for part, share in told.explained.items():
            print(f"| {part} | {share:.3f} | {told.rms[part]:.4f} |")
        if told.growth:
            together, alone = told.growth[-1]
            print(f"\nerror of the sum / root of the parts' squares: {together / alone:.3f}")
        print()


def draw(ways: dict[str, Tensor], found: dict[str, Errors]) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, ring_axes, middle, right = figure.subplots(1, 4)
    for axes, name in ((left, "pixels, the sampler"), (ring_axes, RING)):
        way = ways[name][:, :SHOWN]
        flat = way.reshape(-1, way.shape[-1])
        _, _, axis = torch.pca_lowrank(flat, q=2, niter=8)
        for row in range(SHOWN):
            axes.plot(*((way[:, row] - flat.mean(0)) @ axis).T, "o-", markersize=3, linewidth=1)
        axes.set_title(f"{name}\n(first two principal axes)", fontsize=9)
    told = found["sum"]
    names = [name for name in told.explained if name != "image"]
    middle.bar(range(len(names)), [told.explained[name] for name in names], color="#3b82d6")
    if "last latent alone" in found:
        alone = found["last latent alone"].explained["last latent"]
        middle.axhline(alone, color="#e0772f", label="last latent, by a network for it alone")
        middle.legend(fontsize=7, loc="lower center")
    middle.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    middle.set_title("share of variance explained", fontsize=9)
    together, alone = zip(*told.growth, strict=True)
    right.plot(together, "o-", color="#3b82d6", label="of the sum")
    right.plot(alone, "s--", color="#8a919e", label="if the parts' were independent")
    right.set_xlabel("parts summed after the first latent", fontsize=8)
    right.set_ylim(0)
    right.set_title("error (rms)", fontsize=9)
    right.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
