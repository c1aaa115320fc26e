"""What a crash at any file operation leaves is completed by the same command.

Slow: all operations of all commands. Here: a few of three, in one process for all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(script, *words):
    """The JSON that a script in this folder prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def sweep(folder, **counts):
    words = [f"{name}={count}" for name, count in counts.items()]
    return run("crashing.py", str(folder / "sweep"), *words)


def test_after_a_crash_the_same_command_ends_with_the_same_files(tmp_path):
    for name, result in sweep(tmp_path, train=2, evaluate=1).items():
        assert result["bad"] == [], name
        assert result["tried"] <= result["points"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["train", "extend", "record", "evaluate", "compare", "demo"])
def test_after_a_crash_at_any_operation(tmp_path, name):
    result = sweep(tmp_path, **{name: 0})[name]
    print(name, result)
    assert result["bad"] == [] and result["tried"] == result["points"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_trainings_in_one_folder_one_is_refused(tmp_path):
    result = run("rivals.py", str(tmp_path), "50")
    print(result)
    assert result["bad"] == []
    assert result["ends"]["0, 2"] >= 25 and sum(result["ends"].values()) == 50
