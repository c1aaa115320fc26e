"""A generator into a store: noise, as a seed, and the image that a deterministic teacher makes.

Row i's noise comes from seed `FIRST_SEED + seed·2³² + i`, so a pair costs an image and two numbers,
and the store does not depend on batch sizes or interruptions. These seeds are their own: a student
is never measured on noise that it was trained on.
"""

from collections.abc import Generator as Pull
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep import __version__, store
from fewstep.condition import NO_LABEL, Condition
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Pairs
from fewstep.sampling import DETERMINISTIC, describe_step, noise_from_seeds

FIRST_SEED = 1 << 62


def record(
    generator: Generator,
    folder: Path | str,
    *,
    count: int,
    steps: int,
    teacher: str,
    batch: int = 256,
    seed: int = 0,
    shard: int = 1024,
) -> Pull[int]:
    """Record `count` pairs, yielding the number of rows done; resumes what is there.

    Classes are recorded in turn. `teacher` is the hash of the weights, kept as provenance.
    Raises: InputError for a stochastic sampler, or a folder of other data.
    """
    name = describe_step(generator.step)["name"]
    if name not in DETERMINISTIC:
        raise InputError(
            f"{name} draws fresh noise, so its images are no function of the starting noise and "
            f"cannot be regressed on; record with one of: {', '.join(DETERMINISTIC)}"
        )
    if count < 1 or batch < 1 or seed < 0:
        raise InputError(
            f"cannot record {count} pairs in batches of {batch} from seed {seed}: "
            "at least 1 of each, and seeds from 0 up"
        )
    provenance = {
        "teacher": teacher,
        "sampler": describe_step(generator.step),
        "times": generator.grid(steps, generator.denoiser).tolist(),
        "guidance": generator.describe()["guidance"],
        "seed": seed,
        "version": __version__,
    }
    writer = store.Writer(
        folder,
        schema=_schema(generator.subject.shape),
        count=count,
        shard_size=shard,
        provenance=provenance,
    )
    missing = writer.missing()
    done = count - sum(len(rows) for rows in missing)
    for rows in missing:
        parts: list[dict[str, Tensor]] = []
        for first in range(rows.start, rows.stop, batch):
            part = range(first, min(first + batch, rows.stop))
            parts.append(_pairs(generator, part, steps=steps, seed=seed))
            done += len(part)
            yield done
        writer.write(rows.start, {key: torch.cat([p[key] for p in parts]) for key in parts[0]})
    writer.finish()


def _schema(shape: tuple[int, ...]) -> Mapping[str, store.Codec]:
    # images lose nothing that their pixels could show; points are not pixels
    image = store.U8(shape) if len(shape) == 3 else store.Raw(torch.float32, shape)
    return {"x0": image, "label": store.Raw(torch.int64), "seed": store.Raw(torch.int64)}


@torch.inference_mode()
def _pairs(generator: Generator, rows: range, *, steps: int, seed: int) -> dict[str, Tensor]:
    device = generator.device
    seeds = [FIRST_SEED + (seed << 32) + row for row in rows]
    noise = noise_from_seeds(seeds, generator.subject.shape, device=device)
    cond = class_labels(generator.subject.classes, rows, device)
    x0 = generator(noise, steps=steps, cond=cond)
    label = torch.full((len(rows),), NO_LABEL) if cond is None else cond.label
    return {"x0": x0.cpu(), "label": label.cpu(), "seed": torch.tensor(seeds)}


def class_labels(
    classes: int,
    rows: range,
    device: torch.device | str = "cpu",
    *,
    labels: Sequence[int] | None = None,
) -> Condition | None:
    """`labels` in turn, row by row, by default all classes; None where there is neither."""
    labels = labels or range(classes)
    if not labels:
        return None
    return Condition(torch.tensor([labels[row % len(labels)] for row in rows], device=device))


class PairStream:
    """A store's pairs as a training stream; noise comes back from the seeds."""

    def __init__(self, reader: store.Reader) -> None:
        self.reader = reader
        self.shape = tuple(reader[[0]]["x0"].shape[1:])

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> Pairs:
        """Rows `index`; nothing is augmented, since a mirrored image has other noise."""
        kept = self.reader[index]
        noise = noise_from_seeds(kept["seed"].tolist(), self.shape, device=device)
        label = kept["label"].to(device)
        cond = None if bool((label == NO_LABEL).all()) else Condition(label)
        return Pairs(noise, kept["x0"].to(device), cond)
