"""ONNX graphs of PyTorch modules, and the storage of their weights in fewer bits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.export import rewriting
from fewstep.export.tracing import BATCH, quiet, reason, trace
from fewstep.stored_weights import Dtype, StoredWeight, store_weight

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 20
"""Version of ONNX's operators. From 21 on, PyTorch writes an operator for group normalisation that
onnxruntime computes in about twenty others."""
MIN_SAVING = 256
"""Bytes that storing a weight in fewer bits must save: it costs two more nodes."""


class Exportable(Protocol):
    """A module with named positional inputs, such as `Unrolled` and `tracing.Network`."""

    input_names: Any
    output_name: Any

    def example_inputs(self, batch: int, *, seed: int = 0) -> tuple[Tensor, ...]: ...


def onnx_graph(module: nn.Module, *, dtype: Dtype = "f32") -> "onnx.ModelProto":
    """The ONNX graph of a module such as `Unrolled`, for any number of rows.

    Inputs and outputs have the module's names, and weights of the type `dtype`, to which they must
    have been rounded by `precision.round_weights`, are stored in it.

    Raises: InputError for an operation that ONNX does not have, or that cannot be traced.
    """
    names: Exportable = module  # pyright: ignore[reportAssignmentType]
    inputs = names.example_inputs(2)
    program = trace(module, inputs)
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(names.input_names),
                output_names=[names.output_name],
            )
        except torch.onnx.OnnxExporterError as error:
            problem = f"ONNX cannot express the network or sampler: {reason(error)}"
            raise InputError(problem) from error
    assert exported is not None
    rewriting.simplify(exported.model)
    model = exported.model_proto
    rewriting.name_rows(model, BATCH)
    if dtype != "f32":
        store_initializers(model, dtype)
    return model


def store_initializers(model: "onnx.ModelProto", dtype: Dtype) -> None:
    """Store weights as float16 or int8, in place, where this does not change their values.

    The graph restores them to float32 with a cast and, for int8, a multiplication, which runtimes
    compute once when they load the file. Values that are not exactly float16, or int8 with one
    scale for each row or each column, remain as they are.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    initializers, nodes = list(graph.initializer), list(graph.node)
    del graph.initializer[:], graph.node[:]
    restoring: list[onnx.NodeProto] = []
    for initializer in initializers:
        stored = _exact(torch.from_numpy(numpy_helper.to_array(initializer).copy()), dtype)
        if stored is None:
            graph.initializer.append(initializer)
            continue
        name = initializer.name
        values, scale = f"{name}.{dtype}", f"{name}.scale"
        graph.initializer.append(numpy_helper.from_array(stored.values.numpy(), values))
        cast = f"{name}.f32" if stored.scale is not None else name
        restoring.append(helper.make_node("Cast", [values], [cast], to=1))
        if stored.scale is not None:
            graph.initializer.append(numpy_helper.from_array(stored.scale.numpy(), scale))
            restoring.append(helper.make_node("Mul", [cast, scale], [name]))
    graph.node.extend([*restoring, *nodes])


def _exact(weight: Tensor, dtype: Dtype) -> StoredWeight | None:
    """`weight` in fewer bits, with one scale per row or column; None if this changes its values."""
    if weight.dtype != torch.float32:
        return None
    for axis in (0, 1) if weight.ndim >= 2 else (0,):
        stored = store_weight(weight.transpose(0, axis), dtype)
        values, scale = stored.values.transpose(0, axis).contiguous(), stored.scale
        if scale is not None:
            scale = scale.transpose(0, axis).contiguous()
        size = values.nbytes + (0 if scale is None else scale.nbytes)
        result = StoredWeight(values, scale)
        if size + MIN_SAVING <= weight.nbytes and torch.equal(result.restore(), weight):
            return result
    return None


def set_metadata(model: "onnx.ModelProto", values: Mapping[str, str]) -> None:
    """Write names and texts into the file's metadata."""
    for name, value in values.items():
        model.metadata_props.add(key=name, value=value)


def open_session(model: bytes, *, threads: int = 1) -> "onnxruntime.InferenceSession":
    """A session of onnxruntime on the CPU.

    Raises: InputError if onnxruntime lacks an operation of the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise InputError(f"onnxruntime cannot load the graph: {_first_line(error)}") from error


def run_session(
    session: "onnxruntime.InferenceSession", names: Sequence[str], inputs: Sequence[Tensor]
) -> Tensor:
    """The output of a session. Raises: InputError if onnxruntime fails."""
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    try:
        (output,) = session.run(None, feed)
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the graph: {_first_line(error)}") from error
    return torch.from_numpy(np.asarray(output))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
