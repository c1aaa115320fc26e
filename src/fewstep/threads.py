"""Threads for work that hides behind the computing: reading ahead, writing behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_LOCK = threading.Lock()


def workers(count: int) -> ThreadPoolExecutor:
    """`count` threads, each of which computes alone: with a team of helpers of its own, as torch
    gives every thread, it would fight the main thread's team for the processors."""
    return ThreadPoolExecutor(count, initializer=_alone)


def _alone() -> None:
    with _LOCK:
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        # that was this thread's number, and also what all later threads begin with: for those it is
        # set back, from a thread that has no other use
        back = threading.Thread(target=torch.set_num_threads, args=(usual,))
        back.start()
        back.join()
