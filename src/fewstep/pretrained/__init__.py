"""Other people's checkpoints, one source a file: each is read into a `Generator`."""

from collections.abc import Callable

from fewstep.generator import Generator
from fewstep.pretrained.diffusers import read_diffusers

SCHEMES: dict[str, Callable[[str], Generator]] = {"diffusers": read_diffusers}
"""What reads an address, by the word before its colon; each is given what follows it."""

__all__ = ["SCHEMES", "read_diffusers"]
