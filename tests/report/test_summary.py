import re

import pytest

from fewstep.metrics import INCEPTION_HASH
from fewstep.report.ranking import rank
from fewstep.report.results import summary, tiles
from fewstep.report.svg import BASELINE, LOOKS
from report.examples import entry, score


def ranking(teacher=(), **students):
    known = [entry("teacher", BASELINE, teacher)] if teacher else []
    return rank([*known, *(entry(n, LOOKS[0], s) for n, s in students.items())])[0]


def plain(html):
    return " ".join(re.sub("<[^>]*>", "", html.replace("&nbsp;", " ")).split())


def plain_text(ranking):
    return plain(summary(ranking))


def bare(steps, frechet, spread=None, **told):
    return score(steps, frechet, spread=spread, measures={}, **told)


NO_CLAIM = r"Closest|closest| × |better|faster"


def test_overlapping_intervals_make_no_claim():
    both = ranking([bare(1, 9.0, 6.0), bare(8, 4.0, 2.0)], one=[bare(1, 5.0, 2.0)],
                   two=[bare(1, 5.5, 2.0), bare(4, 4.5, 2.0)])  # fmt: skip
    assert plain_text(both) == (
        "one needs 1 network evaluation and 1.00 ms per image. Its Fréchet distance (classifier) "
        "is 5.00 (95 % interval 3.00 – 7.00). 2,000 samples show no difference between this "
        "and the best distance of teacher, 4.00, which takes 8 network evaluations and 1.00 ms per "
        "image. With 1 evaluation, teacher reaches 9.00; 2,000 samples show no difference between "
        "the two. "
        "With 1 evaluation each, 2,000 samples show no difference between one and two. The "
        "smallest distance measured for a student is 4.50 (95 % interval 2.50 – 6.50), of two "
        "with 4 network evaluations and 1.00 ms per image. 2,000 samples show no difference "
        "between it and the best distance of teacher, nor between it and one with 1 evaluation and "
        "two with 1 evaluation."
    )
    assert not re.search(NO_CLAIM, plain_text(both))
    assert "the best distance of teacher; 2,000 samples show no difference ≈ 1.25 ×" in plain(
        tiles(both)
    )


def test_unknown_intervals_make_no_claim():
    both = ranking([bare(1, 9.0), bare(8, 1.0)], one=[bare(1, 5.0)], two=[bare(4, 4.5)])
    assert not re.search(NO_CLAIM, plain_text(both))
    assert plain_text(both).count("no difference") == 3
    assert (
        "between it and the best distance of teacher, nor between it and one with 1 evaluation."
    ) in plain_text(both)


def test_intervals_apart_make_the_claim():
    both = ranking([bare(1, 9.0, 0.1), bare(8, 4.0, 0.1)], one=[bare(1, 5.0, 0.1)],
                   two=[bare(1, 6.0, 0.1), bare(4, 3.0, 0.1)])  # fmt: skip
    text = plain_text(both)
    assert "This is 1.25 × the best distance of teacher, 4.00" in text
    assert "With 1 evaluation, teacher reaches 9.00; the distance of one is 0.556 × that." in text
    assert (
        "Of all students, two comes closest to the real images: 3.00 (95 % interval 2.90 – 3.10), "
        "with 4 network evaluations and 1.00 ms per image. "
        "This is 0.750 × the best distance of teacher."
    ) in text
    assert "difference" not in text + tiles(both)


def test_without_a_baseline_or_without_students():
    alone = ranking(**{"a<b": [score(1, 2.0, spread=0.1), score(4, 1.0, spread=0.1)]})
    html = summary(alone)
    assert "<b>a&lt;b</b> needs 1 network evaluation and" in html
    assert "<b>a&lt;b</b> comes closest to the real images: <b>" in html
    assert "students" not in html and tiles(alone) == ""
    teacher = ranking([bare(1, 9.0, 0.1), bare(4, 1.0, 0.1)])
    assert plain_text(teacher) == (
        "teacher needs 1 network evaluation and 1.00 ms per image. Its Fréchet distance "
        "(classifier) is 9.00 (95 % interval 8.90 – 9.10). teacher comes closest to the real "
        "images: 1.00 (95 % interval 0.900 – 1.10), with 4 network evaluations and 1.00 ms per "
        "image."
    )
    assert tiles(teacher) == ""
    rivals = ranking([bare(1, 9.0, 0.1), bare(2, 1.1, 0.1), bare(4, 1.0, 0.1)])
    assert plain_text(rivals).endswith(
        "2,000 samples show no difference between it and teacher with 2 evaluations."
    )
    assert not re.search(NO_CLAIM, plain_text(rivals))
    assert plain_text(ranking([bare(1, 9.0)])) == (
        "teacher needs 1 network evaluation and 1.00 ms per image. Its Fréchet distance "
        "(classifier) is 9.00."
    )


@pytest.mark.parametrize("devices", [("a", "a"), ("a", "b")])
def test_times_of_two_devices_are_not_divided(devices):
    both = ranking([bare(8, 4.0, seconds=0.008, device=devices[0])],
                   one=[bare(1, 5.0, device=devices[1])])  # fmt: skip
    assert ("the speed of teacher" in tiles(both)) == (devices == ("a", "a"))
    assert ("8.00 ×" in tiles(both)) == (devices == ("a", "a"))


def test_fid_is_of_the_standard_network_alone():
    known = {"extractor": "inception", "extractor_hash": INCEPTION_HASH}
    standard = ranking(o=[bare(1, 5.0, resize="tf1-bilinear", **known)])
    assert "Its FID is 5.00." in plain_text(standard)
    other = ranking(o=[bare(1, 5.0, resize="clean-bicubic", **known)])
    assert "Its FID (clean-bicubic) is 5.00." in plain_text(other)
