"""Trackers are told what the log says, each step once, and never stand in a training's way."""

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tomllib
from types import SimpleNamespace

import pytest
from PIL import Image

from fewstep import plugins, trackers
from fewstep.cli import main
from fewstep.run_folder import Run
from fewstep.trackers import Follower, TensorBoard, Tracker, flat, follow, numbers

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.warmup=0",
]
SCORE = {"steps": 1, "sampler": "heun", "frechet": 9.5, "accuracy": None, "extractor": "pixels"}


class Recording(Tracker):
    """Keeps what it is told."""

    name = "recording"

    def __init__(self, run, first_step=1):
        super().__init__(run, first_step)
        self.told = []
        self.closed = False

    def numbers(self, step, values):
        self.told.append((step, dict(values)))

    def image(self, step, name, path):
        self.told.append((step, name, path.name))

    def close(self):
        self.closed = True


class Rewriting(Recording):
    rewrites = True


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    return run


def logged(run, *steps):
    for step in steps:
        run.log({"step": step, "seconds": step / 8, "student/loss": 1 / step})


def drawn(run, *steps):
    run.samples.mkdir(exist_ok=True)
    for step in steps:
        Image.new("RGB", (6, 4), (step, 0, 0)).save(run.samples / f"step-{step:07}.png")


def row(step):
    return (step, {"seconds": step / 8, "student/loss": 1 / step})


def picture(step):
    return (step, "samples", f"step-{step:07}.png")


def test_a_line_is_flattened_and_its_strings_are_no_numbers():
    line = {"step": 3, "score": SCORE, "hardware": "cpu", "list": [1, 2]}
    assert flat(line) == {
        "step": 3,
        "score/1-step/sampler": "heun",
        "score/1-step/frechet": 9.5,
        "score/1-step/accuracy": None,
        "score/1-step/extractor": "pixels",
        "hardware": "cpu",
        "list": [1, 2],
    }
    assert numbers(line) == {"score/1-step/frechet": 9.5}
    assert flat({"a": {"b": {"steps": 2, "c": 1}}}) == {"a/b/2-step/c": 1}
    assert numbers({"step": 1, "flag": True, "images": 8}) == {"images": 8.0}
    assert math.isnan(numbers({"step": 1, "loss": math.nan})["loss"])


def test_each_line_and_picture_is_sent_once_in_the_order_of_steps(run):
    follower = Follower(run, tracker := Recording(run))
    follower.forward()  # nothing is there yet
    run.log({"step": 0, "hardware": "cpu"})  # nothing to draw in it
    logged(run, 10)
    run.log({"step": 10, "score": SCORE})
    follower.forward()
    follower.forward()
    assert tracker.told == [(10, {**row(10)[1], "score/1-step/frechet": 9.5})]
    drawn(run, 15, 20)
    logged(run, 20)
    follower.forward()
    drawn(run, 27)
    follower.forward()
    assert tracker.told[1:] == [picture(15), row(20), picture(20)]
    follower.close()
    assert tracker.told[4:] == [picture(27)] and tracker.closed


def test_a_line_still_being_written_waits(run):
    follower = Follower(run, tracker := Recording(run))
    logged(run, 10, 20)
    whole = run.progress_file.read_bytes()
    run.progress_file.write_bytes(b"")
    for end in range(len(whole) + 1):
        run.progress_file.write_bytes(whole[:end])
        follower.forward()
        assert len(tracker.told) == whole[:end].count(b"\n")
    assert tracker.told == [row(10), row(20)]


@pytest.mark.parametrize("kind", [Recording, Rewriting])
def test_a_resumed_run_goes_on_where_the_tracker_stands(run, kind):
    """Killed after step 40 with a state of step 25: 30 and 40 are logged a second time."""
    first = Follower(run, kind(run))
    drawn(run, 25)
    logged(run, 10, 20, 30, 40)
    first.forward()
    run.rewind(25)
    again = Follower(run, tracker := kind(run, first_step=26))
    assert tracker.id == first.tracker.id
    for step in (30, 40, 50):
        logged(run, step)
        drawn(run, step)
        again.forward()
    repeated = [row(30), picture(30), row(40), picture(40)] if kind is Rewriting else []
    assert tracker.told == [*repeated, row(50), picture(50)]


def test_a_tracker_that_comes_late_is_told_everything(run):
    logged(run, 10, 20)
    drawn(run, 20)
    Follower(run, tracker := Rewriting(run, first_step=21)).forward()
    assert tracker.told == [row(10), row(20), picture(20)]


