"""One process uses a folder at a time; a kill releases it."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fewstep import locks
from fewstep.errors import InputError
from fewstep.files import LOCK
from fewstep.locks import lock_folder, lock_owner
from forking import forked

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def test_a_second_user_is_refused_with_the_process_of_the_first(tmp_path):
    with lock_folder(tmp_path):
        owner = lock_owner(tmp_path)
        assert owner == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(InputError, match=f"is in use by {owner}: wait"), lock_folder(tmp_path):
            pass
        assert lock_owner(tmp_path) == owner  # a refused one takes nothing away
    assert lock_owner(tmp_path) is None
    assert os.listdir(tmp_path) == []


def test_a_kill_releases_the_lock(tmp_path):
    def hold():
        with lock_folder(tmp_path / "run"):
            time.sleep(60)

    child = forked(hold)
    while lock_owner(tmp_path / "run") is None:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / LOCK).exists() and lock_owner(tmp_path / "run") is None
    with lock_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
def test_what_is_no_file_is_no_lock(tmp_path, kind):
    lock, other = tmp_path / "run" / LOCK, tmp_path / "thesis.txt"
    lock.parent.mkdir()
    other.write_text("precious")
    match kind:
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
        case _:
            lock.symlink_to(other if kind == "link" else "nowhere")
    with pytest.raises(InputError, match="is no lock of fewstep"), lock_folder(lock.parent):
        pass
    assert lock_owner(lock.parent) is None and other.read_text() == "precious"
    assert os.listdir(lock.parent) == [LOCK]
    locks.remove_leftover_lock(lock.parent)  # does not wait for a pipe either


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"[]", b'{"process": 1}', b"\xff"])
def test_an_owner_that_is_not_readable_is_another_process(tmp_path, content):
    with lock_folder(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        assert lock_owner(tmp_path) == "another process"
    (tmp_path / LOCK).write_bytes(content)
    assert lock_owner(tmp_path) is None  # nobody holds it


def test_new_folders_that_stay_empty_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_folder(tmp_path / "new" / "deep"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with lock_folder(tmp_path / "new" / "deep"):
        (tmp_path / "new" / "deep" / "a").touch()
    assert os.listdir(tmp_path / "new" / "deep") == ["a"]


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "try_lock", lambda descriptor: None)
    with pytest.warns(UserWarning, match="has no locks"), lock_folder(tmp_path):
        assert lock_owner(tmp_path) is None


def test_many_processes_take_turns(tmp_path):
    """Each reads a number and writes the next one: two at once would lose one."""
    number = tmp_path / "number"
    number.write_text("0")

    def count():
        done = 0
        while done < 10:
            with suppress(InputError), lock_folder(tmp_path / "folder"):
                before = int(number.read_text())
                time.sleep(0.0005)
                number.write_text(str(before + 1))
                done += 1

    children = [forked(count) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert number.read_text() == "40"


def test_a_lock_that_has_just_become_free_is_taken(tmp_path, monkeypatch):
    real, results = locks._acquire, [None]
    monkeypatch.setattr(locks, "_acquire", lambda path: results.pop() if results else real(path))
    with lock_folder(tmp_path):
        assert lock_owner(tmp_path).startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_a_folder_that_another_process_has_just_removed_is_made_again(tmp_path, monkeypatch, error):
    real, errors = Path.mkdir, [error]

    def mkdir(path, *args, **kwargs):
        if errors:
            raise errors.pop()
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with lock_folder(tmp_path / "folder"):
        assert (tmp_path / "folder" / LOCK).exists()


def test_a_folder_that_has_been_removed_and_made_again_is_used(tmp_path, monkeypatch):
    """`mkdir` met the removal, and the next look meets the folder of a third process."""
    real, errors = Path.mkdir, [FileExistsError]

    def mkdir(path, *args, **kwargs):
        real(path, *args, **kwargs)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with lock_folder(tmp_path / "folder"):
        assert (tmp_path / "folder" / LOCK).exists()


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_what_is_no_folder_is_an_error(tmp_path, kind):
    if kind == "file":
        (tmp_path / "folder").touch()
    else:
        (tmp_path / "folder").symlink_to("nowhere")
    with pytest.raises(FileExistsError), lock_folder(tmp_path / "folder"):
        pass
