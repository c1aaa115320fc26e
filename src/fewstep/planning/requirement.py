"""`Requirement`: something that a training reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """Something that a training reads, and whether it is on this machine."""

    noun: str
    """data, autoencoder, latents, teacher, weak (of `teacher.autoguidance`), initial (of
    `student.init`), pairs, loss or extractor."""
    name: str
    """Its name, path or address."""
    missing: str = ""
    """What makes or fetches it; empty if it is present."""
