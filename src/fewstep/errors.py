"""The exception for errors that the user can correct.

A wrong recipe key, a missing data set or a damaged file raises `InputError`. The command line
prints its message in one line and exits with 2. Any other exception is a bug of fewstep.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches


class InputError(ValueError):
    """Raised for unusable input. Its message says what is wrong, what is allowed and what to do."""


class SharedError(InputError):
    """An InputError that all processes of `torchrun` raise at once; only the first prints it."""


@contextmanager
def errors_about(name: str) -> Generator[None]:
    """Put the name and a colon before the message of an InputError that the block raises."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{name}: {error}") from error


def did_you_mean(word: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """The end of an error message, "; did you mean X?", or "" if no choice is similar.

    `prefix` is put before the choice in the message and is not part of the comparison.
    """
    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
