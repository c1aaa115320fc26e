"""Threads for input and output in the background: reading ahead, writing behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_LOCK = threading.Lock()


def workers(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads in which torch uses one thread each.

    By default torch would give each worker a thread pool of its own, which would compete with the
    main thread's for the processors.
    """
    return ThreadPoolExecutor(count, initializer=_use_one_thread)


def _use_one_thread() -> None:
    with _LOCK:
        default = torch.get_num_threads()
        torch.set_num_threads(1)
        # this also changed the default of threads started later: reset it from a throwaway thread
        thread = threading.Thread(target=torch.set_num_threads, args=(default,))
        thread.start()
        thread.join()
