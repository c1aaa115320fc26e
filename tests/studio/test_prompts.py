"""Prompts in the studio: the box, the address, unknown words, and what is generated."""

import pytest
import torch

from fewstep import runs, store
from fewstep.condition import Condition
from fewstep.noise import noise_from_seeds
from fewstep.studio.catalogue import Catalogue
from fewstep.studio.controls import plain
from fewstep.studio.session import Session
from fewstep.studio.starts import Start
from fewstep.studio.state import MAX_PROMPT
from fewstep.studio.workshop import Workshop
from prompted import CAPTIONS, ENCODER, SHAPE, prompted
from studio_page import open_page

STARTS = [Start(3), Start(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with text, `plain` without, and a store of pairs with prompts."""
    folder = tmp_path_factory.mktemp("prompts") / "runs"
    recipe = {"method": {"name": "denoise", "condition_dropout": 0.1}, "fit": {"steps": 200}}
    for name, generator in {
        "text": prompted(),
        "both": prompted(2),
        "plain": prompted(encoder=None),
    }.items():
        runs.save_generator(folder / name / "model.safetensors", generator, recipe, {})
        (folder / name / "recipe.toml").write_text("[fit]\nsteps = 200\n")
    tensors = {"x0": torch.zeros(2, *SHAPE), "seed": torch.tensor([1, 2])}
    tensors["prompt"] = torch.tensor([1, 0])
    schema = {name: store.Raw(value.dtype, value.shape[1:]) for name, value in tensors.items()}
    provenance = {"prompts": ["a red cat", "a blue dog"]}
    writer = store.Writer(folder / "pairs", schema=schema, count=2, provenance=provenance)
    writer.write(0, tensors)
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def workshop(folder):
    return Workshop(Catalogue([str(folder)]))


def expected(prompts, *, generator=None, label=None):
    noise = noise_from_seeds([start.seed << 32 for start in STARTS], SHAPE)
    cond = Condition(label, text=ENCODER.encode(prompts))
    with torch.inference_mode():
        return (generator or prompted())(noise, steps=2, cond=cond)


def test_a_session_generates_what_its_prompt_says(workshop):
    model = workshop.load("text")
    for prompt, prompts in {
        "a red cat": ["a red cat"] * 2,
        "": [CAPTIONS[0], CAPTIONS[1]],  # seeds 3 and 4 of three examples
    }.items():
        request = Session(workshop, prompt=prompt, negative="unused").request(model, STARTS, 2)
        assert request.prompts == tuple(prompts) and request.negative == ""
        values = workshop.generate(request).values
        torch.testing.assert_close(values, expected(prompts), rtol=1e-4, atol=1e-4)
    guided = Session(workshop, prompt="a red cat", negative="a blue dog", guidance=2.0)
    request = guided.request(model, STARTS, 2)
    truth = prompted().with_guidance(2.0, negative="a blue dog")
    values = workshop.generate(request).values
    truth = expected(["a red cat"] * 2, generator=truth)
    torch.testing.assert_close(values, truth, rtol=1e-3, atol=1e-3)


def test_classes_are_none_beside_prompts_unless_one_is_selected(workshop):
    model = workshop.load("both")
    for label, number in ((None, -1), (1, 1)):
        request = Session(workshop, label=label, prompt="a red cat").request(model, STARTS, 2)
        assert request.labels == (number, number)
        truth = expected(
            ["a red cat"] * 2, generator=prompted(2), label=torch.tensor([number, number])
        )
        torch.testing.assert_close(workshop.generate(request).values, truth, rtol=1e-4, atol=1e-4)


def captions(page):
    return [element.value for element in page.caption]


def test_the_box_and_the_address_hold_the_prompt(folder):
    page = open_page(folder, models=["text"], steps="2@text", count="1")
    box = page.text_input(key="control prompt")
    assert box.value == "" and CAPTIONS[0] in box.placeholder
    box.set_value("a kitten, red").run()
    assert page.query_params["prompt"] == "a kitten, red" and not page.exception
    assert "unknown words: kitten" in captions(page)

    page = open_page(folder, models=["text"], prompt="猫 🐈", guidance="2", negative="a dog")
    assert page.text_input(key="control prompt").value == "猫 🐈"
    assert page.text_input(key="control negative").value == "a dog"
    assert not page.exception and not page.error
    page.slider(key="control guidance").set_value(1.0).run()
    assert "control negative" not in [box.key for box in page.text_input]

    page = open_page(folder, models=["text"], prompt="x" * (MAX_PROMPT + 1))
    assert any(plain("it has 1,001 characters") in error.value for error in page.error)


@pytest.mark.parametrize(
    "view",
    ["paint", *(pytest.param(name, marks=pytest.mark.slow) for name in ("seeds", "morph", "path"))],
)
def test_every_view_takes_a_prompt(folder, view):
    page = open_page(folder, models=["text"], view=view, prompt="a red cat", guidance="2")
    assert not page.exception and not page.error
    assert page.text_input(key="control prompt").value == "a red cat"


def test_models_with_and_without_text_are_not_mixed(folder):
    page = open_page(folder, models=["text", "plain"])
    (warning,) = (element.value for element in page.warning)
    assert "with 0 classes and prompts: choose runs of one kind" in warning
    page = open_page(folder, models=["plain"], prompt="a red cat")
    assert "control prompt" not in [box.key for box in page.text_input] and not page.error


def test_records_show_their_prompts(folder):
    page = open_page(folder, view="data", store="pairs")
    (table,) = (element.value for element in page.dataframe)
    assert list(table["prompt"]) == ["a blue dog", "a red cat"]
