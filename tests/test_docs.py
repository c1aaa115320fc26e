"""The documentation is true: code runs, commands and keys exist, links lead somewhere."""

import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fewstep import cli, plugins, recipe
from fewstep.cli import console

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
)
EXECUTED_ELSEWHERE = {"docs/extending.md"}  # by test_extending
SCALE = "0.01"  # of the notebooks' training


def text_of(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.S | re.M)


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", [p for p in pages_with("python") if p not in EXECUTED_ELSEWHERE])
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page, one after another; trainings are cut to three steps."""
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"fit\.steps=\d+", "fit.steps=3", "\n".join(blocks(page, "python")))
    exec(compile(code, page, "exec"), {"__name__": page})


@pytest.mark.parametrize("page", [p for p in pages_with("toml") if p not in EXECUTED_ELSEWHERE])
def test_recipes_can_be_read(page, tmp_path):
    for text in blocks(page, "toml"):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        recipe.read(str(path))


def commands(page):
    """Every shell command of a page, from `sh` blocks and from inline code, as lists of words."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    start = r"([A-Z_]+=\S+ )*(fewstep|make|python|torchrun|pip) [^-\s]"
    for line in [*lines, *(span for span in spans if re.match(start, span))]:
        for command in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line)):
            words = [word for word in shlex.split(command) if word != "..."]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def is_placeholder(word):
    """RUN, DIR, N, digits-NAME, fit.steps=1500+N: words that stand for something."""
    return re.search(r"(?<![A-Za-z0-9_$])[A-Z]+(?![a-z0-9_])", word) is not None


class Parsed(Exception):
    """Raised once the options of a verb are read."""


def check_fewstep(words, monkeypatch):
    verb, *arguments = words
    assert verb in cli.VERBS, f"no verb {verb}"
    if not arguments or "--help" in arguments:
        return
    parse = console.options

    def parse_and_stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(console, "options", parse_and_stop)
        cli.main(words)
    preset = not is_placeholder(arguments[0]) and not arguments[0].endswith(".toml")
    if verb in ("train", "distill") and preset:
        changes = [a for a in arguments[1:] if re.match(r"[\w.]+=", a) and not is_placeholder(a)]
        recipe.read(arguments[0], changes)


def check(words, monkeypatch):
    """Fails if a command names a verb, an option, a recipe, a key, a target or a file in vain."""
    if "-m" in words and words[words.index("-m") + 1] == "fewstep":
        check_fewstep(words[words.index("-m") + 2 :], monkeypatch)
    elif Path(words[0]).name == "fewstep" and len(words) > 1 and words[1] != "--help":
        check_fewstep(words[1:], monkeypatch)
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", text_of("Makefile"), re.M)
        assert {word for word in words[1:] if "=" not in word} <= {*targets}
    elif Path(words[0]).name.startswith("python") and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), words[1]
    elif "pip" in words and "install" in words:
        project = tomllib.loads(text_of("pyproject.toml"))
        extras = {e for w in words for e in re.findall(r"\[(.*)\]", w) for e in e.split(",")}
        assert extras <= project["project"]["optional-dependencies"].keys()
        groups = {w for option, w in zip(words, words[1:], strict=False) if option == "--group"}
        assert groups <= project["dependency-groups"].keys()


@pytest.mark.parametrize("page", sorted({page for page, _ in COMMANDS}))
def test_commands_exist(page, monkeypatch, tmp_path, home, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (words for other, words in COMMANDS if other == page):
        try:
            check(words, monkeypatch)
        except BaseException as error:  # SystemExit too: the parser's answer to an unknown option
            pytest.fail(f"{shlex.join(words)}: {error!r} {capsys.readouterr().err}")


def anchors(path):
    """The anchors of a Markdown file's headings, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.*)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        name, _, anchor = target.partition("#")
        if not re.match(r"https?:", target):
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_exist(page):
    """Python files and dotted names that a page mentions, except a reader's own `my…`."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    for name in re.findall(r"(?<![\w/.])(?!my)[\w/]+\.py\b", text):
        assert any((ROOT / place / name).exists() for place in (".", "src/fewstep")), name
    for name in re.findall(r"`(fewstep(?:\.\w+)+)`", text):
        if name.removeprefix("fewstep.") in plugins.REGISTRY:
            continue  # a group of entry points
        assert pkgutil.resolve_name(name) is not None, name


def test_figures_of_the_readme_are_results():
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", text_of("README.md"))
    assert len(figures) > 5
    results = text_of("docs/results.md")
    assert all(figure in results for figure in figures)


def test_generated_parts_exist():
    """Each marker names a function of docs/generate.py, and API markers name modules."""
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    markers = [m for page in PAGES for m in generate["MARKER"].finditer(text_of(page))]
    assert {m[1] for m in markers} == generate["PARTS"].keys()
    for marker in markers:
        if marker[1] not in ("cli", "api"):
            assert generate["PARTS"][marker[1]](*marker[2].split())
        elif marker[1] == "api":
            assert [*map(generate["expand"], marker[2].split())]


def test_docstrings_become_rst():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    lines = ["Of `x` and |y|:", "", "    a = b*c", "", "Then more_text."]
    generate["docstring_as_rst"](None, "function", "f", None, None, lines)
    assert lines == [
        *["Of ``x`` and \\|y\\|:", "", "", "::", "", "    a = b*c", "", "", "Then more\\_text."],
    ]


def test_code_may_be_followed_by_a_letter():
    escape = runpy.run_path(str(ROOT / "docs" / "generate.py"))["escape"]
    assert escape("`Record`s of x_t, `f()`, a*b") == "``Record``\\ s of x\\_t, ``f()``, a\\*b"


EXAMPLES = [
    pytest.param(path, marks=[] if path.stem == "digits" else pytest.mark.slow, id=path.name)
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALE", SCALE)
    monkeypatch.setenv("MPLBACKEND", "agg")
    result = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr


def test_house_limits():
    """Files of at most 350 lines."""
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
