"""Install the wheel into an empty environment, and use it where there is no network.

    python scripts/check_wheel.py [WHEEL]

Without WHEEL it builds one. Needs Linux: commands run in a network namespace that has loopback
alone. Takes several minutes, most of them to install torch.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGEST = 16e6
"""Bytes of the largest wheel."""
PORT = 8599
EXPORTS = {
    "browser": ("page", ["index.html"]),
    "onnx": ("onnx", []),
    "torch": ("torch", []),
    "diffusers": ("diffusers", ["README.md", "model_index.json"]),
}


def main(argv: Sequence[str]) -> None:
    """Build, install and use the wheel; raises an error that says what failed."""
    if argv == ["--offline"]:
        use()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = Path(argv[0]).resolve() if argv else build(folder / "dist")
        size = wheel.stat().st_size
        print(f"{wheel.name}: {size / 1e6:.2f} MB", flush=True)
        if size > LARGEST:
            raise SystemExit(f"{wheel} is larger than {LARGEST / 1e6:.0f} MB")
        python = install(wheel, folder / "environment")
        work = folder / "work"
        work.mkdir()
        script = shutil.copy(__file__, work)
        run_offline([str(python), script, "--offline"], work)


def build(folder: Path) -> Path:
    """Build a wheel, with the runtime of exported pages. Returns the file."""
    environment = {**os.environ, "FEWSTEP_REQUIRE_RUNTIME": "1"}
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel with its extras into a new environment. Returns its interpreter."""
    start = time.monotonic()
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = ["-c", str(ROOT / "constraints.txt")]
    command = [str(python), "-m", "pip", "install", "-q", *pins, f"{wheel}[studio,export]"]
    subprocess.run(command, check=True)
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)
    return python


def run_offline(command: Sequence[str], folder: Path) -> None:
    """Run a command in `folder` with an empty home, and with no network but loopback."""
    names = ("PATH", "LANG", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"HOME": str(folder / "home")}
    Path(environment["HOME"]).mkdir()
    inner = 'ip link set lo up && exec "$@"'
    isolated = ["unshare", "--net", "--map-root-user", "sh", "-c", inner, "sh", *command]
    subprocess.run(isolated, check=True, cwd=folder, env=environment)


def use() -> None:
    """Sample, export, open the studio and run the demo, with the installed package."""
    import fewstep

    assert Path(sys.prefix) in Path(fewstep.__file__).parents
    check_isolation()
    fewstep_command("list", "models")
    fewstep_command("doctor", "emoji")
    fewstep_command("sample", "fewstep:digits", "--label", "3", "--steps", "1", "-o", "three.png")
    assert Path("three.png").stat().st_size > 500
    for target, (out, files) in EXPORTS.items():
        fewstep_command("export", "fewstep:digits", "--to", target, "--out", out, "--steps", "1")
        for name in ["export.json", *files]:
            assert (Path(out) / name).stat().st_size > 100, name
    page = ["--to", "browser", "--single-file", "--dtype", "f16", "--out", "single"]
    fewstep_command("export", "fewstep:digits", *page)
    assert Path("single/index.html").stat().st_size < LARGEST
    open_studio()
    fewstep_command("demo")
    assert Path("runs/demo/report.html").stat().st_size > 1e5
    print("everything works")


def check_isolation() -> None:
    """Raise an error if there is a network."""
    try:
        urllib.request.urlopen("https://example.org", timeout=5)
    except OSError:
        return
    raise SystemExit("the network is not cut off")


def fewstep_command(*words: str) -> None:
    """Run the installed command."""
    start = time.monotonic()
    command = [str(Path(sys.executable).with_name("fewstep")), *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"fewstep {' '.join(words)} failed: {done.stderr}")
    print(f"fewstep {' '.join(words)}: {time.monotonic() - start:.1f} s", flush=True)


def open_studio() -> None:
    """Start the studio, and wait until its page answers."""
    command = [str(Path(sys.executable).with_name("fewstep")), "studio", "--port", str(PORT)]
    with subprocess.Popen(command) as process:
        try:
            wait_for(f"http://127.0.0.1:{PORT}/_stcore/health", process)
            wait_for(f"http://127.0.0.1:{PORT}/", process)
        finally:
            process.terminate()
    print("fewstep studio: its page answers", flush=True)


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until an address answers."""
    for _ in range(120):
        if process.poll() is not None:
            raise SystemExit(f"the studio ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{address} does not answer")


if __name__ == "__main__":
    main(sys.argv[1:])
