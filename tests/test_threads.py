import threading

import torch

from fewstep.threads import workers


def test_workers_compute_alone_and_nobody_else_is_changed():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gate = threading.Barrier(3)

        def threads():
            gate.wait()  # so that each of the three is a thread of its own
            return torch.get_num_threads()

        with workers(3) as pool:
            found = [task.result() for task in [pool.submit(threads) for _ in range(3)]]
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (found, later, torch.get_num_threads()) == ([1, 1, 1], [2], 2)
    finally:
        torch.set_num_threads(usual)
