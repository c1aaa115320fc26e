import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep import report
from fewstep.checksums import json_line
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.images import to_uint8
from fewstep.loading import LoadedRun
from fewstep.noise import noise_from_seeds
from fewstep.report import Exhibit, pictures, report_run, write_report
from fewstep.runs import weights_hash
from fewstep.sampling import Heun
from fewstep.times import FixedGrid
from report.examples import (
    HOSTILE,
    Page,
    exhibits,
    generator,
    made_by,
    progress,
    score,
    tiles,
    write,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write(tmp_path_factory.mktemp("report"), notes=["two cores"]))


def test_the_table_says_the_scores(page):
    around = {82.31: "80.3 – 84.3", 6.172: "6.07 – 6.27", 5.124: "5.07 – 5.17",
              7.418: "7.32 – 7.52", 11.9: "10.9 – 12.9", 5.02: "4.98 – 5.06"}  # fmt: skip
    assert page.tables[0] == [
        ["Generator", "Steps", "Fréchet distance (classifier)\xa0↓",
         "Relative to teacher’s best\xa0↓", "Accuracy\xa0↑", "Network evaluations\xa0↓",
         "Time per image\xa0↓", "Sampler"],
        ["● teacher", "1", "82.3 " + around[82.31], "16.1 ×", "95.1 %", "1", "1.00 ms", "transfer"],
        ["16", "6.17 " + around[6.172], "1.20 ×", "95.1 %", "16", "12.3 ms", "transfer"],
        ["10", "5.12 " + around[5.124], "1.00 ×", "95.1 %", "19", "14.7 ms",
         "heun best of baseline"],
        ["■ regress", "1", "7.42 " + around[7.418], "1.45 ×", "95.1 %", "1", "420 µs", "transfer"],
        ["▲ tuned", "1", "11.9 " + around[11.9], "2.32 ×", "95.1 %", "1", "1.00 ms", "transfer"],
        ["4", "5.02 " + around[5.02], "✓ 0.980 ×", "95.1 %", "4", "1.00 ms",
         "transfer best student"],
    ]  # fmt: skip
    line = "compares 2,000 samples with the real images, digits (1797, 0123456789ab), in"
    assert line in page.text
    assert "Time is the median at batch size 1 on 1 CPU thread (i386). Noise seed: 0." in page.text
    assert "FID" not in page.text


def test_the_sentences_follow_from_the_scores(page):
    assert (
        "regress needs 1 network evaluation and 420 µs per image. Its Fréchet distance "
        "(classifier) is 7.42 (95 % interval 7.32 – 7.52), and 95.1 % of its samples are "
        "classified as the requested class. This is 1.45 × the best distance of teacher, 5.12, "
        "which takes 19 network evaluations and 14.7 ms per image. With 1 evaluation, teacher "
        "reaches 82.3; the distance of regress is 0.0901 × that. Of all students, tuned comes "
        "closest to the real images: 5.02 (95 % interval 4.98 – 5.06), with 4 network evaluations "
        "and 1.00 ms per image. This is 0.980 × the best distance of teacher."
    ) in page.text
    assert "35.0 ×" in page.text  # 14.7 ms over 420 µs, in a tile


def test_the_same_noise_goes_through_all(page):
    teacher, regress, tuned = (e.generator for e in exhibits())
    noise = noise_from_seeds(range(10), (1, 6, 5))
    cond = Condition(torch.arange(10) % 3)
    wanted = {
        "teacher, 1 step of transfer": teacher(noise, steps=1, cond=cond),
        "teacher, 10 steps of heun": teacher.with_sampler(step=Heun())(noise, steps=10, cond=cond),
        "regress, 1 step of transfer": regress(noise, steps=1, cond=cond),
        "tuned, 1 step of transfer": tuned(noise, steps=1, cond=cond),
        "tuned, 4 steps of transfer": tuned(noise, steps=4, cond=cond),
    }
    labels = "cat, dog, emu, cat, dog, emu, cat, dog, emu, cat"
    (start, *shown) = page.images[:6]
    assert start[0] == "The starting noise of each column"
    assert np.array_equal(tiles(start[1], 10, 5)[..., 0], to_uint8(noise / 2)[:, 0])
    assert [alt for alt, _ in shown] == [f"{name}: {labels}" for name in wanted]
    for (_, image), images in zip(shown, wanted.values(), strict=True):
        assert np.array_equal(tiles(image, 10, 5)[..., 0], to_uint8(images.detach())[:, 0])


def test_samples_have_a_row_for_each_class_students_at_their_quickest(page):
    shown = page.images[6:]
    assert [alt for alt, _ in shown] == [
        f"{way}: 10 samples of class {name}"
        for way in ("teacher, 10 steps of heun", "regress, 1 step of transfer",
                    "tuned, 1 step of transfer")
        for name in ("cat", "dog", "emu")
    ]  # fmt: skip
    dogs = exhibits()[1].generator(
        noise_from_seeds(range(10, 20), (1, 6, 5)), cond=Condition(torch.full((10,), 1))
    )
    assert np.array_equal(tiles(shown[4][1], 10, 5)[..., 0], to_uint8(dogs.detach())[:, 0])


