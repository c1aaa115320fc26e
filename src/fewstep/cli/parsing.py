"""Parse command lines with tyro, whose boxes of errors become one line."""

import io
import re
from contextlib import redirect_stderr
from typing import Any

import tyro

from fewstep.errors import InputError


def parse(kind: Any, settings: dict[str, Any]) -> Any:
    """`tyro.cli` with these settings; exits with code 0 for `--help`.

    Raises: InputError for arguments that do not fit.
    """
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(kind, **settings)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise InputError(f"{one_line(box.getvalue())}; see {settings['prog']} --help")


def one_line(box: str) -> str:
    """The problem that a box of tyro states, without the help of its options."""
    lines = [re.sub(r"^[│|] ?|\s*[│|]?$", "", line) for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if re.search(r"[─-]{5}|^[╭╰+]", line)]
    start = rules[0] + 1 if rules else 0
    sections = [lines[a + 1 : b] for a, b in zip(rules, rules[1:], strict=False)]
    problem = sections[0] if sections else lines[start:]
    text = " ".join(line.strip() for line in problem if not line.startswith(" " * 8))
    text = re.sub(r"\.? +Got errors:.*", "", text)
    text = re.sub(r"no type matching (\w+) could be instantiated from", r"no \1:", text)
    hint = next((s for s in sections[1:] if s and s[0].startswith("Perhaps you meant")), ["", ""])
    option = re.search(r"--[\w-]+", " ".join(hint[1:]))
    return f"{text.rstrip('.')}; did you mean {option[0]}?" if option else text.rstrip(".")
