"""The C++ compiler that torch.compile and AOTInductor call."""

from fewstep.errors import InputError


def check_compiler(setting: str) -> None:
    """Raise InputError if there is no C++ compiler, which `setting` needs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        raise InputError(
            f"{setting} needs a C++ compiler such as g++, which was not found: install one, or "
            f"leave out {setting}"
        ) from error
