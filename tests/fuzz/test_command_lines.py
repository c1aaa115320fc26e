"""Mutated command lines end in one line or do what they say: no traceback, no hang."""

import random
import re

import pytest
from PIL import Image

from fewstep.cli import VERBS, main
from mutating import time_limit

DIGITS = "fewstep:digits"
LINES = [
    ["sample", DIGITS, "-o", "{t}/x.png", "-n", "2"],
    ["sample", DIGITS, "--each", "{t}/each-{n}", "-n", "2", "--seed", "3"],
    ["sample", DIGITS, "--npz", "{t}/x.npz", "-n", "2", "--label", "1,2"],
    ["sample", DIGITS, "-o", "{t}/x.jpg", "-n", "2", "--sampler", "heun", "--steps", "2"],
    ["sample", "{t}/run", "-o", "{t}/x.webp", "-n", "2", "--guidance", "1.0", "--times", "1,0.5"],
    ["sample", "{t}/run", "-o", "{t}/x.png", "-n", "2", "--weights", "raw"],
    ["sample", "{t}/run", "-o", "{t}/x.png", "-n=2", "--guidance=2", "--guidance-interval=0,0.5"],
    [
        "sample",
        "{t}/run",
        "-o",
        "{t}/x.png",
        "-n=2",
        "--guidance",
        "3",
        "--autoguidance",
        "{t}/run",
    ],
    ["average", "{t}/run", "--length", "0.08"],
    ["average", "{t}/run", "--length", "0.1", "-o", "{t}/average.safetensors"],
    ["train", "{t}/r.toml", "fit.steps=1", "--out", "{t}/run-{n}"],
    ["train", "{t}/r.toml", "--out", "{t}/run"],
    ["train", "{t}/r.toml", "--dry-run"],
    ["train", "digits-flow", "--help"],
    ["train", "{t}/r.toml", "data.name=folder", "data.path={t}/my set", "--dry-run"],
    ["distill", "digits-dmd", "teacher.load={t}/run", "--dry-run"],
    ["record", "{t}/run", "--out", "{t}/pairs-{n}", "-n", "4", "--steps", "2", "--clip", "1.0"],
    ["record", "--verify", "{t}/pairs"],
    ["record", "--info", "{t}/pairs"],
    ["convert", "{t}/run", "--out", "{t}/w.safetensors"],
    ["convert", "{t}/run", "--out", "{t}/w.safetensors", "--dtype", "f16", "--license", "MIT"],
    ["explain", "{t}/run", "--out", "{t}/ex", "--data", "{t}/my set"],
    ["explain", "{t}/r.toml", "--out", "{t}/ex", "--steps", "3", "--sampler", "heun"],
    ["sample", "{t}/run", "--gif", "{t}/x.gif", "-n", "2"],
    ["progress", "{t}/run"],
    ["progress", "{t}/run", "--csv"],
    ["progress", "{t}/run", "--out", "{t}/log.csv"],
    ["evaluate", "{t}/run", "--steps", "1", "--samples", "20", "--extractor", "pixels"],
    ["list"],
    ["list", "recipes"],
    ["list", "samplers", "--json"],
    ["doctor", "{t}/run"],
    ["doctor", "{t}/my set"],
    ["encode", "folder:{t}/my set", "--autoencoder", "{t}/run", "--out", "{t}/latents"],
    ["sample", "{t}/run", "--prompt", "a cat", "--negative", "", "-o", "{t}/cat.png"],
    ["studio", "--help"],
    ["compare", "{t}/missing", "--out", "{t}/c.html"],
    ["export", "{t}/run", "--to", "onn", "--out", "{t}/e"],
    ["--help"],
    ["--version"],
]
RECIPE = """
[data]
name = "digits"
[student]
init = "scratch"
process = "flow"
parametrization = "velocity"
[student.backbone]
name = "unet"
channels = [8]
groups = 4
attention = []
[method]
name = "denoise"
[fit]
steps = 2
batch = 4
ema_lengths = [0.05, 0.1]
"""
WORDS = [
    "", " ", "-", "--", "---", "-n", "-o", "--out", "--steps", "--help", "--json", "--seed", "0",
    "-1", "1", "3", "1e3", "nan", "inf", "9" * 30, "1,2", "1,,2", ",", "a=b", "=", "x=", "=x",
    "fit.steps=0", "fit.steps=1", "fit.lr=nan", "data.path=", "{t}", "{t}/none", "{t}/r.toml",
    "{t}/run", "{t}/file", "{t}/file/x", "{t}/my set", "/dev/null", "/proc/self/mem", "/", ".",
    "..", "~", "~nobody/x", "folder:{t}/my set", "diffusers:{t}/run", "edm:{t}/file", "openai:",
    "fewstep:", "fewstep:none", ":", "a:b", "os:path", "caf\udce9", "кот", "a\nb", "\x1b[31m",
    "[bold]x[/bold]", "x" * 300, "😀", "--allow-code", "--allow-code=os", "--no-resume", "*", "'",
]  # fmt: skip
SLOW = re.compile(r"--data|cifar10|celeba|mnist|demo|studio|torchrun")


