"""Label files: what is written is what is trained on, or a line of the file is refused."""

import json
import os

import pytest

from image_folders import build, by_name, read, refusal

PETS = {"0.png": "cat", "1.png": "dog", "2.png": "dog"}


def table(folder, *rows, header="file_name,label", name="metadata.csv", encoding="utf-8"):
    """The folder with three images and a table."""
    build(folder, *PETS)
    (folder / name).write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "file_name;label\n0.png;cat\n1.png;dog\n2.png;dog\n",
        "label\tfile_name\ncat\t0.png\ndog\t1.png\ndog\t2.png\n",
        "filename|class\n0.png|cat\n1.png|dog\n2.png|dog\n",
        '"Image";"Category"\r\n"0.png";"cat"\r\n"1.png";"dog"\r\n"2.png";"dog"\r\n',
        "FILE, Target\n0.png, cat\n1.png,dog \n 2.png,\u00a0dog\n\n,\n",
        ",path,label\n0,0.png,cat\n1,1.png,dog\n2,2.png,dog\n",
        "file_name,label,,\n0.png,cat,,\n1.png,dog,,\n2.png,dog,,\n,,,\n",
        "image_path,class_name\r./0.png,cat\r./1.png,dog\rx/../2.png,dog\r",
        '"file_name", "label"\n"0.png", "cat"\n"1.png", "dog"\n"2.png", "dog"\n',
        'label,file_name\ncat,0.png\n"dog",1.png\ndog,".\\2.png"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_many_programs_are_understood(tmp_path, text, encoding):
    build(tmp_path, *PETS)
    name = "metadata.tsv" if "\t" in text else "MetaData.CSV"
    (tmp_path / name).write_bytes(text.encode(encoding))
    images, message = read(tmp_path)
    assert by_name(images) == PETS and not message
    assert [*images.columns] == ["file_name"]
    assert images.files.extras == {"label file": 1}


@pytest.mark.parametrize(
    "rows",
    [
        [{"file_name": f"{name}", "label": label} for name, label in PETS.items()],
        [{"image": name, "Label": label, "text": "x"} for name, label in PETS.items()],
        [{"label": label, "filename": f"./{name}", "n": 1} for name, label in PETS.items()],
        [{"path": name, "category": f" {label}"} for name, label in PETS.items()],
        [{"file_name": name, "class": label, "box": [1, 2]} for name, label in PETS.items()],
    ],
)
def test_json_lines_are_understood(tmp_path, rows):
    lines = "\n\n".join(json.dumps(row) for row in rows)
    build(tmp_path, *PETS, metadata__jsonl=lines)
    assert by_name(read(tmp_path)[0]) == PETS


@pytest.mark.parametrize(
    "labels",
    [
        [["00000/img00000000.png", 1], ["00001/img00001000.png", 0]],
        [["00001\\img00001000.png", 0.0], ["00000\\img00000000.png", 1.0]],
        {"00000/img00000000.png": 1, "00001/img00001000.png": 0},
        [["./00000/img00000000.png", "1"], ["00001/img00001000.png", "0"]],
        [["00001/img00001000.png", 0], ["00000/img00000000.png", True + 0]],
    ],
)
def test_dataset_json_of_stylegan_and_edm_is_understood(tmp_path, labels):
    names = ("00000/img00000000.png", "00001/img00001000.png")
    build(tmp_path, *names, dataset__json=json.dumps({"labels": labels, "name": "x"}))
    images, message = read(tmp_path)
    assert images.labels.tolist() == [1, 0] and images.class_names == ("0", "1") and not message


NUMBERS = {
    "0.0 1.0 2.0": [0, 1, 2],
    "00 01 02": [0, 1, 2],
    "2 1 +0": [2, 1, 0],
    "1e0 0e0 2e0": [1, 0, 2],
    "０ １ ２": [0, 1, 2],
    "0. 2. 1.": [0, 2, 1],
    "\u00a00 1 2\t": [0, 1, 2],
    "1.000 0.000 1.000": [1, 0, 1],
}


