"""`key=value` takes names as the file system holds them, and recipes come in UTF-8."""

import pytest

from fewstep import recipe, runs
from fewstep.errors import InputError
from fewstep.paths import expand_home

NAMES = [
    "my set", "set(1)", "2024-set", "_set", "-set", "кот", "手書き", "a,b", "img@2x", "a+b", "10",
    "1.5", "true", "nan", "2024-01-01", "[a]", "{a}", "a=b", "a#b", "#a", "a?b", "a&b", "it's",
    'say "a"', "a\\b", "a;b", "$a", "`a`", "a%b", "a:b", "é", "caf\udce9", "a\tb", "*", "!a",
    "'", '"', "a\nb", " ",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("key", ["data.path", "teacher.load", "pairs.load", "student.init"])
def test_a_name_needs_no_quotes(key, name):
    settings = recipe.read("digits-flow", [f"{key}={name}"])
    section, field = key.split(".")
    assert getattr(getattr(settings, section), field) == name


@pytest.mark.parametrize("quoted", ['"my set"', "'my set'", '"my\\u0020set"', "my set"])
def test_quotes_of_toml_are_read(quoted):
    assert recipe.read("digits-flow", [f"data.path={quoted}"]).data.path == "my set"


def test_text_is_any_key_that_holds_text():
    overrides = ["about.title=Größe (7)", "data.split=10", "evaluate.extractor=my set/a.b"]
    settings = recipe.read("digits-flow", overrides)
    assert settings.about.title == "Größe (7)" and settings.data.split == "10"
    assert settings.evaluate.extractor == "my set/a.b"
    loss = ["method.loss.name=features", "method.loss.weights=my weights (2).pt"]
    assert recipe.read("digits-dmd", loss).method.loss.weights == "my weights (2).pt"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.steps=1O", r"fit.steps=1O is not valid TOML.*'fit.steps=\"1O\"'"),
        ("fit.steps=ten", "fit.steps is 'ten'; it must be an integer"),
        ("fit.steps=", "sets fit.steps to nothing: write a value"),
        ("fit.steps=1\nfit.batch=2", "fit.steps has several lines"),
        ("evaluate.steps=[1,2", r"evaluate.steps=\[1,2 is not valid TOML: Unclosed array"),
        ("fit.lr=1e-3x", "fit.lr=1e-3x is not valid TOML"),
        ("fit.seed=" + "9" * 5000, "is not valid TOML"),
        ("evaluate.steps=" + "[" * 5000, "is not valid TOML"),
        ("data=folder", "data is 'folder', but a recipe has sections"),
        ("data.path.x=1", "data.path is .*; it must be text"),
        ("nothing=1", "unknown recipe key nothing"),
    ],
)
def test_a_mistyped_value_stays_an_error(override, message):
    with pytest.raises(InputError, match=message):
        recipe.read("digits-flow", [override])


def test_a_short_name_takes_further_settings(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(recipe.read("digits-flow").toml(), encoding="utf-8")
    overrides = ["method.density=lognormal", "method.density.std=0.5"]
    assert recipe.read(str(path), overrides).method.density.std == 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["own.toml", "own.TOML", "my recipe (2).toml", "рецепт.toml"])
def test_recipes_are_utf_8_with_or_without_a_mark(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_text(recipe.read("digits-flow", ["about.title=Größe"]).toml(), encoding=encoding)
    assert recipe.read(str(path)).about.title == "Größe"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-be", "byte 0xf6"),
        ("latin-1", "byte 0xf6 at position"),
        ("cp1252", "byte 0xf6"),
        ("utf-32", "UTF-16"),
        ("cp437", "byte 0x94"),
    ],
)
def test_other_encodings_are_named(tmp_path, encoding, message):
    path = tmp_path / "own.toml"
    path.write_text(recipe.read("digits-flow", ["about.title=Größe"]).toml(), encoding=encoding)
    with pytest.raises(InputError, match=message) as error:
        recipe.read(str(path))
    assert "\n" not in str(error.value) and "own.toml" in str(error.value)


def test_no_recipe_can_be_a_folder_or_have_wrong_sections(tmp_path):
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        recipe.read(str(tmp_path / "a.toml"))
    path = tmp_path / "b.toml"
    for text, message in (
        ("fit = 3", "fit is 3, but a recipe has sections"),
        ("data = []", "data is .*, but a recipe has sections"),
        ("[[fit]]\nsteps = 3", "fit is .*, but a recipe has sections"),
        ("a = " + "[" * 3000, "not valid TOML"),
        ("a = 1979-13-45", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            recipe.read(str(path))


def test_the_home_folder_is_put_in_place_of_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text, expected in (
        ("~/a b", f"{tmp_path}/a b"),
        ("~", str(tmp_path)),
        ("diffusers:~/x?size=8", f"diffusers:{tmp_path}/x?size=8"),
        ("folder:~/x", f"folder:{tmp_path}/x"),
        ("a/~/b", "a/~/b"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
        ("s3://~x/y", "s3://~x/y"),
        ("a~", "a~"),
    ):
        assert expand_home(text) == expected
    (tmp_path / "~").mkdir()
    assert expand_home("~") == "~"
    settings = recipe.read("digits-flow", ["data.path=~/x", "teacher.load=edm:~/y.pkl"])
    assert settings.data.path == f"{tmp_path}/x"
    assert settings.teacher.load == f"edm:{tmp_path}/y.pkl"
    with pytest.raises(InputError, match=rf"{tmp_path}/run"):
        runs.load("~/run")
