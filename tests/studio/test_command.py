"""`fewstep studio`: what it cannot open or listen at is one line and exit code 2."""

import socket
import sys

import pytest

from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.models import model_addresses
from fewstep.studio import server
from fewstep.studio.catalogue import Catalogue, default_addresses
from fewstep.studio.workshop import Workshop
from fewstep.tensor_file import read_tensor_file, write_tensor_file


@pytest.fixture
def refusal(capsys):
    """The one line that a command prints when it refuses."""

    def run(*argv):
        assert main(["studio", *map(str, argv)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("fewstep: ") and err.count("\n") == 1
        return err

    return run


def test_a_taken_port(refusal, folder):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"port {port}" in refusal(folder, "--port", port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none(refusal, folder, port):
    assert "it must be an integer from 1 to 65,535" in refusal(folder, f"--port={port}")


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", ""])
def test_a_host_that_is_not_this_machine(refusal, folder, host, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    if host.endswith(".invalid"):
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "--host" in refusal(folder, f"--host={host}")


def test_a_missing_extra(refusal, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit", None)
    assert "pip install 'fewstep[studio]'" in refusal(folder)


def test_no_runs(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there are no runs" in refusal(tmp_path)
    assert "does not exist" in refusal("nowhere")
    monkeypatch.setattr("fewstep.studio.catalogue.model_addresses", list)
    assert "there are no runs in runs/" in refusal()


def test_without_arguments_the_models_of_the_package_are_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_addresses() == model_addresses() != []
    catalogue = Catalogue(default_addresses())
    assert "fewstep:digits" in [entry.name for entry in catalogue.entries("run")]
    model = Workshop(catalogue).load("fewstep:digits")
    assert model.shape == (1, 8, 8) and len(model.class_names()) == 10


def test_a_run_of_a_newer_version_is_one_line(folder, tmp_path):
    tensors, note = read_tensor_file(folder / "cm" / "model.safetensors")
    note["version"] = "99.0"
    note["description"]["process"] = {"name": "wormhole"}
    (tmp_path / "new").mkdir()
    write_tensor_file(tmp_path / "new" / "model.safetensors", tensors, note)
    with pytest.raises(InputError, match="wormhole") as error:
        Workshop(Catalogue([str(tmp_path)])).load("new")
    assert "\n" not in str(error.value)


def test_settings_send_nothing_and_listen_here():
    options = server.settings("127.0.0.1", 8501)
    assert options["browser.gatherUsageStats"] is False and options["server.headless"] is True
    assert options["server.address"] == "127.0.0.1"
    assert options["server.allowedHosts"] == ["127.0.0.1", "localhost", "::1"]
    assert server.settings("0.0.0.0", 8501)["server.allowedHosts"] == ["*"]
