"""The operands of a node: terms over x, numbers, parameters, and sizes of x."""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op
from normfuse.recognise.dims import dims_of
from normfuse.recognise.extents import extent_of, is_within
from normfuse.recognise.parameters import Factor, reshaped_as
from normfuse.recognise.reader import Known, Reader

Operand = Known | Factor


def read_operand(reader: Reader, value: ir.Value | None) -> Operand | None:
    """Return what is known of an operand, a constant included."""
    if value is None:
        return None
    known = reader.known.get(value)
    if known is not None:
        return known
    if reader.parameters.holds(value):
        value = _unexpanded(reader, value)
        number = reader.parameters.number(value)
        is_parameter = number is None and reader.parameters.scalar(value) is None
        return reader.entered(value) if is_parameter else number
    extent = extent_of(reader, value)
    return _reformed(reader, value) if extent is None else Factor(extent, 0, None)


def _unexpanded(reader: Reader, value: ir.Value) -> ir.Value:
    """Return what an Expand to at most the shape of x was made of: broadcasting would do the same."""
    node = value.producer()
    while is_op(node, "Expand") and node is not None and is_within(reader, node):
        source = input_at(node, 0)
        if source is None or not reader.parameters.holds(source):
            break
        value, node = source, source.producer()
    return value


def _reformed(reader: Reader, value: ir.Value) -> Factor | None:
    """Read a parameter whose shape is computed from that of x: Reshape to one axis of x, Expand to all of x."""
    node = value.producer()
    source = None if node is None or not is_op(node, "Reshape", "Expand") else input_at(node, 0)
    if node is None or source is None:
        return None
    if source not in reader.table and not reader.parameters.holds(source) and _reformed(reader, source) is None:
        return None
    array = reader.table.get(source)
    array = reader.parameters.array(source) if array is None else array
    if array is None:
        return None
    if node.op_type == "Reshape":
        dims = dims_of(input_at(node, 1), reader.reading)
        array = reshaped_as(array, dims) if isinstance(dims, tuple) else None
    elif not is_within(reader, node):
        return None
    return None if array is None else reader.entered(value, array)
