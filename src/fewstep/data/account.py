"""`FileAccount`: what a reader made of every file in a folder of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fewstep.formatting import escape, printable

NAMES = 3
"""Number of files that a line names for each reason; the others are counted."""


@dataclass(frozen=True)
class FileAccount:
    """The files in a folder of images, each counted once by what became of it.

    A folder that is not searched, such as a hidden one, counts as one file.
    """

    images: int
    """Number of image files in the set."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Files that are neither images of the set nor extras, by reason. A reason follows their
    number in a sentence: "with the suffix .txt", "behind a broken link"."""
    extras: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of files that belong beside images, by kind: of captions, hidden, label file, readme
    or licence, of the operating system."""
    other_splits: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of files of each split that was not read."""
    notes: tuple[str, ...] = ()
    """What else the user should know of how the images and labels were read."""

    @property
    def total(self) -> int:
        """Number of files."""
        others = sum(self.extras.values()) + sum(self.other_splits.values())
        return self.images + others + self._count_left_out()

    def lines(self) -> Iterator[tuple[str, str]]:
        """The account as (name, text), for `fewstep doctor`."""
        yield "files", f"{self.total:,}: {', '.join(self._counts())}"
        for reason, names in self.left_out.items():
            yield "left out", _reason_text(reason, names)
        for note in self.notes:
            yield "note", note

    def summary(self) -> str:
        """The account in one line without names, for the training log."""
        reasons = [f"{len(names):,} {reason}" for reason, names in self.left_out.items()]
        noun = "file" if self.total == 1 else "files"
        return f"{self.total:,} {noun}: {', '.join(self._counts())}" + (
            f" ({', '.join(reasons)})" if reasons else ""
        )

    def warning(self) -> str:
        """One line about the files that were left out, and the notes; empty without any."""
        parts: list[str] = []
        if self.left_out:
            reasons = [_reason_text(reason, names) for reason, names in self.left_out.items()]
            verb = "is" if self._count_left_out() == 1 else "are"
            parts.append(
                f"{self._count_left_out():,} of {self.total:,} files {verb} left out: "
                f"{'; '.join(reasons)}"
            )
        return ". ".join([*parts, *self.notes])

    def _counts(self) -> list[str]:
        counts = [f"{self.images:,} in the set"]
        counts += [f"{count:,} {kind}" for kind, count in self.extras.items()]
        counts += [f"{count:,} of the split {name}" for name, count in self.other_splits.items()]
        return counts + ([f"{self._count_left_out():,} left out"] if self.left_out else [])

    def _count_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))


def _reason_text(reason: str, names: Sequence[str]) -> str:
    return f"{len(names):,} {reason} ({name_list(names)})"


def name_list(names: Sequence[str]) -> str:
    """The first names, printable, and "..." if there are more."""
    more = ["..."] if len(names) > NAMES else []
    return ", ".join([*map(printable, names[:NAMES]), *more])


def as_text(name: str) -> str:
    """The name of a file as text, with escapes for bytes that are not UTF-8."""
    return "".join(escape(c) if "\ud800" <= c <= "\udfff" else c for c in name)