@pytest.mark.parametrize("failing", ["numbers", "image", "close", "mark"])
def test_a_tracker_that_fails_is_told_no_more(run, failing, monkeypatch):
    def fail(*_):
        raise ConnectionError("the network\nis down")

    follower = Follower(run, tracker := Recording(run))
    monkeypatch.setattr(tracker, failing, fail)
    logged(run, 10)
    drawn(run, 10)
    told = "recording failed, training continues without it: the network is down"
    with pytest.warns(UserWarning, match=told):
        follower.forward()
        follower.close()
    before = list(tracker.told)
    logged(run, 20)
    follower.forward()
    follower.close()
    assert tracker.told == before


def train(out, *more):
    return ["train", "digits-flow", *TINY, *more, "--out", str(out)]


@pytest.fixture
def recorder(monkeypatch):
    """`--track tensorboard` reaches these instead."""
    opened = []

    class Opened(Recording):
        name = "tensorboard"

        def __init__(self, run, first_step):
            super().__init__(run, first_step)
            opened.append(self)

        @classmethod
        def require(cls):
            pass

    monkeypatch.setattr(trackers, "TensorBoard", Opened)
    return opened


def test_the_command_line_forwards_all_that_the_run_folder_holds(tmp_path, recorder, capsys):
    more = ["fit.steps=12", "fit.save_every=7", "evaluate.every=6", "evaluate.samples=10"]
    more += ["evaluate.steps=[1,2]", "evaluate.extractor='pixels'"]
    assert main([*train(tmp_path / "x", *more), "--track", "tensorboard"]) == 0
    (tracker,) = recorder
    wanted = {}
    for line in Run(tmp_path / "x").progress():
        if values := numbers(line):
            wanted.setdefault(line["step"], {}).update(values)
    assert dict(told for told in tracker.told if len(told) == 2) == wanted
    assert {6, 10, 12} == set(wanted) and "score/2-step/frechet" in wanted[6]
    pictures = [told for told in tracker.told if len(told) == 3]
    assert pictures == [picture(0), picture(7), picture(12)]
    assert tracker.closed


