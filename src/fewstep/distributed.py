"""Data parallelism under `torchrun`: ranks, devices, and sums over all processes.

Networks are not wrapped in DistributedDataParallel. The trainer sums the gradients of a player over
all ranks once per turn, after its last micro-batch.
"""

import atexit
import os
import platform
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from textwrap import shorten
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.errors import InputError, SharedError
from fewstep.locks import lock_folder

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others, which may record or evaluate for hours.

torch's default is 10 minutes on GPUs. A process that has died is noticed at once."""


def world(*, timeout: timedelta = PATIENCE) -> tuple[int, int]:
    """Rank and size of the process group; (0, 1) without `torchrun`.

    The first call starts the group and waits for the other processes up to `timeout`.
    Raises InputError if they do not all start.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=timeout)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"the {size} processes did not all start: {reason}") from None
        atexit.register(_leave)
    return dist.get_rank(), dist.get_world_size()


def _leave() -> None:
    # the group's threads would abort a process that exits while they run
    if dist.is_initialized():
        dist.destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """End a process of a group with an exit code, after the functions of `atexit`.

    The interpreter's own shutdown and the destructors of the group race with the group's threads.
    Now and then that aborts a process whose work is done, and `torchrun` then reports a failure.
    """
    atexit.unregister(_leave)
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def device() -> torch.device:
    """The GPU of this process, or the CPU if the machine has no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise InputError(
            f"process {number} has no GPU: this machine has {count}, so start at most {count} "
            "processes on it"
        )
    return torch.device("cuda", number)


def hardware(device: torch.device) -> str:
    """Description of `device`: name and memory of the GPU, or threads and model of the CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        return gpu if world()[1] == 1 else f"{world()[1]} x {gpu}"
    model = re.search(r"model name\s*: (.*)", _text(Path("/proc/cpuinfo")))
    threads = world()[1] * torch.get_num_threads()
    return (
        f"{threads} CPU thread{'s' * (threads > 1)} ({model[1] if model else platform.machine()})"
    )


def peak_memory(device: torch.device) -> int:
    """Peak memory since `reset_peak_memory`, in MiB; 0 if the system does not report it.

    On a GPU this is the memory of the tensors, on a CPU that of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    match = re.search(r"VmHWM:\s*(\d+) kB", _text(Path("/proc/self/status")))
    return int(match[1]) >> 10 if match else 0


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory`, if the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def first_rank() -> bool:
    """Whether this is the process that writes files and prints."""
    return world()[0] == 0


def wait() -> None:
    """Wait until all ranks have called this. Raises InputError if one of them has exited."""
    if world()[1] > 1:
        with _others_run():
            dist.barrier()


@contextmanager
def _others_run() -> Generator[None]:
    """Raise InputError if another rank exits in the block, which exchanges data with them."""
    try:
        yield
    except RuntimeError:
        raise InputError(
            "another process has exited early; run the same command again to resume"
        ) from None


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over all ranks, in place.

    Each rank has already weighted its gradients by its fraction of the global batch.
    """
    if world()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    with _others_run():
        dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def gather(value: Value) -> list[Value]:
    """The `value` of each rank, in their order. It is pickled; its tensors must be on the CPU."""
    if world()[1] == 1:
        return [value]
    values = [value] * world()[1]
    with _others_run():
        dist.all_gather_object(values, value)
    return values


def run_together(work: Callable[[], Value]) -> Value:
    """Call `work` and return its result. All ranks must call this, each with its own `work`.

    Raises: SharedError on all ranks if `work` raises InputError or OSError on one of them.
    """
    if world()[1] == 1:
        return work()
    result: list[Value] = []
    problem = ""
    try:
        result.append(work())
    except (InputError, OSError) as error:
        problem = str(error)
    problems = gather(problem)
    for rank, text in enumerate(problems):
        if text:
            everywhere = all(other == text for other in problems)
            raise SharedError(text if everywhere else f"process {rank} of {len(problems)}: {text}")
    return result[0]


@contextmanager
def lock_together(folder: Path | None) -> Generator[None]:
    """Hold the lock of a folder on the first rank. All ranks must call this.

    Without a folder, nothing is locked.  Raises: SharedError on all ranks, or InputError without
    `torchrun`, if another process uses the folder.
    """
    with ExitStack() as stack:
        lock = lock_folder(folder) if folder and first_rank() else nullcontext()
        run_together(lambda: stack.enter_context(lock))
        yield


def check_equal(facts: Mapping[str, object]) -> None:
    """Compare named facts, such as settings and hashes, of all ranks, which must all call this.

    Raises: SharedError on all ranks if they differ; it names the first difference.
    """
    first, *others = gather(dict(facts))
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            if other.get(name) != first.get(name):
                values = [shorten(str(facts.get(name)), 80) for facts in (first, other)]
                raise SharedError(
                    f"the processes differ: {name} is {values[0]} in process 0 and {values[1]} in "
                    f"process {rank}; start all of them with the same command and the same files"
                )


def sum_numbers(numbers: Tensor) -> Tensor:
    """Sum a small vector over all ranks; every rank returns the sum."""
    if world()[1] > 1:
        with _others_run():
            dist.all_reduce(numbers)
    return numbers
