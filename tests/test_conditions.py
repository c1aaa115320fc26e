"""Which conditions a recipe trains on, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep import recipe, runs
from fewstep.assembly import assemble
from fewstep.conditions import caption_table, data_spec, examples, prompts, read_prompts
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.resuming import PINS
from fewstep.sample_spec import MAX_PROMPTS, SampleSpec
from fewstep.student import build_student
from fewstep.text.learned import LearnedText

BASE = {
    "data": {"name": "digits"},
    "method": {"name": "denoise"},
    "evaluate": {"every": 0},
    "student": {
        "init": "scratch",
        "process": "flow",
        "parametrization": "velocity",
        "backbone": {
            "name": "unet",
            "channels": [8],
            "groups": 4,
            "attention": [],
            "cross_attention": [8],
            "text_width": 8,
            "text_layers": 1,
        },
    },
}
IMAGES = ImageSet(
    "pets",
    torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
    torch.tensor([0, 1, 1, 0]),
    ("small", "large"),
    captions=(("cat",), ("dog", "hound"), ("horse",), ("cat",)),
)
ENCODER = LearnedText(length=8)


def read(text=ENCODER, **data):
    table = {**BASE, "data": {**BASE["data"], **data}}
    return replace(recipe.parse(table), text=text)


def teacher(spec, settings):
    student, _ = build_student(settings, spec, None)
    return Generator(student, spec)


def test_the_encoder_learns_the_captions():
    spec = data_spec(read(), IMAGES)
    assert spec.text == ENCODER.fit(["hound", "horse", "dog", "cat", "cat"])
    assert (spec.classes, spec.prompts) == (2, ("cat", "dog", "horse"))
    spec = data_spec(read(labels=False), IMAGES)
    assert (spec.classes, spec.class_names) == (0, ()) and spec.text and spec.is_conditional


def test_captions_without_an_encoder_are_left_out():
    assert data_spec(read(None), IMAGES).text is None
    assert data_spec(read(captions=False), IMAGES).text is None
    assert data_spec(read(captions=False), IMAGES).prompts == ()


def test_a_student_reads_as_its_teacher_does():
    settings = read()
    spec = data_spec(settings, IMAGES)
    source = teacher(spec, settings)
    assert data_spec(read(None), IMAGES, source) == spec
    assert data_spec(settings, IMAGES, source, None) == spec
    copy = replace(read(None), student=recipe.StudentConfig())
    student, _ = build_student(copy, spec, source)
    assert student.backbone.text == spec.text.input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (read(LearnedText(length=9)), "is not the one that the teacher"),
        (read(LearnedText(length=8, vocabulary=12)), "is not the one that the teacher"),
    ],
)
def test_another_encoder_than_the_teachers_is_refused(settings, message):
    source = teacher(data_spec(read(), IMAGES), read())
    with pytest.raises(InputError, match=message):
        data_spec(settings, IMAGES, source)


def test_networks_that_read_and_those_that_do_not_are_not_mixed_up():
    plain, reads = data_spec(read(None), IMAGES), data_spec(read(), IMAGES)
    copy = replace(read(None), student=recipe.StudentConfig())
    with pytest.raises(InputError, match="reads no prompts, and the recipe trains on captions"):
        build_student(copy, reads, teacher(plain, read(None)))
    with pytest.raises(InputError, match="reads prompts, and data.captions=false"):
        build_student(copy, plain, teacher(reads, read()))
    other = SampleSpec(reads.shape, 2, reads.class_names, text=LearnedText().fit(["x"]))
    with pytest.raises(InputError, match="another text encoder than the recipe's"):
        build_student(copy, other, teacher(reads, read()))


def test_a_set_without_captions_is_refused():
    bare = replace(IMAGES, captions=())
    with pytest.raises(InputError, match="the data have none: choose a set with captions"):
        data_spec(read(), bare)
    spec = data_spec(read(), IMAGES)
    with pytest.raises(InputError, match="pets has no captions: add them.* data.prompts"):
        caption_table(bare, spec)


def test_a_file_of_prompts_for_a_network_without_text_is_refused():
    settings = read(None, prompts="x.txt")
    with pytest.raises(InputError, match="data.prompts is x.txt, and this network reads no"):
        prompts(settings, IMAGES, data_spec(settings, IMAGES), None)


def test_a_training_is_bound_to_its_file_of_prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    data = {"name": "emoji", "size": 8, "prompts": f"{tmp_path}/prompts.txt"}
    plain = {**BASE, "text": {"name": "learned"}, "data": {"name": "emoji", "size": 8}}
    file = str(tmp_path / "teacher.safetensors")
    generator = assemble(recipe.parse(plain), torch.device("cpu")).method.generator()
    runs.save_generator(Path(file), generator, None, {})
    table = {
        "data": data,
        "teacher": {"load": file},
        "method": {"name": "sfd"},
        "evaluate": {"every": 0},
    }

    def pins():
        return assemble(recipe.parse(table), torch.device("cpu")).pins

    first = pins()
    (tmp_path / "prompts.txt").write_text("a dog\n")
    second = pins()
    assert {name for name in first if first[name] != second[name]} == {PINS["data.prompts"]}
    with pytest.raises(InputError, match="but Denoise trains on the prompts of the captions of"):
        assemble(recipe.parse({**plain, "data": data}), torch.device("cpu"))


def test_prompts_are_captions_or_the_lines_of_a_file(tmp_path):
    spec = data_spec(read(), IMAGES)
    source = prompts(read(), IMAGES, spec, caption_table(IMAGES, spec))
    assert len(source.captions.numbers) == 5 and source.labels is not None
    assert prompts(read(None), IMAGES, data_spec(read(None), IMAGES), None) is None
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\nein Hund 🐶\n".encode())
    assert read_prompts(file) == ["a cat", "", "ein Hund 🐶"]
    source = prompts(read(prompts=str(file)), IMAGES, spec, None)
    assert len(source.captions.numbers) == 3 and source.labels is None
    assert source.draw(torch.tensor([0.4])).is_present().tolist() == [False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompts"),
        (b"\n \n", "has no prompts"),
        (b"caf\xe9\n", "is not UTF-8 text"),
        (b"\xff\xfec\x00a\x00t\x00", "is not UTF-8 text"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(file)


def test_examples_are_spread_over_the_set():
    many = replace(
        IMAGES,
        images=torch.zeros(300, 1, 8, 8, dtype=torch.uint8),
        labels=None,
        class_names=(),
        captions=tuple((f"number {i // 2}",) for i in range(300)),
    )
    found = examples(many)
    assert len(set(found)) == MAX_PROMPTS and found[0] == "number 1"
    assert int(found[-1].split()[1]) >= 145