@pytest.mark.parametrize("labels", NUMBERS)
def test_numbers_in_any_spelling_are_numbers(tmp_path, labels):
    rows = [f"{i}.png,{label}" for i, label in enumerate(labels.split(" "))]
    images, _ = read(table(tmp_path, *rows))
    assert images.labels.tolist() == NUMBERS[labels]
    assert images.class_names == ("0", "1", "2")[: max(NUMBERS[labels]) + 1]


NO_LABELS = [
    ("0 1.0 1", 4, "'1' is the same number as '1.0' in line 3"),
    ("0 00 1", 3, "'00' is the same number as '0' in line 2"),
    ("0 1 cat", 4, "the label is 'cat', but '0' in line 2 is a number"),
    ("cat 1 dog", 2, "the label is 'cat', but '1' in line 3 is a number"),
    ("True 1 0", 2, "the label is 'True'"),
    ("0 0.5 1", 3, "the label 0.5 is not the number of a class"),
    ("cat nan dog", 3, "the label 'nan' is a missing value"),
    ("0.0 1.0 NaN", 4, "the label 'NaN' is a missing value"),
    ("None cat dog", 2, "is a missing value"),
    ("cat  dog", 3, "a label is empty"),
    ("0 1 9223372036854775808", 4, "9223372036854775808 is not the number of a class"),
    ("0 1 1e999999999", 4, "is not the number of a class"),
    ("0 1 " + 50 * "9", 4, "is not the number of a class"),
    ("-1 0 1", 2, "labels range from -1 to 1, but no image has label 2"),
    ("0 1 3", 4, "labels range from 0 to 3, but no image has label 2"),
    ("1 2 3", 4, "labels range from 1 to 3, but no image has label 0"),
    ("cat Cat dog", 0, "differ only in case, spaces or the"),
    ("hot\u00a0dog hot\u2009dog x", 0, "differ only in case, spaces or the"),
    ("cat cat\u200b dog", 0, "differ only in case, spaces or the"),
    ("0 1 1|2", 4, "the label '1|2' may be several numbers"),
    ("0;0 1;0 2;0", 2, "the label '0;0' may be several numbers"),
    ("a\x1bb c d", 2, "not text in UTF-8 without control characters"),
]


@pytest.mark.parametrize(("labels", "line", "words"), NO_LABELS)
def test_labels_that_may_mean_two_things_are_refused_with_their_line(tmp_path, labels, line, words):
    rows = [f"{i}.png,{label}" for i, label in enumerate(labels.split(" "))]
    message = refusal(table(tmp_path, *rows))
    assert words in message
    assert not line or f"metadata.csv, line {line}: " in message


@pytest.mark.parametrize(
    "labels", ["True False True", "x X y", "1a 2b 2b", "nano none na", "² 2b x", "1_0 x y"]
)
def test_names_are_names(tmp_path, labels):
    rows = [f"{i}.png,{label}" for i, label in enumerate(labels.split(" "))]
    assert [*by_name(read(table(tmp_path, *rows))[0]).values()] == labels.split(" ")


TWICE = [
    (["0.png,cat", "0.png,dog"], 3, "0.png is the same image as 0.png in line 2, with the labels"),
    (["0.png,cat", "1.png,dog", "./0.png,dog"], 4, "./0.png is the same image as 0.png in line 2"),
    (["1.png,dog", "x/../1.png,cat"], 3, "with the labels dog and cat"),
    (["0.png,cat", ".\\0.png,dog"], 3, "is the same image as 0.png"),
    (["0.png,cat", "link.png,dog"], 3, "link.png is the same image as 0.png"),
    ([" 2.png ,a", "2.png,b"], 3, "is the same image as"),
]


@pytest.mark.parametrize(("rows", "line", "words"), TWICE)
def test_an_image_with_two_labels_is_refused_with_both_lines(tmp_path, rows, line, words):
    table(tmp_path, *rows)
    (tmp_path / "link.png").symlink_to("0.png")
    message = refusal(tmp_path)
    assert f"line {line}: " in message and words in message


