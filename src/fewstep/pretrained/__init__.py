"""Checkpoints of other projects, one source per file, loaded as a `Generator`."""
