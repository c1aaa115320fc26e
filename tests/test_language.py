"""No private dialect: names in `src` are the field's words, not participles used as nouns."""

import ast
from pathlib import Path

import pytest

import fewstep

ROOT = Path(fewstep.__file__).parent
# a value is named by what it is and a function by what it does; none of these says either
BANNED = frozenset(
    """
    told said kept given shown made asked seen wanted taken found known drained keyed noised shaped
    carried chosen joined dropped led drawn gone rung written held sought learnt meant weighed
    followed narrowed simulated realness fooling telling miss walk yardstick subject whole settle
    entering leaving
    """.split()
)


def bound_names(tree):
    """(name, line) of everything that a module defines: functions, arguments, values, fields."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def words(name):
    """The words of snake_case and CamelCase names, in lower case."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in name)
    return spaced.replace("_", " ").split()


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_banned_word_is_an_identifier(path):
    offenders = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for name, line in bound_names(ast.parse(path.read_text()))
        if BANNED & set(words(name))
    ]
    assert not offenders, "\n".join(offenders)


def test_the_scan_finds_what_it_looks_for():
    source = "def noised(x, *, told): kept_score, y.said = 1, 2\nclass Yardstick: seen: int = 0"
    names = [name for name, _ in bound_names(ast.parse(source)) if BANNED & set(words(name))]
    assert sorted(names) == ["Yardstick", "kept_score", "noised", "said", "seen", "told"]
