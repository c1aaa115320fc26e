"""Metadata of weights files that are damaged, or that a newer version wrote, get one line."""

import json

import pytest
from safetensors.torch import save_file

from exporting import unet_generator
from fewstep import __version__, runs
from fewstep.errors import InputError
from fewstep.export.source import load_source
from fewstep.weights_file import read_weights_file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    runs.save_generator(path, unet_generator(), None, {})
    return path


def edited(weights, folder, text=None, **changes):
    """The file with another text as its metadata, or with other values in it."""
    tensors, note = read_weights_file(weights)
    text = json.dumps({**note, **changes}) if text is None else text
    save_file(tensors, folder / "edited.safetensors", metadata={"fewstep": text})
    return folder / "edited.safetensors"


@pytest.mark.parametrize("text", ["{nope", "[1]", "null", "3", "{}"])
def test_metadata_that_describe_nothing_are_damage(weights, tmp_path, text):
    with pytest.raises(InputError, match=r"edited.safetensors is damaged: its metadata .*"):
        runs.load(edited(weights, tmp_path, text))


@pytest.mark.parametrize("key", ["pins", "scores", "license", "recipe", "description"])
def test_values_of_another_type_are_damage(weights, tmp_path, key):
    with pytest.raises(InputError, match=f"is damaged: {key} in its metadata is 3$"):
        runs.load(edited(weights, tmp_path, **{key: 3}))


def newer_descriptions():
    table = unet_generator().describe()
    backbone, spec = table["backbone"], table["spec"]
    return [
        {**table, "memory": 3},
        {**table, "backbone": {**backbone, "memory": 3}},
        {**table, "backbone": {"name": "mamba"}},
        {**table, "spec": {**spec, "classes": 9}},
        {"network": {}},
        "3",
    ]


@pytest.mark.parametrize("description", newer_descriptions())
def test_a_file_of_a_newer_version_says_so(weights, tmp_path, description):
    for version in ("99.0", "99.0.0.dev3+abc", "0.100"):
        file = edited(weights, tmp_path, description=description, version=version)
        with pytest.raises(InputError) as error:
            runs.load(file)
        remedy = f"made by a newer version, fewstep {version}: pip install --upgrade fewstep"
        assert str(error.value).endswith(remedy) and "\n" not in str(error.value)
    for version in (__version__, "0.0.9", "unknown", None):
        file = edited(weights, tmp_path, description=description, version=version)
        with pytest.raises(InputError) as error:
            runs.load(file)
        assert "newer version," not in str(error.value)


def test_a_file_of_a_newer_version_loads_if_it_can(weights, tmp_path):
    file = edited(weights, tmp_path, version="99.0", colour="red")
    assert runs.weights_hash(runs.load(file)) == runs.weights_hash(runs.load(weights))


def test_scores_of_another_form_are_left_out(weights, tmp_path):
    assert load_source(edited(weights, tmp_path, scores=[{"fid": 3.0}])).scores == []


@pytest.mark.parametrize("recipe", [{}, {"method": "other"}, {"method": {}}])
def test_any_table_can_be_the_recipe(weights, tmp_path, recipe):
    assert load_source(edited(weights, tmp_path, recipe=recipe)).steps == (1, 2, 4)
