"""Prompts of the rows of recordings, and what students read of them."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import conditions, runs, store
from fewstep.cli import main
from fewstep.comparison import Exhibit
from fewstep.data.folder import read_folder
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.images import grid
from fewstep.loading import load_runs
from fewstep.metrics import EvalProtocol
from fewstep.noise import noise_from_seeds
from fewstep.recipe import parse, read
from fewstep.recording import Recording, record
from fewstep.report import write_report
from fewstep.requests import make_requests
from fewstep.run_folder import Run
from fewstep.runner import run_recipe
from fewstep.runs import network_hash
from fewstep.sample_spec import SampleSpec
from fewstep.scores import score_from
from fewstep.store_recipes import open_store
from fewstep.streams import PairStream
from fewstep.text.learned import LearnedText
from painter import colours, painter
from prompted import CAPTIONS, ENCODER, RECIPE, SHAPE, captioned_folder, prompted, prompted_run
from report.examples import Page, tiles

CPU = torch.device("cpu")
ODD = ("a red cat", "", "猫 🐈", "x" * 10_000, "a red cat")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return captioned_folder(tmp_path_factory.mktemp("images"))


def recorded(folder, *, generator=None, **settings):
    recording = Recording(**{"count": 23, "steps": 2, "shard": 10, "codec": "raw", **settings})
    for _ in record(generator or prompted(), folder, recording, teacher="hash"):
        pass
    return store.Reader(folder)


def test_a_recorded_image_is_that_of_its_prompt(tmp_path):
    reader = recorded(tmp_path, prompts=ODD)
    assert reader.provenance["prompts"] == list(dict.fromkeys(ODD))
    stream = PairStream(reader, encoder=ENCODER)
    for index in (torch.tensor([22, 0, 7, 4]), torch.arange(23)):
        rows = stream.rows(index, torch.zeros(len(index)), CPU)
        truth = ENCODER.encode([ODD[i % len(ODD)] for i in index.tolist()])
        assert rows.cond.text.tokens.equal(truth.tokens) and rows.cond.text.mask.equal(truth.mask)
        assert rows.cond.label is None
        seeds = reader[index]["seed"].tolist()
        assert rows.noise.equal(noise_from_seeds(seeds, SHAPE))
        expected = prompted()(rows.noise, steps=2, cond=rows.cond)
        torch.testing.assert_close(rows.x0, expected, rtol=1e-4, atol=1e-4)
    other = prompted()(rows.noise, steps=2, cond=rows.cond[torch.arange(23).roll(1)])
    assert (other - rows.x0).abs().amax((1, 2, 3)).gt(1e-2).sum() == 19  # 4 have an equal prompt


def test_prompts_are_encoded_by_the_student(tmp_path):
    """A store holds text: a student with other tokens than the teacher's may learn from it."""
    other = LearnedText(length=9, vocabulary=60).fit(["other words"])
    stream = PairStream(recorded(tmp_path, prompts=CAPTIONS), encoder=other)
    text = stream.rows(torch.tensor([3]), torch.zeros(1), CPU).cond.text
    assert text.tokens.equal(other.encode([CAPTIONS[3]]).tokens)


def test_without_prompts_the_examples_of_the_generator_are_recorded(tmp_path):
    reader = recorded(tmp_path)
    assert reader.provenance["prompts"] == list(CAPTIONS[:3])
    assert reader[:]["prompt"].tolist() == [i % 3 for i in range(23)]


def test_classes_stay_with_their_captions(tmp_path, images):
    generator = prompted(2)
    data = read_folder("train", path=images)
    turns = conditions.captions_in_turn(data, generator.spec)
    truth = {each[0]: int(label) for each, label in zip(data.captions, data.labels, strict=True)}
    assert dict(zip(*turns, strict=True)) == truth and len(turns.labels) == 5
    reader = recorded(tmp_path, generator=generator, prompts=turns.prompts, labels=turns.labels)
    rows = PairStream(reader, classes=2, encoder=ENCODER).rows(
        torch.arange(23), torch.zeros(23), CPU
    )
    assert rows.cond.label.tolist() == [turns.labels[i % 5] for i in range(23)]
    expected = generator(rows.noise, steps=2, cond=rows.cond)
    torch.testing.assert_close(rows.x0, expected, rtol=1e-4, atol=1e-4)


def test_a_part_of_the_captions_is_a_sample_of_the_set(images):
    data = read_folder("train", path=images)
    several = replace(data, captions=tuple((f"{i}", f"{i}!") for i in range(4)) + ((),))
    whole = conditions.captions_in_turn(several, SampleSpec(SHAPE))
    assert sorted(whole.prompts) == sorted(
        ["", *(f"{i}" for i in range(4)), "0!", "1!", "2!", "3!"]
    )
    assert list(whole.prompts) != sorted(whole.prompts) and whole.labels == ()
    assert (
        conditions.captions_in_turn(several, SampleSpec(SHAPE), count=4).prompts
        == (whole.prompts[:4])
    )


