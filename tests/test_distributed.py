"""Processes that wait for each other, and the peak of memory. test_ranks.py has their work."""

import mmap
import os
import socket
import subprocess
import sys

import pytest
import torch

from fewstep.distributed import peak_memory, reset_peak_memory


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells it")
def test_the_peak_of_memory_is_what_was_held_at_once():
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    with mmap.mmap(-1, 300 << 20) as pages:  # the allocator may keep the memory of tensors
        for _ in range(300):
            pages.write(bytes(1 << 20))
    assert 290 <= peak_memory(cpu) - before <= 330
    reset_peak_memory(cpu)
    assert abs(peak_memory(cpu) - before) <= 20


WAIT = """
import os, sys
from datetime import timedelta
from fewstep import distributed
from fewstep.errors import InputError
if sys.argv[1] == "absent" and os.environ["RANK"] == "1":
    os._exit(3)
try:
    timeout = timedelta(seconds=4 if sys.argv[1] == "absent" else 100)
    rank, ranks = distributed.world(timeout=timeout)
    distributed.wait()  # all have started
    if rank == 1:
        os._exit(3)
    distributed.wait()
except InputError as error:
    print(f"told: {error}")
"""


def told_by_the_first_of_two(script, how):
    script.write_text(WAIT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    told = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, str(script), how],
            env={**told, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    out, _ = both[0].communicate(timeout=100)
    both[1].communicate(timeout=100)
    return out


def test_a_process_that_has_ended_is_one_line_for_those_that_wait(tmp_path):
    out = told_by_the_first_of_two(tmp_path / "wait.py", "ended")
    assert out == "told: another process has exited early; run the same command again to resume\n"


@pytest.mark.slow
def test_a_process_that_never_started_is_one_line_for_the_others(tmp_path):
    out = told_by_the_first_of_two(tmp_path / "wait.py", "absent")
    assert out.startswith("told: the 2 processes did not all start: ")
    assert out.count("\n") == 1
