"""PyTorch's kernels for bfloat16 on CPUs, against what our networks compute in their place.

    OMP_NUM_THREADS=1 python benchmarks/bf16_kernels.py [--rounds 9]

Medians of CPU milliseconds, forward and backward: group normalisation of 64 images of 64 channels
at 16x16, in channels last, and attention of 64 images of 64 pixels with one head of 96 channels.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional

from fewstep.allocator import keep_freed_memory
from fewstep.backbones.attention import attention, group_norm


def milliseconds(function, inputs, rounds):
    times = []
    for _ in range(rounds):
        start = time.process_time()
        output = function(*inputs)
        middle = time.process_time()
        output.backward(torch.ones_like(output))
        times.append((middle - start, time.process_time() - middle))
    forward, backward = (1000 * statistics.median(each) for each in zip(*times, strict=True))
    return f"{forward:.2f} forward, {backward:.2f} backward"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    weight, bias = torch.ones(64, requires_grad=True), torch.zeros(64, requires_grad=True)
    x = torch.randn(64, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    qkv = [torch.randn(64, 64, 1, 96).transpose(1, 2) for _ in range(3)]
    cases = {
        "group normalisation, PyTorch's": (
            lambda x: functional.group_norm(x, 32, weight, bias),
            [x],
        ),
        "group normalisation, ours": (lambda x: group_norm(x, 32, weight, bias), [x]),
        "attention, PyTorch's": (functional.scaled_dot_product_attention, qkv),
        "attention, ours": (attention, qkv),
    }
    for name, (function, tensors) in cases.items():
        inputs = [tensor.bfloat16().detach().requires_grad_() for tensor in tensors]
        print(f"{name:32} {milliseconds(function, inputs, options.rounds)} ms")


if __name__ == "__main__":
    main()
