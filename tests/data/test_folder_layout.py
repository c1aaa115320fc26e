"""What sub-folders mean: classes, splits, wrappers of an archive, shards."""

import os

import pytest

from image_folders import build, by_name, read, refusal

SPLIT_FOLDERS = [
    ("train", "valid", "test"),
    ("Training", "Validation", "Testing"),
    ("TRAIN", "dev", "TEST"),
    ("trn", "val", "tst"),
    ("train", "evaluation", "test"),
]


@pytest.mark.parametrize("names", SPLIT_FOLDERS, ids="-".join)
@pytest.mark.parametrize("wrapper", ["", "archive/", "archive/archive-1.0/"])
def test_folders_of_splits_are_read_one_at_a_time(tmp_path, names, wrapper):
    for name in names:
        build(tmp_path, f"{wrapper}{name}/cat/{name}.png", f"{wrapper}{name}/dog/{name}.png")
    for split, name in zip(("train", "valid", "test"), names, strict=True):
        images, message = read(tmp_path, split=split)
        assert not message
        prefix = f"{wrapper}{name}"
        expected = {f"{prefix}/{animal}/{name}.png": animal for animal in ("cat", "dog")}
        assert by_name(images) == expected
        others = {"train", "valid", "test"} - {split}
        assert images.files.other_splits == dict.fromkeys(sorted(others), 2) | {}
        assert images.files.total == 6
    assert by_name(read(tmp_path, split="val")[0]) == by_name(read(tmp_path, split="valid")[0])


def test_splits_may_hold_unlabelled_images_or_label_files(tmp_path):
    build(tmp_path, "train/a/0.png", "train/b/0.png", "test/0.png", "test/1.png", "val/x/0.png")
    build(tmp_path, **{"val/metadata__csv": "file_name,label\nx/0.png,zebra\n"})
    assert by_name(read(tmp_path)[0]) == {"train/a/0.png": "a", "train/b/0.png": "b"}
    assert by_name(read(tmp_path, split="test")[0]) == {"test/0.png": None, "test/1.png": None}
    assert by_name(read(tmp_path, split="valid")[0]) == {"val/x/0.png": "zebra"}


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (["train/a/0.png", "test/a/0.png", "bus/0.png"], "train", "train, test, which name splits"),
        (["train/0.png", "bus/0.png", "ship/0.png"], "train", "train, which name splits, beside"),
        (["train/0.png", "extra/0.png"], "train", "beside extra: if all of them are classes"),
        (["val/0.png", "validation/0.png"], "valid", "val and validation, which name the same"),
        (["a/0.png", "b/0.png"], "test", "folder has no split 'test'; choose train"),
        (["0.png"], "valid", "folder has no split 'valid'; choose train"),
        (["0.png"], "holdout", "choose train or valid or test"),
        (["test/a/0.png", "val/a/0.png"], "train", "no split 'train', but val, test: set data.sp"),
        (["train/a/0.png"], "test", "has no split 'test', but train"),
        (["train/test/0.png", "val/0.png"], "train", "the folder of a split and holds others"),
        (["cat/train/0.png", "cat/test/0.png", "dog/train/1.png"], "train", "inside a class"),
        (
            ["bottle/train/0.png", "cable/test/0.png"],
            "train",
            "of a split inside a class (bottle/tr",
        ),
        (["a/0.png", "a/test/1.png", "b/2.png"], "train", "as in test/a, or rename the folder"),
        (["a/0.png", "b/x/Val/2.png"], "train", "inside a class (b/x/Val/2.png)"),
        (["train/a/0.png", "train/b/test/1.png"], "train", "inside a class (b/test/1.png)"),
        (["train2017/0.png", "val2017/0.png"], "train", "train2017, val2017, whose names seem to"),
        (["training_set/a/0.png", "test_set/a/0.png"], "train", "whose names seem to mean splits"),
        (["trainA/0.png", "trainB/0.png", "testA/0.png", "testB/0.png"], "train", "testA, testB, "),
        (["x/trainset/a/0.png", "x/TestImages/a/0.png"], "train", "TestImages, trainset, whose"),
        (
            ["seg_train/0.png", "seg_test/0.png", "pred/0.png"],
            "test",
            "rename splits to train, val",
        ),
        (["train/0.png", "1.png"], "train", "holds both images (1.png, ...) and folders of images"),
    ],
)
def test_what_may_be_splits_or_classes_is_refused(tmp_path, names, split, words):
    assert words in refusal(build(tmp_path, *names), split=split)


