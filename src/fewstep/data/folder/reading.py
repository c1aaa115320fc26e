"""Read the text files in a folder of images: label files, and captions."""

import codecs
from pathlib import Path

from fewstep.errors import InputError
from fewstep.formatting import printable
from fewstep.paths import read_regular


def read_text(path: Path, *, limit: int) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark.

    Raises: InputError for a file that cannot be read, has more than `limit` bytes, or is not such a
    text, then with the line.
    """
    name = printable(str(path))
    try:
        content = read_regular(path, limit=limit)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); make it readable") from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # utf-8-sig, because spreadsheets write a byte-order mark
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start : error.start + 1].hex()
        raise InputError(
            f"{name}, line {line}: the byte 0x{byte} is not UTF-8, as text in Latin-1 or "
            "Windows-1252 is not; save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{name} contains zero bytes, as text in UTF-16 does; save it as UTF-8")
    return text
