"""`fewstep doctor`: list the device, data sets, weights and extras, and how to get missing ones."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fewstep import __version__
from fewstep.cli import console

EXTRAS = {
    "studio": ("streamlit",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "trackers": ("tensorboard", "wandb", "trackio"),
    "hub": ("huggingface_hub", "transformers"),
    "s3": ("s3fs",),
}
FILES = {
    "mnist": "data/mnist/train-images-idx3-ubyte.gz",
    "fashion-mnist": "data/fashion-mnist/train-images-idx3-ubyte.gz",
    "cifar10": "data/cifar-10-batches-bin/data_batch_1.bin",
}


@dataclass(frozen=True)
class Options:
    """List the device, threads, data sets, extractor weights and extras of this machine."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep doctor`. Returns the exit code."""
    console.options(Options, "doctor", argv)
    for name, status in report():
        print(f"{name:<17} {status}")
    return 0


def report() -> Iterator[tuple[str, str]]:
    """Lines of the report, as (name, status)."""
    import torch

    from fewstep.distributed import device, hardware
    from fewstep.download import home
    from fewstep.metrics.extractors import weights

    yield "fewstep", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", torch.__version__
    yield "device", hardware(device())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "threads", f"{torch.get_num_threads()} of {cores} cores"
    yield "home", f"{home()} ($FEWSTEP_HOME), {_free(home())} free"
    yield "digits", "with scikit-learn"
    for name, file in FILES.items():
        yield name, "present" if (home() / file).exists() else _missing("data")
    for name in weights.PUBLISHED:
        path = weights.find_weights(name)
        yield name, path.name if path else _missing("weights")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield f"[{extra}]", f"pip install 'fewstep[{extra}]'" if missing else "installed"
    if find_spec("torchvision"):
        yield (
            "torchvision",
            "installed but not needed; a version that does not match torch breaks diffusers",
        )


def _missing(kind: str) -> str:
    from fewstep.download import home

    return f"missing; downloaded to {home()}/{kind} at its first use"


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"
