"""Two processes train as one: same rows, same noise, averaged gradients."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fewstep.distributed import peak_memory, reset_peak_memory

TRAIN = """
import sys, torch
from fewstep import recipe
from fewstep.runner import run_recipe
torch.set_num_threads(1)
told = recipe.read("digits-flow", [
    "student.backbone.channels=[8]", "student.backbone.attention=[]", "student.backbone.groups=4",
    "fit.steps=4", "fit.batch=10", "fit.lr=1e-3", *sys.argv[2:]])
for _ in run_recipe(told, sys.argv[1], device=torch.device("cpu"), log_every=1):
    pass
"""


def train(tmp_path, name, *launcher):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    out = tmp_path / name
    subprocess.run([sys.executable, *launcher, str(script), str(out)], check=True, timeout=200)
    return load_file(out / "model.safetensors"), (out / "progress.jsonl").read_text().count("\n")


def test_two_ranks_give_the_weights_of_one(tmp_path):
    one, lines = train(tmp_path, "one")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two, lines_of_two = train(tmp_path, "two", *torchrun)
    assert lines == lines_of_two == 5  # the hardware, and four steps
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells it")
def test_the_peak_of_memory_is_what_was_held_at_once():
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    torch.ones(300 << 18)  # 300 MiB, let go at once
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


def test_a_process_that_never_started_is_one_line_for_the_others(tmp_path):
    out = told_by_the_first_of_two(tmp_path / "wait.py", "absent")
    assert out.startswith("told: the 2 processes did not all start: ")
    assert out.count("\n") == 1
