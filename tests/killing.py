"""Record in one or two processes, kill -9 them at random moments, resume, and look at what is left.

    python tests/killing.py FOLDER KILLS PROCESSES SEED

The processes are forked from this one, which has imported everything and computed nothing: so a
kill costs a tenth of a second, not the four seconds of an import. Prints what was seen as JSON.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from analytic import exact
from fewstep import store
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.recording import Recording, record
from fewstep.sample_spec import SampleSpec

SHAPE = (1, 4, 4)
TOLD = Recording(count=230, steps=3, shard=10)


def write(folder):
    teacher = Generator(exact(Flow(), Velocity(), SHAPE), SampleSpec(SHAPE, 3))
    for _ in record(teacher, folder, TOLD, teacher="hash", batch=5):
        pass


def forked(folder, rank, ranks, port):
    """A process that records its share, then leaves at once."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    code = 1
    try:
        write(folder)
        code = 0
    finally:
        os._exit(code)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def attempt(folder, ranks, moment, shards_at_most):
    """Record for `moment` seconds, or until there are so many shards; whether it was killed."""
    port = free_port()
    children = [forked(folder, rank, ranks, port) for rank in range(ranks)]
    deadline = time.monotonic() + moment
    running = set(children)
    while running and time.monotonic() < deadline and len(shards(folder)) < shards_at_most:
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                running.discard(child)
                assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status
        time.sleep(0.001)
    for child in running:
        os.kill(child, signal.SIGKILL)
    for child in running:
        os.waitpid(child, 0)
    return bool(running)


def shards(folder):
    """What is whole by name: its content, and when and where it was written."""
    found = {path.name: path for path in folder.glob("shard-*.zst")} if folder.exists() else {}
    return {
        name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for name, path in found.items()
    }


def main(folder, kills, ranks, seed):
    torch.set_num_threads(1)
    dice = random.Random(seed)
    started = time.monotonic()
    forked_truth = forked(folder / "truth", 0, 1, 0)
    os.waitpid(forked_truth, 0)
    length = (time.monotonic() - started) * (1 + 0.5 * (ranks - 1))
    truth = {path.name: path.read_bytes() for path in (folder / "truth").iterdir()}
    seen = {"kills": 0, "stores": 0, "partial": 0, "shards": len(truth) - 1}
    while seen["kills"] < kills:
        place = folder / f"store-{seen['stores']}"
        whole = {}
        while True:
            # at any moment, or just after a shard: most of the time goes to starting the processes
            at_any_moment = dice.random() < 0.5
            moment = dice.uniform(0, 0.6 * length) if at_any_moment else 10 * length
            count = len(truth) if at_any_moment else len(whole) + dice.randint(1, 5)
            killed = attempt(place, ranks, moment, count)
            seen["kills"] += killed
            now = shards(place)
            for name, (content, _, _) in now.items():
                assert content == truth[name], f"{name} is not what an undisturbed writer writes"
            for name, before in whole.items():
                assert now[name] == before, f"{name} was recorded twice"
            seen["partial"] += killed and 0 < len(now) < len(truth) - 1
            whole = now
            if not killed:
                break
        assert {path.name: path.read_bytes() for path in place.iterdir()} == truth
        assert store.verify(place) == []
        seen["stores"] += 1
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
