"""References: the moments and features of all images, kept with what they are of."""

import json
import random
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import fewstep.metrics.reference as module
from damage import flip
from fewstep.evaluation import exhaust
from fewstep.metrics.extractors import Extractor, ExtractorOutput, Pixels
from fewstep.metrics.reference import build_reference

IMAGES = torch.randint(
    0, 256, (3000, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Watched(Extractor):
    """Pixels that count how often they are looked at."""

    name, hash = "pixels", Pixels.hash

    def __init__(self):
        self.images = 0

    def extract(self, images):
        self.images += len(images)
        return ExtractorOutput(images.flatten(1) / 255)


@dataclass
class Images:
    name: str
    images: torch.Tensor
    fingerprint: str
    labels: torch.Tensor | None = None


def made(extractor, *, cache=None, fingerprint="f"):
    work = build_reference(extractor, Images("toys", IMAGES, fingerprint), cache=cache)
    told = []
    return exhaust(work, told.append), told


def test_moments_and_features_are_those_of_the_images():
    found, told = made(Pixels())
    rows = Pixels()(IMAGES)
    assert told[-1] == len(found) == 3000 and told == sorted(told)
    assert torch.allclose(found.moments.mean, rows.double().mean(0), atol=1e-12)
    assert torch.allclose(found.moments.covariance, rows.double().T.cov(), atol=1e-12)
    assert torch.equal(found.features, rows[found.rows])
    assert sorted(found.rows.tolist()) == list(range(3000))
    assert found.rows.tolist() != list(range(3000))  # the first thousands stand for all


def test_it_is_kept_with_its_provenance_and_read_again(tmp_path):
    first, _ = made(Pixels(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["fewstep"])
    assert about["set"] == "toys" and about["fingerprint"] == "f" and about["count"] == 3000
    assert about["extractor"] == "pixels" and about["hash"] == Pixels.hash
    assert about["resize"] == "none" and about["version"]
    watched = Watched()
    again, told = made(watched, cache=tmp_path)
    assert watched.images == 0 and told == [3000]
    assert torch.equal(again.features, first.features) and again.copy_radius == first.copy_radius
    assert torch.equal(again.moments.scatter, first.moments.scatter)


@pytest.mark.parametrize("what", ["fingerprint", "hash", "resize"])
def test_another_set_or_extractor_is_another_reference(tmp_path, what):
    made(Watched(), cache=tmp_path)
    other = Watched()
    if what != "fingerprint":
        setattr(other, what, "other")
    made(other, cache=tmp_path, fingerprint="g" if what == "fingerprint" else "f")
    assert other.images == 3000 and len(list(tmp_path.iterdir())) == 2


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"\0" * 50,
        lambda content: content[:-100],
        flipped,
        lambda _: save({"rows": torch.zeros(2)}, {"fewstep": "[]"}),
        lambda _: save({"rows": torch.zeros(2)}),
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    first, _ = made(Pixels(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    watched = Watched()
    again, _ = made(watched, cache=tmp_path)
    assert watched.images == 3000
    assert torch.equal(again.moments.scatter, first.moments.scatter)


def test_a_flipped_byte_is_found(tmp_path):
    first, _ = made(Pixels(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    description = {k: v for k, v in first.description.items() if k != "version"}
    size = path.stat().st_size
    expected = module._read(path, description)
    for position in [*range(20), *random.Random(0).sample(range(20, size), 60), size - 1]:
        flip(path, position, 0x10)
        saved = module._read(path, description)
        # only a space of the header can change without an effect
        assert saved is None or saved[0] == expected[0]
        assert saved is None or all(map(torch.equal, saved[1].values(), expected[1].values()))
        flip(path, position, 0x10)


def test_a_cache_that_cannot_be_written_is_no_loss(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    found, _ = made(Pixels(), cache=tmp_path / "file" / "inside")
    assert len(found) == 3000


def test_of_a_large_set_a_seeded_choice_is_kept(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 4 * 9 * 500)
    found, _ = made(Pixels())
    assert found.features.shape == (500, 9) and len(set(found.rows.tolist())) == 500
    assert torch.equal(found.features, Pixels()(IMAGES)[found.rows])
    assert torch.equal(found.moments.scatter, made(Pixels())[0].moments.scatter)


def test_the_nearest_images_are_named_by_their_row_in_the_set():
    found, _ = made(Pixels())
    near = found.nearest(Pixels()(IMAGES[[7, 2999]]), k=2)
    assert near.rows[:, 0].tolist() == [7, 2999]
    assert near.distances[:, 0].tolist() == [0, 0] and (near.distances[:, 1] > 0).all()
