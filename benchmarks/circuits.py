"""Are the claims of Denoising Circuits true of this circuit? Straightness, predictability, errors.

    python benchmarks/circuits.py CIRCUIT SUM [LAST] [--rings 512] [--steps 32] [--plots DIR]

CIRCUIT is a run of `circuit`; SUM one of `residual_sum`; LAST one with `chunks = 0`, which predicts
the last latent alone. Everything is measured on fresh rings: seeds that no store holds.

1. How straight is a way from noise to image, in the latent (the ring) and in pixels (the ordinary
   sampler)?  length / chord, 1 for a straight line, and the mean cosine of neighbouring steps.
2. What share of its variance is explained (R², 1 minus error over variance about the mean of each
   element) of the first latent, each chunk, and the last latent?
3. Do errors average out?  The error of the sum over the root of the summed squares of the parts'
   errors: 1 if they are independent, below if they cancel, above if they agree.
"""

import argparse

import torch

from fewstep import runs
from fewstep.circuit import Circuit
from fewstep.recording import Recording, Tiles, class_labels
from fewstep.sampling import path, ring, transfer
from fewstep.times import UniformGrid

SEED = 1 << 20  # of rings that were never recorded


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("circuit")
    parser.add_argument("sum")
    parser.add_argument("last", nargs="?")
    parser.add_argument("--rings", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--plots")
    told = parser.parse_args()
    teacher = runs.load(told.circuit).eval()
    teacher = teacher.sampled(step=ring, grid=UniformGrid())
    networks = {
        name: runs.load(run).eval() for name, run in (("sum", told.sum), ("last", told.last)) if run
    }
    chunks = networks["sum"].denoiser.backbone.config.chunks
    with torch.inference_mode():
        rows = range(told.rings)
        wanted = Recording(told.rings, told.steps, chunks=chunks, seed=SEED)
        tiles = Tiles(teacher, wanted)
        parts = [tiles.records(piece) for piece in tiles.pieces(rows, None)]
        rings = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        straightness(teacher, rings, told.steps)
        explained(networks, rings)


def cond_of(teacher, count):
    return class_labels(teacher.subject.classes, range(count))


def straightness(teacher, rings, steps):
    noise, cond = rings["noise"], cond_of(teacher, len(rings["noise"]))
    model, circuit = teacher.denoiser, Circuit(teacher.denoiser)
    low, high = model.span
    times = [high - (high - low) * k / steps for k in range(steps + 1)]
    ways = {
        "latent, the ring": list(circuit.ring(noise, times, cond=cond)),
        "pixels, the sampler": list(path(model, noise, times[:-1], step=transfer, cond=cond)),
    }
    states = ways["pixels, the sampler"]
    ways["latent, the encoder on the sampler's states"] = [
        circuit.encode(x, t, cond=cond) for x, t in zip(states, times, strict=True)
    ]
    print(
        "| way | length / chord | mean cosine of neighbouring steps | step sizes, least to most |"
    )
    print("|---|---|---|---|")
    for name, way in ways.items():
        moves = (torch.stack(way[1:]) - torch.stack(way[:-1])).flatten(2)
        sizes = moves.norm(dim=-1)
        chord = (way[-1] - way[0]).flatten(1).norm(dim=-1)
        cosine = torch.nn.functional.cosine_similarity(moves[1:], moves[:-1], dim=-1)
        per_step = sizes.mean(1)
        print(
            f"| {name} | {float((sizes.sum(0) / chord).mean()):.3f} | {float(cosine.mean()):.3f} "
            f"| {float(per_step.min()):.3f} to {float(per_step.max()):.3f} |"
        )
    print()


def explained(networks, rings):
    noise, first, chunks = rings["noise"], rings["rin0"], rings["r_chunks"]
    last = first + chunks.sum(1)
    for name, generator in networks.items():
        denoiser = generator.denoiser
        scale, level = denoiser.asked(denoiser.span[1], noise)
        _, sigma = denoiser.process.at(denoiser.span[1], like=noise)
        cond = cond_of(generator, len(noise))
        rin, told = denoiser.backbone.parts(scale * sigma * noise, level, cond)
        end = rin + told.sum(1)
        print(f"| {name} | R² | error (rms) | of variance (rms) |")
        print("|---|---|---|---|")
        if told.shape[1]:
            line("first latent", rin, first)
            for k in range(told.shape[1]):
                line(f"chunk {k + 1}", told[:, k], chunks[:, k])
        line("last latent", end, last)
        line("image", denoiser.backbone.image(end), rings["x0"])
        if told.shape[1]:
            errors = torch.cat([(rin - first)[:, None], told - chunks], dim=1)
            alone = errors.square().mean().mul(errors.shape[1]).sqrt()
            print(f"\nerror of the sum / root of the parts' squares: "
                  f"{float((end - last).square().mean().sqrt() / alone):.3f}")  # fmt: skip
        print()


def line(name, said, wanted):
    error = (said - wanted).square().mean()
    variance = (wanted - wanted.mean(0)).square().mean()
    print(
        f"| {name} | {1 - float(error / variance):.3f} | {float(error.sqrt()):.4f} "
        f"| {float(variance.sqrt()):.4f} |"
    )


if __name__ == "__main__":
    main()
