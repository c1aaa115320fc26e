"""Faults of the machine in one line: disks, permissions, memory, compilers, missing packages.

They can arise in any line of any package, so they are told apart by their exceptions. All others
are bugs, whose traceback is printed.
"""

import errno
import os
import re

from fewstep.errors import InputError

ADVICE = {
    errno.ENOSPC: "make room, and repeat the command",
    errno.EDQUOT: "make room, and repeat the command",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or write less",
    errno.EROFS: "give a path on a disk that can be written",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EISDIR: "give the name of a file",
    errno.EEXIST: "give another path",
    errno.ENOTEMPTY: "give another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "symbolic links lead in a circle; give another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
    errno.EIO: "the disk or the network share fails; give another path",
    errno.ESTALE: "the network share has changed; repeat the command",
    errno.EBUSY: "another program uses it; repeat the command later",
    errno.ETXTBSY: "another program uses it; repeat the command later",
    errno.EADDRINUSE: "give another --port",
    errno.EADDRNOTAVAIL: "give another --host",
    errno.EINVAL: "give another path",
}
"""What to do about an error of the operating system."""
EXTRAS = {
    "diffusers": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "streamlit": "studio",
    "tensorboard": "trackers",
    "trackio": "trackers",
    "wandb": "trackers",
    "huggingface_hub": "hub",
    "transformers": "hub",
    "s3fs": "s3",
}
"""For each optional package, the extra that installs it."""
_COMPILERS = ("torch._inductor", "torch._dynamo", "triton")
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|unable to) allocate|not enough memory|"
    r"alloc(ation)? failed|Storage size calculation overflowed",
    re.IGNORECASE,
)
_WRITES = re.compile(r"requested and \d+ written|encoder error|write could not complete")


def explain(error: BaseException) -> str | None:
    """The message for an exception that the machine is to blame for; None for a bug."""
    kind = type(error)
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError":
        return _out_of_memory()
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package)
        return extra and f"{package} is not installed: pip install 'fewstep[{extra}]'"
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text ({error}): save it as UTF-8"
    if kind.__module__.startswith(_COMPILERS):
        reason = str(error).strip().partition("\n")[0]
        return f"torch.compile failed ({reason}): set fit.compile=false, or repair the compiler"
    if kind.__name__ == "SafetensorError":
        match = re.search(r"\(os error (\d+)\)", str(error))
        return _system_error(OSError(int(match[1]), os.strerror(int(match[1])))) if match else None
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib
        return _system_error(OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return _out_of_memory()
    return None


def as_input_error(error: Exception) -> Exception:
    """The error itself, or, if the machine is to blame for it, an InputError with one line."""
    message = None if isinstance(error, InputError) else explain(error)
    return InputError(message) if message else error


def _out_of_memory() -> str:
    return (
        "out of memory: lower fit.batch or set fit.micro_batch in a training, lower --batch or -n "
        "elsewhere, take a smaller network or smaller images, or use a machine with more memory"
    )


def _system_error(error: OSError) -> str | None:
    if error.errno is None:
        disk = _WRITES.search(str(error))
        return f"a file cannot be written ({error}): make room on the disk" if disk else None
    text = error.strerror or os.strerror(error.errno)
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    advice = ADVICE.get(error.errno)
    if not names and advice is None:
        return None
    names = [name if len(name) <= 200 else f"{name[:60]}…{name[-60:]}" for name in names]
    place = f"{' → '.join(names)}: " if names else ""
    return f"{place}{text}: {advice or 'give another path'}"
