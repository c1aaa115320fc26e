"""Our training step against diffusers' `UNet2DModel` in a plain PyTorch loop.

    python benchmarks/train_step.py [--threads 2] [--rounds 15] [--sizes digits small cifar]

One process; same weights, batch and images; the contenders take turns, step by step, and medians
are compared. Eager. Three contenders:

- ours: `Training.advance` with the recipe defaults, all that a real run does (loss, gradient norm
  and clipping, fused AdamW, averaged weights, finite check);
- like: a plain loop that does the same things to diffusers' network, fused AdamW and all;
- user: the script that a user would write, with PyTorch's defaults, clipping and diffusers' EMA.

like/ours is the like-for-like ratio, user/ours the one of defaults against defaults; above 1, ours
is faster. Peak memory is the maximum resident size of one child process a contender.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from fewstep import Batches, Denoiser, FitConfig, ImageStream, LinearBetas, SampleSpec
from fewstep.backbones import UNetConfig
from fewstep.images import from_uint8
from fewstep.methods.base import Task
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.parametrization import Eps
from fewstep.trainer import Training

CPU = torch.device("cpu")
SIZES = {
    "digits": ((1, 8, 8), UNetConfig(channels=(32, 64), layers=1, attention=(4,), groups=8), 64),
    "small": ((3, 32, 32), UNetConfig(channels=(32, 64, 64), attention=(8,), groups=8), 32),
    "cifar": ((3, 32, 32), UNetConfig(), 8),
}


def theirs(shape, config):
    """diffusers' network of the same configuration."""
    attends = [shape[1] >> i in config.attention for i in range(len(config.channels))]
    return UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        norm_num_groups=config.groups,
        norm_eps=config.norm_eps,
        downsample_padding=config.downsample_padding,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
        attention_head_dim=None,
    )


def images_of(shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (512, *shape), dtype=torch.uint8, generator=generator)


def ours(shape, config, batch, precision="f32"):
    torch.manual_seed(0)
    table = LinearBetas()
    student = Denoiser(config.build(shape=shape), table, Eps(table))
    method = Denoise(DenoiseConfig(), Task(student, SampleSpec(shape)))
    streams = {"images": ImageStream(images_of(shape), None)}
    batches = Batches(streams, SampleSpec(shape), batch=batch, seed=0)
    fit = FitConfig(steps=10**9, batch=batch, lr=1e-5, precision=precision)
    return Training(method, batches, fit).advance


def plain(shape, config, batch, *, fused, place=CPU, bf16=False, compile=False):
    """A step of diffusers' network; `bf16` means autocast, and channels last."""
    torch.manual_seed(0)
    net = theirs(shape, config).to(place)
    net.load_state_dict(config.build(shape=shape).state_dict())
    if bf16:
        net = net.to(memory_format=torch.channels_last)
    call = torch.compile(net) if compile else net
    images = images_of(shape).to(place)
    bars = torch.tensor(LinearBetas().table.alphas_cumprod).float().to(place)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, **({"fused": True} if fused else {}))
    averages = [p.detach().clone() for p in net.parameters()]
    ema = EMAModel(net.parameters(), decay=0.999)

    def step():
        index = torch.randint(0, len(images), (batch,), device=place)
        x0 = from_uint8(images[index])
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,), device=place)
        bar = bars[t].view(-1, 1, 1, 1)
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            output = call(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, t).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if fused:
            with torch.no_grad():
                torch._foreach_lerp_(averages, list(net.parameters()), 1e-3)
        else:
            ema.step(net.parameters())
        return loss.item()

    return step


CONTENDERS = {
    "ours": ours,
    "like": lambda *a: plain(*a, fused=True),
    "user": lambda *a: plain(*a, fused=False),
    "bf16": lambda *a: ours(*a, precision="bf16"),
}


def seconds(steps, rounds):
    """The median time of each contender's step; they take turns."""
    times = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def peak(name, size, threads):
    """MiB of a child process that takes three steps."""
    argv = [sys.executable, __file__, "--child", name, size, "--threads", str(threads)]
    return float(
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def child(name, size):
    step = CONTENDERS[name](*SIZES[size])
    for _ in range(3):
        step()
    # not getrusage: its maximum would count what the parent had before exec
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    if told.child:
        return child(*told.child)
    print(f"torch {torch.__version__}, {told.threads} threads, eager, {told.rounds} rounds")
    print("size    batch  contender  images/s  peak MiB  ratio to ours")
    for size in told.sizes:
        batch = SIZES[size][2]
        steps = {name: make(*SIZES[size]) for name, make in CONTENDERS.items()}
        times = seconds(steps, told.rounds)
        for name, each in times.items():
            memory = peak(name, size, told.threads)
            ratio = each / times["ours"]
            print(f"{size:7} {batch:5}  {name:9} {batch / each:9.1f} {memory:9.0f} {ratio:13.2f}")


if __name__ == "__main__":
    main()
