import gzip
import hashlib
import io
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from fewstep.data import cifar10, load, mnist
from fewstep.download import fetch
from fewstep.errors import InputError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, and the address on this machine under which it is served."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_good_file_arrives_whole(site, tmp_path):
    folder, url = site
    content = bytes(range(256)) * 10_000
    (folder / "a.bin").write_bytes(content)
    target = tmp_path / "new" / "deep" / "a.bin"
    fetch(url + "a.bin", "md5:" + md5(content), target, otherwise="despair")
    assert target.read_bytes() == content
    assert files(target.parent) == ["a.bin"]


def test_the_first_digits_of_a_sha256_are_a_digest(site, tmp_path):
    folder, url = site
    (folder / "a.bin").write_bytes(b"weights")
    digits = hashlib.sha256(b"weights").hexdigest()
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(
        InputError, match=f"has SHA256 {digits} instead of the published 0{digits[:7]}"
    ):
        fetch(url + "a.bin", f"sha256:0{digits[:7]}", target, otherwise="despair")
    fetch(url + "a.bin", f"sha256:{digits[:8]}", target, otherwise="despair")
    assert target.read_bytes() == b"weights"


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    folder, url = site
    (folder / "a.bin").write_bytes(b"tampered")
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(InputError, match=f"published {md5(b'true')}.* or put a.bin there"):
        fetch(url + "a.bin", "md5:" + md5(b"true"), target, otherwise="put a.bin there")
    assert not target.parent.exists()


def test_a_file_that_is_not_there_says_so(site, tmp_path):
    with pytest.raises(InputError, match="404"):
        fetch(
            site[1] + "no.bin",
            "md5:" + md5(b""),
            tmp_path / "new" / "no.bin",
            otherwise="put it there",
        )
    assert not (tmp_path / "new").exists()


def test_a_connection_cut_midway_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_half():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

        thread = Thread(target=answer_half)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.bin"
        with pytest.raises(InputError, match="or put it there"):
            fetch(url, "md5:" + md5(b"whole"), tmp_path / "new" / "a.bin", otherwise="put it there")
        thread.join()
    assert not (tmp_path / "new").exists()


@pytest.fixture
def refused():
    """An address at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


def test_offline_mnist_says_which_files_go_where(home, monkeypatch, refused):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(mnist.SOURCES, "mnist", mnist.SOURCES["mnist"]._replace(url=refused))
    with pytest.raises(InputError, match="cannot download") as told:
        load("mnist")
    message = str(told.value)
    assert "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz" in message
    assert str(home / "data" / "mnist") in message
    assert "\n" not in message
    assert not home.exists()


def test_offline_cifar10_says_which_files_go_where(home, monkeypatch, refused):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar10, "URL", refused)
    with pytest.raises(InputError, match="cannot download") as told:
        load("cifar10")
    message = str(told.value)
    assert all(f"data_batch_{i}.bin" in message for i in range(1, 6))
    assert str(home / "data" / "cifar-10-batches-bin") in message
    assert "\n" not in message
    assert not home.exists()


def test_mnist_is_downloaded_once(site, home, monkeypatch):
    folder, url = site
    images = b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + b"\x63"
    contents = {
        "train-images-idx3-ubyte.gz": gzip.compress(images),
        "train-labels-idx1-ubyte.gz": gzip.compress(b"\0\0\x08\x01\0\0\0\1\x04"),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    sums = {file: md5(content) for file, content in contents.items()}
    monkeypatch.setitem(mnist.SOURCES, "mnist", mnist.SOURCES["mnist"]._replace(url=url, md5=sums))
    first = load("mnist")
    assert (first.images.item(), first.labels.item()) == (99, 4)
    for file in contents:
        (folder / file).unlink()
    assert load("mnist").fingerprint == first.fingerprint


def test_cifar10_is_downloaded_and_unpacked(site, home, monkeypatch):
    folder, url = site
    archive = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, file in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            entry.size = 3073
            tar.addfile(entry, io.BytesIO(bytes([i]) + bytes(3072)))
    monkeypatch.setattr(cifar10, "RECORDS", 1)
    monkeypatch.setattr(cifar10, "URL", url + archive.name)
    monkeypatch.setattr(cifar10, "MD5", md5(archive.read_bytes()))
    assert load("cifar10").labels.tolist() == [0, 1, 2, 3, 4]
    archive.unlink()
    assert load("cifar10", split="test").labels.tolist() == [5]
    assert len(files(home)) == 6
