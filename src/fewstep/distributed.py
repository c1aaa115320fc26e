"""Data parallelism under `torchrun`: who this process is, and the mean of gradients.

No wrapper stands between a loss and its networks; the trainer averages a player's gradients once a
turn, after its last micro-batch.
"""

import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.errors import InputError


def world(*, patience: timedelta | None = None) -> tuple[int, int]:
    """(rank, size) of the process group, started on first use; (0, 1) without `torchrun`.

    `patience` is how long one may wait for the others, by default torch's own. InputError where
    they do not all come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=patience)
        except RuntimeError as error:
            told = str(error).partition("\n")[0]
            raise InputError(f"the {size} processes did not all start: {told}") from None
    return dist.get_rank(), dist.get_world_size()


def device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise InputError(f"process {number} needs a GPU of its own; there are {there}")
    return torch.device("cuda", number)


def hardware(device: torch.device) -> str:
    """What computes on `device`, in words: a GPU and its memory, or threads of a processor."""
    if device.type == "cuda":
        told = torch.cuda.get_device_properties(device)
        each = f"{told.name}, {told.total_memory / 2**30:.0f} GiB"
        return each if world()[1] == 1 else f"{world()[1]} x {each}"
    model = re.search(r"model name\s*: (.*)", _text(Path("/proc/cpuinfo")))
    threads = world()[1] * torch.get_num_threads()
    return (
        f"{threads} CPU thread{'s' * (threads > 1)} ({model[1] if model else platform.machine()})"
    )


def peak_memory(device: torch.device) -> int:
    """The most MiB in use at once since `forget_peak`: of tensors on a GPU, else of this process.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    told = re.search(r"VmHWM:\s*(\d+) kB", _text(Path("/proc/self/status")))
    return int(told[1]) >> 10 if told else 0


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def first_rank() -> bool:
    """Whether this process is the one that writes files."""
    return world()[0] == 0


def wait() -> None:
    """Until all ranks have come here. InputError where one of them has ended before."""
    if world()[1] > 1:
        try:
            dist.barrier()
        except RuntimeError:
            raise InputError("another process has ended before; the same command resumes") from None


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
