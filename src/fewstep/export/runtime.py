"""The program that runs ONNX models in browsers: onnxruntime-web, with WebGPU and WebAssembly."""

from importlib.resources import files
from pathlib import Path

from fewstep.errors import InputError

WEB = Path(str(files("fewstep"))) / "web"
SCRIPT = WEB / "runtime" / "ort.webgpu.bundle.min.mjs"
WASM = WEB / "runtime" / "ort-wasm-simd-threaded.asyncify.wasm.gz"
"""Compressed by gzip; pages decompress it with the browser's DecompressionStream."""
LICENSE = WEB / "onnxruntime-web.LICENSE"


def check_runtime() -> None:
    """Raise InputError if the runtime is missing, as in a source install without npm."""
    if not (SCRIPT.exists() and WASM.exists()):
        raise InputError(
            "the runtime of exported pages is missing, which a source install without npm lacks: "
            "install Node.js and run `python scripts/fetch_runtime.py` in the checkout, or install "
            "the wheel"
        )