def test_the_hash_of_a_network_covers_its_text_encoder():
    other = replace(ENCODER, pieces=" ".join(reversed(ENCODER.pieces.split())))
    assert network_hash(prompted()) != network_hash(prompted(encoder=other))
    assert network_hash(prompted()) == network_hash(prompted().with_guidance(2.0))


def open_pairs(folder, spec, **data):
    table = {"data": {"name": "folder", **data}, "method": {"name": "regress"}}
    recipe = parse(table | {"pairs": {"load": str(folder)}})
    return open_store(recipe, spec, PairStream, None)[0]


def test_prompts_and_students_without_text_are_not_mixed(tmp_path):
    recorded(tmp_path / "text")
    recorded(tmp_path / "plain", generator=prompted(encoder=None))
    text, plain = SampleSpec(SHAPE, text=ENCODER), SampleSpec(SHAPE)
    assert len(open_pairs(tmp_path / "text", text)) == len(open_pairs(tmp_path / "plain", plain))
    with pytest.raises(InputError, match="plain have no prompts, and the recipe trains on captio"):
        open_pairs(tmp_path / "plain", text)
    with pytest.raises(InputError, match="text were generated from prompts, and the recipe trai"):
        open_pairs(tmp_path / "text", plain)
    with pytest.raises(InputError, match="this generator takes no text: leave out the prompts"):
        recorded(tmp_path / "p", generator=prompted(encoder=None), prompts=("a cat",))


@pytest.mark.parametrize(
    ("prompts", "number", "message"),
    [
        (None, 0, "number prompts that its provenance does not list"),
        ([], 0, "number prompts that its provenance does not list"),
        ([7], 0, "number prompts that its provenance does not list"),
        (["a cat"], 1, "a record with prompt 1; it must be from 0 to 0"),
        (["a cat"], -1, "a record with prompt -1; it must be from 0 to 0"),
    ],
)
def test_damaged_lists_of_prompts_are_refused(tmp_path, prompts, number, message):
    tensors = {"x0": torch.zeros(2, *SHAPE), "seed": torch.tensor([0, 1])}
    tensors["prompt"] = torch.tensor([0, number])
    schema = {name: store.Raw(value.dtype, value.shape[1:]) for name, value in tensors.items()}
    writer = store.Writer(tmp_path, schema=schema, count=2, provenance={"prompts": prompts})
    writer.write(0, tensors)
    writer.finish()
    with pytest.raises(InputError, match=message):
        PairStream(store.Reader(tmp_path), encoder=ENCODER).rows(
            torch.arange(2), torch.zeros(2), CPU
        )


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_records_the_captions_of_the_training_set(tmp_path, images, capsys):
    run = prompted_run(tmp_path / "run.safetensors", images)
    few = ["-n", "12", "--steps", "2", "--allow-out-of-range"]
    for out in ("p", "q"):
        assert main(["record", run, "--out", str(tmp_path / out), *few]) == 0
    assert content(tmp_path / "p") == content(tmp_path / "q")
    reader = store.Reader(tmp_path / "p")
    assert sorted(reader.provenance["prompts"]) == sorted(CAPTIONS)
    assert reader.provenance["text_encoder"]["name"] == "learned"
    assert reader[:]["prompt"].tolist() == [i % 5 for i in range(12)]
    assert main(["record", "--verify", str(tmp_path / "p")]) == 0
    capsys.readouterr()
    assert main(["record", "--info", str(tmp_path / "p")]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["prompts"] == 5

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red dog\n\n猫\n", encoding="utf-8")
    out = tmp_path / "f"
    assert main(["record", run, "--out", str(out), *few, "--prompts", str(prompts)]) == 0
    assert store.Reader(out).provenance["prompts"] == ["a red dog", "", "猫"]
    assert main(["record", run, "--out", str(tmp_path / "p"), *few, "--prompts", str(prompts)]) == 2
    assert "p was begun with other settings: provenance.prompts is [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", ("--prompts", "FILE"), "has no prompts: write one on each line"),
        (b"\xff\xfea", ("--prompts", "FILE"), "is not UTF-8 text"),
        (b"a", ("--prompts", "FILE", "--data", "emoji"), "give one of the two"),
        (b"", ("--data", "digits"), "digits has no captions: name a set with captions by --data"),
        (b"", (), "the captions of its training are unknown: name a set with captions by --data"),
    ],
)
def test_prompts_that_cannot_be_recorded_are_refused_in_one_line(
    tmp_path, capsys, content, options, message
):
    run, prompts = tmp_path / "run.safetensors", tmp_path / "prompts.txt"
    runs.save_generator(run, prompted(), None, {})
    prompts.write_bytes(content)
    options = [str(prompts) if word == "FILE" else word for word in options]
    assert main(["record", str(run), "--out", str(tmp_path / "p"), "-n", "2", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "p").exists()


def test_prompts_for_a_run_without_text_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "p"), "-n", "2"]
    for option in ("--prompts", "--data"):
        assert main(["record", "fewstep:digits", *out, option, "emoji"]) == 2
        line = capsys.readouterr().err
        assert f"fewstep:digits reads no prompts: leave out {option}" in line


