"""How much TF32 changes the difference of neighbouring predictions, on which ECT trains.

    python benchmarks/tf32.py RUN [q]

Emulates TF32 on any machine: inputs and weights of convolutions and linear layers are rounded to 10
bits of mantissa, as tensor cores do, and products are summed in float32. Prints the relative error
of f(x_t, t) - f(x_r, r) with r = t (1 - (1 + 8 sigmoid(-t))/q), in sigma/alpha.
"""

import sys

import torch
from torch import Tensor, nn

import fewstep
from fewstep.drawing import generate_values
from fewstep.noise import noise_from_seeds


def round_to_tf32(x: Tensor) -> Tensor:
    """The nearest number with 10 bits of mantissa in place of 23; ties away from zero."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(round_to_tf32(x) for x in inputs)


@torch.no_grad()
def main(run: str, q: float = 256.0, rows: int = 500) -> None:
    generator = fewstep.load(run)
    denoiser = generator.denoiser
    images = torch.cat([x for _, x in generate_values(generator, rows, steps=16)])
    noise = noise_from_seeds(range(rows), generator.spec.shape)
    sigma = torch.exp(-1.1 + 2.0 * torch.randn(rows, generator=torch.Generator().manual_seed(0)))
    nearer = sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / q).clamp(min=0)
    low, high = denoiser.span

    def predict(ratio: Tensor) -> Tensor:
        t = denoiser.process.time(ratio.double()).float().clamp(low, high)
        return denoiser(denoiser.process.add_noise(images, noise, t), t).x0

    exact = predict(sigma) - predict(nearer)
    layers = [m for m in denoiser.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        layer.weight.copy_(round_to_tf32(layer.weight))
        layer.register_forward_pre_hook(round_inputs)
    error = predict(sigma) - predict(nearer) - exact
    print(f"{run}: q = {q:g}, {rows} pairs: relative error {error.norm() / exact.norm():.1%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]))
