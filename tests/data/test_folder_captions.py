import json
import time

import pytest

from fewstep.cli import main
from image_folders import build, read, refusal

ROWS = "file_name,text\na.png,a cat\nb.png,a dog\n"
CHINESE = "一只微笑的猫"
FAMILY = "family: 👨‍👩‍👧 waving 👋🏿"


def captions(folder):
    """The captions of each image by its name, and the warning."""
    images, message = read(folder)
    return dict(zip(images.columns["file_name"], images.captions, strict=True)), message


@pytest.mark.parametrize("column", ["text", "Caption", "captions", "texts"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.jsonl"])
def test_a_column_has_captions(tmp_path, name, column):
    build(tmp_path, "a.png", "b.png")
    rows = [{"file_name": "a.png", column: "x y"}, {"file_name": "b.png", column: "z, w"}]
    separator = "\t" if name == "metadata.tsv" else ";"
    lines = [separator.join(["file_name", column]), *(separator.join(r.values()) for r in rows)]
    if name == "metadata.jsonl":
        lines = [json.dumps(row) for row in rows]
    (tmp_path / name).write_text("\n".join(lines))
    images, message = read(tmp_path)
    assert images.captions == (("x y",), ("z, w",)) and not message
    assert [*images.columns] == ["file_name"]


def test_rows_of_one_image_are_several_captions(tmp_path):
    build(tmp_path, "a.png", "b.png")
    build(tmp_path, metadata__csv="image,caption\na.png,x\nb.png,z\na.png,y\n./a.png,x\n")
    own, message = captions(tmp_path)
    assert own == {"a.png": ("x", "y"), "b.png": ("z",)}
    assert message == f"{tmp_path}: 1 row repeats others of metadata.csv (line 5)"


def test_a_list_in_json_is_several_captions(tmp_path):
    build(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = [{"file_name": "a.png", "text": ["x", "", "y ", "x"]}, {"file_name": "b.png"}]
    rows += [{"file_name": "c.png", "text": None}, {"file_name": "d.png", "text": "d\nd2"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own, message = captions(tmp_path)
    assert own == {"a.png": ("x", "y"), "b.png": (), "c.png": (), "d.png": ("d", "d2")}
    assert "2 of 4 images have no caption (b.png, c.png)" in message


def test_a_text_file_beside_each_image_has_one_caption_a_line(tmp_path):
    build(tmp_path, "cat/a.png", "cat/b.v2.png", "dog/a.jpg")
    build(tmp_path / "cat", a__txt="a  cat\n\na tabby\r\na cat\n")
    (tmp_path / "cat" / "b.v2.TXT").write_text("a kitten")
    build(tmp_path / "dog", a__txt="  a dog ")
    images, message = read(tmp_path)
    assert images.captions == (("a cat", "a tabby"), ("a kitten",), ("a dog",)) and not message
    assert images.labels.tolist() == [0, 0, 1]
    assert images.files.extras == {"of captions": 3} and images.files.total == 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [CHINESE, FAMILY, "e\u0301te\u0301"])
def test_all_scripts_survive(tmp_path, text, encoding):
    composed = {"e\u0301te\u0301": "été"}.get(text, text)
    for kind in ("beside", "csv", "jsonl"):
        folder = tmp_path / kind
        build(folder, "a.png")
        line = {
            "beside": text,
            "csv": f"file_name,text\na.png,{text}\n",
            "jsonl": json.dumps({"file_name": "a.png", "text": text}),
        }[kind]
        name = "a.txt" if kind == "beside" else f"metadata.{kind}"
        (folder / name).write_bytes(line.encode(encoding))
        assert captions(folder) == ({"a.png": (composed,)}, "")


def test_files_without_an_image_and_images_without_a_file_are_counted(tmp_path):
    build(tmp_path, "a.png", "b.png", "readme.png", a__txt="x", notes__txt="y", readme__txt="z")
    images, message = read(tmp_path)
    assert images.captions == (("x",), (), ("z",))
    assert "1 of 6 files is left out: 1 with the suffix .txt (notes.txt)" in message
    assert "1 of 3 images has no caption (b.png)" in message
    assert images.files.total == 6


def test_rows_without_an_image_and_images_without_a_row(tmp_path):
    build(tmp_path, "a.png", "b.png", "c.png", metadata__csv=ROWS)
    own, message = captions(tmp_path)
    assert own == {"a.png": ("a cat",), "b.png": ("a dog",)}
    assert "1 not listed in metadata.csv (c.png)" in message
    (tmp_path / "b.png").unlink()
    assert "line 3: b.png is missing" in refusal(tmp_path)


def test_text_files_go_with_labels_and_splits_of_a_table(tmp_path):
    build(tmp_path, "a.png", "b.png", a__txt="x", b__txt="y")
    build(tmp_path, metadata__csv="file_name,label,split\na.png,0,train\nb.png,1,test\n")
    images, message = read(tmp_path)
    assert images.captions == (("x",),) and not message
    assert images.files.total == 5 and images.files.extras == {"of captions": 2, "label file": 1}
    assert read(tmp_path, split="test")[0].captions == (("y",),)


def test_a_split_of_a_folder_has_its_own_text_files(tmp_path):
    build(tmp_path, "train/a.png", "test/a.png")
    build(tmp_path / "train", a__txt="x")
    build(tmp_path / "test", a__txt="y")
    images, message = read(tmp_path, split="test")
    assert images.captions == (("y",),) and not message
    assert images.files.other_splits == {"train": 2}


def test_a_set_without_any_caption_has_none(tmp_path):
    build(tmp_path, "a.png", "b.png", a__txt="\n \n")
    images, message = read(tmp_path)
    assert images.captions == ()
    assert "2 of 2 images have no caption (a.png, b.png)" in message


WRONG_TEXTS = [
    (b"caf\xe9", "a.txt, line 1: the byte 0xe9 is not UTF-8"),
    (b"ok\nNaN\n", "a.txt: the caption 'NaN' is a missing value"),
    (b"0 0.51 0.4 0.25 0.3\n", "a.txt has the line '0 0.51 0.4 0.25 0.3', which seems to be a box"),
    (b"a\x1b[31mred", "a.txt: the caption 'a\\x1b[31mred' is not text without control characters"),
    (b"['a cat', 'a pet']", "the caption '['a cat', 'a pet']' is a list"),
    (b"x" * (1 << 20) + b"y", "a.txt has 1,048,577 bytes, and such a file has at most 1,048,576"),
]


@pytest.mark.parametrize(("content", "words"), WRONG_TEXTS)
def test_a_text_that_is_no_caption_is_refused(tmp_path, content, words):
    build(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    assert words in refusal(tmp_path)


WRONG_ROWS = [
    ('"text": {"en": "x"}', 'line 1: text is {"en": "x"}, but must be one value'),
    ('"text": ["x", 3]', "line 1: text has more than texts in its list"),
    ('"text": ["x", ["y"]]', "line 1: text has more than texts in its list"),
    ('"text": NaN', "line 1: the caption 'NaN' is a missing value"),
    ('"text": "\\ud83d"', "line 1: the caption '\\ud83d' is not text"),
    ('"text": "x", "caption": "y"', "2 columns of captions, text and caption"),
]


@pytest.mark.parametrize(("row", "words"), WRONG_ROWS)
def test_a_row_that_has_no_caption_is_refused_with_its_line(tmp_path, row, words):
    build(tmp_path, "a.png", metadata__jsonl=f'{{"file_name": "a.png", {row}}}')
    assert words in refusal(tmp_path)


def test_captions_in_two_places_are_refused(tmp_path):
    build(tmp_path, "a.png", "b.png", metadata__csv=ROWS, b__txt="x")
    assert refusal(tmp_path) == (
        f"{tmp_path}/b.txt is a text beside an image, whose captions are in metadata.csv: keep one "
        "of them"
    )


def test_a_text_beside_two_images_is_refused(tmp_path):
    build(tmp_path, "a.png", "a.jpg", a__txt="x")
    assert refusal(tmp_path) == "a.txt is beside two images, a.jpg and a.png: rename one of them"


def test_two_texts_beside_an_image_are_refused(tmp_path):
    build(tmp_path, "a.png", a__txt="x", a__TXT="y")
    if len([*tmp_path.iterdir()]) < 3:
        pytest.skip("this file system ignores case")
    assert refusal(tmp_path) == "a.TXT and a.txt are texts of one image, a.png: merge them"


def test_a_long_caption_stays_as_it_is(tmp_path):
    text = "很 long 🙂 " * 1000 + "end"
    build(tmp_path, "a.png", a__txt=text)
    assert captions(tmp_path)[0] == {"a.png": (text,)}


def test_many_numbers_in_a_line_take_no_time(tmp_path):
    """Patterns that backtrack would take years."""
    build(tmp_path, "a.png", a__txt="1 " + "11111111 " * 20_000 + "x\n" + "[' " * 50_000)
    start = time.process_time()
    assert len(captions(tmp_path)[0]["a.png"]) == 2
    assert time.process_time() - start < 5


@pytest.mark.filterwarnings("default")
def test_doctor_counts_captions_and_files(tmp_path, capsys):
    build(tmp_path, "a.png", "b.png", "c.png", a__txt="x\ny", b__txt="x")
    assert main(["doctor", f"folder:{tmp_path}"]) == 0
    output = capsys.readouterr()
    assert output.err == f"fewstep: {tmp_path}: 1 of 3 images has no caption (c.png)\n"
    lines = dict(line.split(maxsplit=1) for line in output.out.splitlines())
    assert lines["captions"] == "3 captions, 2 different, of 2 of 3 images"
    assert lines["files"] == "5: 3 in the set, 2 of captions"
    assert lines["note"] == "1 of 3 images has no caption (c.png)"
