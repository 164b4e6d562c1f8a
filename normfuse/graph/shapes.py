"""Shapes and types that a file does not state, inferred for the time of one reading.

Many exporters write no ``value_info``; whether γ broadcasts exactly, or a Reshape groups channels, is then not to be
read. Inference costs a copy of the graph, so it runs where a norm may need it: a batch norm after a Conv does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from normfuse.graph.reading import is_op

if TYPE_CHECKING:
    from collections.abc import Iterator

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_UNKNOWN_TO_INFERENCE = ("GroupNormalization", "SimplifiedLayerNormalization", "MeanVarianceNormalization")
_ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@contextmanager
def inferred_shapes(model: ir.Model) -> Iterator[None]:
    """Fill in the shapes and types that ``model`` does not state where a norm may need them, and take them out after.

    What is stated is never changed. Values that leave the model meanwhile keep what was inferred.
    """
    graphs = list(model.graphs())
    if not any(_may_need(node) for graph in graphs for node in graph):
        yield
        return
    copy = model.clone()
    for graph in copy.graphs():
        for node in graph:
            _help(node)
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    shapes: list[tuple[ir.Value, ir.Shape]] = []
    types: list[tuple[ir.Value, ir.TypeProtocol]] = []
    for graph, twin in zip(graphs, copy.graphs(), strict=True):
        for value, known in zip(_results(graph), _results(twin), strict=True):
            if value.shape is None and known.shape is not None:
                value.shape = known.shape
                shapes.append((value, known.shape))
            if value.type is None and known.type is not None:
                value.type = known.type
                types.append((value, known.type))
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


def _help(node: ir.Node) -> None:
    """Make an Identity of an operator that gives what it is given, and for which inference has no rule."""
    foreign = node.domain == "com.microsoft" and node.op_type == "GroupNorm"
    if len(node.outputs) == 1 and node.inputs and (foreign or is_op(node, *_UNKNOWN_TO_INFERENCE)):
        node.domain, node.op_type = "", "Identity"
        node.resize_inputs(1)
        node.attributes.clear()


def _results(nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    for node in nodes:
        yield from node.outputs


def _may_need(node: ir.Node) -> bool:
    """Whether ``node`` may belong to a norm for which the shape of its input matters, and which is not stated."""
    if is_op(node, *_REDUCTIONS) or ("Norm" in node.op_type and node.op_type != "BatchNormalization"):
        return bool(node.inputs) and _is_shapeless(node.inputs[0])
    if is_op(node, "GlobalAveragePool", "AveragePool"):
        # Squeeze and excitation, or the end of a network: only what is subtracted from x or squared can be a statistic.
        return _is_shapeless(node.inputs[0]) and any(is_op(user, *_ARITHMETIC) for user, _ in node.outputs[0].uses())
    if is_op(node, "Mul", "Div") and any(value is not None and _is_constant(value) for value in node.inputs):
        return any(_is_shapeless(value) for value in node.inputs)
    return False


def _is_shapeless(value: ir.Value | None) -> bool:
    return value is not None and value.shape is None and not _is_constant(value)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() or is_op(value.producer(), "Constant")