def test_a_row_that_repeats_another_is_left_out_with_a_note(tmp_path):
    table(tmp_path, "0.png,cat", "1.png,dog", "0.png,cat", "link.png,cat", "2.png,dog", "2.png,dog")
    (tmp_path / "link.png").symlink_to("0.png")
    images, message = read(tmp_path)
    assert by_name(images) == PETS
    assert "3 rows repeat others of metadata.csv (line 4, line 5, line 7)" in message
    assert "1 twice in the folder (the same file by another name) (link.png)" in message
    build(tmp_path, metadata__csv="file_name,year\n0.png,1999\n0.png,2001\n")
    assert "line 3: 0.png is the same image as 0.png in line 2, with different texts in the " in (
        refusal(tmp_path)
    )


WRONG = [
    ("file_name,label\n/etc/a.png,x\n", "line 2: /etc/a.png leads out of the folder"),
    ("file_name,label\n../a.png,x\n", "line 2: ../a.png leads out of the folder"),
    ("file_name,label\nC:\\a.png,x\n", "leads out of the folder"),
    ("file_name,label\nx/../../a.png,x\n", "leads out of the folder"),
    ("file_name,label\n0.png,x\n..\\1.png,x\n", "line 3: ..\\1.png leads out of the folder"),
    ("file_name,label\n0.PNG,x\n", "0.PNG is missing in"),
    (
        "file_name,label\nsub/0.png,x\nb,y\nc,z\n",
        "as are those of 2 other rows (did you mean 0.png",
    ),
    ("file_name,label\n0,x\n1,y\n", "as is that of another row (did you mean 0.png?)"),
    ("file_name,image\n0.png,1.png\n", "2 columns of images, file_name and image"),
    ("file_name,label,Category\n0.png,1,2\n", "2 columns of labels, label and Category"),
    ("file_name,label,label\n0.png,1,2\n", "2 columns of labels, label and label"),
    ("file_name,year,year\n0.png,1,2\n", "two columns of the same name"),
    ("file_name,text,Caption\n0.png,1,2\n", "2 columns of captions, text and Caption"),
    ("file_name,,label\n0.png,7,x\n", "column 2 has no name"),
    ("file_name,label\n0.png,cat,\n", "line 2, does not have one value per column: 3 instead of 2"),
    ("file_name,label\n\n\n0.png\n", "line 4, does not have one value per column: 1 instead of 2"),
    ("file_name,label\n,cat\n", "line 2, names no image in its column file_name"),
    ('file_name,label\n0.png,"a\nb"\n1.png\n', "line 4, does not have"),
    ("0.png,cat\n1.png,dog\n", "no column file_name, which must name the images; its columns are"),
    ("file_name,label,split\n0.png,a,train\n1.png,a,fold 2\n", "line 3: the split is 'fold 2'"),
    ("file_name,label,split\n0.png,a,val\n", "no image of the split 'train', but of valid"),
    ("file_name,label,subset\n0.png,a,train\n1.png,a,Test\n", "subset holds names of splits"),
    ("file_name,Partition\n0.png,dev\n1.png,eval\n2.png,test\n", "holds names of splits (test"),
    ("file_name,label\n0.png,caf\xe9\n", "line 2: the byte 0xe9 is not UTF-8"),
    ("f\0i\0l\0e\0", "contains zero bytes, as text in UTF-16 does"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, words):
    build(tmp_path, *PETS, metadata__csv=text.encode("latin-1"))
    assert words in refusal(tmp_path)


WRONG_JSON = [
    ("metadata.jsonl", '{"file_name": "0.png"}\nfile_name', "line 2, is not JSON"),
    ("metadata.jsonl", '["0.png", 1]', "line 1, is no JSON object"),
    ("metadata.jsonl", '{"text": "x"}', "has no column file_name"),
    ("metadata.jsonl", '{"file_name": "0.png", "label": [1]}', "label is [1], but must be one"),
    ("metadata.jsonl", '{"file_name": "0.png", "label": 1, "label": 2}', "'label' is there twice"),
    ("metadata.jsonl", '{"file_name": "0.png", "label": NaN}', "'NaN' is a missing value"),
    ("metadata.jsonl", '{"file_name": "0.png", "label": null}', "a label is empty"),
    ("metadata.jsonl", '{"file_name": "0.png", "label": "\\ud800"}', "would name a class"),
    ("metadata.jsonl", "", "no column file_name"),
    ("metadata.jsonl", '{"file_name": ' + 20_000 * "[", "is not JSON"),
    ("dataset.json", '{"labels": [["0.png", [0.1, 0.9]]]}', "label is [0.1, 0.9], but must be one"),
    ("dataset.json", '{"labels": [["0.png", 0], ["1.png"]]}', 'entry 2, is ["1.png"], not [file'),
    ("dataset.json", '{"labels": 3}', "is not the dataset.json of EDM and StyleGAN"),
    ("dataset.json", '{"classes": ["cat"]}', "is not the dataset.json of EDM and StyleGAN"),
    ("dataset.json", "[", "is not JSON"),
    ("dataset.json", '{"labels": [["9.png", 0]]}', "entry 1: 9.png is missing"),
    ("dataset.json", '{"labels": []}', "dataset.json lists none"),
]


@pytest.mark.parametrize(("name", "text", "words"), WRONG_JSON)
def test_wrong_json_is_refused_with_its_line(tmp_path, name, text, words):
    build(tmp_path, *PETS)
    (tmp_path / name).write_text(text)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["metadata.csv", "metadata.jsonl"], "holds metadata.csv and metadata.jsonl: keep one"),
        (["metadata.csv", "Metadata.csv"], "keep one of these label files"),
        (
            ["cat/metadata.csv", "dog/metadata.csv"],
            "cat/metadata.csv is in a place where it is not",
        ),
        (["metadata.csv", "cat/dataset.json"], "cat/dataset.json is in a place where"),
        (["labels/metadata.jsonl"], "labels/metadata.jsonl is in a place"),
    ],
)
def test_label_files_that_would_not_be_read_are_refused(tmp_path, names, words):
    build(tmp_path, "cat/0.png", "dog/1.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("file_name,label\ncat/0.png,cat\n")
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.JSONL", "dataset.json"])
@pytest.mark.parametrize("kind", ["pipe", "broken link", "folder above", "device"])
def test_label_files_that_cannot_be_opened_are_refused(tmp_path, name, kind):
    build(tmp_path, "cat/0.png", "dog/1.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        targets = {"broken link": "nothing", "folder above": ".", "device": "/dev/zero"}
        (tmp_path / name).symlink_to(targets[kind])
    message = refusal(tmp_path)
    assert f"{name} is " in message and kind.split()[-1] in message


@pytest.mark.parametrize("name", ["labels.txt", "annotations.json", "train.csv", "a.xml"])
def test_label_files_of_other_tools_are_said_to_be_left_out(tmp_path, name):
    build(tmp_path, *PETS)
    (tmp_path / name).write_text("0.png cat")
    images, message = read(tmp_path)
    assert images.labels is None and f"({name})" in message
    assert (
        "no labels, which are read only from folders, metadata.csv, metadata.jsonl and" in message
    )


def test_a_table_of_images_in_folders_without_labels_has_a_note(tmp_path):
    build(tmp_path, "cat/0.png", "dog/1.png", "dog/2.txt")
    build(tmp_path, metadata__csv="file_name,text\ncat/0.png,a\ndog/1.png,b\n")
    images, message = read(tmp_path)
    assert images.labels is None and images.captions == (("a",), ("b",))
    assert "metadata.csv has no column of labels" in message and "(cat, dog)" in message


@pytest.mark.parametrize(
    ("header", "columns"),
    [("file_name,breed", "breed"), ("file_name,cat,dog", "cat, dog"), ("path,text,Kind", "Kind")],
)
def test_columns_that_may_be_labels_have_a_note(tmp_path, header, columns):
    rows = [f"{i}.png" + header.count(",") * f",{i}" for i in range(3)]
    images, message = read(table(tmp_path, *rows, header=header))
    assert images.labels is None
    assert (
        f"has no column of labels, so that the images have none; its other columns ({columns})"
        in message
    )


def test_files_of_any_name_may_be_listed(tmp_path):
    names = [" 0.png", "a,b.png", "x\\y.png", "caf\u00e9.png", ".hidden.png", "picture", "a.tmp"]
    build(tmp_path, *names)
    rows = [f'"{name}",{i}' for i, name in enumerate(names)]
    rows[3] = '"cafe\u0301.png",3'
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    images, message = read(tmp_path)
    assert len(images) == len(names) and not message
    assert by_name(images) == {name: str(i) for i, name in enumerate(names)}
