import hashlib
import importlib.util
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from fewstep.cli import main
from fewstep.data import emoji, load
from fewstep.data.attributions import ATTRIBUTIONS
from fewstep.data.emoji.split import TONES, read_code_points
from fewstep.data.folder.decoding import decode
from fewstep.download import home
from fewstep.errors import InputError

ORIGINALS = home() / "data" / "noto-emoji-32"
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_emoji.py"
ARCHIVE = SCRIPT.parents[2] / "shared" / "data" / "noto-emoji-32.zip"
WEBP = "1.6.0"  # version of the encoder that wrote the sheet


@pytest.fixture(scope="module")
def splits():
    return {split: load("emoji", split=split) for split in ("train", "test")}


def compositions(images):
    return list(zip(images.columns["base"], images.columns["tone"], strict=True))


def all_captions(splits):
    return [caption for images in splits.values() for (caption,) in images.captions]


def test_every_emoji_is_in_one_split(splits):
    names = [name for images in splits.values() for name in images.columns["file_name"]]
    assert len(set(names)) == len(names) == 3414 and len(set(all_captions(splits))) == 3414
    groups = Counter()
    for images in splits.values():
        assert images.shape == (3, 32, 32)
        groups += Counter(images.class_names[label] for label in images.labels.tolist())
    assert len(groups) == 9
    assert (groups["People & Body"], groups["Flags"]) == (2156, 8)
    variants = [text for text in all_captions(splits) if "skin tone" in text]
    assert len(variants) == 1770
    assert 0.10 < len(splits["test"]) / len(variants) < 0.15


def test_the_split_is_this_one(splits):
    names = "\n".join(splits["test"].columns["file_name"])
    digest = "d0c949798cae09db733f5aa4709a81c4316b229ed70dd7fb6de7683784998c02"
    assert hashlib.sha256(names.encode()).hexdigest() == digest
    fingerprints = [images.fingerprint[:16] for images in splits.values()]
    assert fingerprints == ["53ac47b6be1ee0a9", "c76d0c78115aab1d"]


def test_no_composition_is_in_both_splits_and_each_part_is_in_train(splits):
    train, test = compositions(splits["train"]), compositions(splits["test"])
    assert set(train).isdisjoint(test)
    assert {tone for _, tone in test} == set(TONES.values())
    tones = {}
    for base, tone in train:
        tones.setdefault(base, []).append(tone)
    for base, tone in test:
        # all four others, and the emoji without a tone
        assert {*tones[base]} == {"", *TONES.values()} - {tone}


def test_columns_are_read_from_code_points_and_agree_with_captions(splits):
    """Unicode's captions, as another source of bases and tones."""
    for images in splits.values():
        columns = images.columns
        for (caption,), base, tone, name in zip(
            images.captions, columns["base"], columns["tone"], columns["file_name"], strict=True
        ):
            parts = caption.split(", ")
            tones = [part.removesuffix(" skin tone") for part in parts if "skin tone" in part]
            assert base == ", ".join(part for part in parts if "skin tone" not in part)
            assert tone == ", ".join(dict.fromkeys(tones))
            assert len(tones) == sum(code in TONES for code in read_code_points(name))


def test_mirrored_pictures_and_those_of_another_gender_lack_the_same_tone(splits):
    lacks = {base.removesuffix(" facing right"): set() for base, _ in compositions(splits["test"])}
    for base, tone in compositions(splits["test"]):
        lacks[base.removesuffix(" facing right")].add(tone)
    assert max(map(len, lacks.values())) == 1
    for person in ("superhero", "astronaut", "guard", "mage", "firefighter"):
        assert (
            len({frozenset(lacks.get(f"{who}{person}", ())) for who in ("", "man ", "woman ")}) == 1
        )


def test_no_picture_of_test_is_also_in_train(splits):
    train, test = ({image.tobytes() for image in splits[s].images.numpy()} for s in splits)
    assert train.isdisjoint(test)


def test_another_split_is_refused():
    with pytest.raises(InputError, match="emoji has no split 'valid'; choose train or test"):
        load("emoji", split="valid")


def test_captions_stay_with_images_of_another_size_or_grey(splits):
    test = splits["test"]
    assert test.resize(16).captions == test.with_channels(1).captions == test.captions


def test_doctor_counts_captions(capsys):
    assert main(["doctor", "emoji", "--split", "test"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["captions"] == "208 captions, 208 different, of 208 of 208 images"


def test_a_damaged_sheet_is_refused(monkeypatch, tmp_path):
    content = emoji.SHEET.read_bytes()
    path = tmp_path / "emoji.webp"
    monkeypatch.setattr(emoji, "SHEET", path)
    for damage in (content[:1000], b"", b"RIFF"):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="cannot be decoded .* install a Pillow that decodes"):
            load("emoji")


def test_licences_are_there():
    readme = (emoji.FOLDER / "README.md").read_text()
    for name in ("LICENSE-Apache-2.0.txt", "LICENSE-Unicode.txt"):
        assert name in readme and (emoji.FOLDER / name).stat().st_size > 1000
    assert "Noto Emoji" in ATTRIBUTIONS["emoji"] and "Apache-2.0" in ATTRIBUTIONS["emoji"]
    assert emoji.SHEET.stat().st_size + emoji.TABLE.stat().st_size < 2.6e6


def test_it_loads_fast():
    start = time.process_time()
    load("emoji")
    assert time.process_time() - start < 0.5


@pytest.mark.skipif(not any(ORIGINALS.rglob("*.png")), reason="needs the Noto emoji")
def test_pixels_are_those_of_the_image_files_on_white(splits):
    for images in splits.values():
        for i in range(0, len(images), 7):
            pixels, _ = decode(ORIGINALS / images.columns["file_name"][i], None)
            assert torch.equal(images.images[i], torch.from_numpy(pixels.copy()).permute(2, 0, 1))


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason="needs the archive of Noto emoji")
def test_the_script_makes_the_packaged_files(tmp_path):
    spec = importlib.util.spec_from_file_location("make_emoji", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(ARCHIVE), "--out", str(tmp_path)])
    table, sheet = tmp_path / emoji.TABLE.name, tmp_path / emoji.SHEET.name
    assert table.read_bytes() == emoji.TABLE.read_bytes()
    with Image.open(sheet) as ours, Image.open(emoji.SHEET) as packaged:
        assert np.array_equal(np.asarray(ours), np.asarray(packaged))
    if features.version("webp") == WEBP:
        assert sheet.read_bytes() == emoji.SHEET.read_bytes()
