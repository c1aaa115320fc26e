"""Background threads that read or write data during a computation."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_LOCK = threading.Lock()


def workers(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads, each of which runs torch operations on one thread.

    By default torch starts a thread pool for each of them, which would compete with the main
    thread's for the CPUs.
    """
    return ThreadPoolExecutor(count, initializer=_use_one_thread)


def _use_one_thread() -> None:
    with _LOCK:
        default = torch.get_num_threads()
        torch.set_num_threads(1)
        # set_num_threads also changed the default of later threads: a temporary thread resets it
        thread = threading.Thread(target=torch.set_num_threads, args=(default,))
        thread.start()
        thread.join()
