from dataclasses import replace

import pytest

from fewstep.report.exhibits import training_seconds
from fewstep.report.results import weights_bytes
from report.examples import Page, exhibits, made_by, write

# fmt: off
FIGURE = {"name": "EDM", "steps": 35, "score": 1.97, "protocol": "FID, 50,000 samples, best of 3",
          "cost": "2 days on 8 V100", "source": "arXiv:2206.00364, https://github.com/NVlabs/edm"}
# fmt: on
OTHER = {"name": "CTM", "steps": 1, "score": 1234.5678, "protocol": "another"}


def test_training_time_counts_every_start():
    lines = [{"seconds": s} for s in (1.0, 2.0, 0.5, 4.0, 1.5)]
    assert training_seconds(lines) == 2.0 + 4.0 + 1.5
    # started anew and past the old clock before the first line: only the start tells
    start = {"step": 0, "hardware": "h"}
    lines = [start, {"seconds": 2.0}, {"score": {}}, start, {"seconds": 3.0}, {"seconds": 4.0}]
    assert training_seconds(lines) == 2.0 + 4.0
    assert training_seconds([]) == training_seconds([start]) == 0


def test_the_cost_of_each(tmp_path):
    teacher, regress, tuned = exhibits()
    moved = [*teacher.progress, {"step": 200, "hardware": "NVIDIA H200, 140 GiB"},
             {"step": 210, "images": 6720, "seconds": 1.0, "memory": 1234}]  # fmt: skip
    rests = made_by(teacher={"load": "runs/big & old"}, pairs={"load": "runs/pairs"},
                    student={"init": "runs/before"})  # fmt: skip
    shown = [
        replace(teacher, progress=moved),
        replace(regress, recipe=rests),
        replace(tuned, recipe=None, progress=[], scores=[]),
    ]
    page = Page(write(tmp_path, shown))
    (table,) = page.under("Generator", "Training time")
    size = "1 4.00e-06 MB"  # of one number in float32
    assert table == [
        ["Generator", "Fréchet distance (classifier) with the fewest evaluations\xa0↓",
         "Parameters", "Training images", "Training time", "Peak memory", "Trained on",
         "Builds on"],
        ["● teacher", "82.3 80.3 – 84.3 1 evaluation", size, "6,720 210 steps", "21.0 s",
         "1,234 MiB", "1 CPU thread (i386)NVIDIA H200, 140 GiB", "–"],
        ["■ regress", "7.42 7.32 – 7.52 1 evaluation", size, "6,400 200 steps", "20.0 s",
         "–", "1 CPU thread (i386)",
         "teacher runs/big & oldpairs runs/pairsinitial weights runs/before"],
        ["▲ tuned", "–", size, "–", "–", "–", "–", "–"],
    ]  # fmt: skip
    assert "The row of a student is not its whole cost" in page.text


def test_no_column_for_what_nothing_builds_on(tmp_path):
    page = Page(write(tmp_path))
    (table,) = page.under("Generator", "Training time")
    assert table[0][-1] == "Trained on" and "not its whole" not in page.text


def test_bytes_are_those_of_the_weights():
    made = exhibits()[0].generator
    wanted = sum(t.numpy().nbytes for t in made.state_dict().values())
    assert weights_bytes(made) == wanted > 0
    assert weights_bytes(made.double()) == 2 * wanted


def test_published_figures_once_each_and_never_ranked(tmp_path):
    teacher, regress, tuned = exhibits()
    both = made_by(about={"published": [FIGURE, OTHER]})
    one = made_by(about={"published": [FIGURE]})
    html = write(tmp_path, [replace(teacher, recipe=one), replace(regress, recipe=both), tuned])
    page = Page(html)
    (table,) = page.under("Published", "Protocol")
    assert table == [
        ["Published", "Steps", "Score", "Protocol", "Cost", "Source"],
        ["EDM", "35", "1.97", FIGURE["protocol"], FIGURE["cost"], FIGURE["source"]],
        ["CTM", "1", "1234.57", "another", "–", "–"],
    ]
    assert "measured with other protocols, so they are not ranked with the scores" in page.text
    for other in page.tables:
        assert other is table or not any("EDM" in cell for row in other for cell in row)
    assert "1.97" not in "".join(page.texts).split("Scores", 2)[0]


@pytest.mark.parametrize("recipe", [None, made_by()])
def test_nothing_published_nothing_said(tmp_path, recipe):
    shown = [replace(exhibits()[0], recipe=recipe)]
    assert "Published" not in Page(write(tmp_path, shown)).text
