import re

import pytest

from fewstep.metrics import INCEPTION_HASH
from fewstep.report.plots import BASELINE, LOOKS
from fewstep.report.ranking import Contender, rank
from fewstep.report.summary import sentences, tiles
from report.shown import score


def ranking(teacher=(), **students):
    known = [Contender("teacher", BASELINE, teacher)] if teacher else []
    return rank([*known, *(Contender(n, LOOKS[0], s) for n, s in students.items())])[0]


def plain_text(told):
    return " ".join(re.sub("<[^>]*>", "", " ".join(sentences(told)).replace("&nbsp;", " ")).split())


def bare(steps, frechet, spread=None, **told):
    return score(steps, frechet, spread=spread, measures={}, **told)


NO_CLAIM = r"Closest|closest| × |better|faster"


def test_overlapping_intervals_make_no_claim():
    told = ranking([bare(1, 9.0, 6.0), bare(8, 4.0, 2.0)], one=[bare(1, 5.0, 2.0)],
                   two=[bare(1, 5.5, 2.0), bare(4, 4.5, 2.0)])  # fmt: skip
    assert plain_text(told) == (
        "one needs 1 network evaluation and 1.00 ms for an image, at a Fréchet distance "
        "(classifier) of 5.00 (3.00 – 7.00). No difference to the best of teacher, 4.00, which "
        "takes 8 network evaluations and 1.00 ms, is shown by 2,000 samples. No difference to the "
        "9.00 that teacher reaches with 1 evaluation is shown by 2,000 samples. Between one and "
        "two, at as many evaluations, no difference is shown by 2,000 samples. The lowest figure "
        "of all students is that of two with 4 network evaluations and 1.00 ms, at a Fréchet "
        "distance (classifier) of 4.50 (2.50 – 6.50), not told apart from the best of teacher; but "
        "no difference to one with 1 evaluation and two with 1 evaluation is shown by 2,000 "
        "samples."
    )
    assert not re.search(NO_CLAIM, plain_text(told))
    assert "≈ 1.25 ×" in tiles(told) and "no difference is shown by 2,000 samples" in tiles(told)


def test_unknown_intervals_make_no_claim():
    told = ranking([bare(1, 9.0), bare(8, 1.0)], one=[bare(1, 5.0)], two=[bare(4, 4.5)])
    assert not re.search(NO_CLAIM, plain_text(told))
    assert plain_text(told).count("no difference") + plain_text(told).count("No difference") == 3


def test_intervals_apart_make_the_claim():
    told = ranking([bare(1, 9.0, 0.1), bare(8, 4.0, 0.1)], one=[bare(1, 5.0, 0.1)],
                   two=[bare(1, 6.0, 0.1), bare(4, 3.0, 0.1)])  # fmt: skip
    assert "That is 1.25 × the best of teacher, 4.00" in plain_text(told)
    assert "and 0.556 × the 9.00 that teacher reaches with 1 evaluation." in plain_text(told)
    assert "Closest of all students comes two with 4 network evaluations" in plain_text(told)
    assert "0.750 × the best of teacher." in plain_text(told)
    assert "difference" not in plain_text(told) + tiles(told)


def test_without_a_yardstick_or_without_students():
    alone = ranking(**{"a<b": [score(1, 2.0, spread=0.1), score(4, 1.0, spread=0.1)]})
    told = " ".join(sentences(alone))
    assert "<b>a&lt;b</b> needs 1 network evaluation and 1.00&nbsp;ms" in told
    assert "Closest of all students comes <b>a&lt;b</b> with 4 network evaluations" in told
    assert tiles(alone) == ""
    assert plain_text(ranking([bare(1, 2.0, 0.1), bare(4, 1.0, 0.1)])) == (
        "teacher comes closest to the data with 4 network evaluations and 1.00 ms, at a Fréchet "
        "distance (classifier) of 1.00 (0.900 – 1.10)."
    )
    assert plain_text(ranking([bare(1, 9.0, 0.1), bare(2, 1.1, 0.1), bare(4, 1.0, 0.1)])).endswith(
        "No difference to the 1.10 that it reaches with 2 evaluations is shown by 2,000 samples."
    )
    assert plain_text(ranking([bare(1, 9.0)])).startswith("teacher needs 1 network evaluation")


@pytest.mark.parametrize("devices", [("a", "a"), ("a", "b")])
def test_times_of_two_devices_are_not_divided(devices):
    told = ranking([bare(8, 4.0, seconds=0.008, device=devices[0])],
                   one=[bare(1, 5.0, device=devices[1])])  # fmt: skip
    assert ("the speed of teacher" in tiles(told)) == (devices == ("a", "a"))
    assert ("8.00 ×" in tiles(told)) == (devices == ("a", "a"))


def test_fid_is_of_the_standard_network_alone():
    known = {"extractor": "inception", "extractor_hash": INCEPTION_HASH}
    assert ", at an FID of 5.00." in plain_text(
        ranking(o=[bare(1, 5.0, resize="tf1-bilinear", **known)])
    )
    told = plain_text(ranking(o=[bare(1, 5.0, resize="clean-bicubic", **known)]))
    assert ", at an FID (clean-bicubic) of 5.00." in told
