"""`fewstep distill RECIPE ...`: `train`, with another intention."""

from collections.abc import Sequence

from fewstep.cli import train


def main(argv: Sequence[str]) -> int:
    """Train a student; 0 when done."""
    return train.main(argv, verb="distill")
