"""Checkpoints of other projects, one source per file, loaded as a `Generator`."""

from collections.abc import Callable

from fewstep.generator import Generator
from fewstep.pretrained.diffusers import read_diffusers

SCHEMES: dict[str, Callable[[str], Generator]] = {"diffusers": read_diffusers}
"""Readers of addresses `scheme:rest` by scheme; each is called with the rest."""

__all__ = ["SCHEMES", "read_diffusers"]
