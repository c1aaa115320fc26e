"""Mutated captions of images: read as another reader reads them, or refused in one line."""

import codecs
import csv
import io
import json
import random
import re
import traceback
import unicodedata

import pytest

from fewstep.errors import InputError
from image_folders import count_files, picture, read
from mutating import count_accepted, time_limit

SEED = 20_20
NAMES = ("a", "b", "c.v2", "é", "猫", "readme", "x y", "00000")
TEXTS = (
    *(
        "a cat",
        "a  cat ",
        "A Cat",
        "a dog, dark",
        "x",
        "1 2 3",
        '"quoted"',
        "it’s",
        "a; b | c",
        "a\tb",
    ),
    *(
        "猫が笑う",
        "👨‍👩‍👧 family 👋🏿",
        "e\u0301te\u0301",
        "\u202eשלום",
        "\u00a0",
        "x\u3000y",
        "",
        "0",
    ),
    *(
        "two\nlines",
        "two\r\nlines\n\n",
        "a\u2028b\x85c",
        "word " * 2000,
        "\ufeffbom",
        "a\x0bb",
        "\t",
    ),
)
ODD_TEXTS = (
    *("NaN", "None", "NULL", "N/A", "['a', 'b']", '["a"]', "a\x00b", "\x1b[31mred", "\x7f"),
    *("0 0.1 0.2 0.3 0.4", "1 2 3 4 5 6", "ok\n#N/A", "\ud83d"),
)
ODD_CELLS = ([], ["x", "y"], ["x", 3], [["x"]], {"en": "x"}, None, 7, True, 1e400, "x\ny")
TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")


class Set:
    """A folder of images with captions in one of the ways that are read."""

    def __init__(self, path, rng):
        self.path, self.rng, self.log = path, rng, []
        path.mkdir()
        names = rng.sample(NAMES, rng.randint(1, 4))
        self.images = [f"{name}{rng.choice(['.png', '.png', '.PNG'])}" for name in names]
        for image in self.images:
            (path / image).write_bytes(picture(image))
        self.kind = rng.choice(
            ["beside", "beside", "metadata.csv", "metadata.tsv", "metadata.jsonl"]
        )
        if self.kind == "beside":
            for name in names:
                if rng.random() < 0.9:
                    (path / f"{name}.txt").write_bytes(encode(self.text()))
        else:
            rows = [(image, self.text()) for image in self.images for _ in range(rng.randint(1, 2))]
            self.write(rows, rng.choice(["text", "caption", "Captions"]))

    def text(self):
        return self.rng.choice(ODD_TEXTS if self.rng.random() < 0.05 else TEXTS)

    def write(self, rows, column):
        """Write a table of (image, caption)."""
        if self.kind == "metadata.jsonl":
            ascii = self.rng.random() < 0.5
            table = [{"file_name": image, column: self.cell(text)} for image, text in rows]
            content = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in table)
        else:
            file = io.StringIO()
            separator = "\t" if self.kind == "metadata.tsv" else self.rng.choice(",;")
            csv.writer(file, delimiter=separator).writerows([("file_name", column), *rows])
            content = file.getvalue()
        (self.path / self.kind).write_bytes(encode(content))

    def cell(self, text):
        chance = self.rng.random()
        return self.rng.choice(ODD_CELLS) if chance < 0.1 else [text, "x"] if chance < 0.2 else text

    def source(self):
        """A file of captions.  Raises: IndexError without one."""
        tables = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
        return self.rng.choice(
            [
                p
                for p in sorted(self.path.iterdir())
                if p.suffix.lower() == ".txt" or p.name in tables
            ]
        )

    def mutate(self):
        name = self.rng.choice([*MUTATIONS])
        try:
            self.log.append(f"{name}: {MUTATIONS[name](self)!r}")
        except (OSError, LookupError, ValueError) as error:  # there is nothing to change
            self.log.append(f"{name} failed: {error!r}")


def encode(text):
    return text.encode("utf-8", "surrogatepass")


def drop_file(f):
    path = f.source() if f.rng.random() < 0.5 else f.path / f.rng.choice(f.images)
    path.unlink()
    return path


def extra_file(f):
    name = f.rng.choice([*NAMES, "notes", "license", "metadata"])
    suffix = f.rng.choice([".txt", ".TXT", ".png", ".jpg", ".caption"])
    is_image = suffix in (".png", ".jpg")
    path = f.path / f"{name}{suffix}"
    path.write_bytes(picture(name) if is_image else encode(f.text()))
    return path


def change_row(f):
    """Drop, repeat, swap or add a line."""
    path = f.source()
    lines = path.read_text("utf-8").split("\n")
    i, kind = f.rng.randrange(len(lines)), f.rng.choice(["drop", "repeat", "swap", "add", "column"])
    if kind == "drop":
        del lines[i]
    elif kind == "repeat":
        lines.insert(f.rng.randrange(len(lines)), lines[i])
    elif kind == "swap":
        f.rng.shuffle(lines)
    elif kind == "column":
        lines = [f"{line},{i % 2}" for i, line in enumerate(lines)]
    else:
        text = f.text()
        added = {".csv": f"nothing.png,{text}", ".jsonl": '{"file_name": "nothing.png"}'}
        lines.insert(i, added.get(path.suffix, text))
    path.write_bytes(encode("\n".join(lines)))
    return kind


