"""Make a graph of `torch.onnx` smaller and quicker, without changing what it computes."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ELEMENTWISE = frozenset(
    "Add Cast Cos Div Erf Exp Gelu Log Mul Neg Pow Reciprocal Relu Sigmoid Sin Softplus Sqrt Sub "
    "Tanh".split()
)
PRODUCTS = frozenset(("Gemm", "MatMul"))
BROADCASTING = frozenset(("Add", "Div", "Mul", "Sub"))
"""Operators that accept one row together with many."""


def simplify(model: "ir.Model") -> None:
    """Simplify the graph in place."""
    from onnx_ir.passes import common

    static_reshapes(model.graph)
    unexpand_rows(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass(size_limit=1 << 62)(model)
    common.ClearMetadataAndDocStringPass()(model)


def static_reshapes(graph: "ir.Graph") -> None:
    """Give `Reshape` its sizes as constants, where all but one are known."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        producer = node.inputs[1].producer()
        like = node.outputs[0]
        if producer is not None and producer.op_type == "Shape" and _has_all_sizes(producer):
            like = producer.inputs[0] or like
        sizes = [size if isinstance(size, int) else -1 for size in like.shape or ()]
        if sizes.count(-1) <= 1 and sizes and 0 not in sizes:
            node.replace_input_with(1, _constant(graph, sizes))


def _has_all_sizes(shape: "ir.Node") -> bool:
    start = shape.attributes.get("start")
    return "end" not in shape.attributes and (start is None or start.as_int() == 0)


def _constant(graph: "ir.Graph", sizes: list[int]) -> "ir.Value":
    import onnx_ir as ir

    array = np.array(sizes, dtype=np.int64)
    name = f"sizes_{'_'.join(map(str, sizes)).replace('-1', 'n')}"
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(
        name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(array, name=name),
    )  # fmt: skip
    graph.register_initializer(value)
    return value


def unexpand_rows(graph: "ir.Graph") -> None:
    """Compute with one row what is equal in all rows, such as the embedding of a constant level.

    PyTorch expands a constant to the number of rows first. Without it, runtimes compute everything
    that follows from the constant alone once, when they load the file.
    """
    for node in list(graph):
        value = node.outputs[0]
        source = node.inputs[0] if node.op_type == "Expand" else None
        if source is None or source.const_value is None or source.const_value.size != 1:
            continue
        if value.shape is not None and len(value.shape) == 1 and _may_be_one_row(graph, value):
            node.replace_input_with(1, _constant(graph, [1]))


def _may_be_one_row(graph: "ir.Graph", expanded: "ir.Value") -> bool:
    """Whether all that follows gives the same results if the equal rows become one row."""
    ranks = {expanded: 1}
    for node in graph:  # in the order of computation
        if not any(value in ranks for value in node.inputs):
            continue
        rank = _rank_of_equal_rows(node, ranks)
        if rank is not None:
            ranks[node.outputs[0]] = rank
        elif not _accepts_one_row(node, ranks):
            return False
    return not any(value.is_graph_output() for value in ranks)


def _rank_of_equal_rows(node: "ir.Node", ranks: "dict[ir.Value, int]") -> int | None:
    """Rank of a result whose rows, its first dimension, are equal; None if they need not be."""
    constants = [value.const_value for value in node.inputs if value and value not in ranks]
    shapes = [value.shape.numpy() for value in constants if value is not None]
    if len(shapes) < len(constants):
        return None
    rank = max(ranks[value] for value in node.inputs if value in ranks)
    axis = node.attributes.get("axis")
    first = node.inputs[0] in ranks
    if node.op_type in ELEMENTWISE:
        fits = all(len(s) < rank or (len(s) == rank and s[0] == 1) or s == () for s in shapes)
    elif node.op_type == "Concat":
        fits = axis is not None and axis.as_int() == 1 and not shapes
    elif node.op_type == "Gather":
        fits = not first and (axis is None or axis.as_int() == 0)
        rank += len(shapes[0]) - 1 if fits else 0
    elif node.op_type == "Unsqueeze":
        axes = constants[0].numpy().flatten() if constants and constants[0] else np.zeros(1)
        fits, rank = bool((axes > 0).all()), rank + len(axes)
    else:
        fits = (
            node.op_type in PRODUCTS and first and rank >= 2 and len(shapes) == len(node.inputs) - 1
        )
        fits = fits and not ("transA" in node.attributes and node.attributes["transA"].as_int())
    return rank if fits else None


def _accepts_one_row(node: "ir.Node", ranks: "dict[ir.Value, int]") -> bool:
    """Whether the other operand has all rows, so that one row is broadcast to them."""
    rank = max(ranks[value] for value in node.inputs if value in ranks)
    others = [value for value in node.inputs if value and value not in ranks]
    if node.op_type not in BROADCASTING or len(others) != 1:
        return False
    shape = others[0].shape
    return shape is not None and len(shape) >= rank and not isinstance(shape[-rank], int)


def name_rows(model: "onnx.ModelProto", name: str) -> None:
    """Give the first dimension of inputs and outputs a name, and drop the types in between."""
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        model_dim = value.type.tensor_type.shape.dim[0]
        model_dim.dim_param = name
