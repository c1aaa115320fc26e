"""`fewstep doctor`: what this machine has, and what to do about the rest."""

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
    """Tell what this machine has: device, threads, data sets, weights that measure, extras."""


def main(argv: Sequence[str]) -> int:
    """Print the findings; 0."""
    console.options(Options, "doctor", argv)
    for what, found in findings():
        print(f"{what:<17} {found}")
    return 0


def findings() -> Iterator[tuple[str, str]]:
    """(what, what was found) a line."""
    import torch

    from fewstep.distributed import device, hardware
    from fewstep.download import home
    from fewstep.metrics import weights

    yield "fewstep", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", torch.__version__
    yield "device", hardware(device())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "threads", f"{torch.get_num_threads()} of {cores} cores"
    yield "home", f"{home()} ($FEWSTEP_HOME), {_free(home())} free"
    yield "digits", "with scikit-learn"
    for name, file in FILES.items():
        there = (home() / file).exists()
        yield name, "there" if there else f"not there; downloaded when asked for, to {home()}/data"
    for name in weights.PUBLISHED:
        path = weights.there(name)
        otherwise = f"not there; downloaded when asked for, to {home()}/weights"
        yield name, path.name if path else otherwise
    for extra, modules in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        yield f"[{extra}]", f"pip install 'fewstep[{extra}]'" if lacking else "installed"
    if find_spec("torchvision"):
        yield "torchvision", "installed, not needed; if it does not fit torch, diffusers breaks"


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"
