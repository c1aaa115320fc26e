"""`torch.export` programs, one `.pt2` file for each number of steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.compiler import check_compiler
from fewstep.errors import InputError
from fewstep.export.base import Exporter
from fewstep.export.checking import compare
from fewstep.export.program import Unrolled
from fewstep.export.source import Source
from fewstep.export.tokenizer import write_tokenizer
from fewstep.export.tracing import quiet, reason, trace
from fewstep.stored_weights import Dtype, StoredWeight, store_weight


@dataclass(frozen=True)
class TorchExport(Exporter):
    """`model-N.pt2` for N steps: `torch.export.load(file).module()(noise[, label], ...)`.

    Models with text have `tokenizer.json` beside them.
    """

    aot: bool = False
    """Whether to write `model-N-aot.pt2` too: code for the CPU of this machine, compiled by
    AOTInductor, for `torch._inductor.aoti_load_package(file)`."""

    decodes: ClassVar[bool] = True

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        if self.aot:
            check_compiler("--aot")
        write_tokenizer(source.generator.spec, folder)
        checks: dict[str, Any] = {}
        for steps in source.steps:
            module = Unrolled(source.generator, steps)
            inputs = module.example_inputs(2)
            file = folder / f"model-{module.steps}.pt2"
            stored = module if source.dtype == "f32" else StoredWeights(module, source.dtype)
            torch.export.save(trace(stored, inputs), file)
            loaded = torch.export.load(file).module()
            checks[file.name] = compare(file.name, lambda inputs, run=loaded: run(*inputs), module)
            if self.aot:
                package = folder / f"model-{module.steps}-aot.pt2"
                run = compile_program(trace(module, inputs), package)
                checks[package.name] = compare(package.name, run, module)
        return checks


class StoredWeights(nn.Module):
    """A module with its weights in fewer bits, which it restores to float32 in each call."""

    def __init__(self, module: nn.Module, dtype: Dtype) -> None:
        super().__init__()
        self.call = (module,)  # in a tuple, so that its own weights are no part of this module
        self.names: dict[str, tuple[str, str | None]] = {}
        weights = [*module.named_parameters(), *module.named_buffers()]
        for index, (name, weight) in enumerate(weights):
            stored = store_weight(weight, dtype)
            values, scale = f"values_{index}", f"scale_{index}"
            self.register_buffer(values, stored.values)
            if stored.scale is not None:
                self.register_buffer(scale, stored.scale)
            self.names[name] = (values, None if stored.scale is None else scale)

    def forward(self, *inputs: Tensor) -> Tensor:
        (module,) = self.call
        weights = {
            name: self._stored(values, scale).restore()
            for name, (values, scale) in self.names.items()
        }
        return torch.func.functional_call(module, weights, inputs)

    def _stored(self, values: str, scale: str | None) -> StoredWeight:
        return StoredWeight(
            self.get_buffer(values), None if scale is None else self.get_buffer(scale)
        )


def compile_program(program: torch.export.ExportedProgram, file: Path) -> Any:
    """Compile a program for the CPU into `file`. Returns a function that runs it.

    Raises: InputError if it cannot be compiled.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    with quiet():
        try:
            aoti_compile_and_package(program, package_path=str(file))
        except Exception as error:  # whatever the compiler raises
            raise InputError(f"AOTInductor cannot compile the program: {reason(error)}") from error
        loaded = aoti_load_package(str(file))
    return lambda inputs: loaded(*inputs)
