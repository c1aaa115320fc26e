"""Are the claims of Denoising Circuits true of this circuit? Straightness, predictability, errors.

    python benchmarks/circuits.py CIRCUIT SUM [LAST] --steps 8 [--rings 512] [--plot FILE]

CIRCUIT is a run of `circuit`; SUM one of `residual_sum`; LAST one with `chunks = 0`, which predicts
the last state alone. Everything is measured on fresh rings of `--steps` updates, whose seeds are in
no store.

1. How straight is a path from noise to image, in the state (the ring) and in pixels (the ordinary
   sampler)?  length / chord, 1 for a straight line, and the mean cosine of neighbouring steps. Also
   how far the ring's states are from those that the encoder makes of the sampler's points: of as
   many steps, so use the most that the ring takes.
2. What share of the variance is explained (R², 1 minus error over variance about the mean of each
   element) of the first state, each chunk, and the last state?
3. Do errors average out?  The error of the sum over the root of the summed squares of the parts'
   errors: 1 if they are independent, below if they cancel, above if they agree.
"""

import argparse
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fewstep import Generator, UniformGrid, runs
from fewstep.circuits.view import Circuit, Ring
from fewstep.drawing import class_labels
from fewstep.methods.residual_sum import parts
from fewstep.recording import Recording, Tiles
from fewstep.sampling import Transfer, path

SEED = 1 << 20  # of rings that were never recorded
PLOTTED = 6  # paths
RING, ENCODED = "state, the ring", "state, encoded from the sampler's points"


class Errors(NamedTuple):
    """Errors of one network, for all on the same rings."""

    explained: dict[str, float]
    rms: dict[str, float]
    growth: list[tuple[float, float]]
    """For the sum of the first 1, 2, ... parts: its rms error, and that of independent errors."""


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
    options = parser.parse_args()
    teacher = runs.load(options.circuit).eval().with_sampler(step=Ring(), grid=UniformGrid())
    networks = {name: runs.load(run).eval()
                for name, run in (("sum", options.sum), ("last state alone", options.last))
                if run}  # fmt: skip
    chunks: int = networks["sum"].denoiser.backbone.config.chunks
    with torch.inference_mode():
        tiles = Tiles(teacher, Recording(options.rings, options.steps, chunks=chunks, seed=SEED))
        records = [tiles.records(piece) for piece in tiles.pieces(range(options.rings), None)]
        rings = {key: torch.cat([tile[key] for tile in records]) for key in records[0]}
        paths = all_paths(teacher, rings["noise"], options.steps)
        results = {name: errors(network, rings) for name, network in networks.items()}
    straightness(paths)
    predictability(results)
    if options.plot:
        draw(paths, results).savefig(options.plot, dpi=110)


def conditions(generator: Generator, count: int):
    return class_labels(generator.spec.classes, range(count))


def all_paths(teacher: Generator, noise: Tensor, steps: int) -> dict[str, Tensor]:
    """(steps + 1, b, values) of each path from the same noise."""
    cond, model = conditions(teacher, len(noise)), teacher.denoiser
    circuit, (low, _) = Circuit(model), model.span
    times = [*UniformGrid()(steps, model).tolist(), low]
    states = list(path(model, noise, times[:-1], step=Transfer(), cond=cond))
    paths = {
        "pixels, the sampler": states,
        RING: list(circuit.ring(noise, times, cond=cond)),
        ENCODED: [circuit.encode(x, t, cond=cond) for x, t in zip(states, times, strict=True)],
    }
    return {name: torch.stack(points).flatten(2) for name, points in paths.items()}


