from dataclasses import replace

from fewstep.metrics import INCEPTION_HASH
from fewstep.report.charts import quality
from fewstep.report.ranking import rank
from fewstep.report.results import other_measures, scores
from fewstep.report.svg import BASELINE, LOOKS
from report.examples import MEASURED, Page, entry, exhibits, score, write


def rankings(teacher, *students):
    return rank([
        entry("teacher", BASELINE, teacher),
        *(entry(f"s{i}", LOOKS[i], s) for i, s in enumerate(students)),
    ])  # fmt: skip


def table(html):
    return Page(html).tables[0]


def test_relative_says_what_is_shown():
    (told,) = rankings([score(1, 9.0, spread=1), score(8, 4.0, spread=0.5)],
                       [score(1, 3.0, spread=0.4), score(2, 4.2, spread=0.5)],
                       [score(1, 5.0, spread=0.1), score(2, 2.8)])  # fmt: skip
    rows = table(scores(told, key="k"))
    assert [row[2 if len(row) < 8 else 3] for row in rows[1:]] == [
        "2.25 ×", "1.00 ×", "✓ 0.750 ×", "≈ 1.05 ×", "1.25 ×", "≈ 0.700 ×",
    ]  # fmt: skip
    assert [row[-1] for row in rows[1:]] == [
        "transfer", "transfer best of baseline", "transfer", "transfer", "transfer", "transfer",
    ]  # fmt: skip


def test_one_best_student_only_where_it_is_apart_from_all():
    (told,) = rankings([score(1, 9.0, spread=1)], [score(1, 3.0, spread=0.4)],
                       [score(1, 5.0, spread=0.1)])  # fmt: skip
    assert [row[-1] for row in table(scores(told, key="k"))[1:]] == [
        "transfer best of baseline", "transfer best student", "transfer",
    ]  # fmt: skip


def test_seeds_and_devices_are_said_once_or_in_each_row():
    first = {"seed": 5, "device": "NVIDIA H200, 140 GiB"}
    (told,) = rankings([score(1, 2.0)], [score(1, 1.0, **first)])
    html = scores(told, key="k")
    assert table(html)[0][-3:] == ["Timed on", "Seed", "Sampler"]
    assert [row[-3:-1] for row in table(html)[1:]] == [
        ["1 CPU thread (i386)", "0"], ["NVIDIA H200, 140 GiB", "5"],
    ]  # fmt: skip
    assert "Noise seed" not in html and "at batch size 1." in html
    (alone,) = rankings([score(1, 1.0, **first)])
    text = Page(scores(alone, key="k")).text
    assert "at batch size 1 on NVIDIA H200, 140 GiB. Noise seed: 5." in text


def test_a_precision_other_than_f32_is_said():
    (told,) = rankings([score(1, 2.0)], [score(1, 1.0, number_format="tf32")])
    assert "Generated in f32, tf32." in scores(told, key="k")
    (told,) = rankings([score(1, 2.0)], [score(1, 1.0)])
    assert "Generated in" not in scores(told, key="k")


def test_caveats_stand_above_the_table():
    (told,) = rankings([score(1, 1.0, features=2000), score(2, 1.0, features=2000)])
    html = scores(told, key="k")
    (caveat,) = told.protocol.caveats
    assert html.index('<p class="caveat">' + caveat) < html.index("<table")
    assert html.count("caveat") == 1
    (fine,) = rankings([score(1, 1.0, features=1999)])
    assert "caveat" not in scores(fine, key="k")


ALL = {"frechet_infinite": 4.004, "kernel": -0.0012, "kernel_low": -0.003, "kernel_high": 0.0006,
       "precision": 0.8155, "recall": 0.7, "density": 1.0444, "coverage": 0.9, "copies": 0.0125,
       "class_score": 6.913}  # fmt: skip


def test_all_measures_are_those_of_the_score():
    (told,) = rankings([score(1, 5.0, measures=ALL | MEASURED), score(2, 5.0)], [score(1, 6.0)])
    page = Page(other_measures(told, key="k"))
    assert page.tables[0] == [
        ["Generator", "Steps", "Extrapolated distance\xa0↓", "Kernel distance\xa0↓",
         "Class score\xa0↑", "Precision\xa0↑", "Recall\xa0↑", "Density\xa0↑", "Coverage\xa0↑",
         "Copies"],
        ["● teacher", "1 transfer", "4.00", "−0.00120 −0.00300 – 0.000600", "6.91", "0.816",
         "0.700", "1.04", "0.900", "1.2 %"],
        ["2 transfer", *"––––––––"],
        ["■ s0", "1 transfer", *"––––––––"],
    ]  # fmt: skip
    for head in page.tables[0][0][2:]:  # each is explained
        assert head.replace("\xa0", " ") in page.text.split("Copies", 1)[1]


def test_only_measures_that_were_taken():
    few = {"precision": 0.5, "recall": 0.25}
    (told,) = rankings([score(1, 5.0, measures=few)])
    assert table(other_measures(told, key="k"))[0][2:] == ["Precision\xa0↑", "Recall\xa0↑"]
    assert other_measures(rankings([score(1, 5.0)])[0], key="k") == ""


def test_kid_and_inception_score_are_of_the_standard_network_alone():
    known = {"extractor": "inception", "extractor_hash": INCEPTION_HASH, "resize": "tf1-bilinear"}
    (told,) = rankings([score(1, 5.0, measures=ALL, **known)])
    assert table(other_measures(told, key="k"))[0][2:5] == [
        "Extrapolated FID\xa0↓", "KID\xa0↓", "Inception Score\xa0↑",
    ]  # fmt: skip
    assert table(scores(told, key="k"))[0][2] == "FID\xa0↓"
    (other,) = rankings([score(1, 5.0, measures=ALL)])
    html = scores(other, key="k") + other_measures(other, key="k")
    assert not any(name in html for name in ("FID", "KID", "Inception"))


def test_a_plot_of_times_is_of_one_device():
    first = [score(n, 9 / n, spread=0.1, seconds=n / 1000) for n in (1, 2, 4)]
    (same,) = rankings(first, [score(1, 2.0)])
    (other,) = rankings(first, [score(1, 2.0, device="b & c")])
    assert quality(same, key="k").count("<svg") == 2
    html = quality(other, key="k")
    assert html.count("<svg") == 3
    assert "Against time, batch 1, 1 CPU thread (i386)<" in html
    assert "Against time, batch 1, b &amp; c<" in html
    b = html.split("b &amp; c<")[1]
    assert LOOKS[0].colour in b and LOOKS[0].colour not in html.split("i386)<")[1].split("<h3")[0]


def test_protocols_stand_apart_on_the_page(tmp_path):
    shown = exhibits()[::2]
    extra = [score(2, 77.7, samples=50_000), score(3, 66.6, samples=50_000)]
    page = Page(write(tmp_path, [shown[0], replace(shown[1], scores=extra)]))
    first, second = page.under("Generator", "Steps", "Sampler")
    assert [row[0] for row in first[1:]] == ["● teacher", "16", "10"]
    assert [row[:3] for row in second[1:]] == [["■ tuned", "2", "77.7"], ["3", "66.6", "95.1 %"]]
    assert "numbers from different tables cannot be compared" in page.text
    assert "Each distance compares 50,000 samples with" in page.text