def test_colours_without_classes(tmp_path):
    shown = [replace(e, scores=[replace(s, measures=replace(s.measures, accuracy=None))
                                for s in e.scores])
             for e in exhibits((3, 8, 12), 0)]  # fmt: skip
    told = Page(write(tmp_path, shown))
    assert "Accuracy" not in told.text
    assert len(told.images) == 6 + 3 * 10
    images = shown[1].generator(noise_from_seeds(range(10), (3, 8, 12)))
    wanted = to_uint8(images.detach()).permute(0, 2, 3, 1)
    assert told.images[3][0] == "regress, 1 step of transfer"
    assert np.array_equal(tiles(told.images[3][1], 10, 12), wanted)


def test_how_each_was_made(page):
    for exhibit in exhibits():
        assert f"train {exhibit.name}" in page.text
        assert f"[fit] steps = {len(exhibit.name)} " in page.text
        assert weights_hash(exhibit.generator) in page.text
    assert "c0ffee" * 10 in page.text
    assert "two cores" in page.text
    assert "6,400 images in 20.0 s" in page.text


def test_it_stands_alone(tmp_path):
    html = write(tmp_path)
    told = Page(html)
    for tag, attributes in told.tags:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
        assert not any(name.startswith("on") for name in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in told.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["xlink:href"][1:] for _, a in told.tags if "xlink:href" in a}
    used |= {a["href"][1:] for tag, a in told.tags if tag == "a"}
    used |= set(re.findall(r"url\(#([^)]*)\)", html))
    used |= {a["aria-labelledby"] for _, a in told.tags if "aria-labelledby" in a}
    assert used <= set(ids)


def test_every_picture_is_described(page):
    assert all(a["aria-label"] for tag, a in page.tags if tag == "svg")
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2 * 3
    assert all(alt for alt, _ in page.images)


def test_hostile_text_stays_text(tmp_path, monkeypatch):
    told = dict.fromkeys(("extractor", "reference", "extractor_hash", "resize", "sampler"), HOSTILE)
    figure = dict.fromkeys(("name", "protocol", "cost", "source"), HOSTILE)
    by = made_by(
        teacher={"load": HOSTILE}, about={"published": [{**figure, "steps": 1, "score": 2.0}]}
    )
    scores = [score(1, 3.0, **told, features=4000, device=device) for device in (HOSTILE, "b")]
    log = [{"step": 0, "hardware": HOSTILE}, *progress()]
    names = (HOSTILE, "b", "c")
    # a sampler of that name is not there to be drawn with
    monkeypatch.setattr(pictures, "convert_step", lambda *_: Heun())
    shown = [
        Exhibit(name, generator(0.5, names=names), scores, by, log, [HOSTILE], baseline=mine)
        for name, mine in (("teacher", True), (HOSTILE, False), ("$a$", False))
    ]
    told = Page(write(tmp_path, shown, title=HOSTILE, notes=[HOSTILE]))
    assert {tag for tag, _ in told.tags}.isdisjoint({"script"})
    assert told.text.count(HOSTILE) >= 60
    assert all(alt.startswith(("The", "teacher", "$a$", HOSTILE)) for alt, _ in told.images)


def test_equal_inputs_give_equal_bytes(tmp_path):
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_no_scores_no_curves_no_commands(tmp_path):
    few = FixedGrid(((1.0,), (1.0, 0.5)))
    bare = Exhibit("bare", generator(0.5, grid=few), [], None, [], [])
    told = Page(write(tmp_path, [bare]))
    assert [alt.split(":")[0] for alt, _ in told.images[1:4]] == [
        "bare, 1 step of transfer", "bare, 2 steps of transfer", "bare, 2 steps of transfer",
    ]  # fmt: skip
    assert [a["id"] for tag, a in told.tags if tag == "section"] == [
        "same-noise", "samples", "cost", "recipes", "provenance",
    ]  # fmt: skip
    assert "Commands" not in told.text


def test_only_images_of_one_kind(tmp_path):
    for shown, match in (
        ([], "at least one generator"),
        (
            [exhibits()[0], exhibits((1, 6, 5), 0)[1]],
            "different shapes .*with 0 classes.*with 3 cl",
        ),
        ([exhibits((2, 6, 5))[0]], r"grey or colour images .* not \(2, 6, 5\)"),
        ([exhibits((2,), 0)[0]], r"grey or colour images .* not \(2,\)"),
    ):
        with pytest.raises(InputError, match=match):
            write_report(tmp_path / "report.html", shown, title="")


def test_a_run_reports_itself(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    recipe = made_by(fit={"steps": 200})
    (folder / "recipe.toml").write_text(recipe.toml())
    lines = [{"step": 100, "score": score(1, 77.0).table()}, *progress()]
    lines += [{"step": 200, "hardware": "another"}, {"step": 200, "said": "by nobody known"}]
    (folder / "progress.jsonl").write_bytes(b"".join(map(json_line, lines)))
    run = LoadedRun("mine", str(folder), generator(0.5), recipe, None)
    monkeypatch.setattr(report, "load_run", lambda _: run)
    report_run(folder, "fewstep train mine")
    told = Page((folder / "report.html").read_text("utf-8"))
    assert told.tables[0][1][:3] == ["■ mine", "1", "9.50 9.00 – 10.0"]  # of the last weights alone
    assert len(told.tables[0]) == 2
    assert "1 CPU thread (i386)another" in told.text
    assert "77.0" not in told.text
    assert "fewstep train mine" in told.text