def straightness(paths: dict[str, Tensor]) -> None:
    print("| path | length / chord | mean cosine of neighbouring steps | steps, least to most |")
    print("|---|---|---|---|")
    for name, points in paths.items():
        moves = points.diff(dim=0)
        sizes = moves.norm(dim=-1)
        bend = (sizes.sum(0) / (points[-1] - points[0]).norm(dim=-1)).mean()
        cosine = torch.cosine_similarity(moves[1:], moves[:-1], dim=-1).mean()
        least, most = sizes.mean(1).aminmax()
        print(f"| {name} | {bend:.3f} | {cosine:.3f} | {least:.2f} to {most:.2f} |")
    drift = (paths[RING] - paths[ENCODED]).square().mean((1, 2)).tolist()
    print("\nthe ring's distance from the encoder's states, of their variance:")
    print(", ".join(f"{share:.4f}" for share in drift), end="\n\n")


def errors(generator: Generator, rings: dict[str, Tensor]) -> Errors:
    noise = rings["noise"]
    cond = conditions(generator, len(noise))
    first, chunks, last, image = parts(generator.denoiser, noise, cond)
    predicted = torch.cat([first[:, None], chunks], dim=1)
    actual = torch.cat([rings["rin0"][:, None], rings["r_chunks"]], dim=1)
    pairs = {"last state": (last, actual.sum(1)), "image": (image, rings["x0"])}
    if chunks.shape[1]:
        names = ["first state", *(f"chunk {k + 1}" for k in range(chunks.shape[1]))]
        pairs = {n: (predicted[:, k], actual[:, k]) for k, n in enumerate(names)} | pairs
    rms = {name: float((a - b).square().mean().sqrt()) for name, (a, b) in pairs.items()}
    spread = {name: float((b - b.mean(0)).square().mean()) for name, (_, b) in pairs.items()}
    explained = {name: 1 - rms[name] ** 2 / spread[name] for name in pairs}
    growth = []
    if chunks.shape[1]:
        difference = predicted - actual
        together = difference.cumsum(1).square().mean((0, 2, 3, 4)).sqrt()
        alone = difference.square().mean((0, 2, 3, 4)).cumsum(0).sqrt()
        growth = list(zip(together.tolist(), alone.tolist(), strict=True))
    return Errors(explained, rms, growth)


def predictability(results: dict[str, Errors]) -> None:
    for name, result in results.items():
        print(f"| {name} | R² | error (rms) |")
        print("|---|---|---|")
        for part, share in result.explained.items():
            print(f"| {part} | {share:.3f} | {result.rms[part]:.4f} |")
        if result.growth:
            together, alone = result.growth[-1]
            print(f"\nerror of the sum / root of the parts' squares: {together / alone:.3f}")
        print()


def draw(paths: dict[str, Tensor], results: dict[str, Errors]) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, ring_axes, middle, right = figure.subplots(1, 4)
    for axes, name in ((left, "pixels, the sampler"), (ring_axes, RING)):
        points = paths[name][:, :PLOTTED]
        flat = points.reshape(-1, points.shape[-1])
        _, _, axis = torch.pca_lowrank(flat, q=2, niter=8)
        for row in range(PLOTTED):
            axes.plot(*((points[:, row] - flat.mean(0)) @ axis).T, "o-", markersize=3, linewidth=1)
        axes.set_title(f"{name}\n(first two principal axes)", fontsize=9)
    result = results["sum"]
    names = [name for name in result.explained if name != "image"]
    middle.bar(range(len(names)), [result.explained[name] for name in names], color="#3b82d6")
    if "last state alone" in results:
        alone = results["last state alone"].explained["last state"]
        middle.axhline(alone, color="#e0772f", label="last state, by a network for it alone")
        middle.legend(fontsize=7, loc="lower center")
    middle.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    middle.set_title("share of variance explained", fontsize=9)
    together, alone = zip(*result.growth, strict=True)
    right.plot(together, "o-", color="#3b82d6", label="of the sum")
    right.plot(alone, "s--", color="#8a919e", label="if the parts' were independent")
    right.set_xlabel("parts summed after the first state", fontsize=8)
    right.set_ylim(0)
    right.set_title("error (rms)", fontsize=9)
    right.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
