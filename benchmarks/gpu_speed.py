"""Training of `cifar10-gpu-flow` beside diffusers' network of the same layers, on a GPU if any.

    python benchmarks/gpu_speed.py [--rounds 30] [key=value ...]

One process; the contenders take turns, step by step, and medians are compared. diffusers' network
is trained in a plain loop: in float32 as PyTorch has it, with bfloat16 (autocast) and channels
last, and compiled too; it has no classes, and AdamW. Ours is the preset, eager and compiled.
Overrides of the batch and of the network's sizes change all of them.
"""

import argparse
import statistics
import time

import torch
from train_step import images_of, theirs

from fewstep import LinearBetas, recipe
from fewstep.assembly import assemble
from fewstep.distributed import device
from fewstep.images import from_uint8

SHAPE = (3, 32, 32)


def plain(config, *, bf16=False, compile=False):
    """A step of diffusers' network as a user would write it."""
    torch.manual_seed(0)
    place, batch = device(), config.fit.batch
    net = theirs(SHAPE, config.student.backbone).to(place)
    if bf16:
        net = net.to(memory_format=torch.channels_last)
    call = torch.compile(net) if compile else net
    images = images_of(SHAPE).to(place)
    bars = torch.tensor(LinearBetas().table.alphas_cumprod).float().to(place)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    averages = [p.detach().clone() for p in net.parameters()]

    def step():
        x0 = from_uint8(images[torch.randint(0, len(images), (batch,), device=place)])
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,), device=place)
        bar = bars[t].view(-1, 1, 1, 1)
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            output = call(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, t).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, list(net.parameters()), 1e-3)

    return step


def ours(settings, compile):
    config = recipe.read("cifar10-gpu-flow", [*settings, f"fit.compile={str(compile).lower()}"])
    return next(assemble(config, device()).trainings(config.fit)).advance


def seconds(step):
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    config = recipe.read("cifar10-gpu-flow", options.settings)
    steps = {
        "diffusers, f32": plain(config),
        "diffusers, bf16, channels last": plain(config, bf16=True),
        "diffusers, bf16, channels last, compiled": plain(config, bf16=True, compile=True),
        "ours, eager": ours(options.settings, compile=False),
        "ours": ours(options.settings, compile=True),
    }
    for step in steps.values():
        seconds(step), seconds(step)
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{device()}, batch {config.fit.batch}, {options.rounds} rounds")
    for name, median in medians.items():
        rate, ratio = config.fit.batch / median, median / medians["ours"]
        print(f"{name:42} {rate:9.1f} images a second; ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
