"""Split text into words, in the same way in Python and in the JavaScript of an exported page."""

import unicodedata

ASCII_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
ASCII_SPACE = frozenset(" \t\n\r\f\v")


def normalize(text: str) -> str:
    """The text in lower case and Unicode's form NFKC, in which compatible characters are equal."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())


def split_words(text: str) -> list[str]:
    """Words of a text, normalized. Each ASCII punctuation mark is a word of its own.

    Characters outside ASCII belong to words, whatever they are: classes of Unicode differ between
    versions and languages.
    """
    words: list[str] = []
    inside = False
    for character in normalize(text):
        if character in ASCII_SPACE:
            inside = False
        elif character in ASCII_WORD or character >= "\x80":
            if inside:
                words[-1] += character
            else:
                words.append(character)
            inside = True
        else:
            words.append(character)
            inside = False
    return words
