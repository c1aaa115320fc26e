"""Generated parts of the site. A page contains one as a line `<!-- generate: NAME ARGUMENTS -->`.

api MODULE ...      API reference of these modules; `package.*`: a package with all its modules;
                    `*`: every module that no other page has
exports             the names that `fewstep` exports
cli                 `fewstep VERB --help` of every verb
recipes PREFIX      table of the presets whose names start so
notebook FILE       a script in percent format as a page
"""

import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module, resources
from pathlib import Path

import fewstep

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"^<!-- generate: (\w+) ?(.*?) ?-->$", re.M)
SOURCE = "https://github.com/fewstep/fewstep/blob/main/"
UNDOCUMENTED = {"__main__", "cli", "studio"}


def fill_page(app, name, source):
    """Replace the markers of a page. Connected to Sphinx's `source-read`."""
    source[0] = MARKER.sub(lambda match: PARTS[match[1]](*match[2].split()), source[0])


def api(*names):
    parts = []
    for name in (module for pattern in names for module in expand(pattern)):
        # a package's own page is its docstring: its members are documented in their modules
        options = "   :no-members:\n" if is_package(name) else ""
        parts += [f"## {name}", f"```{{eval-rst}}\n.. automodule:: fewstep.{name}\n{options}```"]
    return "\n\n".join(parts)


def expand(pattern):
    """The modules that `module`, `package.*` or `*` stands for."""
    if pattern == "*":
        named = {name for names in api_markers() for name in names if name != "*"}
        modules = [m.name for m in pkgutil.iter_modules(fewstep.__path__)]
        others = [m for m in modules if not named & {m, f"{m}.*"} and m not in UNDOCUMENTED]
        return [m for other in others for m in expand(f"{other}.*" if is_package(other) else other)]
    package = pattern.removesuffix(".*")
    if package == pattern:
        return [pattern]
    path = import_module(f"fewstep.{package}").__path__
    modules = pkgutil.walk_packages(path, f"fewstep.{package}.")
    return [package, *(module.name.removeprefix("fewstep.") for module in modules)]


def is_package(name):
    return hasattr(import_module(f"fewstep.{name}"), "__path__")


def api_markers():
    """The arguments of every API marker of the site."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        yield from (m[2].split() for m in MARKER.finditer(page.read_text()) if m[1] == "api")


def exports():
    """A table of the public names, by module."""
    exported = {}
    for name in fewstep.__all__:
        if name != "__version__":
            exported.setdefault(getattr(fewstep, name).__module__, []).append(f"`{name}`")
    rows = [f"| `{module}` | {', '.join(exported[module])} |" for module in sorted(exported)]
    return "\n".join(["| module | names |", "|---|---|", *rows])


def modules():
    """A table of the modules and packages, each with the first line of its docstring."""
    rows = ["| module | contents |", "|---|---|"]
    for info in pkgutil.iter_modules(fewstep.__path__):
        if info.name != "__main__":
            summary = (import_module(f"fewstep.{info.name}").__doc__ or "").splitlines()[0]
            rows.append(f"| `{info.name}` | {escape_markdown(summary)} |")
    return "\n".join(rows)


def escape_markdown(text):
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*|_<])", r"\\\1", p) for p in parts)


def cli():
    from fewstep.cli import VERBS

    return "\n\n".join(
        [f"```text\n{help_of()}\n```"]
        + [f"## {verb}\n\n```text\n{help_of(verb)}\n```" for verb in VERBS]
    )


def help_of(*verb):
    """What `fewstep VERB --help` prints, 100 columns wide."""
    command = [sys.executable, "-m", "fewstep", *verb, "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def recipes(*prefixes):
    lines = ["| recipe | result | settings from | measured on | hours |", "|---|---|---|---|---|"]
    for file in sorted((resources.files("fewstep") / "presets").iterdir(), key=lambda f: f.name):
        if file.name.startswith(prefixes):
            about = tomllib.loads(file.read_text())["about"]
            cells = [about.get(key, "") for key in ("title", "paper", "hardware", "hours")]
            cells[1] = re.sub(r"arXiv:([\d.]+)", r"[\g<0>](https://arxiv.org/abs/\1)", cells[1])
            lines.append(
                " | ".join(["| `" + file.name.removesuffix(".toml") + "`", *map(str, cells)]) + " |"
            )
    return "\n".join(lines)


def file(name):
    """The text of a Markdown file, its links as seen from docs/."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return re.sub(r"\]\((?=[.A-Z])", f"]({SOURCE}", text)


def notebook(path):
    """Markdown of a percent-format script: `# %% [markdown]` cells are text, the others code."""
    text = (ROOT / path).read_text()
    parts = []
    for kind, body in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", text, re.M | re.S):
        if kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.M))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts)


PARTS = {f.__name__: f for f in (api, exports, modules, cli, recipes, file, notebook)}


def docstring_as_rst(app, what, name, item, options, lines):
    """Our docstrings are plain text: `code` in backticks, indented lines verbatim, `- ` lists.

    Connected to Sphinx's `autodoc-process-docstring`.
    """
    result, verbatim, in_list = [], False, False
    for line in lines:
        line = line.rstrip()
        indented = line.startswith("  ") and not in_list
        if indented and not verbatim:
            result += ["", "::", ""]
        elif line and not indented and verbatim:
            result.append("")
        if line:
            verbatim = indented
            in_list = line.startswith("- ") or (in_list and line.startswith("  "))
        result.append(line if indented else escape(line))
    lines[:] = result


def escape(line):
    """RST of a line of plain text: `code` becomes a literal, other markup characters stay text."""
    result = ""
    for part in re.split(r"(`[^`]+`)", line):
        if part.startswith("`"):
            result += f"`{part}`"
        elif result and part[:1].isalpha():  # RST ends no literal before a letter
            result += "\\ " + escape_text(part)
        else:
            result += escape_text(part)
    return result


def escape_text(text):
    return re.sub(r"([*|_\\])", r"\\\1", text)
