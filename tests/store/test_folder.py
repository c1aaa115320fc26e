"""The same few operations on local disks, on an object store, and on one that must rename."""

import errno

import fsspec
import pytest

from fewstep.errors import InputError
from fewstep.store.folder import LocalFolder, RemoteFolder, Span, open_folder


@pytest.fixture(params=["local", "objects", "renaming"])
def folder(request, tmp_path):
    if request.param == "local":
        yield open_folder(tmp_path / "new" / "store")
    elif request.param == "objects":
        files = fsspec.filesystem("memory")
        yield open_folder(f"memory://{tmp_path.name}/store")
        files.rm(f"/{tmp_path.name}", recursive=True) if files.exists(f"/{tmp_path.name}") else None
    else:  # any other service, here one that is at hand
        files = fsspec.filesystem("file")
        yield RemoteFolder("sftp://host/store", files, str(tmp_path / "new" / "store"))


def test_addresses_are_local_or_remote(tmp_path):
    assert isinstance(open_folder("a/b"), LocalFolder)
    assert open_folder(f"file://{tmp_path}").root == tmp_path
    assert isinstance(open_folder("memory://a/b"), RemoteFolder)
    assert str(open_folder("memory://a/b/")) == "memory://a/b"
    with pytest.raises(InputError, match="nosuch://a"):
        open_folder("nosuch://a")


def test_a_missing_package_is_named(monkeypatch):
    def missing(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"s3://b: .* missing: pip install 'fewstep\[s3\]'"):
        open_folder("s3://b")


def test_publish_is_whole_or_nothing(folder):
    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.publish("a", chunks())
    assert folder.sizes() == {}
    folder.publish("a", [b"one", b"two"])
    assert folder.sizes() == {"a": 6}
    assert folder.read("a") == b"onetwo"
    folder.publish("a", [b"new"])
    assert folder.read("a") == b"new"


def test_a_name_appears_only_after_the_last_byte(folder):
    seen = []

    def chunks():
        yield b"x"
        seen.append("a" in folder.sizes())

    folder.publish("a", chunks())
    assert seen == [False]


def test_ranges_and_pieces(folder):
    content = bytes(range(256)) * 50_000
    folder.publish("a", [content])
    folder.publish("b", [b"other"])
    spans = [Span("a", 3, 6), Span("b", 1, 4), Span("a", 0, 0), Span("a", 1000, 1256)]
    assert folder.ranges(spans) == [content[3:6], b"the", b"", content[1000:1256]]
    assert folder.ranges([]) == []
    assert b"".join(folder.pieces("a")) == content


def test_sweep_removes_only_what_was_left_half_done(folder):
    for name in ("a.tmp", "ab.123.tmp", "b.123.tmp", "a"):
        folder.publish(name, [b"1"])
    folder.sweep("a")
    assert set(folder.sizes()) == {"a", "b.123.tmp"}
    folder.sweep()
    assert set(folder.sizes()) == {"a"}
    folder.remove("a")
    folder.remove("a")  # what is gone already is no error: another process may have been first
    assert folder.sizes() == {}


def test_what_is_not_there_is_one_line(folder):
    for ask in (folder.read, lambda name: list(folder.pieces(name))):
        with pytest.raises(InputError, match="absent: ") as told:
            ask("absent")
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="absent: "):
        folder.ranges([Span("absent", 0, 1)])


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a: "):
        LocalFolder(tmp_path / "file").publish("a", [b""])
    with pytest.raises(InputError, match="absent: No such file"):
        LocalFolder(tmp_path).read("absent")


def test_a_listing_without_lengths_is_asked_for_them(tmp_path):
    """As that of a web server, which only tells names."""

    class Names(type(fsspec.filesystem("file"))):
        cachable = False

        def ls(self, path, detail=True, **kwargs):
            return [{**entry, "size": None} for entry in super().ls(path, detail=True)]

    (tmp_path / "a").write_bytes(b"12345")
    assert RemoteFolder("http://host/store", Names(), str(tmp_path)).sizes() == {"a": 5}


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:1/store", "memory://a//b"])
def test_what_cannot_be_a_folder_is_one_line(address):
    with pytest.raises(InputError, match=address) as told:
        open_folder(address)
    assert "\n" not in str(told.value)


def test_a_full_disk_tells_what_to_do_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """Where no small disk can be mounted, this still shows it; test_record.py fills a real one."""

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = LocalFolder(tmp_path)
    folder.publish("whole", [b"1"])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="a: No space left on device; complete files are kept"):
        folder.publish("a", [b"2"])
    assert folder.sizes() == {"whole": 1}
