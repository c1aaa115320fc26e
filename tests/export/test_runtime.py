"""The runtime of exported pages is fetched once, and only if it is the expected one."""

import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

from fewstep.errors import InputError
from fewstep.export import runtime

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_runtime.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("fetch_runtime", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive(folder, script):
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name in (script.SCRIPT, script.WASM):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = 3
            file.addfile(member, io.BytesIO(b"abc"))
    return path


def test_a_package_with_another_hash_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_pack", lambda folder: archive(folder, script))
    with pytest.raises(RuntimeError, match="does not have the SHA-512"):
        script.fetch(tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()


def test_it_is_fetched_once_and_compressed(script, tmp_path, monkeypatch):
    import base64
    import gzip
    import hashlib

    digest = hashlib.sha512(archive(tmp_path, script).read_bytes()).digest()
    monkeypatch.setattr(script, "SHA512", base64.b64encode(digest).decode())
    packs = []
    monkeypatch.setattr(script, "_pack", lambda _: packs.append(1) or tmp_path / "package.tgz")
    folder = tmp_path / "runtime"
    assert script.fetch(folder) and not script.fetch(folder) and len(packs) == 1
    assert gzip.decompress((folder / f"{script.WASM}.gz").read_bytes()) == b"abc"
    (folder / script.STAMP).unlink()  # as an interrupted fetch leaves it
    assert script.fetch(folder) and len(packs) == 2


def test_without_npm_one_line_says_so(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_npm", lambda: ["false"])
    with pytest.raises(RuntimeError, match="npm pack onnxruntime-web"):
        script.fetch(tmp_path / "runtime")


def test_the_checkout_has_it_and_a_source_install_says_what_is_missing(tmp_path, monkeypatch):
    runtime.check_runtime()  # `make install` fetches it
    monkeypatch.setattr(runtime, "WASM", tmp_path / "nothing")
    with pytest.raises(InputError, match="fetch_runtime.py"):
        runtime.check_runtime()
