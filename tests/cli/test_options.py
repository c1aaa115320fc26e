"""Options in any order, help, text that is no markup, progress bars."""

import importlib
import itertools
from pathlib import Path

import pytest

from fewstep.cli import VERBS, console, main

VERBS_WITH_WORDS = {
    "train": (["R", "a.b=1", "c=2"], [["--out", "X"], ["--track", "wandb"]]),
    "compare": (["one", "two", "three"], [["--steps", "1,2"], ["--json"]]),
    "sample": (["R"], [["-o", "x.png"], ["--label", "3,4"], ["--times", "1,0.5"], ["--seed", "2"]]),
    "record": (["R"], [["--out", "X"], ["-n", "7"], ["--no-resume"]]),
    "evaluate": (["R"], [["--steps", "1,2"], ["--straightness"]]),
    "progress": (["R"], [["--csv"], ["-o", "x.csv"]]),
}


def parse(verb, argv):
    kind = importlib.import_module(f"fewstep.cli.{verb}").Options
    return console.options(kind, verb, argv, negations=verb == "record")


def interleavings(words, groups):
    """All orders of the groups among the words, which keep their own order."""
    for places in itertools.product(range(len(words) + 1), repeat=len(groups)):
        argv = []
        for i in range(len(words) + 1):
            argv += [word for place, group in zip(places, groups, strict=True) if place == i
                     for word in group]  # fmt: skip
            argv += words[i : i + 1]
        yield argv


@pytest.mark.parametrize("verb", VERBS_WITH_WORDS)
def test_options_and_words_come_in_any_order(verb):
    words, groups = VERBS_WITH_WORDS[verb]
    expected = parse(verb, [*words, *itertools.chain(*groups)])
    for order in itertools.permutations(groups):
        for argv in interleavings(words, order):
            assert parse(verb, argv) == expected, argv


@pytest.mark.parametrize(
    ("verb", "argv", "message"),
    [
        ("train", ["R", "--otu", "X", "a=1"], "--otu"),
        ("train", ["R", "a=1", "--out", "X", "b=2", "--bogus"], "--bogus"),
        ("sample", ["R", "-o", "x.png", "S"], "S"),
        ("evaluate", ["R", "--steps", "1", "S"], "S"),
        ("train", ["--out", "X"], "RECIPE"),
        ("sample", ["R", "--steps", "x"], "parsing --steps: no INT: ['x']"),
        ("sample", ["R", "--stepz", "3", "-o", "x.png"], "--stepz, 3"),
        ("sample", ["R", "-o"], "Missing value for argument '-o/--out'"),
        ("sample", ["R", "--weights", "last"], "invalid choice 'last' for argument '--weights'"),
        ("sample", [], "RUN"),
        ("list", ["a", "b", "c"], "b, c"),
        ("export", ["R", "--to"], "--to"),
    ],
)
def test_what_does_not_fit_is_an_error(verb, argv, message, capsys):
    assert main([verb, *argv]) == 2
    line = capsys.readouterr().err
    assert message in line and line.startswith("fewstep: ") and line.count("\n") == 1
    assert line.endswith(f"; see fewstep {verb} --help\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_plain_types_and_brackets(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "None}" not in text and "usage" in text
    if verb in ("train", "distill"):
        assert "[KEY=VALUE ...]" in text


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--out", "X", "digits-flow", "--help"],
        ["train", "--help", "--out", "X", "digits-flow"],
        ["distill", "-h", "digits-flow", "--track", "wandb"],
        ["train", "digits-flow", "fit.batch=17", "--out", "X", "fit.steps=5", "--help"],
    ],
)
def test_help_of_a_recipe_is_found_among_options(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "A flow-matching teacher" in text and "[key=value ...] [--out DIR]" in text
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line[:4] == "fit."}
    changed = "fit.steps=5" in argv
    assert rows["fit.steps"] == ("5" if changed else "1500")
    assert rows["fit.batch"] == ("17" if changed else "96")


def test_help_without_a_recipe_is_of_the_verb(capsys):
    for argv in (["train", "--help"], ["train", "--out", "X", "-h"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
        assert "usage: fewstep train" in capsys.readouterr().out


TEXTS = ["g[red].png", "[bold]x[/]", "[/]", "runs/:smile:/x", "[key=value ...]", r"\[x]"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_printed_as_it_is(text, capsys):
    from rich.table import Table

    table = Table(text)
    table.add_row(text)
    console.out.print(text)
    console.out.print(text, style="dim")
    console.out.print(table)
    assert capsys.readouterr().out.count(text) == 4


@pytest.mark.parametrize("text", TEXTS)
def test_progress_bars_show_text_as_it_is(text, capsys):
    with console.bar(text, 2) as update:
        update(2, text)
    assert capsys.readouterr().err.count(text) == 2


def test_tables_are_printed_in_full(capsys):
    from rich.table import Table

    table = Table("x" * 300)
    table.add_row("[y]" * 100)
    console.print_table(table)
    text = capsys.readouterr().out
    assert "x" * 300 in text and "[y]" * 100 in text


def test_no_progress_bar_comes_before_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["train", "digits-flow", "student.backbone.channels=[7]"],
        ["distill", "digits-dmd"],
        ["record", "nowhere", "--out", "x"],
        ["record", "--verify", "nowhere"],
    ):
        assert main(argv) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1, argv


def test_all_verbs_print_through_one_console():
    """A second Console would interpret brackets in names of files."""
    folder = Path(console.__file__).parent
    sources = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert [name for name, text in sources.items() if "rich.console" in text] == ["console.py"]
    assert sources["console.py"].count(" Console(") == 1
