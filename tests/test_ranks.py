"""Processes of `torchrun` that disagree say so in one line, before the first step."""

import json
import os
import socket
import subprocess
import sys

import pytest

from fewstep import store
from fewstep.cli import main
from fewstep.run_folder import Run

SCRIPT = """
import contextlib, io, json, os, sys
import torch
torch.set_num_threads(1)
from fewstep.cli import main
rank, results = int(os.environ["RANK"]), []
for commands in json.loads(sys.argv[1]):
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        code = main(commands[rank])
    results.append([code, errors.getvalue(), output.getvalue()])
print(json.dumps(results))
"""
SMALL = (
    "student.backbone.channels=[8] student.backbone.attention=[] student.backbone.groups=4 "
    "fit.steps=2 fit.batch=8 fit.lr=1e-3"
)


def run_ranks(*commands):
    """[exit code, stderr, stdout] of each rank, for pairs of commands that two processes run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = json.dumps([[command.split() for command in pair] for pair in commands])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, words],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return list(zip(*map(json.loads, outputs), strict=True))
