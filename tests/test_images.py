import io

import numpy as np
import pytest
import torch
from PIL import Image

from damage import unnoticed
from fewstep.errors import InputError
from fewstep.images import from_uint8, grid, read_picture, save_grid, to_uint8


def test_to_uint8_inverts_from_uint8():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(pixels).view(1, -1))[0], pixels)
    assert to_uint8(torch.tensor([[-3.0, 5.0]])).tolist() == [[0, 255]]
    assert from_uint8(pixels)[[0, 255]].tolist() == [-1.0, 1.0]
    assert torch.equal(from_uint8(pixels), from_uint8(pixels.float()))


def test_each_tile_of_a_grid_is_its_image(tmp_path):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    sheet = np.asarray(grid(images, columns=2, scale=1))
    assert sheet.shape == (3 * 10 - 2, 2 * 10 - 2, 3)
    for i, image in enumerate(images):
        top, left = i // 2 * 10, i % 2 * 10
        tile = sheet[top : top + 8, left : left + 8]
        assert np.array_equal(tile, image.permute(1, 2, 0).numpy())
    save_grid(images[:, :1], tmp_path / "new" / "grid.png")
    assert (tmp_path / "new" / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_picture_is_named(tmp_path):
    path = tmp_path / "x.png"
    save_grid(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8), path)
    positions = range(path.stat().st_size)
    assert (
        unnoticed(path, lambda: Image.open(io.BytesIO(read_picture(path))).tobytes(), positions)
        == []
    )
    for content in (b"", b"x", path.read_bytes()[:-5], path.read_bytes() + b"x"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.png is damaged \(.*\): delete it$"):
            read_picture(path)
