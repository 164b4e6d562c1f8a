"""What a reduction may be a statistic of."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op


def proposals(reduction: ir.Node) -> Iterator[ir.Value]:
    """Yield the x that ``reduction`` may be a statistic of: what is squared there, and its operand; Casts seen through."""
    value = input_at(reduction, 0)
    if value is None:
        return
    value = without_casts(value)
    square = value.producer()
    if square is not None and is_op(square, "Pow", "Mul", "Abs"):
        bases = [without_casts(operand) for operand in square.inputs if operand is not None]
        if square.op_type != "Mul" or (len(bases) == 2 and bases[0] is bases[1]):
            yield bases[0]
    yield value


def without_casts(value: ir.Value) -> ir.Value:
    """Return the value that Casts and Identities made ``value`` of."""
    node = value.producer()
    while node is not None and is_op(node, "Cast", "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