def mutated(number, folder):
    """A command line with some words changed, added, dropped or moved."""
    rng = random.Random(number)
    words = list(rng.choice(LINES))
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(words) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            words.insert(place, rng.choice(WORDS))
        elif kind == 1 and words:
            del words[place - 1]
        elif kind == 2 and words:
            words[place - 1] = rng.choice(WORDS)
        elif kind == 3 and words:
            word = words[place - 1]
            cut = rng.randrange(len(word) + 1)
            words[place - 1] = word[:cut] + rng.choice("-=:/a0 \udce9") + word[cut + 1 :]
        elif kind == 4 and words:
            words.insert(rng.randrange(len(words)), words.pop(place - 1))
        elif kind == 5:
            words.insert(place, rng.choice(rng.choice(LINES)))
    return [word.replace("{t}", str(folder)).replace("{n}", str(number)) for word in words]


def is_quick(words):
    """Whether a command line does nothing long, such as a real training."""
    if any(map(SLOW.search, words)) and not {"-h", "--help"} & {*words}:
        return False
    verb = words[0] if words else ""
    if verb in ("train", "distill") and "--dry-run" not in words:
        return any(word.endswith("r.toml") for word in words)
    counts = ("-n", "--count", "--samples", "--steps")
    return verb not in ("sample", "record", "evaluate") or any(word in words for word in counts)


def outcome(words, capsys):
    """The exit code of a command line; raises AssertionError for a traceback, or a hang."""
    try:
        with time_limit():
            code = main(words)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{words!r}") from error
    captured = capsys.readouterr()
    assert code in (0, 1, 2) and "Traceback" not in captured.err, words
    assert code != 1 or words[:1] == ["doctor"], words
    if code == 2:
        assert captured.err.strip() or captured.out.strip(), f"no message: {words!r}"
    return code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run, a store, a recipe, a file and a folder of images, which command lines name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "file").write_text("x")
    for name in ("a", "b"):
        (tmp_path / "my set" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "my set" / name / "x.png")
    assert main(["train", f"{tmp_path}/r.toml", "--out", f"{tmp_path}/run"]) == 0
    record = ["record", f"{tmp_path}/run", "--out", f"{tmp_path}/pairs", "--allow-out-of-range"]
    assert main([*record, "-n", "4", "--steps", "2"]) == 0
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_command_lines_end_in_one_line(folder, capsys):
    capsys.readouterr()
    codes = {0: 0, 1: 0, 2: 0}
    for number in range(2000):
        words = mutated(number, folder)
        if is_quick(words):
            codes[outcome(words, capsys)] += 1
    print(codes)
    assert codes[0] > 100 and codes[2] > 500


def test_some_mutated_command_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    tried = 0
    for number in range(150):
        words = mutated(number, tmp_path)
        verb = words[0] if words else ""
        if is_quick(words) and verb not in ("sample", "record", "train", "distill", "evaluate"):
            outcome(words, capsys)
            tried += 1
    assert tried > 15 and not set(VERBS) - {words[0] for words in LINES} - {"demo"}
