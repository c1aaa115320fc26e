"""Settings of a recording, and the codecs of its records."""

from dataclasses import dataclass

import torch

from fewstep import store
from fewstep.circuits.rings import ring_schema
from fewstep.circuits.view import Circuit
from fewstep.drawing import seeds
from fewstep.errors import InputError
from fewstep.generator import Generator

CODECS = ("u8", "f16", "int8", "raw")
SHARD_BYTES = 256 << 20  # a shard is in memory, uncompressed, while it is computed


@dataclass(frozen=True)
class Recording:
    """Settings of a recording: what is recorded, and how it is encoded."""

    count: int
    """Number of pairs."""
    steps: int
    """Steps of the generator's sampler."""
    states: int = 0
    """Number of intermediate noisy images x_t to record, evenly spread over the sampler's steps."""
    codec: str | None = None
    """Codec of the images: u8, f16, raw, int8 or int8:PERCENTILE. The default is f16 with chunks
    and for latents, raw for points, else u8. With u8, noisy images are recorded as f16: they exceed
    u8's range."""
    chunks: int = 0
    """Number K of residual chunks, for a circuit with the sampler `ring`; 0 records none. The steps
    are divided into K equal parts, and a chunk is the change of the hidden state in one of them.
    Records also have the initial state, in 8 bits as the chunks, and the noise itself, rounded to
    f16 before sampling, so that they can be converted to Denoising Circuits' files."""
    seed: int = 0
    """Seed of the noise."""
    shard: int = 1024
    """Records per shard; fewer if records are large. A killed process loses at most two shards: the
    one that it computes and the one that it writes."""
    max_out_of_range: float = 1.0
    """Largest share of the images' values that may be beyond ±1.5; see `value_range.MAX_SHARE`."""
    prompts: tuple[str, ...] = ()
    """Prompts that the rows have in turn; by default the example prompts of the generator."""
    labels: tuple[int, ...] = ()
    """Class numbers that the rows have in turn, or -1 for none; by default all classes."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1:
            raise InputError(
                f"cannot record {self.count} pairs of {self.steps} steps: both must be at least 1"
            )
        seeds(self.seed, range(0))
        if self.chunks < 0 or (self.chunks and self.steps % self.chunks):
            raise InputError(
                f"{self.steps} steps cannot be divided into {self.chunks} equal chunks: choose a "
                "divisor of the steps, or 0 for none"
            )
        if not 0 <= self.states < self.steps:
            raise InputError(
                f"cannot record {self.states} states: {self.steps} steps have "
                f"{self.steps - 1} intermediate images; choose from 0 to {self.steps - 1}"
            )

    @property
    def state_points(self) -> list[int]:
        """Indices of the grid's times whose noisy images are recorded."""
        return [round(k * self.steps / (self.states + 1)) for k in range(1, self.states + 1)]


def make_schema(generator: Generator, recording: Recording) -> dict[str, store.Codec]:
    """Codecs of the tensors of a record."""
    shape, classes = generator.spec.shape, generator.spec.classes
    # u8 is as exact as an image file; points are not images
    is_image = len(shape) == 3 and generator.decoder is None
    default = "u8" if is_image else "f16" if len(shape) == 3 else "raw"
    name = recording.codec or ("f16" if recording.chunks else default)
    if name == "u8" and generator.decoder is not None:
        raise InputError(
            "the codec u8 is for images in [-1, 1], and this generator's samples are latents: leave"
            " it out for f16"
        )
    x0, number = _codec(name, shape, channels=1), store.Raw(torch.int64)
    prompt = {"prompt": number} if generator.spec.text else {}
    if recording.chunks:
        state = Circuit(generator.denoiser).state_shape
        labels = {"label": number} if classes else {}  # Denoising Circuits' files have none
        return {**labels, **prompt, **ring_schema(shape, state, recording.chunks, x0=x0)}
    schema: dict[str, store.Codec] = {"x0": x0, "label": number, "seed": number, **prompt}
    if recording.states:
        path = "f16" if name == "u8" else name
        schema["states"] = _codec(path, (recording.states, *shape), channels=2)
    return schema


def shard_rows(generator: Generator, recording: Recording) -> int:
    """Largest number of records in a shard."""
    floats = torch.Size(generator.spec.shape).numel() * (1 + recording.states)
    if recording.chunks:
        state = Circuit(generator.denoiser).state_shape
        floats += torch.Size(state).numel() * (1 + recording.chunks)
    return max(1, min(recording.shard, SHARD_BYTES // (4 * floats)))


def _codec(name: str, shape: tuple[int, ...], *, channels: int) -> store.Codec:
    kind, _, suffix = name.partition(":")
    if kind == "int8":
        try:
            percentile = float(suffix or 100)
        except ValueError:
            raise InputError(f"unknown codec {name!r}: write int8, or int8:99.5 to clip") from None
        return store.Int8(shape, channels=min(channels, len(shape)), percentile=percentile)
    if name == "raw":
        return store.Raw(torch.float32, shape)
    if name not in CODECS:
        raise InputError(f"unknown codec {name!r}; choose one of: {', '.join(CODECS)}")
    return store.U8(shape) if name == "u8" else store.F16(shape)
