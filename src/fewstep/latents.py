"""Latents of a data set: encoded in memory, or recorded once in a store that trainings read."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep import __version__, store
from fewstep.autoencoders import Autoencoder
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.images import from_uint8

BATCH = 256
"""Largest number of images that are encoded at once."""
BATCH_PIXELS = BATCH * 64 * 64
"""Largest number of their pixels: activations of larger images need gigabytes."""
SHARD = 4 * BATCH
MAX_BYTES = 4 << 30
"""Largest latents of a set that are encoded in memory."""
CACHE_BYTES = 1 << 30
"""Largest store that is decoded once, into memory."""


@runtime_checkable
class Rows(Protocol):
    """Samples (n, ...) that can be read by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Latents:
    """The latents of a data set's images, in their order, and of the mirrored images."""

    rows: Rows
    mirrored: Rows | None
    hash: str
    """SHA-256 of the store that they come from; empty for those encoded in memory."""


class StoredRows:
    """One column of a store."""

    def __init__(self, reader: store.Reader, name: str) -> None:
        self.reader, self.name = reader, name

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.reader[index][self.name]


def batch_size(shape: tuple[int, ...]) -> int:
    """Images of a shape that are encoded at once, a power of 2. It is always the same number, so
    that a latent does not depend on its neighbours."""
    pixels = torch.Size(shape[1:]).numel()
    return min(BATCH, 1 << max(1, BATCH_PIXELS // pixels).bit_length() - 1)


def encode_images(
    autoencoder: Autoencoder, images: UInt8[Tensor, "n c h w"], *, mirror: bool = False
) -> Iterator[Float[Tensor, "b _ _ _"]]:
    """Yield the latents of images on the CPU, `batch_size` at a time; with `mirror`, mirrored
    images'.

    The last batch is filled up with black images, so that all have one size.

    Raises: InputError for images of another shape than the autoencoder's, and latents with NaN.
    """
    device = next((b.device for b in autoencoder.decoder.buffers()), torch.device("cpu"))
    size = batch_size(tuple(images.shape[1:]))
    for part in images.split(size):
        padded = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
        with torch.inference_mode():
            latents = autoencoder.encode(
                from_uint8(padded.flip(-1) if mirror else padded).to(device)
            )
        latents = latents[: len(part)].cpu().clone()
        if not bool(latents.isfinite().all()):
            raise InputError(
                "the autoencoder's latents contain NaN or infinite values: use another"
            )
        yield latents


def encode_set(autoencoder: Autoencoder, images: ImageSet, *, flip: bool) -> Latents:
    """The latents of a small set, in memory.

    Raises: InputError for a set whose latents have more than MAX_BYTES.
    """
    size = 4 * len(images) * torch.Size(autoencoder.latent_shape).numel() * (2 if flip else 1)
    if size > MAX_BYTES:
        raise InputError(
            f"the latents of {images.name} have {size / 2**30:.1f} GiB: encode them once, `fewstep "
            "encode DATA --autoencoder RUN --out STORE`, and set data.latents=STORE"
        )
    rows, mirrored = (
        torch.cat([*encode_images(autoencoder, images.images, mirror=mirror)])
        if flip or not mirror
        else None
        for mirror in (False, True)
    )
    assert rows is not None
    return Latents(rows, mirrored, "")


def record_latents(
    autoencoder: Autoencoder, images: ImageSet, folder: store.Address, *, flip: bool, codec: str
) -> Generator[int, None, None]:
    """Write the latents of a set into a store; yields the number of images done so far.

    `flip` adds the latents of the mirrored images. A store that was begun is completed.

    Raises: InputError for a folder with other contents, or as `encode_images`.
    """
    shape = autoencoder.latent_shape
    codecs = {"f16": store.F16(shape), "raw": store.Raw(torch.float32, shape)}
    if codec not in codecs:
        raise InputError(f"unknown codec {codec!r} of latents; choose one of {', '.join(codecs)}")
    names = ["latent", "mirrored"] if flip else ["latent"]
    writer = store.Writer(
        folder,
        schema=dict.fromkeys(names, codecs[codec]),
        count=len(images),
        shard_size=SHARD,
        provenance={
            "autoencoder": autoencoder.hash,
            "data": images.fingerprint,
            "name": images.name,
            "version": __version__,
        },
    )
    for shard in writer.missing():
        part = images.images[shard.start : shard.stop]
        records = {
            name: torch.cat([*encode_images(autoencoder, part, mirror=name == "mirrored")])
            for name in names
        }
        writer.write(shard.start, records)
        yield shard.stop
    writer.finish()


def read_latents(
    address: store.Address, autoencoder_hash: str, images: ImageSet, *, flip: bool
) -> Latents:
    """The latents that `record_latents` wrote.

    Raises: InputError for latents of another autoencoder or of other images, for a store of
    something else, and if `flip` needs mirrored images that it lacks.
    """
    reader = store.Reader(address)
    if "latent" not in reader.schema:
        raise InputError(
            f"the store {address} holds {', '.join(sorted(reader.schema))}, not latents: write "
            "them by `fewstep encode`"
        )
    sources = {"autoencoder": autoencoder_hash, "data": images.fingerprint}
    for noun, digest in sources.items():
        other = str(reader.provenance.get(noun))
        if other != digest:
            raise InputError(
                f"the latents in {address} are of another data.{noun if noun != 'data' else 'name'}"
                f" than this recipe's (hashes {other[:12]} and {digest[:12]}): encode them again"
            )
    if flip and "mirrored" not in reader.schema:
        raise InputError(
            f"data.flip needs latents of mirrored images, which {address} lacks: encode with "
            "--flip, or set data.flip=false"
        )
    names = ["latent", "mirrored"] if flip else ["latent"]
    numbers = sum(torch.Size(reader.schema[name].shape).numel() for name in names)
    if 4 * len(reader) * numbers <= CACHE_BYTES:
        columns: dict[str, Rows] = {name: value for name, value in reader[:].items()}
    else:
        columns = {name: StoredRows(reader, name) for name in names}
    return Latents(columns["latent"], columns.get("mirrored") if flip else None, reader.hash)
