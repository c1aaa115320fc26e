"""Folders of diffusers that several tests of checkpoints read or spoil."""

import shutil
from pathlib import Path

import pytest

from ddpm_folders import saved, scheduler


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder as `DDPMPipeline.save_pretrained` writes it, and the network in it."""
    folder = tmp_path_factory.mktemp("published") / "ddpm"
    return folder, saved(folder)


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it to spoil."""
    return Path(shutil.copytree(published[0], tmp_path / "ddpm"))


@pytest.fixture
def scheduled(published, tmp_path):
    """A folder with that network's weights, and a scheduler to replace or spoil."""
    place = tmp_path / "scheduled"
    place.mkdir()
    (place / "unet").symlink_to(published[0] / "unet")
    scheduler().save_pretrained(place / "scheduler")
    return place