@pytest.mark.filterwarnings("always:.* failed, training continues")
def test_a_failing_tracker_does_not_stop_a_training(tmp_path, recorder, monkeypatch, capsys):
    def fail(*_):
        raise ConnectionError("the network is down")

    monkeypatch.setattr(Recording, "numbers", fail)
    assert main([*train(tmp_path / "x", "fit.steps=22"), "--track", "tensorboard"]) == 0
    monkeypatch.setattr(trackers.TensorBoard, "__init__", fail)
    assert main([*train(tmp_path / "y", "fit.steps=3"), "--track", "tensorboard"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "fewstep: " in line]
    line = "fewstep: tensorboard failed, training continues without it: the network is down"
    assert lines == [line, line]  # while it sends, and while it is opened
    assert all((tmp_path / name / "model.safetensors").exists() for name in "xy")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_ends_in_one_line_before_anything_is_made(
    tmp_path, name, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, plugins.resolve("tracker", name).module, None)
    assert main([*train(tmp_path / "x", "fit.steps=3"), "--track", name]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"fewstep: --track {name} needs a package that is not installed")
    assert line.endswith("pip install 'fewstep[trackers]'") and "\n" not in line
    assert not (tmp_path / "x").exists()


def test_an_unknown_tracker_exits_with_2_before_training(tmp_path, capsys):
    assert main([*train(tmp_path / "x"), "--track", "tensorbored"]) == 2
    assert "unknown tracker 'tensorbored'; did you mean tensorboard?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_help_names_the_trackers(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in plugins.names("tracker"))


def wanted_of(run):
    """(step, key) to value, of the whole log."""
    return {
        (line["step"], key): value
        for line in run.progress()
        for key, value in numbers(line).items()
    }


def killed_and_resumed(out, name, **environment):
    """A training with a tracker, killed with -9 at two moments; its run when it is done."""
    more = ["fit.steps=300", "fit.save_every=15", "evaluate.every=50", "evaluate.samples=10"]
    more += ["evaluate.steps=[1,2]", "evaluate.extractor='pixels'"]
    words = [*train(out, *more), "--track", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    dice = random.Random(0)
    for kill in (80, 190, None):
        process = subprocess.Popen(
            [sys.executable, "-m", "fewstep", *words],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while kill and process.poll() is None:
            if kill <= max((line["step"] for line in Run(out).progress()), default=0):
                time.sleep(dice.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        _, errors = process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill else 0), errors
    return Run(out)


@pytest.mark.parametrize("since", [-1, 20])
def test_tensorboard_holds_numbers_text_and_pictures(run, since):
    pytest.importorskip("tensorboard")
    run.recipe_file.write_text("[fit]\nsteps = 20\n")
    follower = follow(run, "tensorboard", 1)
    logged(run, 10, 20, 30)
    drawn(run, 20)
    follower.forward()
    if since > 0:  # killed: not closed, and 30 is logged once more
        run.rewind(since)
        follower = follow(run, "tensorboard", since + 1)
        assert follower.tracker.since == since
        logged(run, 30)
    follower.close()
    seen = accumulated(run)
    once(scalars(seen), wanted_of(run))
    (image,) = seen.Images("samples")
    assert (image.step, image.width, image.height) == (20, 6, 4)
    (text,) = seen.Tensors("recipe/text_summary")
    assert b"steps = 20" in text.tensor_proto.string_val[0]


def accumulated(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def once(told, wanted):
    """Everything stands there, once, in f32."""
    assert told.keys() == wanted.keys()
    for place, value in wanted.items():
        assert told[place] == [pytest.approx(value, rel=1e-6)], place


def scalars(seen):
    told = {}
    for key in seen.Tags()["scalars"]:
        for event in seen.Scalars(key):
            told.setdefault((event.step, key), []).append(event.value)
    return told


def test_tensorboard_holds_each_step_once_after_kills(tmp_path):
    pytest.importorskip("tensorboard")
    run = killed_and_resumed(tmp_path / "x", "tensorboard")
    once(scalars(accumulated(run)), wanted_of(run))
    images = [event.step for event in accumulated(run).Images("samples")]
    assert images == sorted(set(images)) and images[-1] == 300


def history(path):
    """(step, key) to all its values in an offline file of a W&B run, and the run's settings."""
    from wandb.proto.wandb_internal_pb2 import Record

    told, config = {}, {}
    for content in records(path.read_bytes()):
        record = Record.FromString(content)
        for setting in record.run.config.update:
            config[setting.key] = json.loads(setting.value_json)
        items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
        for key in items.keys() - {"_step", "_runtime", "_timestamp"}:
            told.setdefault((record.history.step.num, key), []).append(items[key])
    return told, config


def records(content):
    """LevelDB's log format: blocks of 32 KiB, in them fragments with a header of 7 bytes."""
    place, part = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last fragment
            yield part
            part = b""


def test_wandb_offline_files_of_the_last_session_hold_each_step_once(tmp_path):
    pytest.importorskip("wandb")
    run = killed_and_resumed(tmp_path / "x", "wandb", WANDB_MODE="offline")
    sessions = sorted(run.folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(sessions) == 3 and len({path.name for path in sessions}) == 1  # of one run
    told, config = history(sessions[-1])
    pictures = sorted(step for step, key in told if key == "samples")
    assert pictures == sorted(int(path.stem[5:]) for path in run.samples.iterdir())
    once({place: values for place, values in told.items() if place[1] != "samples"}, wanted_of(run))
    assert config["fit"] == tomllib.loads(run.recipe_file.read_text())["fit"]


def test_wandb_is_told_what_its_server_lacks(run, monkeypatch):
    """A server that has steps up to 30, of a run resumed from step 25."""
    sent = []
    kept = SimpleNamespace(
        starting_step=31, offline=False, url="https://wandb/x", finish=lambda: None,
        log=lambda values, step: sent.append((step, values)),
    )  # fmt: skip
    package = SimpleNamespace(
        run=None, init=lambda **_: kept, Settings=dict,
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", package)
    logged(run, 10, 20, 30)
    follower = follow(run, "wandb", 26)
    follower.forward()
    logged(run, 40)
    follower.close()
    assert sent == [row(40)] and follower.tracker.where == "https://wandb/x"


def test_trackio_holds_each_step_once_after_kills(tmp_path):
    pytest.importorskip("trackio")
    import sqlite3

    run = killed_and_resumed(tmp_path / "x", "trackio", TRACKIO_DIR=str(tmp_path / "store"))
    told, names = {}, set()
    with sqlite3.connect(tmp_path / "store" / "fewstep.db") as database:
        rows = database.execute("select step, run_name, metrics from metrics").fetchall()
    for step, name, metrics in rows:
        names.add(name)
        for key, value in json.loads(metrics).items():
            told.setdefault((step, key), []).append(value)
    assert len(names) == 1
    pictures = sorted(step for step, key in told if key == "samples")
    assert len(pictures) == len(set(pictures)) and pictures[-1] == 300
    told = {place: values for place, values in told.items() if place[1] != "samples"}
    wanted = wanted_of(run)
    assert told.keys() == wanted.keys()
    for place, value in wanted.items():  # durations may be those of before a kill
        (got,) = told[place]
        assert got == value or "seconds" in place[1], place


def test_wandb_without_a_key_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fewstep", *train(tmp_path / "x"), "--track", "wandb"],
        env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and "wandb login" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_tensorboard_flushes_what_it_marks(run):
    """Else a kill would leave a gap that nothing fills."""
    pytest.importorskip("tensorboard")
    tracker = TensorBoard(run, 1)
    logged(run, 10)
    Follower(run, tracker).forward()
    assert scalars(accumulated(run)).keys() == wanted_of(run).keys()
