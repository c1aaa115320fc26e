"""The page by Streamlit's AppTest: plain controls, the address, and what it refuses."""

import shutil

import pytest
import torch
from PIL import Image

from fewstep import store
from fewstep.backbones import MLPConfig
from fewstep.sample_spec import SampleSpec
from fewstep.studio.controls import code, plain
from fewstep.studio.state import VIEWS
from studio_page import open_page


def costs(page):
    return [m.value for m in page.markdown if "network call" in m.value]


def lines(elements):
    return [element.value for element in elements]


@pytest.fixture
def two(folder):
    return open_page(folder, models=["teacher", "one-step"])


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens(folder, view):
    page = open_page(folder, view=view)
    assert not page.exception and not page.error
    assert page.segmented_control(key="control view").value == view


def test_models_stand_side_by_side_with_their_costs(two):
    texts = lines(two.markdown)
    assert code("teacher") in texts and code("one-step") in texts
    first, second = costs(two)
    assert first.startswith("**16 steps** · 16 network calls") and "ms**" in first
    assert second.startswith("**1 step** · 1 network call ·")
    assert any("trained for 1 step only" in text for text in lines(two.caption))


def test_the_picture_follows_a_control_and_so_does_the_address(two):
    two.select_slider(key="control steps teacher").set_value(4).run()
    assert costs(two)[0].startswith("**4 steps** · 4 network calls")
    assert two.query_params["steps"] == "4@teacher"
    two.number_input(key="control seed").set_value(12).run()
    assert two.query_params["seed"] == "12" and not two.exception


def test_an_address_is_restored(folder):
    page = open_page(folder, models=["cm", "teacher"], steps="3@cm", label="2", seed="9", count="4")
    assert page.number_input(key="control seed").value == 9
    assert page.segmented_control(key="control label").value == "2"
    assert page.multiselect(key="control models").value == ["cm", "teacher"]
    assert costs(page)[0].startswith("**3 steps**") and "4 pictures" in costs(page)[0]


def test_going_back_restores_the_controls(two):
    before = dict(two.query_params)
    two.number_input(key="control seed").set_value(12).run()
    assert dict(two.query_params) != before
    two.query_params.clear()
    for name, value in before.items():
        two.query_params[name] = value
    two.run()
    assert two.number_input(key="control seed").value == 0


def test_an_address_that_is_late_undoes_no_click(two):
    """A second click that leaves the browser before it knows the address of the first."""
    before = dict(two.query_params)
    two.number_input(key="control seed").set_value(12).run()
    two.query_params.clear()
    for name, value in before.items():
        two.query_params[name] = value
    two.select_slider(key="control steps teacher").set_value(4).run()
    assert two.query_params["seed"] == "12" and two.query_params["steps"] == "4@teacher"
    assert two.number_input(key="control seed").value == 12


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"models": "/etc/passwd"}, "inside the folders"),
        ({"models": "../../teacher"}, "inside the folders"),
        ({"models": "new"}, "has no weights yet"),
        ({"view": "training", "run": "../x"}, "inside the folders"),
        ({"view": "data", "store": "/etc"}, "inside the folders"),
        ({"view": "report", "report": "/etc/passwd"}, "inside the folders"),
        ({"seed": "-1"}, "seed in the address"),
        ({"password": "x"}, "unknown parameter"),
    ],
)
def test_an_address_that_asks_for_too_much_is_refused_in_one_line(folder, query, words):
    page = open_page(folder, **query)
    assert not page.exception
    (error,) = (text.replace("\\", "") for text in lines(page.error))
    assert words in error and "\n" not in error


def test_runs_of_another_kind_are_left_out_with_a_line(folder):
    page = open_page(folder, models=["teacher", "toy"])
    (warning,) = lines(page.warning)
    assert "toy" in warning and "choose runs of one kind" in warning
    assert len(costs(page)) == 1 and not page.exception


def test_a_toy_has_points_and_jumps(folder):
    page = open_page(folder, models="toy", view="path", steps="4@toy")
    assert not page.exception and not page.error
    assert page.slider(key="path step").value == 4
    page.slider(key="path step").set_value(1).run()
    assert any(text.startswith("time 0.75") for text in lines(page.caption))


@pytest.mark.parametrize(
    ("size", "view"),
    [
        (2, "seeds"),
        (3, "morph"),
        (1, "path"),
        pytest.param(1, "compare", marks=pytest.mark.slow),
        pytest.param(3, "path", marks=pytest.mark.slow),
    ],
)
def test_points_of_any_dimension_are_drawn(size, view, save_run, tmp_path):
    save_run(tmp_path / "toy", "denoise", seed=0, config=MLPConfig(8), spec=SampleSpec((size,)))
    page = open_page(tmp_path, view=view, steps="2@toy")
    if view == "path":
        page.slider(key="path step").set_value(1).run()
    assert not page.exception and not page.error and len(costs(page)) == 1


def test_a_run_that_cannot_be_loaded_is_one_line_also_alone(folder, tmp_path):
    shutil.copytree(folder / "cm", tmp_path / "cm")
    file = tmp_path / "cm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])  # as while it is copied
    page = open_page(tmp_path)
    (error,) = lines(page.error)
    assert "is damaged" in error and "\n" not in error and not page.exception


