"""Crash at every file operation of a command, run it again, and compare what is there in the end.

    python tests/crashing.py FOLDER SCENARIO=COUNT ...

An audit hook copies the folder before every operation that changes it: that is what a kill there
leaves. Between two copies, half of what was written is a further crash point. From each of them,
or from COUNT of them if it is not 0, the same command runs again in a forked process. Prints what
was found as JSON.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import warnings
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

import fewstep.cli.compare
import fewstep.cli.demo
import fewstep.cli.evaluate
import fewstep.cli.record
import fewstep.cli.train
import fewstep.report  # noqa: F401
from fewstep import data, metrics, runs
from fewstep.cli import console, demo, main
from fewstep.cli.demo_plans import PLANS
from fewstep.locks import lock_folder
from fewstep.recipe import read
from fewstep.runner import run_recipe

TINY = [
    "student.backbone.channels=[4]",
    "student.backbone.attention=[]",
    "student.backbone.groups=2",
    "fit.batch=4",
    "fit.save_every=2",
    "fit.schedule=constant",  # so that the training can be extended
    "fit.warmup=0",
    "fit.ema_halflife=16",
    "evaluate={every=3, steps=[1, 2], best=1, samples=10, extractor='pixels'}",
]
MATCHING = [
    "fit.steps=7",
    "fit.batch=4",
    "fit.save_every=2",
    "method.adversarial.weight=0.1",
    "evaluate={every=3, steps=[1], samples=10, extractor='pixels'}",
]
SCORE = ["--steps", "1,2", "--samples", "10", "--extractor", "pixels"]
VARYING = {"seconds", "memory", "seconds_per_image", "device", "hardware", "check"}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


def command(*argv):
    code = main(list(argv))
    assert code == 0, f"exit code {code}"


def train(*argv, log_every):
    overrides = list(argv[1:-2])
    for _ in run_recipe(read(argv[0], overrides), argv[-1], log_every=log_every):
        pass
    command("train", *argv)  # which writes the report


def teacher():
    train("digits-flow", *TINY, "fit.steps=4", "--out", "teacher", log_every=2)


def student():
    load = "teacher.load=../../before/teacher"
    train("digits-dmd2", load, *MATCHING, "--out", "run", log_every=3)


def extend():
    longer = [*TINY, "fit.steps=7"]
    for _ in run_recipe(read("digits-flow", longer), "run", log_every=2, extend=True):
        pass
    command("train", "digits-flow", *longer, "--extend", "--out", "run")


def record():
    options = ["-n", "300", "--steps", "2", "--allow-out-of-range"]
    command("record", "../../before/teacher", "--out", "pairs", *options)


def evaluate():
    command("evaluate", "teacher", *SCORE)


def compare():
    command("compare", "a", "b", *SCORE, "--out", "pages/page.html")


def short_demo():
    """The jobs of a demo of two runs, one after the other in this process."""
    overrides = {"teacher": (*TINY[:5], "fit.steps=3"), "regress": (*TINY[3:5], "fit.steps=3")}
    plan = replace(
        PLANS[""],
        students=("regress",),
        stores={"pairs": replace(PLANS[""].stores["pairs"], count=200)},
        teacher={"transfer": (1, 2)},
        overrides=overrides,
    )
    protocol = metrics.EvalProtocol(10, "pixels")
    small = demo.Demo(Path("demo"), plan)
    with lock_folder(small.out):
        for job in demo.make_jobs(small, protocol):
            job.run(lambda *_, **__: None)
        demo.write_results(small, protocol)


SCENARIOS = {
    "train": student,
    "extend": extend,
    "record": record,
    "evaluate": evaluate,
    "compare": compare,
    "demo": short_demo,
}
COPIES = {"extend": ["run"], "evaluate": ["teacher"], "compare": ["a", "b"]}
"""Names under which the teacher is in the folder at the start."""


def forked(action, folder):
    """Call `action` in a child process in this folder. Returns its error, or ""."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader, errors="replace") as pipe:
            text = pipe.read()
        status = os.waitpid(child, 0)[1]
        return text if status else ""
    os.close(reader)
    code, text = 1, io.StringIO()
    try:
        os.chdir(folder)
        console.out.file = text
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            action()
        code = 0
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}; {text.getvalue()[-500:]}".encode())
    finally:
        os._exit(code)


