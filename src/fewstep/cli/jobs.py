"""Run jobs in parallel, each in a process of its own, with one progress display."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from fewstep.allocator import keep_freed_memory
from fewstep.cli import console
from fewstep.cli.faults import as_input_error
from fewstep.errors import InputError

INTERVAL = 0.1
"""Seconds between two progress reports of a job."""
# forking is fast, but after torch is imported it is safe only on Linux
_CONTEXT = (
    multiprocessing.get_context("forkserver")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)


@dataclass(frozen=True)
class Job:
    """A function to call in a process of its own after the jobs named in `after` have finished."""

    name: str
    total: int
    run: Callable[[console.Update], None]
    """Must be picklable. It calls its argument to report progress, up to `total`; that call raises
    Stopped if the job must end."""
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Running:
    job: Job
    process: BaseProcess
    update: console.Update


def preload(modules: Sequence[str]) -> None:
    """On Linux, start to import modules in the process from which all jobs are forked."""
    if sys.platform == "linux":
        _CONTEXT.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], *, workers: int, threads: int = 1) -> None:
    """Run all jobs, at most `workers` at once, in order as far as `Job.after` allows.

    Each has `threads` threads of computation. If a job fails, the others stop at their next
    progress report.

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
                    connection, process = _start(job, stop, threads)
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
        for unfinished in running.values():
            unfinished.process.terminate()
    if failure:
        raise failure


def _start(job: Job, stop: Event, threads: int) -> tuple[Connection, BaseProcess]:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(job, sender, stop, threads), daemon=True)
    process.start()
    sender.close()  # now only the job has it open, so that the end of the job closes the pipe
    return receiver, process


def _receive(connection: Connection, worker: _Running) -> Exception | bool | None:
    """Show a progress report or warning and return None; at the job's end, return True or its
    error."""
    try:
        message = connection.recv()
    except EOFError:
        worker.process.join()
        return InputError(
            f"{worker.job.name}: its process was killed (exit code {worker.process.exitcode}), "
            "perhaps for lack of memory; run the same command again to resume"
        )
    if isinstance(message, tuple):
        worker.update(*message)
        return None
    if isinstance(message, Warning):
        warnings.warn(message, stacklevel=2)
        return None
    worker.process.join()
    if isinstance(message, str):
        return RuntimeError(f"{worker.job.name} failed:\n{message}")
    return message


def _work(job: Job, sender: Connection, stop: Event, threads: int) -> None:
    """Run a job in this process; send its progress reports, warnings and its result or error."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    keep_freed_memory()
    torch.set_num_threads(threads)  # the last digits of results depend on their number
    last = 0.0

    def update(done: int, note: str = "", total: int = job.total) -> None:
        nonlocal last
        if stop.is_set() and done < total:
            raise console.Stopped
        now = time.monotonic()
        if now - last > INTERVAL or done >= total:
            last = now
            sender.send((done, note, total))  # raises if the parent has exited, which ends the job

    def send_warning(message: Warning | str, *_: Any) -> None:
        sender.send(UserWarning(f"{job.name}: {message}"))

    warnings.showwarning = send_warning
    result: Exception | bool | str = True
    try:
        job.run(update)
    except BrokenPipeError:
        return
    except console.Stopped as error:
        result = error
    except Exception as error:
        plain = as_input_error(error)
        is_input_error = isinstance(plain, InputError)
        result = InputError(f"{job.name}: {plain}") if is_input_error else traceback.format_exc()
    sender.send(result)
