"""What a reduction may be a statistic of."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op


def proposals(reduction: ir.Node) -> Iterator[ir.Value]:
    """Yield the x that ``reduction`` may be a statistic of: what is squared there, and its operand.

    Casts are seen through; so is the magnitude of a square, or the square of a magnitude.
    """
    value = input_at(reduction, 0)
    if value is None:
        return
    value = without_casts(value)
    base = _base(value)
    if base is not None:
        yield base
        inner = _base(base)
        if inner is not None and (_is_magnitude(value) or _is_magnitude(base)):
            yield inner
    yield value


def _base(value: ir.Value) -> ir.Value | None:
    """Return what ``value`` is a power, the square or the magnitude of."""
    node = value.producer()
    if node is None or not is_op(node, "Pow", "Mul", "Abs"):
        return None
    bases = [without_casts(operand) for operand in node.inputs if operand is not None]
    return bases[0] if bases and (node.op_type != "Mul" or (len(bases) == 2 and bases[0] is bases[1])) else None


def _is_magnitude(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and is_op(node, "Abs")


def without_casts(value: ir.Value) -> ir.Value:
    """Return the value that Casts and Identities made ``value`` of."""
    node = value.producer()
    while node is not None and is_op(node, "Cast", "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
