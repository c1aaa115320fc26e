"""Options in addresses: PATH?key=value&key=value."""

from dataclasses import dataclass
from typing import Literal

import pytest

from fewstep.errors import InputError
from fewstep.pretrained.address import parse_options, split_options


@dataclass(frozen=True)
class Options:
    size: int | None = None
    heads: tuple[int, ...] = (1,)
    clip: bool = True
    kind: Literal["linear", "cosine"] = "linear"


def test_a_path_without_options_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_options("net.pt") == ("net.pt", {})
    (tmp_path / "net?v=1.pt").touch()
    assert split_options("net?v=1.pt") == ("net?v=1.pt", {})
    assert split_options("net?v=1.pt?size=32") == ("net?v=1.pt", {"size": "32"})


def test_options_have_the_types_of_their_fields():
    path, options = split_options("a/net.pt?size=32&heads=4,8&clip=false&kind=cosine")
    assert path == "a/net.pt"
    assert parse_options(Options, options, path) == Options(32, (4, 8), False, "cosine")
    assert parse_options(Options, {}, path) == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net.pt?size", "'size' in net.pt.size has no value: write net.pt.key=value"),
        ("net.pt?=3", "has no value"),
        ("net.pt?", "has no value"),
        ("net.pt?size=3&size=4", "size is set twice"),
        ("net.pt?sise=3", "unknown option 'sise' in net.pt; did you mean size"),
        ("net.pt?size=large", "size=large in net.pt is not supported: "),
        ("net.pt?kind=square", "kind=square in net.pt is not supported: Input should be 'linear'"),
        ("net.pt?heads=1,x", "heads=1,x in net.pt"),
    ],
)
def test_wrong_options_are_named_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as error:
        path, options = split_options(text)
        parse_options(Options, options, path)
    assert "\n" not in str(error.value)