def test_guidance_is_for_models_that_were_trained_for_it(two, folder):
    two.slider(key="control guidance").set_value(2.0).run()
    assert any("has no guidance" in text and "dmd" in text for text in lines(two.caption))
    alone = open_page(folder, models="one-step")
    assert not [slider for slider in alone.slider if slider.key == "control guidance"]


def test_painting_is_greyed_out_with_the_reason(folder):
    page = open_page(folder, models=["teacher", "one-step"], view="paint")
    assert not page.exception and len(costs(page)) == 1
    (reason,) = (text for text in lines(page.markdown) if "cannot start from a picture" in text)
    assert reason.startswith(":gray[") and "dmd" in reason


def test_names_are_text_and_no_markup(folder):
    page = open_page(folder, models="teacher")
    labels = page.segmented_control(key="control label")
    assert plain("<b>one</b>") in labels.options
    assert plain("![two](http://example.org/x.png)") in labels.options
    for element in (*page.markdown, *page.caption):
        assert not element.allow_html


def test_a_name_of_a_run_is_text(folder, tmp_path):
    name = "<i>x</i> `y` $z$ ![a](http:b)"
    shutil.copytree(folder / "cm", tmp_path / "runs" / name.replace("/", "⁄"))
    page = open_page(tmp_path / "runs")
    (heading,) = (text for text in lines(page.markdown) if "x<" in text)
    assert heading == code(name.replace("/", "⁄")) and heading.startswith("`` <i>")
    assert not page.exception and not page.error


def test_plain_text_has_no_markdown():
    assert plain("a_b") == "a\\_b" and plain("![x](y)") == r"\!\[x\]\(y\)"
    assert plain("one\n\ntwo") == "one two"
    assert code("a`b") == "`` a`b ``" and code("a\nb") == "` a b `"


def test_starts_are_pinned_and_become_corners(folder):
    page = open_page(folder, models="teacher", view="seeds", start="5~9:0.5", pins="3")
    page.button(key="pin").click().run()
    assert page.query_params["pins"] == ["3", "5~9:0.5"]
    page.button(key="pin").click().run()
    assert page.query_params["pins"] == "3"
    page.segmented_control(key="control view").set_value("morph").run()
    assert not page.exception and len(costs(page)) == 1


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_a_morph_is_an_animation(folder, kind):
    page = open_page(folder, models="cm", view="morph")
    page.segmented_control(key="animation").set_value(kind).run()
    assert not page.exception
    assert [b.label for b in page.get("download_button")][-1] == kind


def test_a_training_is_shown_with_the_time_that_is_left(folder):
    page = open_page(folder, view="training", run="new")
    cells = {metric.label: metric.value for metric in page.metric}
    assert cells == {"step": "20 of 200", "time left": "18.0 s", "steps/s": "10.0"}


def test_a_sample_grid_that_is_being_written_waits(folder, tmp_path):
    shutil.copytree(folder / "new", tmp_path / "new")
    samples = tmp_path / "new" / "samples"
    samples.mkdir()
    Image.effect_noise((64, 64), 50).save(samples / "step-0000010.png")
    whole = (samples / "step-0000010.png").read_bytes()
    for size in (0, 20, len(whole) // 2):
        (samples / "step-0000020.png").write_bytes(whole[:size])
        page = open_page(tmp_path, view="training")
        assert not page.exception and "samples at step 10" in lines(page.caption)


def test_labels_that_are_no_classes_have_no_chart(tmp_path):
    schema = {"label": store.Raw(torch.int64)}
    writer = store.Writer(tmp_path / "pairs", schema=schema, count=2, provenance={})
    writer.write(0, {"label": torch.tensor([0, 2**40])})
    writer.finish()
    page = open_page(tmp_path, view="data")
    assert not page.exception and not page.get("arrow_vega_lite_chart")
    assert str(2**40) in page.dataframe[0].value["label"].tolist()


def test_a_store_is_shown_and_checked(folder):
    page = open_page(folder, view="data")
    assert any(text.startswith("**40 records** in 1 shard") for text in lines(page.markdown))
    assert str(2**62) in page.dataframe[0].value["seed"].tolist()
    page.button(key="check").click().run()
    assert lines(page.success) == ["Every byte is as it was recorded."]


def test_the_damages_of_a_store_are_listed(folder, tmp_path):
    shutil.copytree(folder / "pairs", tmp_path / "pairs")
    shard = next((tmp_path / "pairs").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    page = open_page(tmp_path, view="data")
    page.button(key="check").click().run()
    assert not page.exception and any("damage" in text for text in lines(page.error))


def test_a_report_may_run_no_scripts(folder):
    page = open_page(folder, view="report")
    (frame,) = page.get("iframe")
    assert frame.proto.srcdoc.startswith("<!doctype html><meta http-equiv=")
    assert "default-src 'none'" in frame.proto.srcdoc and "scores" in frame.proto.srcdoc
