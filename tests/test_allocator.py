"""Freed memory is kept: no page faults in later steps, and the same bytes as without."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import allocator

GLIBC = sys.platform == "linux" and not Path("/dev/nvidiactl").exists()
TRAIN = """
import resource, sys
from fewstep import allocator
if sys.argv[2] == "keep":
    allocator.keep_freed_memory()
import torch
torch.set_num_threads(1)
from fewstep import recipe
from fewstep.runner import run_recipe
small = ["student.backbone.channels=[16]", "fit.steps=14", "fit.batch=128", "fit.save_every=99"]
for progress in run_recipe(recipe.read("digits-flow", small), sys.argv[1]):
    if progress.step in (6, 13):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def train(folder, mode):
    """Page faults from step 6 to step 13, the weights file, and whether the log names it."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder), mode], capture_output=True, text=True, check=True
    )
    first, last = map(int, done.stdout.split())
    log = (folder / "progress.jsonl").read_text()
    weights = (folder / "model.safetensors").read_bytes()
    return last - first, weights, "freed memory is kept" in log


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="only glibc, and only without a GPU")
def test_steps_cause_no_page_faults_and_the_weights_are_the_same(tmp_path):
    plain, weights, logged = train(tmp_path / "plain", "plain")
    fewer, same_weights, also_logged = train(tmp_path / "keep", "keep")
    assert same_weights == weights
    assert fewer < plain / 10 and plain > 1000
    assert (logged, also_logged) == (False, True)


@pytest.mark.parametrize(
    "change", [("sys.platform", "darwin"), ("platform.libc_ver", lambda: [""])]
)
def test_nothing_is_done_on_other_systems(change, monkeypatch):
    monkeypatch.setattr(f"fewstep.allocator.{change[0]}", change[1])
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("called the C library"))
    monkeypatch.setitem(allocator._state, "keeps", False)  # an earlier test may have trained
    allocator.keep_freed_memory()
    assert not allocator.keeps_freed_memory()
