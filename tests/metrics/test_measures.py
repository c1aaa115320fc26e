"""Each measure's name, direction and text, said once for the command line and the report."""

from dataclasses import fields

import pytest

from fewstep.metrics import MEASURES, Measures

BY_KEY = {measure.key: measure for measure in MEASURES}


def test_every_value_is_explained_and_every_explanation_has_a_value():
    names = {field.name for field in fields(Measures)}
    ends = {name for name in names if name.endswith(("_low", "_high"))}
    assert names - ends - {"extra"} == BY_KEY.keys() and len(BY_KEY) == len(MEASURES)
    assert {end.rpartition("_")[0] for end in ends} <= BY_KEY.keys()
    assert all(measure.label and measure.meaning.endswith(".") for measure in MEASURES)


def test_the_literatures_names_are_for_the_standard_inception():
    names = {key: measure.name(standard=True) for key, measure in BY_KEY.items()}
    assert (names["frechet"], names["kernel"]) == ("FID", "KID")
    assert names["class_score"] == "Inception Score" and names["recall"] == "Recall"
    labels = {measure.name(standard=False) for measure in MEASURES}
    assert not labels & {"FID", "KID", "Inception Score"}


@pytest.mark.parametrize(
    ("key", "arrow", "text"),
    [
        ("frechet", "↓", "12.3"),
        ("kernel", "↓", "−0.00120"),
        ("recall", "↑", None),
        ("copies", "", "1.2 %"),
        ("accuracy", "↑", "95.1 %"),
    ],
)
def test_values_and_arrows(key, arrow, text):
    measures = Measures(12.345, kernel=-0.0012, copies=0.0125, accuracy=0.951)
    assert BY_KEY[key].text(measures) == text
    assert BY_KEY[key].arrow == arrow


def test_intervals_belong_to_their_value():
    measures = Measures(1.0, frechet_low=0.9, frechet_high=1.1, copies=0.5)
    assert BY_KEY["frechet"].interval(measures) == (0.9, 1.1)
    assert BY_KEY["kernel"].interval(measures) == (None, None)
    assert BY_KEY["copies"].interval(measures) == (None, None)
