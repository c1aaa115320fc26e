"""Text files that are read back: damage is named, and a line that a crash cut off is repaired."""

import os
import random

import pytest

from damage import flip, unnoticed
from fewstep.checksums import (
    append_json_line,
    check_toml,
    json_line,
    read_checked_json,
    read_json_lines,
    toml_with_check,
    with_check,
)
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.recipe import read
from fewstep.run_folder import Run
from fewstep.trackers import Tracker

LINES = [
    {"step": 10, "loss": 0.1 + 0.2, "note": "a, \"b\" and é\u2028\x85 {}"},
    {"step": 20, "loss": float("nan"), "score": {"frechet": 1e-300, "extra": []}},
    {},
    {"step": 30, "hardware": "1 CPU thread", "null": None, "yes": True},
]  # fmt: skip


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    for line in LINES:
        append_json_line(path, line)
    return path


def test_lines_are_read_back_as_people_see_them(log):
    assert repr(read_json_lines(log)) == repr(LINES)
    text = log.read_text().splitlines()[3]
    assert text.startswith('{"step": 30, "hardware": "1 CPU thread", ')
    assert text.endswith(', "check": "' + text[-10:]) and int(text[-10:-2], 16) >= 0
    assert read_json_lines(log.with_name("none.jsonl")) == []


def test_any_flipped_byte_of_a_log_is_found(log):
    read = lambda: repr(read_json_lines(log))  # noqa: E731
    masks = (0x01, 0x20, 0xFF, 0x2A)  # the last makes a space of a line's end
    assert unnoticed(log, read, range(log.stat().st_size), masks) == []


@pytest.mark.slow
def test_any_other_byte_in_a_log_is_found(log):
    read = lambda: repr(read_json_lines(log))  # noqa: E731
    assert unnoticed(log, read, range(log.stat().st_size), range(1, 256)) == []


@pytest.mark.parametrize(
    "line",
    [b"", b"3", b"[]", b"null", b'{"step": 4}', b"\xff\xfe", b"[" * 5000, b'{"a": 1, "a": 2}',
     json_line({"step": 1}).strip() + b" ", b"1" * 5000],
)  # fmt: skip
def test_a_line_of_another_form_is_named(log, line):
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*whole[:2], line, b"\n", *whole[2:]]))
    with pytest.raises(InputError, match=rf"^line 3 of {log} is damaged: .*: sed -i 3d {log}$"):
        read_json_lines(log)


def test_a_last_line_that_was_cut_off_is_dropped_and_repaired(log):
    whole = log.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole)):
        log.write_bytes(whole[:end])
        expected = LINES if end == len(whole) - 1 else LINES[:3]
        assert repr(read_json_lines(log)) == repr(expected)
        append_json_line(log, {"step": 40})
        assert repr(read_json_lines(log)) == repr([*expected, {"step": 40}])
    log.write_bytes(b'{"cut')  # the only line
    append_json_line(log, {"step": 1})
    assert log.read_bytes() == json_line({"step": 1})
    log.write_bytes(b"x" * 200_000)
    append_json_line(log, {"step": 2})
    assert read_json_lines(log) == [{"step": 2}]


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        for use in (read_json_lines, lambda path: append_json_line(path, {})):
            with pytest.raises(InputError, match="and a file is needed here"):
                use(tmp_path / name)


def test_a_json_file_has_a_checksum(tmp_path):
    path = tmp_path / "sent.json"
    table = {"id": "ab12", "step": 3, "files": {"a": 1}}
    content = str(with_check(table)).replace("'", '"').encode()
    path.write_bytes(content)
    read = lambda: read_checked_json(path, "delete it")  # noqa: E731
    assert read() == table
    assert unnoticed(path, read, range(len(content))) == []
    for text in ("", "[]", "3", "null", "[" * 9999, str({"check": 3}).replace("'", '"')):
        path.write_text(text)
        with pytest.raises(InputError, match=r"sent.json is damaged: .*: delete it$"):
            read()


def test_the_recipe_of_a_run_has_a_checksum(tmp_path):
    run = Run(tmp_path)
    recipe = read("digits-flow", ["fit.steps=7"])
    run.claim(recipe.table())
    size = run.recipe_file.stat().st_size
    read_back = run.recipe
    positions = [*random.Random(0).sample(range(size), 12), *range(size - 12, size, 3)]
    missed = unnoticed(run.recipe_file, read_back, positions, (0x01, 0x20))
    assert missed == []
    flip(run.recipe_file, size // 2, 0x01)
    assert main(["train", "digits-flow", "fit.steps=7", "--out", str(tmp_path)]) == 2


def test_the_checksum_of_toml():
    text = toml_with_check("a = 1\n")
    assert text.startswith("a = 1\n# check: ") and check_toml(text)
    assert check_toml("a = 1\n") is None and check_toml(text.replace("1", "2", 1)) is False


class Sent(Tracker):
    name, module = "sent", "json"
    numbers = image = close = None


def test_what_a_tracker_remembers_is_checked(tmp_path):
    (tmp_path / "sent").mkdir()
    Sent.__abstractmethods__ = frozenset()
    Sent(Run(tmp_path), 0).mark(7)
    assert Sent(Run(tmp_path), 0).since == 7
    path = tmp_path / "sent" / "sent.json"
    read_back = lambda: (Sent(Run(tmp_path), 0).since, Sent(Run(tmp_path), 0).id)  # noqa: E731
    assert unnoticed(path, read_back, range(path.stat().st_size)) == []
    path.write_text('{"step": 9}')
    with pytest.raises(InputError, match="sent.json is damaged.*: delete it, and the run is sent"):
        read_back()


def test_a_recipe_of_a_run_is_checked_when_it_is_trained_again(tmp_path):
    run = Run(tmp_path)
    run.claim(read("digits-flow").table())
    assert read(str(run.recipe_file)).toml() == read("digits-flow").toml()
    text = run.recipe_file.read_text()
    edited = text.replace("seed = 0", "seed = 1", 1)
    assert edited != text
    run.recipe_file.write_text(edited)
    with pytest.raises(InputError, match=r"recipe\.toml was changed or is damaged"):
        read(str(run.recipe_file))
    (tmp_path / "mine.toml").write_text(edited)  # a copy is the user's
    run.recipe_file.write_text(edited.rpartition("#")[0])  # and so is one without the checksum
    for name in ("mine.toml", "recipe.toml"):
        assert read(str(tmp_path / name)).fit.seed == 1
