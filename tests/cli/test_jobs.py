"""Jobs: order, processes, progress, failures, Ctrl-C and a parent that is killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fewstep.cli import jobs
from fewstep.errors import InputError

HERE = Path(__file__)


@pytest.fixture(scope="module", autouse=True)
def _preloaded():
    jobs.preload(["torch"])


def note(folder, name, seconds, update):
    """Write when it began and ended, and by which process with how many threads."""
    import torch

    began = time.monotonic()
    for done in range(1, 6):
        time.sleep(seconds / 5)
        update(done)
    text = f"{began} {time.monotonic()} {os.getpid()} {torch.get_num_threads()}"
    (folder / name).write_text(text)


def fail(error, update):
    raise error


def warn(update):
    import warnings

    warnings.warn("too short", stacklevel=2)
    update(5)


def die(update):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_forever(path, update):
    path.write_text(str(os.getpid()))
    done = 0
    while True:
        time.sleep(0.02)
        done = min(done + 1, 998)
        update(done)


def job(folder, name, *after, seconds=0.2):
    return jobs.Job(name, 5, partial(note, folder, name, seconds), frozenset(after))


def times(folder):
    return {path.name: [float(part) for part in path.read_text().split()]
            for path in folder.iterdir()}  # fmt: skip


def test_jobs_wait_for_what_they_need_and_run_side_by_side(tmp_path, capsys):
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    jobs.run_jobs([job(tmp_path, name, *after) for name, after in needs.items()], workers=2)
    spans = times(tmp_path)
    for name, after in needs.items():
        assert all(spans[name][0] >= spans[other][1] for other in after)
    overlaps = [
        sum(begin <= spans[name][0] < end for begin, end, *_ in spans.values()) for name in needs
    ]
    assert max(overlaps) == 2, "two at once, and never more"
    processes = {process for _, _, process, _ in spans.values()}
    assert len(processes) == 5 and os.getpid() not in processes
    assert {threads for *_, threads in spans.values()} == {1}
    shown = capsys.readouterr().err
    assert all(f"{name} " in shown for name in needs) and shown.count("5/5") == 5


def test_the_first_failure_stops_the_others_and_is_raised(tmp_path):
    path = tmp_path / "pid"
    work = [
        jobs.Job("endless", 999, partial(wait_forever, path)),
        jobs.Job("bad", 1, partial(fail, InputError("no such file"))),
        jobs.Job("later", 1, partial(fail, InputError("never")), frozenset({"bad"})),
    ]
    with pytest.raises(InputError, match="^bad: no such file$"):
        jobs.run_jobs(work, workers=2)


def test_a_bug_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="in fail(.|\\n)*KeyError: 3"):
        jobs.run_jobs([jobs.Job("buggy", 1, partial(fail, KeyError(3)))], workers=1)


def test_a_killed_process_is_bad_luck_in_one_line():
    with pytest.raises(InputError, match="^doomed: its process was killed .exit code -9"):
        jobs.run_jobs([jobs.Job("doomed", 1, die)], workers=1)


def start_endless(folder):
    """A parent with one endless job; returns it with the job's process number."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
        "from functools import partial; from pathlib import Path\n"
        "import test_jobs; from fewstep.cli import console, jobs\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        work = partial(test_jobs.wait_forever, Path({str(folder / 'pid')!r}))\n"
        "        jobs.run_jobs([jobs.Job('endless', 999, work)], workers=1)\n"
        "    except console.Stopped:\n"
        "        print('stopped')\n"
    )
    script = folder / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert parent.poll() is None and time.monotonic() < deadline, parent.communicate()
        time.sleep(0.05)
    return parent, int((folder / "pid").read_text())


def is_alive(process):
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path, number):
    parent, child = start_endless(tmp_path)
    parent.send_signal(number)
    out, err = parent.communicate(timeout=60)
    if number == signal.SIGINT:
        assert out == "stopped\n" and "Traceback" not in err, err
    deadline = time.monotonic() + 20
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_warning_is_passed_on_with_the_name_of_its_job(capfd):
    with pytest.warns(UserWarning, match="^a: too short$"):
        jobs.run_jobs([jobs.Job("a", 5, warn)], workers=1)
    assert "too short" not in capfd.readouterr().err
