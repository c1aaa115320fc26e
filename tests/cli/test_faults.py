"""Faults of the machine end in one line and exit code 2; bugs keep their traceback."""

import errno
import os
import re
import resource
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep.comparison  # noqa: F401  so that it does not import what tests replace
import fewstep.runner  # noqa: F401
from fewstep import runs
from fewstep.cli import main
from fewstep.cli.faults import as_input_error, explain
from fewstep.cli.jobs import Job, run_jobs
from fewstep.errors import InputError

DIGITS = "fewstep:digits"
TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.warmup=0",
    "fit.steps=1",
]


def fails(capsys, *argv):
    """The one line of an error."""
    capsys.readouterr()
    assert main(list(map(str, argv))) == 2
    line = capsys.readouterr().err
    assert line.startswith("fewstep: ") and line.count("\n") == 1 and line.endswith("\n")
    return line


def raised(work):
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def module(name):
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


FAULTS = [
    (lambda: OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), "runs/a/x: No space"),
    (lambda: OSError(errno.ENOSPC, "No space left on device"), "make room"),
    (lambda: OSError(errno.EDQUOT, "Disk quota exceeded", b"a\xe9"), "quota exceeded: make room"),
    (lambda: OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only.* a disk that"),
    (lambda: PermissionError(errno.EACCES, "Permission denied", "/x"), "change its permissions"),
    (lambda: open("/no/such/file"), "/no/such/file: No such file.*check the path"),
    (lambda: open("/"), "/: Is a directory: give the name of a file"),
    (lambda: open("/dev/null/x"), "/dev/null/x: Not a directory: a part of the path"),
    (lambda: open("x" * 300), "xxx: File name too long: give a shorter"),
    (lambda: os.rename("/no/a", "/no/b"), "/no/a → /no/b: No such file"),
    (lambda: OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (lambda: OSError(errno.EIO, "Input/output error", "/x"), "network share fails"),
    (lambda: OSError("800 requested and 12 written"), "800 requested.*make room"),
    (lambda: OSError("encoder error -2 when writing image file"), "encoder error -2.*make room"),
    (lambda: MemoryError(), "out of memory: lower fit.batch or set fit.micro_batch"),
    (lambda: np.empty((1 << 55,)), "out of memory"),
    (lambda: torch.empty(1 << 50), "out of memory"),
    (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory"),
    (lambda: RuntimeError("CUDA error: out of memory"), "out of memory"),
    (lambda: b"\xff\xfea".decode(), "not UTF-8 text"),
    (lambda: RuntimeError("Symlink loop from '/x'"), "Too many levels .* lead in a circle"),
    (lambda: module("wandb"), r"wandb is not installed: pip install 'fewstep\[trackers\]'"),
    (lambda: module("onnx.helper"), r"onnx is not installed: pip install 'fewstep\[export\]'"),
]


@pytest.mark.parametrize(("work", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_of_the_machine_is_explained(monkeypatch, capsys, work, message):
    value = None

    def load(*args, **settings):
        nonlocal value
        value = work()
        if isinstance(value, Exception):
            raise value

    monkeypatch.setattr(runs, "load", load)
    assert re.search(message, fails(capsys, "sample", DIGITS, "-o", "/tmp/never.png"))


@pytest.mark.filterwarnings("default:a warning of:UserWarning")
@pytest.mark.parametrize(
    "name",
    ["\x1b[2Jx", "y" * 3_000_000, "a\nfewstep: b\rc\x08", "\x1b]0;title\x07", "\u202ea", "\udce9"],
    ids=lambda name: ascii(name[:9]),
)
def test_what_strangers_name_is_one_printable_line(monkeypatch, capsys, name):
    def load(*args, **settings):
        warnings.warn(f"a warning of {name}", stacklevel=1)
        raise InputError(f"a.safetensors has {name}: give another")

    monkeypatch.setattr(runs, "load", load)
    assert main(["sample", DIGITS, "-o", "/tmp/never.png"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.isprintable() and warning.startswith("fewstep: a warning of ")
    assert error.isprintable() and len(error) < 5000
    assert re.fullmatch("fewstep: a.safetensors has .*: give another", error)


class CompilerError(Exception):
    __module__ = "torch._inductor.exc"


def test_a_compiler_that_fails_is_explained():
    error = CompilerError("C++ compile error\n\nCommand:\ng++ …")
    assert explain(error) == (
        "torch.compile failed (C++ compile error): set fit.compile=false, or repair the compiler"
    )


@pytest.mark.parametrize(
    "bug",
    [ValueError("a"), KeyError("b"), RuntimeError("shapes do not fit"), TypeError("c"),
     module("fewstep.nothing"), OSError("odd"), AssertionError(), ZeroDivisionError()],
    ids=repr,
)  # fmt: skip
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    def load(*args, **settings):
        raise bug

    monkeypatch.setattr(runs, "load", load)
    with pytest.raises(type(bug)) as error:
        main(["sample", DIGITS, "-o", "/tmp/never.png"])
    assert error.value is bug


def fill_the_disk(update):
    raise OSError(errno.ENOSPC, "No space left on device", "x.png")


def test_a_fault_becomes_an_input_error_and_a_bug_does_not():
    assert isinstance(as_input_error(MemoryError()), InputError)
    for error in (InputError("x"), ValueError("y")):
        assert as_input_error(error) is error


@pytest.mark.slow
def test_a_fault_in_a_process_of_its_own_is_explained():
    with pytest.raises(InputError, match="a job: x.png: No space left on device: make room"):
        run_jobs([Job("a job", 1, fill_the_disk)], workers=1)


def test_files_that_cannot_be_written_to_their_end_are_named(tmp_path, capsys):
    """As on a full disk; nothing stays of them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        lines = [
            fails(capsys, "sample", DIGITS, "-n", "40", "-o", tmp_path / "x.bmp"),
            fails(capsys, "convert", DIGITS, "--out", tmp_path / "x.safetensors"),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert all("File too large" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_told_before_there_is_a_run(capsys, tmp_path):
    from torch._inductor import config, cpp_builder

    out = tmp_path / "run"
    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        line = fails(capsys, "train", "digits-flow", *TINY, "fit.compile=true", "--out", out)
    assert "fit.compile=true needs a C++ compiler such as g++" in line and not out.exists()


@pytest.fixture
def never(monkeypatch):
    """No weights are loaded, and nothing is trained: what is wrong is found before."""

    def work(*args, **settings):
        raise AssertionError("long work began")

    for name in ("fewstep.runs.load", "fewstep.runs.describe", "fewstep.assembly.read_data"):
        monkeypatch.setattr(name, work)
    monkeypatch.setattr("fewstep.cli.demo.make_jobs", work)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", DIGITS, "-o", "{folder}"], "needs the suffix of a picture"),
        (["sample", DIGITS, "-o", "{folder}.png"], "is a folder; give the name of a file"),
        (["sample", DIGITS, "-o", "{file}/x.png"], "is a file, not a folder"),
        (["sample", DIGITS, "-o", "{file}/y/x.png"], "is a file, not a folder"),
        (["sample", DIGITS, "-o", "{link}/x.png"], "is a broken link, not a folder"),
        (["sample", DIGITS, "-o", "/proc/x/x.png"], "/proc cannot be written"),
        (["sample", DIGITS, "-o", "x"], "x needs the suffix of a picture: one of .png, .jpg"),
        (["sample", DIGITS, "-o", "x.svg"], "x.svg needs the suffix of a picture"),
        (["sample", DIGITS, "--each", "{file}"], "is a file, not a folder"),
        (["sample", DIGITS, "--each", "{file}/x"], "is a file, not a folder"),
        (["sample", DIGITS, "--npz", "{folder}"], "is a folder; give the name of a file"),
        (["sample", DIGITS, "--npz", "{file}/x.npz"], "is a file, not a folder"),
        (["train", "digits-flow", "--out", "{file}"], "is a file, not a folder"),
        (["train", "digits-flow", "--out", "{file}/x"], "is a file, not a folder"),
        (["train", "digits-flow", "--out", "{link}"], "is a broken link"),
        (["distill", "digits-dmd", "--out", "{file}/x"], "is a file, not a folder"),
        (["demo", "--out", "{file}"], "is a file, not a folder"),
        (["demo", "--out", "{file}/a/b"], "is a file, not a folder"),
        (["compare", DIGITS, "--out", "{folder}"], "is a folder; give the name of a file"),
        (["compare", DIGITS, "--out", "{file}/x.html"], "is a file, not a folder"),
        (["convert", DIGITS, "--out", "{file}/x.safetensors"], "is a file, not a folder"),
        (["export", DIGITS, "--to", "browser", "--out", "{file}"], "is a file, not a folder"),
        (["progress", "{run}", "--out", "{folder}"], "is a folder; give the name of a file"),
        (["progress", "{run}", "--out", "{file}/x.csv"], "is a file, not a folder"),
        (["record", DIGITS, "--out", "{file}"], "is a file"),
        (["record", DIGITS, "--out", "{file}/x"], "{file}"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    never, tmp_path, capsys, argv, message
):
    names = {name: str(tmp_path / name) for name in ("file", "folder", "link", "run")}
    (tmp_path / "file").touch()
    for name in ("folder", "folder.png", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run" / "progress.jsonl").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert message.format(**names) in fails(capsys, *(word.format(**names) for word in argv))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.webp", "WEBP"), ("x.bmp", "BMP"), ("x.tif", "TIFF"),
     ("new/x.tiff", "TIFF"), ("a b.PNG", "PNG"), ("x.png.jpg", "JPEG")],
)  # fmt: skip
def test_a_picture_has_the_format_of_its_suffix(tmp_path, capsys, name, format):
    path = tmp_path / name
    assert main(["sample", DIGITS, "-n", "10", "-o", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.format == format and picture.width > 300


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", DIGITS, "-o", "x.png", "-n", "0"], "--count is 0; it must be an integer"),
        (["sample", DIGITS, "-o", "x.png", "--steps", "-4"], "--steps is -4"),
        (["sample", DIGITS, "-o", "x.png", "--guidance", "nan"], "--guidance is nan"),
        (["sample", DIGITS, "-o", "x.png", "--guidance", "-1"], "--guidance is -1.0"),
        (["sample", DIGITS, "-o", "x.png", "--guidance-interval", "a"], "is not a list of numbers"),
        (["sample", DIGITS, "-o", "x.png", "--guidance-interval", "0.2,1.1"], "must be a number"),
        (
            ["sample", DIGITS, "-o", "x.png", "--guidance", "2", "--guidance-interval", "0.8,0.2"],
            "it must be two times with 0 <= low < high <= 1",
        ),
        (
            ["evaluate", DIGITS, "--guidance-interval", "0.2,0.8"],
            "an interval has no effect without guidance",
        ),
        (
            ["sample", DIGITS, "-o", "x.png", "--autoguidance", DIGITS],
            "a weight of 1 has no effect on autoguidance: set another weight",
        ),
        (["sample", DIGITS, "-o", "x.png", "--seed", "-1"], "--seed is -1"),
        (["sample", DIGITS, "-o", "x.png", "--seed", "9" * 30], "--seed is 999"),
        (["sample", DIGITS, "-o", "x.png", "--times", "1,nan"], "--times is nan"),
        (["evaluate", DIGITS, "--steps", "1,0"], "--steps is 0"),
        (["evaluate", DIGITS, "--samples", "1"], "--samples is 1; it must be an integer from 2"),
        (["compare", DIGITS, "--steps", "1e3"], "--steps 1e3 is not a list of numbers"),
        (["record", DIGITS, "--out", "x", "--batch", "0"], "--batch is 0"),
        (["record", DIGITS, "--out", "x", "--clip", "inf"], "--clip is inf"),
        (["studio", "--port", "70000"], "--port is 70000; it must be an integer from 1 to 65,535"),
    ],
)
def test_options_have_ranges(never, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *argv)
