"""The split of the emojis: `test` has compositions of a person and a skin tone that `train` lacks.

An emoji is a sequence of Unicode code points, which its file name spells. Skin tones are the code
points U+1F3FB to U+1F3FF (Unicode Technical Standard 51, section 2.4); the base is the rest.
"""

import hashlib

TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}
"""Names of the skin tones by their code points."""
JOINER, FEMALE, MALE, RIGHT_ARROW = 0x200D, 0x2640, 0x2642, 0x27A1
PERSONS = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}
"""A person in place of a man and of a woman."""
NO_SKIN = frozenset({0x1F3C2})
"""Emojis whose picture is the same in all skin tones: the snowboarder."""

CodePoints = tuple[int, ...]


def read_code_points(file_name: str) -> CodePoints:
    """The code points in a file name of Noto Emoji, such as `emoji_u1f44b_1f3fb.png`."""
    codes = file_name.removeprefix("emoji_u").removesuffix(".png").split("_")
    return tuple(int(code, 16) for code in codes)


def tones_in(emoji: CodePoints) -> tuple[str, ...]:
    """Names of the skin tones of an emoji: none, that of one person, or those of two."""
    return tuple(TONES[code] for code in emoji if code in TONES)


def without_tones(emoji: CodePoints) -> CodePoints:
    """The emoji without skin tones."""
    return tuple(code for code in emoji if code not in TONES)


def is_in_test(emoji: CodePoints) -> bool:
    """Whether an emoji is in the split `test`: one of the skin tones of about two thirds of the
    persons, chosen by a hash. All emojis with two tones are in `train`.

    Pictures of a man, a woman and a person, walking left or right, are nearly the same. They are
    one person here, whose emojis lack the same tone in `train`.
    """
    tones, base = tones_in(emoji), without_tones(emoji)
    if len(tones) != 1 or not NO_SKIN.isdisjoint(base):
        return False
    ignored = (JOINER, FEMALE, MALE, RIGHT_ARROW)
    family = [PERSONS.get(code, code) for code in base if code not in ignored]
    text = " ".join(f"{code:X}" for code in family)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    is_complete = number % 3 == 0  # all tones of a third of the persons are in train
    return not is_complete and tones[0] == list(TONES.values())[number // 3 % len(TONES)]
