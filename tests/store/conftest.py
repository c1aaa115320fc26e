"""Small stores of known content."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.store import U8, Codec, Int8, Raw, Writer

Records = dict[str, Tensor]


@pytest.fixture
def schema() -> dict[str, Codec]:
    return {
        "image": U8((1, 4, 4)),
        "label": Raw(torch.int64),
        "latent": Int8((2, 3), percentile=90.0),
    }


@pytest.fixture
def records() -> Callable[[int], Records]:
    """The first n records of an endless set: images on the 255 levels, so that u8 is exact."""

    def make(count: int) -> Records:
        generator = torch.Generator().manual_seed(7)
        codes = torch.randint(0, 256, (100, 1, 4, 4), generator=generator)[:count]
        latent = torch.randn(100, 2, 3, generator=generator)[:count]
        return {
            "image": codes.float() / 127.5 - 1,
            "label": torch.arange(count) * 1000 - 3,
            "latent": latent,
        }

    return make


@pytest.fixture
def recorded(schema, records) -> Callable[..., Path]:
    """Record n of them into a folder."""

    def record(folder: Path, count: int, *, shard_size: int = 3, order: int = 1) -> Path:
        writer = Writer(
            folder, schema=schema, count=count, shard_size=shard_size, provenance={"steps": 18}
        )
        content = records(count)
        for rows in writer.missing()[::order]:
            part = {name: values[rows.start : rows.stop] for name, values in content.items()}
            writer.write(rows.start, part)
        writer.finish()
        return folder

    return record
