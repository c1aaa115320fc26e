"""The command line: one verb a file, imported only when it is called.

Exit codes: 0 done; 2 bad input, with one line that says what to do; 1 our bug, with a traceback.
"""

import importlib
import sys
from collections.abc import Sequence

from fewstep import __version__
from fewstep.errors import InputError, did_you_mean

VERBS = {
    "demo": "from real images to one-step students and a report, in three minutes",
    "train": "train a recipe: a teacher, or any other run",
    "distill": "train a recipe whose student learns from a teacher",
    "record": "record a teacher's noise-image pairs into a store",
    "sample": "draw a grid of images from a run",
    "progress": "how far a run is; its log as CSV",
    "evaluate": "score a run at chosen numbers of steps",
    "compare": "measure runs side by side, into one report",
    "doctor": "what this machine has: device, threads, data sets, weights, extras",
}


def help_text() -> str:
    """What `fewstep --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {what}" for name, what in VERBS.items())
    return (
        "fewstep: train a diffusion or flow teacher, distil it to a few steps, see the result\n\n"
        f"usage: fewstep VERB ...\n\n{verbs}\n\n"
        "fewstep VERB --help tells a verb's options; fewstep train RECIPE --help a recipe's.\n"
        "Start with: fewstep demo"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if verb in ("-V", "--version"):
        print(f"fewstep {__version__}")
        return 0
    try:
        if verb not in VERBS:
            raise InputError(
                f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}; "
                f"there are: {', '.join(VERBS)}"
            )
        return importlib.import_module(f"fewstep.cli.{verb}").main(rest)
    except InputError as error:
        print(f"fewstep: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left: nobody to tell
        return 0
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
