"""Records of a generator, computed in tiles that do not depend on the batch size."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.circuits.rings import ring_records
from fewstep.circuits.view import Circuit
from fewstep.condition import row_labels
from fewstep.drawing import conditions, prompts_in_turn, seeds
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.formatting import quantity
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds
from fewstep.plugins import name_of
from fewstep.recording.settings import Recording, shard_rows
from fewstep.value_range import ValueRange

FIRST_SEED = 1 << 62


class Tiles:
    """A generator's records, computed in tiles of T rows.

    GPU and CPU kernels round differently for other batch sizes, which would change some pixels. The
    network's input is therefore always a whole tile: rows k·T … (k + 1)·T − 1.
    """

    def __init__(self, generator: Generator, recording: Recording) -> None:
        self.generator = generator
        self.recording = recording
        self.prompts = prompts_in_turn(generator.spec, recording.prompts)
        unique = dict.fromkeys(self.prompts)
        self.prompt_numbers = {prompt: number for number, prompt in enumerate(unique)}
        """Number of each prompt in the records."""
        gpu = generator.device.type != "cpu"
        rows = (2**20 if gpu else 2**17) // torch.Size(generator.spec.shape).numel()
        if recording.chunks:  # states are many times larger than their images
            rows = min(rows, shard_rows(generator, recording))
        self.size: int = max(1, min(512 if gpu else 128, 2 ** (max(rows, 1).bit_length() - 1)))
        self._cached_tile: tuple[int, dict[str, Tensor]] = (-1, {})

    def records(self, rows: range) -> dict[str, Tensor]:
        """The records of `rows`, which must lie in one tile."""
        tile = rows.start // self.size
        if self._cached_tile[0] != tile:
            rows_of_tile = range(tile * self.size, (tile + 1) * self.size)
            self._cached_tile = tile, self._sample(rows_of_tile)
        part = slice(rows.start - tile * self.size, rows.stop - tile * self.size)
        return {key: x[part] for key, x in self._cached_tile[1].items()}

    def range_of(self, samples: Tensor) -> ValueRange:
        """The range of a batch of samples; empty for points, and for latents, which have none."""
        return ValueRange() if self.generator.decoder else ValueRange.of(samples)

    def pieces(self, rows: range, batch: int | None) -> Iterator[range]:
        """Divide `rows` at the ends of tiles, into ranges of at most `batch` rows."""
        first = rows.start
        while first < rows.stop:
            end = (first // self.size + 1) * self.size
            stop = min(rows.stop, end, first + (batch or self.size))
            yield range(first, stop)
            first = stop

    def check(self, values: ValueRange, noun: str, consequence: str) -> ValueRange:
        """Return the range of images.  Raises: InputError if too many values are out of range."""
        if values.share <= self.recording.max_out_of_range:
            return values
        step = self.generator.step
        clip = "a clip (--clip 1), " if getattr(step, "clip", 0) is None else ""
        raise InputError(
            f"{values.text(noun)} with {quantity(self.recording.steps, 'step')} of "
            f"{name_of('sampler', type(step))}, so {consequence}: record with {clip}another "
            "sampler or more steps, or allow it (--allow-out-of-range)"
        )

    @torch.inference_mode()
    def _sample(self, rows: range) -> dict[str, Tensor]:
        generator, recording = self.generator, self.recording
        row_seeds = seeds(recording.seed, rows, first=FIRST_SEED)
        noise = noise_from_seeds(row_seeds, generator.spec.shape, device=generator.device)
        turns: Any = {"labels": recording.labels, "prompts": self.prompts}
        cond = conditions(generator.spec, rows, generator.device, **turns)
        numbers = {"label": row_labels(cond, len(rows)).cpu()}
        if self.prompts:
            prompts = [self.prompts[row % len(self.prompts)] for row in rows]
            numbers["prompt"] = torch.tensor([self.prompt_numbers[prompt] for prompt in prompts])
        settings: Any = {"steps": recording.steps, "cond": cond}
        if recording.chunks:
            circuit = Circuit(generator.denoiser)
            times = generator.grid(recording.steps, generator.denoiser).tolist()
            noise = noise.half().float()
            ring = ring_records(circuit, noise, times, recording.chunks, cond=cond)
            check_finite(generator, ring["x0"], partial(generator.path, noise, **settings))
            if not generator.spec.classes:
                del numbers["label"]
            return {**numbers, **ring}
        indices = {*recording.state_points, recording.steps}
        path = partial(generator.path, noise, **settings)
        *states, x0 = [x.cpu() for i, x in enumerate(path()) if i in indices]
        check_finite(generator, x0, path)
        records = {"x0": x0, "seed": torch.tensor(row_seeds), **numbers}
        return {**records, "states": torch.stack(states, 1)} if states else records
