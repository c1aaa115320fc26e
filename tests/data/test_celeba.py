"""CelebA on made files of its layout."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import celeba, load
from fewstep.download import cache
from fewstep.errors import InputError

FACES = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 1, "000004.jpg": 2, "000005.jpg": 0}


def face(seed):
    """Smooth, so that JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((178, 218), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(home, monkeypatch):
    """$FEWSTEP_HOME/data/celeba with five faces, and a cache of its own."""
    monkeypatch.delenv("FEWSTEP_CACHE")
    folder = home / "data" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for i, name in enumerate(FACES):
        face(i).save(folder / "img_align_celeba" / name, quality=95)
    lines = "".join(f"{name} {split}\n" for name, split in FACES.items())
    (folder / "list_eval_partition.txt").write_text(lines)
    return folder


def refusal(**options):
    with pytest.raises(InputError) as told:
        load("celeba", size=8, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_splits_are_those_of_the_partition_in_its_order(folder):
    train = load("celeba", size=8)
    assert train.columns["file_name"] == ("000001.jpg", "000002.jpg", "000005.jpg")
    assert train.images.shape == (3, 3, 8, 8) and train.images.dtype == torch.uint8
    assert train.labels is None and train.classes == 0 and train.name == "celeba"
    assert load("celeba", split="valid", size=8).columns["file_name"] == ("000003.jpg",)
    assert load("celeba", split="test", size=8).columns["file_name"] == ("000004.jpg",)


def test_the_middle_square_is_cut_and_scaled_by_antialiased_bicubic(folder):
    path = folder / "img_align_celeba" / "000002.jpg"
    with Image.open(path) as image:
        square = image.crop((0, 20, 178, 198))  # 20 rows above and below
    truth = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    found = load("celeba", size=32).images[1].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - truth).max() <= 1
    assert torch.equal(
        load("celeba", size=178).images[1].permute(1, 2, 0), torch.from_numpy(np.array(square))
    )


def test_rows_and_columns_are_not_exchanged(folder):
    image = Image.new("RGB", (178, 218), "black")
    image.paste("red", (0, 0, 178, 109))  # the upper half
    image.save(folder / "img_align_celeba" / "000004.jpg", quality=95)
    pixels = load("celeba", split="test", size=8).images[0].int()
    assert (pixels[0, :3] > 240).all() and (pixels[0, 5:] < 15).all() and (pixels[1:] < 15).all()


def test_it_lies_where_path_says(folder, tmp_path):
    here = load("celeba", size=8)
    folder.rename(tmp_path / "faces")
    there = load("celeba", size=8, path=tmp_path / "faces")
    assert torch.equal(here.images, there.images) and here.fingerprint == there.fingerprint
    assert "does not exist" in refusal()


def test_what_was_read_is_kept_until_a_file_changes(folder, monkeypatch):
    first = load("celeba", size=8)
    reading = celeba._read

    def never(paths, size):
        raise AssertionError("read again")

    monkeypatch.setattr(celeba, "_read", never)
    assert torch.equal(load("celeba", size=8).images, first.images)
    for stale in ({"size": 4}, {"size": 8, "split": "test"}):
        with pytest.raises(AssertionError):
            load("celeba", **stale)
    path = folder / "img_align_celeba" / "000005.jpg"
    touched = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(touched, touched))
    with pytest.raises(AssertionError):
        load("celeba", size=8)
    monkeypatch.setattr(celeba, "_read", reading)
    face(77).save(path, quality=95)
    assert not torch.equal(load("celeba", size=8).images[2], first.images[2])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None])
def test_a_damaged_cache_is_made_again(folder, content):
    first = load("celeba", size=8)
    (kept,) = (cache() / "celeba").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5] if content is None else content)
    assert torch.equal(load("celeba", size=8).images, first.images)
    assert kept.read_bytes() == whole


def test_missing_and_partial_folders_are_one_line(folder):
    pictures = folder / "img_align_celeba"
    (pictures / "000002.jpg").unlink()
    (pictures / "000005.jpg").unlink()
    assert f"{pictures} lacks 2 of the 3 images of train, such as 000002.jpg" in refusal()
    load("celeba", split="test", size=8)  # which is whole
    partition = folder / "list_eval_partition.txt"
    for text in ("", "000001.jpg\n", "000001.jpg 7\n", "a b c\n", "000004.jpg 2\n"):
        partition.write_text(text)
        assert f"{partition} is not CelebA's" in refusal()
    partition.unlink()
    assert f"{partition}" in refusal()
    assert "mmlab.ie.cuhk.edu.hk" in refusal()


def test_images_that_are_not_the_aligned_ones_are_refused(folder):
    path = folder / "img_align_celeba" / "000001.jpg"
    Image.new("RGB", (409, 687)).save(path)
    assert f"{path} has 409 x 687 pixels" in refusal()
    path.write_bytes(path.read_bytes()[:200])
    assert f"{path} is not a readable image" in refusal()
    assert not (cache() / "celeba").exists()


def test_an_unwritable_cache_costs_time_alone(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("FEWSTEP_CACHE", str(folder / "file"))
    assert len(load("celeba", size=8)) == 3
