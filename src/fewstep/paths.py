"""What a path on this machine holds, for error messages that tell common mix-ups apart."""

from pathlib import Path
from typing import Literal

from fewstep.errors import InputError

Kind = Literal["run", "store", "diffusers", "images", "recipe", "checkpoint"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
NAMES: dict[Kind, str] = {
    "run": "a run",
    "store": "a store of recorded pairs",
    "diffusers": "a checkpoint of diffusers",
    "images": "a folder of images",
    "recipe": "a recipe",
    "checkpoint": "a checkpoint of another project",
}
_MARKS: dict[Kind, tuple[tuple[str, bytes], ...]] = {
    "run": (("recipe.toml", b""), ("model.safetensors", b"fewstep")),
    "store": (("manifest.json", b'{\n "content"'), ("plan.json", b'{\n "content"')),
    "diffusers": tuple(
        (file, b'"_class_name"')
        for file in ("model_index.json", "unet/config.json", "unet_ema/config.json", "config.json")
    ),
}
"""For each kind of folder, its files, and what their first bytes contain."""
_ADVICE: dict[tuple[Kind, Kind], str] = {
    ("run", "store"): "students read it by pairs.load={path}",
    ("run", "diffusers"): "write diffusers:{path}",
    ("run", "images"): "write folder:{path} where a data set is named",
    ("run", "recipe"): "train it with `fewstep train {path} --out DIR`, and give that DIR",
    ("store", "run"): "record pairs with `fewstep record {path} --out DIR`, and give that DIR",
    ("store", "diffusers"): (
        "record pairs with `fewstep record diffusers:{path} --out DIR`, and give that DIR"
    ),
    ("store", "images"): "pairs of noise and image are recorded by `fewstep record RUN --out DIR`",
    ("store", "recipe"): "pairs are recorded by `fewstep record RUN --out DIR`; give that DIR",
    ("images", "run"): "give the folder of the images themselves",
    ("images", "store"): "give the folder of the images themselves",
    ("images", "diffusers"): "give the folder of the images themselves",
    ("images", "recipe"): "give the folder of the images themselves",
    ("checkpoint", "run"): "write {path} alone",
    ("checkpoint", "store"): "students read it by pairs.load={path}",
    ("checkpoint", "diffusers"): "write diffusers:{path}",
    ("checkpoint", "images"): "write folder:{path} where a data set is named",
    ("checkpoint", "recipe"): "train it with `fewstep train {path} --out DIR`, and give that DIR",
    ("recipe", "run"): "its recipe is {path}/recipe.toml",
    ("recipe", "store"): "a recipe names it by pairs.load={path}",
    ("recipe", "diffusers"): "a recipe names it by teacher.load=diffusers:{path}",
    ("recipe", "images"): "a recipe names it by data.name=folder data.path={path}",
}
"""What to do, by the expected kind and the kind that the path has."""


def identify(path: Path) -> Kind | None:
    """The kind of a file or folder; None if it is missing, cannot be read, or is of no kind.

    Checkpoints of other projects are not identified, but for those of diffusers.
    """
    try:
        return _identify(path)
    except OSError:
        return None


def _identify(path: Path) -> Kind | None:
    if path.suffix == ".toml" and path.is_file():
        return "recipe"
    if not path.is_dir():
        return None
    for kind, marks in _MARKS.items():
        if any(_contains(path / file, content) for file, content in marks):
            return kind
    if _has_images(path):
        return "images"
    folders = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return "images" if any(_has_images(entry) for entry in folders if entry.is_dir()) else None


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _contains(file: Path, content: bytes) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return content in stream.read(1 << 16)


def check_kind(path: str | Path, expected: Kind) -> None:
    """Raise InputError for a path of another kind than `expected`; accept one of no kind."""
    kind = identify(Path(path))
    if kind is None or kind == expected:
        return
    advice = _ADVICE[expected, kind].format(path=path)
    raise InputError(f"{path} is {NAMES[kind]}, not {NAMES[expected]}: {advice}")
