"""Pictures of the page: enlarged without blur, all on the scale of the images themselves."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from fewstep import __version__
from fewstep.formatting import number
from fewstep.images import encode_animation, grid, png_text, to_uint8
from fewstep.studio import toys
from fewstep.studio.workshop import Request, Result

WIDTH = 384
"""Pictures are enlarged by the largest whole factor up to this width in pixels."""


GAP = 2
"""Pixels between the images of a sheet."""


def enlarge(picture: Image.Image, *, width: int = WIDTH) -> Image.Image:
    """The picture, each pixel repeated by the largest whole factor up to `width`."""
    factor = max(1, width // picture.width)
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def picture_of(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    """One image as a picture of its own size: grey, or the first three channels as colours."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    if pixels.shape[2] in (3, 4):
        return Image.fromarray(pixels[:, :, :3])
    return Image.fromarray(pixels[:, :, 0])


def sheet(
    images: UInt8[Tensor, "n c h w"], *, columns: int | None = None, width: int = WIDTH
) -> Image.Image:
    """The images in rows, enlarged together to at most `width` pixels."""
    count, channels, _, size = images.shape
    columns = columns or max(1, round(count**0.5))
    scale = max(1, ((width + GAP) // columns - GAP) // size)
    if channels not in (1, 3):
        images = images[:, :3] if channels > 3 else images[:, :1]
    return grid(images, columns=columns, scale=scale)


def show(result: Result, *, width: int = WIDTH) -> Image.Image:
    """All images of a result as one picture; points of a toy as dots."""
    if result.values.ndim == 4:
        return sheet(result.images, width=width)
    return toys.scatter(result.values)


def show_one(result: Result, index: int) -> Image.Image:
    """One image of a result in its own size; one point of a toy as a dot."""
    if result.values.ndim == 4:
        return picture_of(result.images[index])
    return toys.scatter(result.values[index : index + 1])


def data_url(picture: Image.Image, metadata: Mapping[str, str] | None = None) -> str:
    """`png` as an address: a picture that is replaced soon needs no request of its own."""
    return "data:image/png;base64," + base64.b64encode(png(picture, metadata)).decode()


def png(picture: Image.Image, metadata: Mapping[str, str] | None = None) -> bytes:
    """The picture as a PNG file, with `metadata` as text chunks."""
    info = png_text({"Software": f"fewstep {__version__}", **(metadata or {})})
    file = io.BytesIO()
    picture.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def metadata_of(request: Request) -> dict[str, str]:
    """What a picture's file says of its origin: enough to generate it again."""
    labels, prompts = request.labels, request.prompts
    text = {"prompt": "\n".join(prompts), "negative": request.negative} if prompts else {}
    return {
        "run": request.model.name,
        "run_hash": request.model.hash,
        "seed": ", ".join(str(start) for start in request.starts),
        "label": "" if labels is None else ", ".join(map(str, labels)),
        "steps": str(request.steps),
        "guidance": f"{request.guidance:g}",
        **text,
    }


def difference(
    left: UInt8[Tensor, "n c h w"], right: UInt8[Tensor, "n c h w"], *, width: int = WIDTH
) -> tuple[Image.Image, str]:
    """A map of right − left, and its text. White is no difference, for every pair of images.

    Red is where `right` is brighter, by the full range at most; blue where it is darker.
    """
    change = (right.float() - left.float()).mean(1) / 255
    colours = matplotlib.colormaps["bwr"](((change + 1) / 2).numpy())[..., :3]
    tiles = torch.from_numpy(np.rint(colours * 255).astype(np.uint8)).permute(0, 3, 1, 2)
    size = float((right.float() - left.float()).abs().mean()) / 255
    largest = float((right.float() - left.float()).abs().max()) / 255
    text = f"mean difference {number(100 * size)} % of the range, largest {100 * largest:.0f} %"
    return sheet(tiles, width=width), text


def animation(
    images: UInt8[Tensor, "n c h w"], kind: Literal["GIF", "WebP"], *, seconds: float = 3.0
) -> bytes:
    """The images as an endless animation, enlarged: GIF, or WebP without loss."""
    frames = [enlarge(picture_of(image), width=256) for image in images]
    time = round(1000 * seconds / len(frames))
    return encode_animation(frames, kind, milliseconds=[time] * len(frames))


def film(states: Sequence[Tensor], scales: Sequence[float]) -> UInt8[Tensor, "n c h w"]:
    """The first image of each state (b, c, h, w), divided by its scale, as uint8."""
    return torch.cat(
        [to_uint8(state[:1].float() / scale) for state, scale in zip(states, scales, strict=True)]
    )