def test_classes_called_train_and_test_can_be_listed(tmp_path):
    build(tmp_path, "train/0.png", "test/1.png", "bus/2.png")
    lines = "train/0.png,train,train\ntest/1.png,test,train\nbus/2.png,bus,test\n"
    build(tmp_path, metadata__csv="file_name,label,split\n" + lines)
    assert by_name(read(tmp_path)[0]) == {"train/0.png": "train", "test/1.png": "test"}
    assert by_name(read(tmp_path, split="test")[0]) == {"bus/2.png": "bus"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["set/a/0.png", "set/b/0.png"], ["a", "b"]),
        (["x/y/z/a/0.png", "x/y/z/b/0.png"], ["a", "b"]),
        (["images/0.png", "images/1.png"], []),
        (["dog/0.png"], []),
        (["set/set/a/0.png", "set/set/b/deep/0.png"], ["a", "b"]),
        (["a/x/0.png", "b/y/0.png"], ["a", "b"]),
        (["test_tube/0.png", "testbed/0.png"], ["test_tube", "testbed"]),
        (
            ["bullet_train/0.png", "bus/0.png", "car/0.png", "test_tube/0.png"],
            ["bullet_train", "bus", "car", "test_tube"],
        ),
        (["1/0.png", "2/0.png", "10/0.png"], ["1", "2", "10"]),
        (["01/0.png", "2/0.png", "10/0.png"], ["01", "2", "10"]),
        (["a/0.png", "A/0.png", "１/0.png"], ["A", "a", "１"]),
    ],
)
def test_folders_around_all_images_are_no_classes(tmp_path, names, expected):
    build(tmp_path, *names, README="")
    images, message = read(tmp_path)
    assert [*images.class_names] == expected and not message
    assert len(images) == len(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Cat/0.png", "cat/0.png"], "differ only in case, spaces or the"),
        (["cat/0.png", "cat /0.png"], "differ only in case, spaces or the"),
        (["caf\u00e9/0.png", "cafe\u0301/0.png"], "differ only in case, spaces or the"),
        (["1/0.png", "１/0.png"], "differ only in case, spaces or the encoding of letters"),
        (["cat/0.png", "cat\u200b/0.png"], "differ only in case, spaces or the"),
        (["1/0.png", "01/0.png"], "are the same number"),
        (["a/0.png", "b\n/0.png"], "not text in UTF-8 without control characters"),
    ],
)
def test_class_folders_that_look_alike_are_refused(tmp_path, names, words):
    assert words in refusal(build(tmp_path, *names))


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"a\x80", b"\xc3\x28", b"\xd0\xc6"])
def test_class_folders_that_are_not_utf8_are_refused_with_their_bytes(tmp_path, name):
    build(tmp_path, "tea/0.png", os.fsdecode(name) + "/0.png")
    assert f"its bytes are {name!r}" in refusal(tmp_path)


def test_image_names_that_are_not_utf8_are_read(tmp_path):
    images, message = read(build(tmp_path / "caf\udce9", "\udce9.png", "b.png"))
    assert images.name == "caf\\xe9" and not message
    assert images.columns["file_name"] == ("b.png", "\\xe9.png")


@pytest.mark.parametrize(
    ("names", "are_shards"),
    [
        (["00000/img00000000.png", "00000/img00000999.png", "00001/img00001000.png"], True),
        (["00000/00000.png", "01000/01000.png", "02000/02000.png"], True),
        (["00000/000000000.jpg", "00001/000010000.jpg"], True),
        (["000000/7.png", "000001/8.png"], True),
        (["00000/img00000000.png", "00001/img00000001.png"], True),
        (["00000/00000_00000.png", "00001/00000_00000.png"], False),
        (["0/img00000000.png", "1/img00001000.png"], False),
        (["00000/a.png", "00001/b.png"], False),
        (["00000/2.png", "00001/1.png", "00002/3.png"], False),
        (["00000/1.png", "x/2.png"], False),
    ],
)
def test_shards_are_no_classes(tmp_path, names, are_shards):
    build(tmp_path, *names)
    if not are_shards:
        assert read(tmp_path)[0].classes == len({name.split("/")[0] for name in names})
        return
    assert "seem to be shards" in refusal(tmp_path)
    build(tmp_path, dataset__json='{"labels": null}')
    images, message = read(tmp_path)
    assert images.labels is None and len(images) == len(names) and not message


@pytest.mark.parametrize("names", [("train", "test"), ("Val", "x"), ("dev",)], ids="-".join)
def test_a_label_file_without_a_list_mixes_no_splits(tmp_path, names):
    build(tmp_path, *(f"{name}/0.png" for name in names), dataset__json='{"labels": null}')
    assert "would be mixed: put a copy of it into each" in refusal(tmp_path)
    assert "has no split 'test'" in refusal(tmp_path, split="test")


def test_splits_inside_a_listed_folder_are_read_one_at_a_time(tmp_path):
    build(tmp_path, "train/0.png", "train/1.png", "test/0.png", "val/0.png")
    rows = "train/1.png,b\ntrain/0.png,a\ntest/0.png,c\nval/0.png,a\n"
    build(tmp_path, metadata__csv="file_name,label\n" + rows)
    images, message = read(tmp_path)
    assert by_name(images) == {"train/0.png": "a", "train/1.png": "b"} and not message
    assert images.class_names == ("a", "b", "c")  # as in the other splits
    assert images.files.other_splits == {"valid": 1, "test": 1}
    assert by_name(read(tmp_path, split="test")[0]) == {"test/0.png": "c"}
    build(tmp_path, "extra/0.png", metadata__csv=f"file_name,label\n{rows}extra/0.png,a\n")
    assert "line 2: the folder train names a split, and" in refusal(tmp_path)
