"""Seeded changes to files and values, and commands that must survive them."""

import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.cli import main

SECONDS = 20
TYPES = "Type-check error whilst checking"
HOSTILE = [
    None, True, 0, -1, 1, 3, 2**31, 10**12, -(10**30), 0.0, -0.5, 1e308, -1e308, float("nan"),
    float("inf"), "", "x", "\0", "a" * 3000, "../../x", "/etc/passwd", "os:system", "é\u2028\n<b>",
    "\udcff", [], [[]], [1] * 50, [-1, 10**9], {}, {"name": "vp"}, {"name": "x"}, {"": {}},
]  # fmt: skip


def count_accepted(
    attempt: Callable[[Path, int], bool], folder: Path, numbers: Iterable[int]
) -> int:
    """How many of the attempts, each in a folder that is removed after it, were accepted."""
    accepted = 0
    for number in numbers:
        accepted += attempt(folder / f"{number}", number)
        shutil.rmtree(folder / f"{number}")
    return accepted


@contextmanager
def time_limit():
    """Raise TimeoutError in this block after SECONDS."""

    def stop(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content with one change: of a bit, a byte, or a stretch of bytes."""
    data, size = bytearray(content), len(content)
    start = rng.choice([rng.randrange(size), rng.randrange(min(size, 200)), size - 1])
    length = rng.choice([1, 2, 8, 100, 5000])
    match rng.randrange(9):
        case 0:
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            data[start] = (data[start] + rng.randrange(1, 256)) % 256
        case 2:
            data[start : start + length] = bytes(len(data[start : start + length]))
        case 3:
            del data[start : start + length]
        case 4:
            data[start:start] = rng.randbytes(length)
        case 5:
            data[start:start] = data[start : start + length]
        case 6:
            del data[start:]
        case 7:
            data += rng.choice([b"\n", b"\0", rng.randbytes(length), content])
        case _:
            for _ in range(20):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    return bytes(data)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its inner values or keys replaced by a hostile one."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        changed = dict(value)
        match rng.randrange(12):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["x", "", "name", key + "s"])] = rng.choice(HOSTILE)
            case _:
                changed[key] = mutate_value(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], mutate_value(value[index], rng), *value[index + 1 :]]
    return json.loads(json.dumps(rng.choice(HOSTILE)))


def replace_by_other(path: Path, rng: random.Random) -> str:
    """Put something that is no file, or another file, in the place of `path`."""
    kind = rng.choice(["pipe", "device", "folder", "link", "nothing", "empty", "huge", "other"])
    size = path.stat().st_size
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(path.name)
        case "empty":
            path.touch()
        case "huge":
            path.touch()
            os.truncate(path, 2**41)
        case "other":
            path.write_bytes(random.Random(size).randbytes(size))
        case _:
            pass
    return kind


def run_command(words: list[str], capsys: Any) -> tuple[int | None, str]:
    """The exit code of a command, and what is wrong with how it ended, or ""."""
    capsys.readouterr()
    try:
        with time_limit():
            code = main(words)
    except SystemExit as error:
        code = error.code
    except BaseException:
        return None, traceback.format_exc(limit=-4)
    lines = capsys.readouterr().err.strip().splitlines()
    if code not in (0, 2):
        return code, f"exit code {code}"
    # these two list what is damaged; and the suite's checks of types have messages of several lines
    if code == 2 and "doctor" not in words and "--verify" not in words and TYPES not in str(lines):
        last = lines[-1] if lines else ""
        if not last.startswith("fewstep: ") or len(last) > 2000:
            return code, f"no line that says why: {lines[-3:]}"
    return code, ""
