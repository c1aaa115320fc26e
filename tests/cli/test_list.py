"""`fewstep list`: the names in the registry, with what they are."""

import pytest

from fewstep import plugins
from fewstep.cli import main
from fewstep.cli.list import kinds
from fewstep.schema import preset_names


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "models"])
def test_names_are_those_of_the_registry(kind, capsys):
    for word in (kind, kinds()[kind]):  # plural or singular
        assert main(["list", word]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == plugins.names(kinds()[kind])


def test_recipes_have_their_titles(capsys):
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert any("A flow-matching teacher" in line for line in lines)


def test_kinds_are_listed_and_mistakes_say_which_there_are(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["recipes", *kinds()]
    assert main(["list", "medhods"]) == 2
    assert "did you mean methods?" in capsys.readouterr().err


def test_names_of_installed_packages_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "_entry_points", lambda noun: {"mine": "json:JSONDecoder"})
    assert main(["list", "grids"]) == 0
    assert "mine" in capsys.readouterr().out