def digest(folder):
    files = sorted(path for path in folder.rglob("*"))
    content = [(str(p.relative_to(folder)), p.read_bytes() if p.is_file() else b"") for p in files]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def watch(action, points, folder):
    """Run `action`, and copy the folder before each change to it into `points`."""
    seen, busy, number = set(), False, 0

    def copy(what):
        nonlocal busy, number
        busy = True
        key = digest(folder)
        if key not in seen:
            seen.add(key)
            shutil.copytree(folder, points / f"{number:05} {what}")
            number += 1
        busy = False

    def hook(event, arguments):
        if busy or not (event == "open" or event in CHANGES):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if isinstance(arguments[0], int):  # a file that is open already
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(f"{folder}/"):
            return
        copy(f"before {event} {os.path.relpath(path, folder).replace('/', '+')}")

    sys.addaudithook(hook)
    action()
    copy("at the end")


def add_halves(points):
    """For each file written between two points: the earlier folder with half of what is new."""
    folders = sorted(points.iterdir())
    for before, after in zip(folders, folders[1:], strict=False):
        for path in (path for path in after.rglob("*") if path.is_file()):
            name, new = path.relative_to(after), path.read_bytes()
            old = (before / name).read_bytes() if (before / name).is_file() else b""
            word = str(name).replace("/", "+")
            if len(new) < len(old) + 2 or not new.startswith(old):
                continue
            if name.name.endswith(".part.tmp"):  # safetensors writes to a file of its own first
                name = name.with_name(".tmpAb3dE9")
            elif not before.name.endswith(f"open {word}"):  # it was renamed, which has no half
                continue
            half = points / f"{before.name[:5]}+half {word}"
            shutil.copytree(before, half)
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            (half / name).write_bytes(new[: (len(old) + len(new)) // 2])


def lines(path):
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows = [row for row in rows if "hardware" not in row]
    return [without_varying(row) for row in rows]


def without_varying(value):
    if isinstance(value, dict):
        return {k: without_varying(v) for k, v in value.items() if k not in VARYING}
    return [without_varying(v) for v in value] if isinstance(value, list) else value


def differences(truth, folder):
    """What differs from the undisturbed folder, one phrase each."""
    names = [
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        for root in (truth, folder)
    ]
    yield from (f"{name} is missing" for name in sorted(names[0] - names[1]))
    yield from (f"{name} is left over" for name in sorted(names[1] - names[0]))
    for name in sorted(names[0] & names[1]):
        path, other = truth / name, folder / name
        if name.endswith(".jsonl"):
            if lines(path) != lines(other):
                yield f"{name}: {[row.get('step') for row in lines(other)]}"
        elif name.endswith(".json"):
            same = [without_varying(json.loads(p.read_text())) for p in (path, other)]
            if "manifest" in name or same[0] != same[1]:
                if path.read_bytes() != other.read_bytes():
                    yield f"{name} differs"
        elif name.endswith(".html"):
            if not other.read_text().rstrip().endswith("</html>"):
                yield f"{name} is cut"
        elif path.read_bytes() != other.read_bytes():
            yield f"{name} differs"


def sweep(root, name, count):
    """Crash in one scenario.  `root` has the teacher already."""
    action, place = SCENARIOS[name], root / name
    truth, watched, points, again = (place / x for x in ("truth", "watched", "points", "again"))
    points.mkdir(parents=True)
    for folder in (truth, watched):
        folder.mkdir()
        for copy in COPIES.get(name, ()):
            shutil.copytree(root / "before" / "teacher", folder / copy)
    assert not (error := forked(action, truth)), error
    assert not (error := forked(partial(watch, action, points, watched), watched)), error
    bad = [f"an undisturbed run: {text}" for text in differences(truth, watched)]
    add_halves(points)
    found = sorted(points.iterdir())
    tried = random.Random(0).sample(found, count) if 0 < count < len(found) else found
    for point in tried:
        shutil.copytree(point, again)
        error = forked(action, again)
        texts = [error] if error else differences(truth, again)
        bad += [f"{point.name}: {text}" for text in texts]
        shutil.rmtree(again)
    return {"points": len(found), "tried": len(tried), "bad": bad}


def main_sweep(root, counts):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # what each of the processes would import again
    data.load("digits")
    runs.load("fewstep:digits")
    for module in ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_svg"):
        import_module(module)
    (root / "before").mkdir(parents=True)
    assert not (error := forked(teacher, root / "before")), error
    return {name: sweep(root, name, count) for name, count in counts.items()}


if __name__ == "__main__":
    scenarios = [argument.partition("=") for argument in sys.argv[2:]]
    counts = {name: int(count) for name, _, count in scenarios}
    print(json.dumps(main_sweep(Path(sys.argv[1]).absolute(), counts)))
