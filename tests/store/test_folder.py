import pytest

from fewstep.errors import InputError
from fewstep.store.folder import LocalFolder, Span


def test_publish_is_whole_or_nothing(tmp_path):
    folder = LocalFolder(tmp_path / "new" / "store")

    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.publish("a", chunks())
    assert folder.sizes() == {}
    folder.publish("a", [b"one", b"two"])
    assert folder.sizes() == {"a": 6}
    assert folder.read("a") == b"onetwo"


def test_a_name_appears_only_after_the_last_byte(tmp_path):
    folder = LocalFolder(tmp_path)
    seen = []

    def chunks():
        yield b"x"
        seen.append("a" in folder.sizes())

    folder.publish("a", chunks())
    assert seen == [False]


def test_ranges_and_pieces(tmp_path):
    folder = LocalFolder(tmp_path)
    content = bytes(range(256)) * 5000
    folder.publish("a", [content])
    assert folder.ranges([Span("a", 3, 6), Span("a", 0, 0), Span("a", 1000, 1256)]) == [
        content[3:6],
        b"",
        content[1000:1256],
    ]
    assert b"".join(folder.pieces("a")) == content


def test_sweep_removes_only_what_was_left_half_done(tmp_path):
    folder = LocalFolder(tmp_path)
    for name in ("a.tmp", "ab.123.tmp", "b.123.tmp", "a"):
        (tmp_path / name).touch()
    folder.sweep("a")
    assert set(folder.sizes()) == {"a", "b.123.tmp"}
    folder.sweep()
    assert set(folder.sizes()) == {"a"}


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a: "):
        LocalFolder(tmp_path / "file").publish("a", [b""])
    with pytest.raises(InputError, match="absent: No such file"):
        LocalFolder(tmp_path).read("absent")
