"""Two processes train as one: same rows, same noise, averaged gradients."""

import mmap
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fewstep.distributed import peak_memory, reset_peak_memory

TRAIN = """
import json, pathlib, sys, torch
from fewstep import distributed, recipe
from fewstep.assembly import assemble
from fewstep.runner import run_recipe
torch.set_num_threads(1)
told = recipe.read("digits-flow", [
    "student.backbone.channels=[8]", "student.backbone.attention=[]", "student.backbone.groups=4",
    "fit.steps=4", "fit.batch=10", "fit.lr=1e-3",
    "evaluate.every=4", "evaluate.steps=[1]", "evaluate.samples=110", "evaluate.extractor=pixels"])
for _ in run_recipe(told, sys.argv[1], device=torch.device("cpu"), log_every=1):
    pass

# untrained weights are equal in any number of processes
built = assemble(told, torch.device("cpu"))
score = built.evaluator.score(built.method.generator(), steps=2, batch=16, shared=True)
table = {**score.table(), "seconds_per_image": 0, "device": ""}
file = pathlib.Path(sys.argv[1]) / f"score-{distributed.world()[0]}.json"
file.write_text(json.dumps(table))
"""


def train(tmp_path, name, *launcher):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    out = tmp_path / name
    subprocess.run([sys.executable, *launcher, str(script), str(out)], check=True, timeout=200)
    scores = [path.read_text() for path in sorted(out.glob("score-*.json"))]
    lines = (out / "progress.jsonl").read_text().count("\n")
    return load_file(out / "model.safetensors"), lines, scores


def test_two_ranks_give_the_weights_and_scores_of_one(tmp_path):
    one, lines, scores = train(tmp_path, "one")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two, lines_of_two, scores_of_two = train(tmp_path, "two", *torchrun)
    assert lines == lines_of_two == 6  # the hardware, four steps and a score
    # 7 batches, of which the last has 14 rows and no counterpart
    assert scores_of_two == 2 * scores
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


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