def test_samples_have_the_captions_of_the_real_images(home):
    """A generator that draws what the text says matches the set, whatever the batch."""
    evaluator = Evaluator(colours(), EvalProtocol(600, "pixels"))
    score = evaluator.score(painter(), steps=1)
    assert (score.labels, score.prompts) == ("none", "captions of the set")
    assert score.frechet < 0.1
    other = evaluator.score(painter(), steps=1, batch=70)
    assert other.frechet == pytest.approx(score.frechet, abs=1e-6)
    assert score_from(json.loads(json.dumps(score.table()))) == score
    # the example prompts of the run, of which one in two is green, are another distribution
    plain = replace(colours(), captions=())
    with pytest.warns(UserWarning, match="colours has no captions: samples have example prompts"):
        score = Evaluator(plain, EvalProtocol(600, "pixels")).score(painter(), steps=1)
    assert score.prompts == "examples of the run" and score.frechet > 1


def test_a_caption_asks_for_the_class_of_its_image(home):
    images = colours(count=8)
    requests = make_requests(painter().spec, images)
    assert requests.labels is None and requests.cycle == 1
    for row, number in enumerate(requests.images):
        assert requests.prompts[row] == images.captions[number][0]
    truth = images.labels[torch.tensor(requests.images)]
    assert requests.classes_of(range(8)).equal(truth)
    assert requests.classes_of(range(6, 10)).tolist() == [*truth[6:], *truth[:2]]
    classes = SampleSpec(SHAPE, 3, ("r", "g", "b"), text=ENCODER)
    assert list(make_requests(classes, images).labels) == truth.tolist()
    others = SampleSpec(SHAPE, 2, ("x", "y"), text=ENCODER)
    with pytest.warns(UserWarning, match="samples have none, without an accuracy"):
        requests = make_requests(others, images)
    assert requests.labels is None and requests.classes is None and requests.prompts


def test_runs_with_and_without_text_are_not_compared(tmp_path):
    for name, encoder in (("text", ENCODER), ("other", ENCODER), ("plain", None)):
        runs.save_generator(tmp_path / name, prompted(encoder=encoder), None, {})
    assert len(load_runs([str(tmp_path / name) for name in ("text", "other")])) == 2
    with pytest.raises(InputError, match="^text reads prompts, and plain does not: compare only"):
        load_runs([str(tmp_path / name) for name in ("text", "plain")])


def test_a_report_has_a_column_or_row_for_each_prompt(home, tmp_path):
    exhibit = Exhibit("painter", painter(), [], None, [], [])
    write_report(
        tmp_path / "r.html",
        [exhibit],
        title="t",
        evaluator=Evaluator(colours(count=8), EvalProtocol(8, "pixels")),
    )
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    same = next(image for alt, image in page.images if alt.startswith("painter, 1 step"))
    assert _colours(same).tolist() == [0, 1] * 5  # the examples red and green in turn
    assert "requests the prompt above it" in page.text and "Each row is one prompt." in page.text
    for number, prompt in enumerate(("red", "green")):
        (row,) = (image for alt, image in page.images if alt.endswith(f" of prompt {prompt}"))
        assert (_colours(row) == number).all()
    assert "green nearest: green; never asked for 2nd nearest: green; never asked for" in page.text


def _colours(strip):
    return tiles(strip, 10, 8).reshape(10, -1, 3).mean(1).argmax(1)


def test_the_grids_of_a_run_show_its_example_prompts(images, tmp_path):
    path = tmp_path / "text.toml"
    path.write_text(RECIPE.format(images=images), encoding="utf-8")
    with closing(run_recipe(read(str(path)), tmp_path / "run")) as steps:
        for _ in steps:
            pass
    run = Run(tmp_path / "run")
    generator = runs.load(run.folder)
    assert sorted(generator.spec.prompts) == sorted(CAPTIONS)
    ((_, drawn),) = generate(generator, 10, steps=2, prompts=generator.spec.prompts)
    picture = np.asarray(Image.open(run.grids()[-1]))
    sheet = np.asarray(grid(drawn, columns=5))
    assert picture.shape == sheet.shape == (2 * 66 - 2, 5 * 66 - 2, 3)
    assert np.abs(picture.astype(int) - sheet).max() <= 1
