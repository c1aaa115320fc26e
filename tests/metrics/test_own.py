"""Extractors and measures that a user names by their address, in every place that takes a name."""

import json
from pathlib import Path

import pytest
import torch

from fewstep import plugins
from fewstep.cli import main
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.metrics import EvalProtocol, find_measure, make_extractor
from fewstep.recipe import parse
from metrics.own import SHIFT, Quarters, shift

QUARTERS, MEASURE = "metrics.own:Quarters", "metrics.own:SHIFT"
IMAGES = torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8)
TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
    "fit.steps=2",
]


def test_classes_functions_and_networks_are_extractors():
    own = make_extractor(QUARTERS, ImageSet("toys", IMAGES))
    assert type(own) is Quarters and own(IMAGES).shape == (3, 4)
    assert own(IMAGES)[0, 0] == pytest.approx(IMAGES[0, 0, :4, :4].float().mean() / 255)
    assert make_extractor("metrics.own:across")(IMAGES).shape == (3, 8)
    network = make_extractor("metrics.own:Tiny", resize="clean-bicubic")
    assert network.resize == "clean-bicubic to 4" and network(IMAGES).shape == (3, 3 * 16)


@pytest.mark.parametrize(
    ("name", "resize", "message"),
    [
        ("metrics.own:Nobody", None, "cannot import the extractor metrics.own:Nobody"),
        ("metrics.nowhere:Quarters", None, "cannot import the extractor metrics.nowhere:Quarters"),
        ("metrics.own:NUMBER", None, "is of type int, not Extractor"),
        ("metrics.own:Nameless", None, "must set 'name'"),
        (QUARTERS, "clean-bicubic", "does not resize images"),
        ("metrics.own:across", "clean-bicubic", "does not resize images"),
    ],
)
def test_what_is_no_extractor_is_refused(name, resize, message):
    with pytest.raises(InputError, match=message):
        make_extractor(name, resize=resize)


def test_a_measure_is_found_by_name_or_address():
    assert find_measure(MEASURE) is SHIFT
    assert find_measure("sliced-wasserstein").label == "Sliced Wasserstein distance"
    with pytest.raises(InputError, match="sliced-waserstein"):
        find_measure("sliced-waserstein")
    with pytest.raises(InputError, match="'kernel' of metrics.own:TAKEN is taken"):
        find_measure("metrics.own:TAKEN")
    for name in ("metrics.own:INCOMPLETE", "metrics.own:shift"):
        with pytest.raises(InputError, match="is not a metrics.Measure with `compute`"):
            find_measure(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is measured by both during its training."""
    out = tmp_path_factory.mktemp("own") / "run"
    named = [f'evaluate.extractor="{QUARTERS}"', f'evaluate.measures=["{MEASURE}"]']
    small = ["evaluate.every=2", "evaluate.samples=40", "evaluate.steps=[1]"]
    assert main(["train", "digits-flow", *TINY, *named, *small, "--out", str(out)]) == 0
    return out


def evaluate(run, capsys, *options):
    capsys.readouterr()
    common = ["--samples", "40", "--steps", "1", "--extractor", QUARTERS]
    assert main(["evaluate", str(run), *common, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)[0]


def test_a_recipe_measures_by_both(run):
    lines = map(json.loads, (run / "progress.jsonl").read_text().splitlines())
    (score,) = [line["score"] for line in lines if "score" in line]
    assert (score["extractor"], score["extractor_hash"]) == ("quarters", "version 1")
    (extra,) = score["extra"]
    assert extra["key"] == "shift" and extra["value"] > 0
    page = (run / "report.html").read_text()
    assert "Shift &lt;of&gt; means" in page and "Shift <of>" not in page


def test_a_kept_score_is_used_if_it_has_the_extractor_and_the_measure(run, capsys, monkeypatch):
    plain = evaluate(run, capsys)
    assert plain["features"] == 4 and "extra" not in plain
    full = evaluate(run, capsys, "--measures", f"{MEASURE}, sliced-wasserstein")
    assert [extra["key"] for extra in full["extra"]] == ["shift", "sliced_wasserstein"]
    assert full["frechet"] == plain["frechet"]

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("fewstep.evaluation.Evaluator.iter_score", never)
    again = evaluate(run, capsys, "--measures", MEASURE)
    assert {extra["key"]: extra["value"] for extra in full["extra"]}["shift"] == next(
        extra["value"] for extra in again["extra"] if extra["key"] == "shift"
    )
    monkeypatch.setattr(Quarters, "hash", "version 2")
    with pytest.raises(AssertionError, match="measured again"):
        evaluate(run, capsys)


def test_the_value_is_that_of_the_function_on_both_sets_of_features(run):
    from fewstep import runs
    from fewstep.data import load
    from fewstep.drawing import generate
    from fewstep.evaluation import Evaluator

    generator, digits = runs.load(run), load("digits")
    evaluator = Evaluator(digits, EvalProtocol(40, QUARTERS, measures=(MEASURE,)))
    score = evaluator.score(generator, steps=1)
    samples = torch.cat([images for _, images in generate(generator, 40, steps=1)])
    (extra,) = score.measures.extra
    expected = shift(Quarters()(digits.images), Quarters()(samples))
    assert extra.value == pytest.approx(expected, rel=1e-5)


def test_tables_show_the_label_and_the_report_needs_no_code(run, capsys, tmp_path):
    capsys.readouterr()
    options = ["--samples", "40", "--steps", "1", "--extractor", QUARTERS, "--measures", MEASURE]
    page = tmp_path / "page.html"
    assert main(["compare", str(run), *options, "--out", str(page)]) == 0
    assert "Shift <of> means" in capsys.readouterr().out
    assert "Distance of the means." in page.read_text()


@pytest.mark.parametrize("evaluate", [{"extractor": QUARTERS}, {"measures": [MEASURE]}])
def test_recipes_in_weights_name_no_code_unless_it_is_allowed(evaluate, monkeypatch):
    monkeypatch.setattr(plugins, "_allowed", set())
    table = {"data": {"name": "digits"}, "method": {"name": "denoise"}, "evaluate": evaluate}
    for allow_code in (None, ["metrics"]):
        parse(table, allow_code=allow_code)
    with pytest.raises(InputError, match="pass --allow-code metrics"):
        parse(table, allow_code=())


def test_a_mistyped_name_is_one_line(run, capsys):
    for option, name, message in [
        ("--extractor", "metrics.own:Nobody", "cannot import the extractor metrics.own:Nobody"),
        ("--measures", "sliced", "unknown measure 'sliced'"),
    ]:
        capsys.readouterr()
        assert main(["evaluate", str(run), option, name]) == 2
        assert message in capsys.readouterr().err
    assert Path(run).is_dir()
