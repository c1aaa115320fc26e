"""The page opens what is inside the folders of the command line, and nothing else."""

import os
import shutil
import sys

import pytest

from fewstep.errors import InputError
from fewstep.studio.catalogue import Catalogue, default_addresses


def names(catalogue, kind):
    return [entry.name for entry in catalogue.entries(kind)]


def test_a_folder_offers_its_runs_stores_and_reports(folder):
    catalogue = Catalogue([str(folder)])
    assert names(catalogue, "run") == ["cm", "new", "one-step", "teacher", "toy"]
    assert names(catalogue, "store") == ["pairs"]
    assert names(catalogue, "report") == ["report.html"]
    assert not catalogue.find("run", "new").has_weights


def test_a_run_or_a_file_is_offered_by_its_own_name(folder):
    assert names(Catalogue([str(folder / "cm")]), "run") == ["cm"]
    file = folder / "cm" / "model.safetensors"
    assert names(Catalogue([str(file)]), "run") == ["model.safetensors"]
    both = Catalogue([str(folder / "cm"), str(folder / "teacher")])
    assert names(both, "run") == ["cm", "teacher"]
    assert names(Catalogue(["diffusers:some/where"]), "run") == ["diffusers:some/where"]


def test_runs_of_the_same_name_are_told_apart(folder, tmp_path):
    shutil.copytree(folder / "cm", tmp_path / "others" / "cm")
    catalogue = Catalogue([str(folder), str(tmp_path / "others")])
    assert "runs/cm" in names(catalogue, "run") and "others/cm" in names(catalogue, "run")


def test_runs_that_are_called_alike_are_all_offered(folder, tmp_path):
    for name in ("a/student", "b/student", "b/a/student"):
        shutil.copytree(folder / "cm", tmp_path / name)
    addresses = [str(tmp_path / name) for name in ("a/student", "b/student", "b/student")]
    assert names(Catalogue(addresses), "run") == ["student", "b/student"]
    files = [f"{address}/model.safetensors" for address in addresses]
    assert names(Catalogue(files), "run") == ["model.safetensors", "student/model.safetensors"]
    folders = Catalogue([str(tmp_path / "a"), str(tmp_path / "b" / "a")])
    assert names(folders, "run") == ["a/student", "b/a/student"]
    assert folders.find("run", "b/a/student").address == str(tmp_path / "b/a/student")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_unicode_can_be_shown(folder, tmp_path):
    shutil.copytree(folder / "cm", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    catalogue = Catalogue([str(tmp_path)])
    assert names(catalogue, "run") == ["caf?"]
    assert catalogue.find("run", "caf?").has_weights


@pytest.mark.parametrize("kind", ["run", "store", "report"])
@pytest.mark.parametrize(
    "outside", ["/etc/passwd", "../runs/cm", "..", "", "cm/../../x", "x" * 9999, "a\nb"]
)
def test_a_path_outside_is_refused_in_one_line(folder, kind, outside):
    with pytest.raises(InputError, match="inside the folders") as error:
        Catalogue([str(folder)]).find(kind, outside)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_links_that_lead_outside_are_not_followed(folder, tmp_path):
    inside = tmp_path / "inside"
    shutil.copytree(folder / "cm", inside / "cm")
    (inside / "link").symlink_to(folder / "teacher")
    (inside / "secret.html").symlink_to("/etc/passwd")
    (inside / ".hidden").mkdir()
    catalogue = Catalogue([str(inside)])
    assert names(catalogue, "run") == ["cm"]
    assert names(catalogue, "report") == []


def test_nothing_to_open_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Catalogue(["nowhere"])
    with pytest.raises(InputError, match="there are no runs in"):
        Catalogue([str(tmp_path)])
    (tmp_path / "runs").mkdir()
    assert default_addresses()[0] == "runs"
