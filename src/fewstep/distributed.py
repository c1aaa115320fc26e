"""Data parallelism under `torchrun`: who this process is, and the mean of gradients.

No wrapper stands between a loss and its networks; the trainer averages a player's gradients once a
turn, after its last micro-batch.
"""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank, size) of the process group, started on first use; (0, 1) without `torchrun`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        # a rank may wait for the others' last shards; torchrun ends all when one of them dies
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
        )
    return dist.get_rank(), dist.get_world_size()


def device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def first_rank() -> bool:
    """Whether this process is the one that writes files."""
    return world()[0] == 0


def wait() -> None:
    """Until all ranks have come here."""
    if world()[1] > 1:
        dist.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks, in place: each rank's share is already weighted."""
    if world()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def sum_numbers(numbers: Tensor) -> Tensor:
    """The sum over ranks of a small vector, on every rank."""
    if world()[1] > 1:
        dist.all_reduce(numbers)
    return numbers
