"""Two processes train as one: same rows, same noise, averaged gradients."""

import subprocess
import sys

import torch
from safetensors.torch import load_file

TRAIN = """
import sys, torch
from fewstep import recipe
from fewstep.experiment import carry_out
torch.set_num_threads(1)
told = recipe.read("digits-flow", [
    "student.backbone.channels=[8]", "student.backbone.attention=[]", "student.backbone.groups=4",
    "fit.steps=4", "fit.batch=10", "fit.lr=1e-3", *sys.argv[2:]])
for _ in carry_out(told, sys.argv[1], device=torch.device("cpu"), log_every=1):
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
    assert lines == lines_of_two == 4
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)
