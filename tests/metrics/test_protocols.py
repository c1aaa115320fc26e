"""Protocols by name, and what may be changed of them."""

import pytest

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.metrics import PROTOCOLS, EvalProtocol, protocol


def test_fid_as_papers_take_it():
    assert protocol("fid50k") == EvalProtocol(50_000, "inception", "tf1-bilinear")
    assert {told.extractor for told in PROTOCOLS.values()} <= set(plugins.names("extractor"))


def test_what_is_given_takes_the_place_of_the_protocols_own():
    fid = protocol("fid50k")
    assert fid.with_settings() == fid
    assert fid.with_settings(samples=10_000) == protocol("fid10k")
    assert fid.with_settings(resize="clean-bicubic") == protocol("clean-fid50k")
    # another extractor has a standard of its own
    assert fid.with_settings(extractor="pixels") == EvalProtocol(50_000, "pixels")


def test_sets_without_classes_have_an_extractor_unless_one_is_named():
    quick = protocol("quick")
    assert (quick.extractor, quick.unlabelled_extractor) == ("classifier", "rotations")
    assert quick.with_settings(samples=90).unlabelled_extractor == "rotations"
    assert quick.with_settings(extractor="classifier").unlabelled_extractor is None
    # the other protocols' extractors need no classes
    needy = [name for name, told in PROTOCOLS.items() if told.extractor == "classifier"]
    assert needy == [name for name, told in PROTOCOLS.items() if told.unlabelled_extractor]


def test_what_is_no_protocol_is_refused():
    with pytest.raises(
        InputError, match="unknown evaluation protocol 'fid5k'; did you mean fid50k"
    ):
        protocol("fid5k")
    with pytest.raises(InputError, match="at least 2 samples, not 1"):
        protocol("quick").with_settings(samples=1)
