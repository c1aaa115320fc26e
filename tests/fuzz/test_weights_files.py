"""Run folders with one mutated file: refused in one line, or used with their true content."""

import random
import shutil
import warnings

import pytest

from fewstep import runs
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.weights_file import read_weights_file, write_weights_file
from mutating import mutate_bytes, mutate_value, replace_by_other, run_command, time_limit

COUNT = 600
RECIPE = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.warmup=0",
    "fit.steps=4",
    "fit.save_every=2",
    "evaluate.every=2",
    "evaluate.protocol=quick",
]
TRAIN = ["train", "digits-flow", *RECIPE, "--out"]
PLAIN = ["--extractor", "pixels", "--samples", "20", "--steps", "1"]
WEIGHTS = ("model.safetensors", "best.safetensors", "state/state.safetensors")
FILES = (*WEIGHTS, "recipe.toml", "progress.jsonl", "scores.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    assert main([*TRAIN, str(folder)]) == 0
    assert main(["evaluate", str(folder), *PLAIN]) == 0
    return folder


def commands(folder, out):
    run = str(folder)
    return [
        ["sample", run, "-n", "2", "--steps", "1", "-o", str(out / "x.png")],
        ["sample", run, "-n", "2", "--steps", "1", "-o", str(out / "x.png"), "--weights", "best"],
        ["sample", run, "-n", "2", "--steps", "1", "-o", str(out / "x.png"), "--weights", "raw"],
        ["evaluate", run, *PLAIN],
        ["doctor", run],
        [*TRAIN, run],
        ["progress", run],
        ["compare", run, *PLAIN, "--out", str(out / "x.html")],
    ]


def mutate(folder, rng):
    """Change one file of the run; returns its name and what was done."""
    name = rng.choice(FILES if rng.random() < 0.5 else WEIGHTS)
    path = folder / name
    kind = rng.random()
    if kind < 0.1:
        return name, replace_by_other(path, rng)
    if kind < 0.5 and name in WEIGHTS:  # with digests that match
        tensors, note = read_weights_file(path)
        for _ in range(rng.choice([1, 1, 3])):
            note = mutate_value(note, rng)
        if isinstance(note, dict):
            write_weights_file(path, tensors, note)
        return name, "forged"
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return name, "bytes"


def contents(folder):
    """What is used of each weights file; None if it is refused."""
    tables = {}
    for name in WEIGHTS:
        try:
            tensors, note = read_weights_file(folder / name)
            tables[name] = tensor_digest(tensors), note
        except InputError as error:
            assert name.rpartition("/")[2] in str(error) and "\n" not in str(error)
            tables[name] = None
    return tables


def check(seed, whole, place, capsys):
    """What went wrong with one mutated run, as text."""
    rng = random.Random(f"weights {seed}")
    folder = place / "run"
    shutil.copytree(whole, folder)
    name, kind = mutate(folder, rng)
    problems = []
    if kind != "forged":
        with time_limit():
            expected, found = contents(whole), contents(folder)
        if any(table not in (None, expected[name]) for name, table in found.items()):
            problems.append("a changed weights file is used")
    for words in rng.sample(commands(folder, place), 2):
        _, problem = run_command(words, capsys)
        if problem:
            problems.append(f"{' '.join(words[:2])}: {problem}")
    shutil.rmtree(place)
    return [f"seed {seed}, {kind} of {name}: {problem}" for problem in problems]


def check_all(seeds, whole, tmp_path, capsys):
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            (tmp_path / str(seed)).mkdir()
            problems += check(seed, whole, tmp_path / str(seed), capsys)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:20])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_mutated_runs_are_refused_or_unharmed(whole, tmp_path, capsys, part):
    check_all(range(part, COUNT, 6), whole, tmp_path, capsys)


def test_a_few_mutated_weights_are_refused_or_unharmed(tmp_path):
    from exporting import point_generator

    path = tmp_path / "w.safetensors"
    runs.save_generator(path, point_generator(), None, {})
    intact, expected = path.read_bytes(), runs.weights_hash(runs.load(path))
    for seed in range(60):
        rng = random.Random(seed)
        path.write_bytes(intact)
        tensors, note = read_weights_file(path)
        if seed % 2:
            path.write_bytes(mutate_bytes(intact, rng))
        else:
            write_weights_file(
                path, tensors, {**note, "description": mutate_value(note["description"], rng)}
            )
        try:
            with time_limit():
                generator = runs.load(path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, seed
        else:
            assert not seed % 2 or runs.weights_hash(generator) == expected, seed
