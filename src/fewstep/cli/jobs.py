"""Jobs that run side by side, each in a process of its own with one thread, under one display."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

from fewstep.allocator import keep_freed_memory
from fewstep.cli import console
from fewstep.errors import InputError

INTERVAL = 0.1
"""Seconds between two reports of a job to the display."""
# fork is quick, but only Linux can fork safely once torch is imported
_CONTEXT = (
    multiprocessing.get_context("forkserver")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)


@dataclass(frozen=True)
class Job:
    """A function to call in a process of its own once the jobs named in `after` are finished."""

    name: str
    total: int
    run: Callable[[console.Update], None]
    """Must be picklable. Reports its progress, at most `total`; a report may raise Stopped."""
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Running:
    job: Job
    process: BaseProcess
    update: console.Update


def preload(modules: Sequence[str]) -> None:
    """Begin to import modules for all jobs, once and beside this process where that is possible."""
    if sys.platform == "linux":
        _CONTEXT.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], *, workers: int) -> None:
    """Run all jobs, at most `workers` at once, in their order where possible.

    A job that fails stops the others at their next report.

    Raises: console.Stopped after Ctrl-C; InputError if a job raised one or was killed.
    """
    stop, waiting = _CONTEXT.Event(), list(jobs)
    finished: set[str] = set()
    running: dict[Connection, _Running] = {}
    failure: Exception | None = None
    try:
        with console.Bars() as bars, console.stop_requests() as stop_requested:
            while running or (waiting and not stop.is_set()):
                ready = [job for job in waiting if job.after <= finished and not stop.is_set()]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    connection, process = _start(job, stop)
                    running[connection] = _Running(job, process, bars.add(job.name, job.total))
                for connection in wait(list(running), timeout=INTERVAL):
                    assert isinstance(connection, Connection)
                    result = _receive(connection, running[connection])
                    if result is None:
                        continue
                    job = running.pop(connection).job
                    if isinstance(result, Exception):
                        failure = failure or result
                        stop.set()
                    else:
                        finished.add(job.name)
                if stop_requested():
                    failure = failure or console.Stopped()
                    stop.set()
    finally:
        for each in running.values():
            each.process.terminate()
    if failure:
        raise failure


def _start(job: Job, stop: Event) -> tuple[Connection, BaseProcess]:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(job, sender, stop), daemon=True)
    process.start()
    sender.close()  # only the job holds it now: its death ends the stream
    return receiver, process


def _receive(connection: Connection, each: _Running) -> Exception | bool | None:
    """Show a report. At the job's end, returns True, or what went wrong."""
    try:
        message = connection.recv()
    except EOFError:
        each.process.join()
        return InputError(
            f"{each.job.name}: its process was ended (exit code {each.process.exitcode}), perhaps "
            "for lack of memory; the same command resumes"
        )
    if isinstance(message, tuple):
        each.update(*message)
        return None
    each.process.join()
    if isinstance(message, str):
        return RuntimeError(f"{each.job.name} failed:\n{message}")
    return message


def _work(job: Job, sender: Connection, stop: Event) -> None:
    """Run a job in this process, and send its reports and its result."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    keep_freed_memory()
    torch.set_num_threads(1)  # results then do not depend on the number of cores
    last = 0.0

    def update(done: int, note: str = "", total: int = job.total) -> None:
        nonlocal last
        if stop.is_set() and done < total:
            raise console.Stopped
        now = time.monotonic()
        if now - last > INTERVAL or done >= total:
            last = now
            sender.send((done, note, total))  # raises if the parent has died, which ends the job

    result: Exception | bool | str = True
    try:
        job.run(update)
    except BrokenPipeError:
        return
    except (InputError, console.Stopped) as error:
        named = isinstance(error, InputError)
        result = InputError(f"{job.name}: {error}") if named else error
    except Exception:
        result = traceback.format_exc()
    sender.send(result)
