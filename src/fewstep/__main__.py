"""`python -m fewstep`, the same as `fewstep`."""

from fewstep.cli import run

run()
