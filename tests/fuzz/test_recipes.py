"""Mutated recipes end in one line or are right: no traceback, no hang."""

import random
import re
import tomllib

import pytest

from fewstep import recipe
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.schema import explain, preset_names, read_table
from mutating import time_limit

TINY = """
[data]
name = "digits"
[student]
init = "scratch"
process = { name = "flow" }
parametrization = "velocity"
[student.backbone]
name = "unet"
channels = [8]
groups = 4
attention = []
[method]
name = "denoise"
density = { name = "lognormal", mean = 0.0, std = 1.0 }
sampler = { name = "heun", clip = 1.0 }
grid = { name = "shifted", shift = 2.0 }
[fit]
steps = 2
batch = 4
lr = 2e-4
betas = [0.9, 0.99]
ema_halflife = [0.1, 0.2]
save_every = 1
[evaluate]
every = 0
steps = [1, 2]
"""
ODD = [
    "-1", "0", "1", "2", "3", "8", "0.5", "1.5", "-0.5", "nan", "inf", "-inf", "1e300", "1e-300",
    "1000000000000", "99999999999999999999", "9" * 4400, "true", "false", '""', '"x"', '"0"', "[]",
    "[1]", "[1, 2]", "[-1]", "[0.1, nan]", "[[1.0]]", '["a"]', "{}", '{ name = "ve" }',
    '{ name = "x" }', "{ name = 3 }", "1979-05-27", "07:32:00", '"a\\u0000b"', '"os:path"',
    '"..a:b"', '"кот"', '"~/x"', '"' + "x" * 300 + '"', "[" * 2000, '"""\na\nb"""', "0x10", "+1",
    "[1, [2, [3, [4]]]]", '{ a = { b = { c = 1 } } }', '"flow"', '"edm"', '"unet"', '"mlp"',
]  # fmt: skip
BYTES = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"[",
    b"]",
    b"=",
    b"{",
    b"#",
    b"\r",
    b"\x80",
]


def mutated(number):
    """The bytes of a mutated recipe."""
    rng = random.Random(number)
    text = TINY if number % 2 else recipe.read(rng.choice(preset_names())).toml()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        text = change(text, rng)
    content = text.encode(rng.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig"]), "replace")
    if rng.random() < 0.15:
        place = rng.randrange(len(content) + 1)
        content = content[:place] + rng.choice(BYTES) + content[place + rng.randrange(2) :]
    return content[: rng.randrange(len(content))] if rng.random() < 0.03 else content


def change(text, rng):
    """The text with one value, key or line changed."""
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    key, equals, value = lines[index].partition(" = ")
    kind = rng.randrange(8)
    if kind <= 2 and equals:
        lines[index] = f"{key} = {rng.choice(ODD)}"
    elif kind == 3:
        numbers = list(re.finditer(r"-?\d[\d_.e-]*", lines[index]))
        if numbers:
            match = rng.choice(numbers)
            lines[index] = (
                lines[index][: match.start()] + rng.choice(ODD) + lines[index][match.end() :]
            )
    elif kind == 4:
        return set_key(text, rng)
    elif kind == 5:
        lines.insert(rng.randrange(len(lines)), lines[index])
    elif kind == 6:
        del lines[index]
    elif equals:
        place = rng.randrange(len(key) + 1)
        lines[index] = key[:place] + rng.choice('aeimx_.-"') + key[place + 1 :] + equals + value
    return "\n".join(lines)


def set_key(text, rng):
    """The text with some key that the recipe can have set to an odd value."""
    try:
        keys = [key for key, _, _ in explain(tomllib.loads(text))]
    except (ValueError, InputError, AttributeError, RecursionError):
        return text
    section, _, field = rng.choice(keys).rpartition(".")
    value = rng.choice(ODD)
    return (
        f"{section}.{field} = {value}\n{text}"
        if rng.random() < 0.3
        else re.sub(rf"(?m)^\[{section}\]$", lambda match: f"{match[0]}\n{field} = {value}", text)
    )


def outcome(content, work):
    """ "line" or "taken" by what `work` did; raises AssertionError for anything else."""
    try:
        with time_limit():
            work()
    except InputError as error:
        assert len(str(error)) < 2000, content
        return "line"
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{content!r}") from error
    return "taken"


def trained(path, out, capsys):
    """One step of a recipe on the command line."""
    code = main(["train", str(path), "--out", str(out)])
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error
    if code:
        raise InputError(error)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_recipes_are_read_or_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = {"line": 0, "taken": 0, "trained": 0, "refused": 0}
    for number in range(5000):
        content, path = mutated(number), tmp_path / "r.toml"
        path.write_bytes(content)
        result = outcome(content, lambda path=path: read_and_explain(path))
        counts[result] += 1
        small = result == "taken" and number % 2 and number % 10 == 1 and is_small(path)
        if small:
            out = tmp_path / f"run-{number}"
            work = lambda path=path, out=out: trained(path, out, capsys)  # noqa: E731
            counts["refused" if outcome(content, work) == "line" else "trained"] += 1
    print(counts)
    assert min(counts["line"], counts["taken"], counts["trained"]) > 50 and counts["refused"]


def read_and_explain(path):
    """What `fewstep train RECIPE` reads, and what its `--help` prints."""
    list(explain(read_table(str(path))))
    recipe.read(str(path))


def is_small(path):
    """Whether its training is over in a second."""
    settings = recipe.read(str(path))
    network, fit = settings.student.backbone, settings.fit
    width = sum(getattr(network, "channels", ())) * getattr(network, "layers", 100)
    return fit.steps * fit.batch < 100 and 0 < width < 100 and not settings.evaluate.every


def test_some_mutated_recipes(tmp_path):
    path = tmp_path / "r.toml"
    for number in range(1, 60):
        content = mutated(number)
        path.write_bytes(content)
        outcome(content, lambda: read_and_explain(path))
