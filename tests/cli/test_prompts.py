"""`fewstep sample` of a run that reads prompts."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import runs
from fewstep.cli import main
from fewstep.condition import Condition
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.text.base import encoder_hash
from prompted import CAPTIONS, ENCODER, SHAPE, prompted


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    runs.save_generator(path, prompted(), None, {})
    return str(path)


def archive(run, path, *options):
    assert main(["sample", run, "--npz", str(path), "--steps", "2", *options]) == 0
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def expected(prompts, *, generator=None, label=None):
    cond = Condition(label, text=ENCODER.encode(prompts))
    noise = noise_from_seeds(range(len(prompts)), SHAPE)
    images = to_uint8((generator or prompted())(noise, steps=2, cond=cond))
    return images.movedim(1, -1).numpy()


def test_prompts_take_turns(run, tmp_path, capsys):
    drawn = archive(run, tmp_path / "a.npz", "--prompt", "a red cat", "--prompt", "", "-n", "5")
    prompts = ["a red cat", "", "a red cat", "", "a red cat"]
    assert drawn["prompts"].tolist() == prompts and "arr_1" not in drawn
    assert np.abs(drawn["arr_0"].astype(int) - expected(prompts)).max() <= 1
    assert capsys.readouterr().err.count("unknown words") == 0

    file = tmp_path / "prompts.txt"
    file.write_text("a red cat\n\n", encoding="utf-8")
    again = archive(run, tmp_path / "b.npz", "--prompts", str(file))
    assert again["prompts"].tolist() == prompts[:2]
    assert (again["arr_0"] == drawn["arr_0"][:2]).all()

    default = archive(run, tmp_path / "c.npz")
    assert default["prompts"].tolist() == [CAPTIONS[i % 3] for i in range(40)]


@pytest.mark.parametrize("prompt", ["a red cat " * 1000, "猫 🐈", "x" * 10_000])
def test_any_text_is_a_prompt(run, tmp_path, prompt, capsys):
    drawn = archive(run, tmp_path / "a.npz", "--prompt", prompt)
    assert drawn["prompts"].tolist() == [prompt]
    assert np.abs(drawn["arr_0"].astype(int) - expected([prompt])).max() <= 1
    assert len(capsys.readouterr().err) < 250


def test_unknown_words_are_listed_in_one_line(run, tmp_path, capsys):
    words = ["--prompt", "a kitten, red", "--prompt", "Kitten 🐈", "--guidance", "2"]
    archive(run, tmp_path / "a.npz", *words, "--negative", "sofa dog")
    assert "fewstep: unknown words: kitten, 🐈 and sofa\n" in capsys.readouterr().err


def test_files_say_their_prompt(run, tmp_path):
    out = tmp_path / "each"
    assert main(["sample", run, "--each", str(out), "--steps", "2", "--prompt", "a 猫"]) == 0
    assert Image.open(out / "000000.png").text["prompt"] == "a 猫"
    grid, more = tmp_path / "grid.png", ["--prompt", "a red cat", "--prompt", "a blue dog"]
    assert main(["sample", run, "-o", str(grid), "-n", "8", "--steps", "2", *more]) == 0
    picture = Image.open(grid)
    assert picture.size == (2 * 66 - 2, 4 * 66 - 2)  # a column for each prompt
    assert picture.text["prompts"] == "a red cat\na blue dog"
    left, right = (np.asarray(picture)[:64:8, x : x + 64 : 8] for x in (0, 66))
    truth = expected(["a red cat", "a blue dog"])
    assert np.abs(np.stack([left, right]).astype(int) - truth).max() <= 1


def test_a_negative_prompt_guides_away(run, tmp_path):
    options = ("--prompt", "a red cat", "--guidance", "3", "--negative", "a blue dog")
    drawn = archive(run, tmp_path / "a.npz", *options)["arr_0"]
    guided = prompted().with_guidance(3.0, negative="a blue dog")
    assert np.abs(drawn.astype(int) - expected(["a red cat"], generator=guided)).max() <= 1
    without = archive(run, tmp_path / "b.npz", *options[:4])["arr_0"]
    assert np.abs(drawn.astype(int) - without).max() > 1


def test_prompts_of_a_run_with_classes_have_none_unless_one_is_named(tmp_path):
    run = tmp_path / "run.safetensors"
    runs.save_generator(run, prompted(2), None, {})
    for name, more, label in (("a", (), -1), ("b", ("--label", "1"), 1)):
        drawn = archive(str(run), tmp_path / f"{name}.npz", "--prompt", "a red cat", *more)
        truth = expected(["a red cat"], generator=prompted(2), label=torch.tensor([label]))
        assert drawn["arr_1"].tolist() == [label]
        assert np.abs(drawn["arr_0"].astype(int) - truth).max() <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fewstep:digits", "--prompt", "a cat"], "takes no text: leave out --prompt"),
        (["fewstep:digits", "--prompts", "FILE"], "takes no text: leave out --prompts"),
        (["fewstep:digits", "--negative", "a cat", "--guidance", "2"], "takes no text"),
        (["RUN", "--negative", "a cat"], "a negative prompt has no effect without guidance"),
        (["RUN", "--label", "1"], "conditional on prompts only: leave out the label"),
        (["RUN", "--prompt", "a", "--prompts", "FILE"], "--prompts FILE replaces --prompt TEXT"),
        (["RUN", "--prompts", "FILE"], "has no prompts: write one on each line"),
        (["RUN", "--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_in_one_line(run, tmp_path, capsys, words, message):
    file = tmp_path / "prompts.txt"
    file.write_text("\n")
    names = {"RUN": run, "FILE": str(file)}
    out = tmp_path / "x.png"
    assert main(["sample", *(names.get(word, word) for word in words), "-o", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()


def test_doctor_names_the_text_encoder(run, capsys):
    assert main(["doctor", run]) == 0
    digest = encoder_hash(ENCODER)[:12]
    assert f"prompts of 6 tokens by learned ({digest})" in capsys.readouterr().out
