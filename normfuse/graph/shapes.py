"""Shapes and types that a file does not state, inferred for the time of one reading.

Many exporters write no ``value_info``; whether γ broadcasts exactly, or a Reshape groups channels, is then not to be
read. Inference takes as long as finding the norms does, so it runs where a norm may need it: a batch norm after a Conv
does not.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir

from normfuse.graph.inference import infer
from normfuse.graph.reading import is_op, with_subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterator

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_UNKNOWN_TO_INFERENCE = ("GroupNormalization", "SimplifiedLayerNormalization", "MeanVarianceNormalization")
_GIVES_ITS_INPUT = frozenset({*_UNKNOWN_TO_INFERENCE, "GroupNorm"})
_ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@contextmanager
def inferred_shapes(model: ir.Model, *, input_types: bool = False) -> Iterator[None]:
    """Fill in the shapes and types that ``model`` does not state where a norm may need them, and take them out after.

    input_types: whether a batch norm may need the type of its input, which is not always that of its parameters.
    What is stated is never changed. Values that leave the model meanwhile keep what was inferred.
    """
    nodes = [node for graph in with_subgraphs(model.graph) for node in graph]
    if not any(_may_need(node) or (input_types and _lacks_type(node)) for node in nodes):
        yield
        return
    shapes: list[tuple[ir.Value, ir.Shape]] = []
    types: list[tuple[ir.Value, ir.TypeProtocol]] = []
    for found in infer(model, _gives_what_it_is_given):
        if found.shape is not None:
            found.value.shape = found.shape
            shapes.append((found.value, found.shape))
        if found.type is not None:
            found.value.type = found.type
            types.append((found.value, found.type))
    try:
        yield
    finally:
        # A value that has become a graph output states what that output stated: it keeps it.
        for value, shape in shapes:
            if value.shape is shape:
                value.shape = None
        for value, type_ in types:
            if value.type is type_:
                value.type = None


def _gives_what_it_is_given(node: ir.Node) -> bool:
    """Whether the result of ``node`` has the type and shape of its input, and inference has no rule that says so."""
    if node.op_type not in _GIVES_ITS_INPUT:  # asked of every node
        return False
    foreign = node.domain == "com.microsoft" and node.op_type == "GroupNorm"
    return len(node.outputs) == 1 and bool(node.inputs) and (foreign or is_op(node, *_UNKNOWN_TO_INFERENCE))


def _may_need(node: ir.Node) -> bool:
    """Whether ``node`` may belong to a norm for which the shape of its input matters, and which is not stated."""
    op_type = node.op_type
    if op_type in _REDUCTIONS or ("Norm" in op_type and op_type != "BatchNormalization"):
        return bool(node.inputs) and _is_shapeless(node.inputs[0])
    if op_type in ("GlobalAveragePool", "AveragePool"):
        # Squeeze and excitation, or the end of a network: only what is subtracted from x or squared can be a statistic.
        return _is_shapeless(node.inputs[0]) and any(is_op(user, *_ARITHMETIC) for user, _ in node.outputs[0].uses())
    if op_type == "ScatterND":  # the border of a branch: of constants, laid around a value of known size
        return _is_shapeless(node.inputs[0]) and all(
            value is not None and _is_constant(value) for value in node.inputs[1:]
        )
    if op_type in ("Mul", "Div") and any(value is not None and _is_constant(value) for value in node.inputs):
        return any(_is_shapeless(value) for value in node.inputs)
    return False


def _lacks_type(node: ir.Node) -> bool:
    return is_op(node, "BatchNormalization") and bool(node.inputs) and _is_typeless(node.inputs[0])


def _is_typeless(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is None and not _is_constant(value)


def _is_shapeless(value: ir.Value | None) -> bool:
    return value is not None and value.shape is None and not _is_constant(value)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() or is_op(value.producer(), "Constant")
