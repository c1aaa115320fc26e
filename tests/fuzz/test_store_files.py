"""Stores with one mutated file: refused in one line, or read with their true records."""

import json
import random
import shutil
import warnings

import pytest
import torch

from exporting import unet_generator
from fewstep import runs
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.store import Reader, iter_verify, seal
from mutating import TYPES, mutate_bytes, mutate_value, replace_by_other, run_command, time_limit

COUNT = 600


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of 12 pairs, and the weights that recorded them."""
    folder = tmp_path_factory.mktemp("fuzz")
    runs.save_generator(folder / "teacher.safetensors", unet_generator(), None, {})
    words = ["-n", "12", "--steps", "1", "--allow-out-of-range"]
    teacher = str(folder / "teacher.safetensors")
    assert main(["record", teacher, "--out", str(folder / "pairs"), *words]) == 0
    return folder


def mutate(store, rng):
    """Change one file of the store; returns its name and what was done."""
    name = rng.choice(["manifest.json", *sorted(path.name for path in store.iterdir())])
    path = store / name
    kind = rng.random()
    if kind < 0.15:
        return name, replace_by_other(path, rng)
    if kind < 0.5 and name == "manifest.json":  # with a checksum that matches
        content = json.loads(path.read_text())["content"]
        for _ in range(rng.choice([1, 1, 3])):
            content = mutate_value(content, rng)
        try:
            path.write_bytes(seal({**content}))
        except (TypeError, ValueError):  # what no manifest can hold
            path.write_bytes(b"{}")
        return name, "forged"
    if kind < 0.6 and name == "manifest.json":
        path.rename(store / "plan.json")
        content = json.loads((store / "plan.json").read_text())["content"]
        del content["shards"]
        try:
            (store / "plan.json").write_bytes(seal({**mutate_value(content, rng)}))
        except (TypeError, ValueError):
            (store / "plan.json").write_bytes(b"[]")
        return name, "unfinished"
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return name, "bytes"


def check(seed, whole, place, capsys):
    """What went wrong with one mutated store, as text."""
    rng = random.Random(f"store {seed}")
    shutil.copytree(whole / "pairs", place)
    expected = Reader(whole / "pairs")[:]
    name, kind = mutate(place, rng)
    problems = []
    try:
        with time_limit():
            lines = [line for step in iter_verify(place) for line in step.lines]
            records = Reader(place)[:]
    except InputError as error:
        if TYPES not in str(error) and ("\n" in str(error) or len(str(error)) > 2000):
            problems.append(f"the message has several lines: {error}")
    else:
        equal = records.keys() == expected.keys() and all(
            torch.equal(values, expected[key]) for key, values in records.items()
        )
        if kind != "forged" and not equal:
            problems.append("changed records are read")
        if kind == "bytes" and not lines:
            problems.append("verify finds nothing")
    teacher = str(whole / "teacher.safetensors")
    commands = [
        ["record", "--verify", str(place)],
        ["record", "--info", str(place)],
        ["record", teacher, "--out", str(place), "-n", "12", "--steps", "1"],
    ]
    _, problem = run_command(rng.choice(commands), capsys)
    problems += [problem] * bool(problem)
    shutil.rmtree(place)
    return [f"seed {seed}, {kind} of {name}: {problem}" for problem in problems]


def check_all(seeds, whole, tmp_path, capsys):
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            problems += check(seed, whole, tmp_path / str(seed), capsys)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:20])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_mutated_stores_are_refused_or_unharmed(whole, tmp_path, capsys, part):
    check_all(range(part, COUNT, 4), whole, tmp_path, capsys)


def test_a_few_mutated_stores_are_refused_or_unharmed(whole, tmp_path, capsys):
    check_all(range(20), whole, tmp_path, capsys)
