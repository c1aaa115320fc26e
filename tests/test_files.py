import os
from functools import partial

import pytest
import torch

from fewstep.files import atomic_replace, atomic_write, tensor_digest
from forking import forked

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def test_a_complete_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "new" / "deep" / "a.bin"
    for content in (b"old", b"new"):
        with atomic_write(target) as file:
            file.write(content)
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["a.bin"]


def test_a_failing_writer_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failing_writer_removes_the_folders_that_it_created(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "old/new/deep/a.bin"):
        raise KeyboardInterrupt
    assert (tmp_path / "old").is_dir()
    assert os.listdir(tmp_path / "old") == []


def test_folders_that_others_use_by_now_are_not_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "new/a.bin"):
        (tmp_path / "new" / "b.bin").write_bytes(b"of another process")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "new") == ["b.bin"]


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "a.bin"
    with atomic_write(target) as slow:
        slow.write(b"slow")
        with atomic_write(target) as quick:
            quick.write(b"quick")
        assert target.read_bytes() == b"quick"
    assert target.read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_next_writer_overwrites_what_a_killed_one_left(tmp_path):
    (tmp_path / "a.bin.tmp").write_bytes(b"half of a lon")
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_digest_changes_with_every_part():
    x = torch.arange(6.0)
    tensors = {"x": x, "y": torch.tensor(1, dtype=torch.bfloat16)}
    others = [
        {"x": x + 1, "y": tensors["y"]},
        {"z": x, "y": tensors["y"]},
        {"x": x.view(2, 3), "y": tensors["y"]},
        {"x": x.view(torch.int32), "y": tensors["y"]},
        {"x": x},
    ]
    digests = [tensor_digest(each) for each in [tensors, *others]]
    digests.append(tensor_digest(tensors, header="more"))
    assert len({*digests}) == len(digests)
    transposed = {"y": tensors["y"], "x": x.view(2, 3).T.contiguous().T.reshape(6)}
    assert tensor_digest(transposed) == digests[0]


def test_a_file_of_another_kind_is_written_to_and_not_replaced(tmp_path):
    """As root, replacing /dev/null would break the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write(b"new")
    assert os.read(reader, 10) == b"new" and pipe.is_fifo()
    os.close(reader)
    (tmp_path / "old").write_bytes(b"old")
    for link in ("link", "dangling"):
        (tmp_path / link).symlink_to(tmp_path / ("old" if link == "link" else "made"))
        with atomic_write(tmp_path / link) as file:
            file.write(b"new")
        assert (tmp_path / link).is_symlink() and (tmp_path / link).read_bytes() == b"new"
    assert (tmp_path / "old").read_bytes() == (tmp_path / "made").read_bytes() == b"new"
    with pytest.raises(OSError), atomic_write(tmp_path):
        pass


def test_a_block_that_creates_the_file_itself(tmp_path):
    (tmp_path / "other").touch()
    with atomic_replace(tmp_path / "a") as path:
        path.write_bytes(b"new")
        path.chmod(0o600)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(KeyboardInterrupt), atomic_replace(tmp_path / "a") as path:
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a", "other"]


def test_processes_that_write_one_file_leave_a_whole_one(tmp_path):
    """Each writes its own letter, through either function, while others do the same."""
    path, count, size = tmp_path / "a", 6, 1 << 16

    def write(letter):
        for number in range(20):
            if number % 2:
                with atomic_write(path) as file:
                    for _ in range(4):
                        file.write(letter * (size // 4))
                        file.flush()
            else:
                with atomic_replace(path) as part:
                    part.write_bytes(letter * size)
            content = path.read_bytes()
            assert len(content) == size and content == content[:1] * size

    children = [forked(partial(write, bytes([65 + i]))) for i in range(count)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
    assert os.listdir(tmp_path) == ["a"]
