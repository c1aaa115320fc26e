"""What a person did wrong, told in one line.

Everything that a user can cause (a wrong recipe key, a missing data set, a damaged file) is an
`InputError`; the command line prints its message and exits with 2. Any other exception is our bug.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """The input cannot be used. The message says what came, what is allowed and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """An error's "; did you mean X?" for the nearest known word; nothing where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
