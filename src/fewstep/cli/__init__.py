"""The command line: one file per verb, imported only when that verb runs.

Exit codes: 0 for success; 2 for wrong input, with one line that says what to do; 1 for a bug, with
a traceback; 130 after Ctrl-C.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fewstep import __version__, plugins
from fewstep.errors import InputError, SharedError, did_you_mean
from fewstep.formatting import one_line

VERBS = {
    "demo": "train a teacher and one-step students of digits, with a report, in minutes",
    "train": "train a recipe: a teacher, or any other run",
    "distill": "train a recipe whose student learns from a teacher",
    "encode": "encode a data set into latents, or measure an autoencoder",
    "record": "record noise-image pairs of a teacher into a store",
    "sample": "sample a grid of images from a run",
    "explain": "draw the noise, training times and sampler of a run or recipe",
    "average": "average the weights of a run over another length",
    "convert": "write a run, or a checkpoint of another project, as one weights file",
    "export": "write a run for ONNX, torch.export, diffusers or a browser",
    "progress": "show the progress of a run, or print its log as CSV",
    "evaluate": "score a run at several numbers of sampling steps",
    "compare": "score several runs and write one report",
    "studio": "open a page in the browser to try runs by hand",
    "list": "list recipes, methods, samplers and everything else that is selected by name",
    "doctor": "list the device, threads, data sets, weights and extras of this machine",
}
SHARED_VERBS = ("train", "distill", "record", "evaluate")
"""Verbs whose work the processes of `torchrun` share."""
IDLE_VERBS = ("average", "progress", "list", "doctor")
"""Verbs that train and sample nothing. In all others, freed memory is kept."""


def help_text() -> str:
    """Text of `fewstep --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {what}" for name, what in VERBS.items())
    return (
        "fewstep: train a diffusion or flow teacher and distil it to a few steps\n\n"
        f"usage: fewstep VERB ...\n\n{verbs}\n\n"
        "fewstep VERB --help lists the options of a verb.\n"
        "fewstep train RECIPE --help lists the keys of a recipe.\n"
        "--allow-code PACKAGE, after any verb, lets weights files import classes of PACKAGE.\n"
        "Start with: fewstep demo"
    )


def run() -> NoReturn:
    """Run the verb of the command line, and exit with its code."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from fewstep.distributed import exit_process

        exit_process(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
    _print_any_text()
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if verb in ("-V", "--version"):
        print(f"fewstep {__version__}")
        return 0
    try:
        _check_processes(verb)
        if verb not in VERBS:
            raise InputError(
                f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}; "
                f"choose one of {', '.join(VERBS)}"
            )
        if verb not in IDLE_VERBS:
            from fewstep.allocator import keep_freed_memory

            keep_freed_memory()
        return importlib.import_module(f"fewstep.cli.{verb}").main(_allow_code(rest))
    except SharedError as error:
        from fewstep.distributed import first_rank, wait

        if first_rank():
            _print_error(error)
        wait()  # torchrun stops the first process when another one exits
        return 2
    except InputError as error:
        _print_error(error)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has exited; hide Python's error at exit
        return 0
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from fewstep.cli.faults import explain

        message = explain(error)
        if message is None:
            raise
        _print_error(message)
        return 2


def _print_error(message: object) -> None:
    print(f"fewstep: {one_line(str(message))}", file=sys.stderr)


def _print_any_text() -> None:
    """Print names that are not UTF-8, or not of the terminal's encoding, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_processes(verb: str) -> None:
    """Raise InputError if several processes run a verb that is the work of one."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" and verb in VERBS and verb not in SHARED_VERBS:
        raise InputError(
            f"fewstep {verb} is the work of one process, and {count} were started: run it without "
            f"torchrun, which only {', '.join(SHARED_VERBS)} can use"
        )


def _allow_code(argv: list[str]) -> list[str]:
    """Apply `--allow-code PACKAGE`, which every verb takes. Returns the other arguments."""
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--allow-code":
            rest.append(word)
            continue
        packages = value if equals else next(words, "")
        if not packages or packages.startswith("-"):
            raise InputError(
                "--allow-code needs the name of a package, such as --allow-code my_package"
            )
        plugins.allow(packages.split(","))
    return rest
