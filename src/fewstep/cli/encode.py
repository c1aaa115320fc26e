"""`fewstep encode DATA --autoencoder RUN --out STORE`, or `--measure`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.paths import check_writable_folder
from fewstep.ranges import Pixels

if TYPE_CHECKING:
    from fewstep.autoencoders import Autoencoder
    from fewstep.data import ImageSet


@dataclass(frozen=True, kw_only=True)
class Options:
    """Encode a data set into a store of latents, for recipes with data.autoencoder and
    data.latents; or measure the reconstructions of an autoencoder.

    The same command again resumes.
    """

    data: Annotated[str, tyro.conf.Positional, console.data_option("Images to encode")]
    autoencoder: Annotated[str, tyro.conf.arg(metavar="RUN")]
    """A run of the method autoencode, its weights file, or diffusers:FOLDER."""
    out: Annotated[str | None, tyro.conf.arg(metavar="STORE")] = None
    """The folder to write the latents into, or an address such as s3://bucket/folder."""
    split: str = "train"
    """Split of the data set, as in data.split."""
    size: Pixels | None = None
    """Side length in pixels to which images are resized, as in data.size."""
    flip: bool = False
    """Also encode the mirrored images, for data.flip."""
    codec: Literal["f16", "raw"] = "f16"
    """Codec of the latents: 16 bits, or 32 bits (raw) per value."""
    measure: bool = False
    """Reconstruct the images, and print PSNR, LPIPS, and the Fréchet distance from the reference
    beside that of the images themselves, as JSON."""
    reference: str = "train"
    """With --measure, the split of the reference."""
    extractor: Annotated[
        str | None, console.names_option("extractor", "With --measure, network of the features")
    ] = None


def main(argv: Sequence[str]) -> int:
    """Run `fewstep encode`. Returns the exit code."""
    options = console.options(Options, "encode", argv)
    if not options.out and (options.out is not None or not options.measure):
        raise InputError("encode needs --out STORE, or --measure")
    if options.out and "://" not in options.out:
        check_writable_folder(Path(options.out), "--out")
    from fewstep import data
    from fewstep.autoencoder_files import load_autoencoder
    from fewstep.distributed import device

    name, path = data.split_path(options.data)
    images = data.load(name, split=options.split, size=options.size, path=path)
    autoencoder = load_autoencoder(options.autoencoder, shape=images.shape).to(device())
    if options.out:
        try:
            _encode(autoencoder, images, options.out, options)
        except console.Stopped:
            console.out.print("stopped; the same command resumes")
            return 0
    if options.measure:
        reference = data.load(name, split=options.reference, size=options.size, path=path)
        _measure(autoencoder, images, reference, options)
    return 0


def _encode(autoencoder: "Autoencoder", images: "ImageSet", out: str, options: Options) -> None:
    from fewstep.latents import record_latents

    with console.bar("encode", len(images), stoppable=True) as update:
        for done in record_latents(
            autoencoder, images, out, flip=options.flip, codec=options.codec
        ):
            update(done)
    shape = "x".join(map(str, autoencoder.latent_shape))
    console.out.print(f"{out}: {len(images)} latents of shape {shape}")


def _measure(
    autoencoder: "Autoencoder", images: "ImageSet", reference: "ImageSet", options: Options
) -> None:
    from fewstep import metrics
    from fewstep.evaluation import Evaluator, exhaust
    from fewstep.reconstruction import measure_reconstructions

    protocol = metrics.protocol("quick").with_settings(extractor=options.extractor)
    evaluator = Evaluator(reference, protocol)
    with console.bar("measure", len(images)) as update:
        result = exhaust(measure_reconstructions(autoencoder, images, evaluator), update)
    print(json.dumps(asdict(result), indent=2))
