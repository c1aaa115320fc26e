"""`fewstep distill RECIPE ...`: the same as `train`, for recipes with a teacher."""

from collections.abc import Sequence

from fewstep.cli import train


def main(argv: Sequence[str]) -> int:
    """Train a student. Returns the exit code."""
    return train.main(argv, verb="distill")