def change_bytes(f):
    path = f.source()
    content = bytearray(path.read_bytes())
    i, kind = f.rng.randrange(len(content)), f.rng.choice(["flip", "cut", "insert"])
    if kind == "flip":
        content[i] ^= 1 << f.rng.randrange(8)
    elif kind == "cut":
        del content[i:]
    else:
        content[i:i] = f.rng.choice(
            [b"\n", b'"', b",", b"\r", b"\xff", b"\0", b"]", b"\xe2\x80\xa8"]
        )
    path.write_bytes(content)
    return kind, i


def change_encoding(f):
    path = f.source()
    encoding = f.rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "gb18030", "utf-7"])
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    return encoding


def change_name(f):
    path = f.source()
    return path.rename(path.with_name(f.rng.choice([path.name.upper(), f"{f.images[0]}.txt"])))


CHANGES = (drop_file, extra_file, change_row, change_bytes, change_encoding, change_name)
MUTATIONS = {change.__name__: change for change in CHANGES}


def expected_captions(folder, names):
    """The captions of each image, by rules of their own."""
    tables = [p for p in folder.iterdir() if p.name.lower() in TABLES]
    texts = {name: [] for name in names}
    for name, text in rows_of(tables[0]) if tables else ():
        if name.strip() in texts:
            texts[name.strip()].append(text)
    if not any("".join(parts).strip() for parts in texts.values()):
        for path in folder.iterdir():
            owners = [
                n
                for n in names
                if path.suffix.lower() == ".txt" and n.rpartition(".")[0] == path.stem
            ]
            if owners:
                texts[owners[0]].append(decoded(path))
    captions = []
    for name in names:
        lines = [" ".join(line.split()) for text in texts[name] for line in text.splitlines()]
        normal = [unicodedata.normalize("NFC", line) for line in lines if line]
        captions.append(tuple(dict.fromkeys(normal)))
    return tuple(captions) if any(captions) else ()


def decoded(path):
    content = path.read_bytes()
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return content.decode("utf-16" if wide else "utf-8-sig")


def rows_of(table):
    """(image, caption) of each row, as text."""
    text = decoded(table)
    if table.suffix.lower() == ".jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        text = re.sub(r"^\s*[\r\n]", "", text)
        header = text.split("\n")[0].lower()
        separator = next(s for s in ",;\t|" if "file_name" in [c.strip() for c in header.split(s)])
        file = io.StringIO(text, newline="")
        rows = [*csv.DictReader(file, delimiter=separator, skipinitialspace=True)]
    for row in rows:
        row = {key.strip().lower(): value for key, value in row.items()}
        value = next(
            (row[key] for key in ("text", "texts", "caption", "captions") if key in row), None
        )
        if row.get("file_name"):
            yield row["file_name"], text_of(value)


def text_of(value):
    if isinstance(value, list):
        return "\n".join(value)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def check(folder, images, message):
    """Whatever was accepted is complete and true."""
    files = images.files
    assert files.total == count_files(folder), (files, message)
    assert bool(message) == bool(files.left_out or files.notes)
    names = images.columns["file_name"]
    assert images.captions == expected_captions(folder, names)
    missing = sum(not own for own in images.captions)
    if missing:
        assert f"{missing} of {len(names)} images ha" in message, message
    assert images.fingerprint  # with any caption
    for caption in (caption for own in images.captions for caption in own):
        assert caption.isprintable() or not any(
            c < " " or "\ud800" <= c <= "\udfff" for c in caption
        )


def attempt(path, number):
    """Read mutated captions `number`. Returns whether they were accepted; explains a failure."""
    rng = random.Random(f"{SEED} {number}")
    made = Set(path, rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        made.mutate()
    try:
        with time_limit():
            images, message = read(path)
            check(path, images, message)
        return True
    except InputError as error:
        assert "\n" not in str(error), (number, str(error))
        str(error).encode()
        return False
    except BaseException:
        contents = {p.name: p.read_bytes()[:300] for p in path.iterdir() if p.suffix != ".png"}
        pytest.fail(f"captions {number}: {made.log}\n{contents}\n{traceback.format_exc()}")


def test_mutated_captions_are_read_in_full_or_refused(tmp_path):
    assert 20 < count_accepted(attempt, tmp_path, range(60)) < 55


@pytest.mark.slow
def test_4000_mutated_captions_are_read_in_full_or_refused(tmp_path):
    accepted = count_accepted(attempt, tmp_path, range(4000))
    print(f"{accepted} of 4000 sets accepted")
    assert 2000 < accepted < 3200
