"""Keys of recipes read from source code: those of the classes, without importing them."""

import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from fewstep import plugins, recipe, schema
from fewstep.errors import InputError
from fewstep.schema import preset_names


def keys_of(value, key):
    """The dotted keys of a dataclass, for each dataclass in it, outermost first."""
    for field in fields(value):
        yield f"{key}.{field.name}"
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from keys_of(inner, f"{key}.{field.name}")


@pytest.mark.parametrize("name", preset_names())
def test_the_keys_are_those_of_the_classes(name):
    table = schema.read_table(name)
    parsed = recipe.parse(table)
    known = {f"{place}.{field}" for place, names in schema._tables(table) for field in names or ()}
    for section, value in table.items():
        expected = {
            key for key in keys_of(getattr(parsed, section), section)
            # tables that the recipe does not hold are not looked into
            if in_table(table, key.rpartition(".")[0])
        }  # fmt: skip
        own = {key for key in known if key.startswith(f"{section}.")}
        assert own == expected, section
        assert value is table[section]


def in_table(table, key):
    for part in key.split("."):
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return isinstance(table, dict)  # a string is a name alone


@pytest.mark.parametrize("name", preset_names())
def test_every_key_is_explained(name):
    table = schema.read_table(name, ["fit.steps=7"])
    rows = {key: (value, meaning) for key, value, meaning in schema.explain(table)}
    assert [key for key, (_, meaning) in rows.items() if not meaning] == []
    assert rows["fit.steps"] == ("7", "Number of training steps, each on a new global batch.")
    assert rows["fit.lr"][0] == str(table["fit"]["lr"]) and rows["evaluate.best"][0] == ""
    assert rows["evaluate.steps"][0] in ("[1, 2, 4]", str(table.get("evaluate", {}).get("steps")))
    assert next(iter(rows)) == "method.name"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.stepz=3", "unknown recipe key fit.stepz; did you mean fit.steps?"),
        ("steps=3", "unknown recipe key steps; did you mean fit.steps?"),
        ("channels=[3]", "unknown recipe key channels; did you mean student.backbone.channels?"),
        ("student.channels=[3]", "did you mean student.backbone.channels?"),
        ("student.backbone.chanels=[3]", "did you mean student.backbone.channels?"),
        ("method.density.sdt=1", "did you mean method.density.std?"),
        ("methd.x=1", "unknown recipe key methd; did you mean method?"),
        ("fit.players.student.ler=3", "did you mean fit.players.student.lr?"),
        ("fit.qqqq=3", "unknown recipe key fit.qqqq"),
        ("method.name=denoize", "unknown method 'denoize'; did you mean denoise?"),
        ("method.density.name=normal", "unknown density 'normal'; did you mean lognormal?"),
    ],
)
def test_a_mistyped_key_names_the_whole_key(override, message):
    with pytest.raises(InputError) as error:
        schema.read_table("digits-flow", [override])
    assert message in str(error.value)
    if "did you mean" not in message:
        assert "did you mean" not in str(error.value)


def test_free_tables_and_other_packages_are_not_refused(tmp_path, monkeypatch):
    schema.read_table("digits-flow", ["about.expect.anything=3", "method.grid.name=nowhere:Grid"])
    (tmp_path / "strange.py").write_text(
        "from dataclasses import dataclass\nraise RuntimeError('imported')\n"
        "@dataclass\nclass Slow:\n    speed: float = 1.0\n    'How fast.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    grid = "method.grid={name='strange:Slow', speed=2.0}"
    schema.read_table("digits-flow", [grid])
    with pytest.raises(InputError, match="did you mean method.grid.speed?"):
        schema.read_table("digits-flow", [grid, "method.grid.sped=1"])


def test_every_registered_name_has_a_summary():
    for noun in plugins.nouns():
        for name in plugins.REGISTRY[noun]:
            address = plugins.registered_address(noun, name)
            assert noun in ("measure", "models") or schema.summary(address).endswith("."), address


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "digits-flow", "--help"],
        ["distill", "cifar10-dmd2", "fit.steps=3", "--help"],
        ["train", "digits-flo"],
        ["train", "digits-flow", "fit.stepz=3"],
        ["train", "digits-flow", "method.density.sd=3", "--out", "x"],
        ["train", "digits-flow", "--otu", "x"],
        ["sample", "--help"],
        ["record", "--bogus"],
        ["list", "methods"],
        ["list", "recipes"],
    ],
)
def test_help_and_mistakes_do_not_wait_for_torch(argv):
    code = (
        "import sys; from fewstep.cli import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'diffusers', 'sklearn'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_values_that_are_no_json_are_explained_as_text():
    rows = dict(
        (key, value)
        for key, value, _ in schema.explain(schema.read_table("digits-flow", ["fit.lr=07:32:00"]))
    )
    assert rows["fit.lr"] == '"07:32:00"'
