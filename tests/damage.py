"""Damage to files, one byte at a time, and files that others made to do harm."""

from pathlib import Path

from fewstep.errors import InputError


def flip(path: Path, position: int, mask: int = 0xFF) -> None:
    """Change the bits of `mask` in one byte of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def unnoticed(path, read, positions, masks=(0xFF, 0x01, 0x20)):
    """Positions of flips that `read` neither refuses in one line nor is unaffected by.

    `read` returns what the program would use, which must equal that of the intact file.
    """
    expected, missed = read(), []
    for position in positions:
        for mask in masks:
            flip(path, position, mask)
            try:
                if read() != expected:
                    missed.append((position, mask))
            except InputError as error:
                text = str(error)
                assert path.name in text and "\n" not in text and len(text) < 1000, text
            finally:
                flip(path, position, mask)
    return missed
