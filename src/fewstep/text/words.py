"""Split text into words, in the same way in Python and in the JavaScript of an exported page.

Python and browsers contain different versions of Unicode. Normalization changes no character that
has existed since an earlier version, so it is limited to ranges without gaps, whose characters
are all in Unicode 14, the oldest version of a supported Python.
"""

import re
import unicodedata
from functools import cache

LONGEST_PROMPT = 10_000
"""Characters of a prompt that are read; no network receives so many tokens."""
_RANGES = (
    "20-376 37A-37F 384-38A 38C 38E-3A1 3A3-52E 531-556 587 591-5C7 5D0-5EA 5F2 610-6ED 1100-11C2 "
    "1D2C-1F0F 1F18-1F1D 1F28-1F3F 1F48-1F4D 1F59 1F5B 1F5D 1F5F-1F7D 1F88-1FAF 1FB8-1FC1 "
    "1FC8-1FD3 1FD8-1FDB 1FDD-1FEF 1FF8-1FFE 2000-205F 2070-2071 2074-208E 2090-209C 20A8 "
    "20D0-20F0 2100-2189 2190-232A 2460-2ADD 2E9F-2EF3 2F00-2FD5 3000-303A 3046-307B 3099-30FF "
    "3131-318E 3192-319F 3200-321E 3220-33FF AC00-D7A3 F900-FA6D FA70-FAD9 FB00-FB06 FB13-FB17 "
    "FB1D-FB36 FB38-FB3C FB3E FB40-FB41 FB43-FB44 FB46-FBB1 FBD3-FD8F FD92-FDC7 FDF0-FE19 "
    "FE20-FE52 FE54-FE66 FE68-FE6B FE70-FE74 FE76-FEFC FF01-FFBE FFC2-FFC7 FFCA-FFCF FFD2-FFD7 "
    "FFDA-FFDC FFE0-FFE6 FFE8-FFEE 1D400-1D454 1D456-1D49C 1D49E-1D49F 1D4A2 1D4A5-1D4A6 "
    "1D4A9-1D4AC 1D4AE-1D4B9 1D4BB 1D4BD-1D4C3 1D4C5-1D505 1D507-1D50A 1D50D-1D514 1D516-1D51C "
    "1D51E-1D539 1D53B-1D53E 1D540-1D544 1D546 1D54A-1D550 1D552-1D6A5 1D6A8-1D7CB 1D7CE-1D7FF "
    "1F100-1F190 1F200-1F202 1F210-1F23B 1F240-1F248 1F250-1F251 2F800-2FA1D"
)
_WORD = re.compile("[a-z0-9\x80-\U0010ffff]+|[^ \t\n\r\f\v]")


@cache
def normalized_characters() -> str:
    """The characters that `normalize` changes, as the inside of a regular expression's brackets.

    They are those of Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Kana and Hangul, marks,
    symbols, compatibility forms of Chinese characters, full-width and mathematical letters.
    """
    ends = [part.partition("-") for part in _RANGES.split()]
    pairs = [(chr(int(first, 16)), chr(int(last or first, 16))) for first, _, last in ends]
    return "".join(f"{first}-{last}" for first, last in pairs)


def normalize(text: str) -> str:
    """The text in lower case and Unicode's form NFKC, in which compatible characters are equal.

    This holds for each run of `normalized_characters`; others remain as they are. The final form
    of a sigma becomes the other one, for whether a letter is the last one is a matter of Unicode's
    version too.
    """
    if text.isascii():
        return text.lower()
    return _runs().sub(lambda run: _normalize(run[0]), text)


def split_words(text: str) -> list[str]:
    """Words of a text, normalized. Each ASCII punctuation mark is a word of its own.

    Characters outside ASCII belong to words, whatever they are: classes of Unicode differ between
    versions and languages.
    """
    return _WORD.findall(normalize(text))


def is_word(word: str) -> bool:
    """Whether one of `split_words` is no punctuation mark of ASCII."""
    return word[0] >= "\x80" or word[0].isalnum()


@cache
def _runs() -> re.Pattern[str]:
    return re.compile(f"[{normalized_characters()}]+")


def _normalize(text: str) -> str:
    lower = unicodedata.normalize("NFKC", text).lower().replace("ς", "σ")
    return unicodedata.normalize("NFKC", lower)
