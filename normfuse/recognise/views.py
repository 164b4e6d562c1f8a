"""Operators that only move elements: they take away and put back the axes of a mean, or spread it over x."""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.recognise.dims import Dims, WholeShape, dims_of, same_dim
from normfuse.recognise.extents import is_size, is_within, reduced_axes
from normfuse.recognise.reader import Known, Reader
from normfuse.recognise.terms import Mean


def unsqueeze(reader: Reader, node: ir.Node) -> Known | None:
    """Unsqueeze that puts back the axes which a mean did not keep."""
    operand = reader.operand_of(node)
    if operand is None or not operand.missing:
        return None
    axes = reader.axes(node, everything=False)
    return _lacking(operand, ()) if axes == operand.missing else None


def squeeze(reader: Reader, node: ir.Node) -> Known | None:
    """Squeeze of axes that a mean has made 1."""
    operand = reader.operand_of(node)
    if operand is None or operand.missing or len(operand.term.factors) != 1:
        return None
    base = reader.terms.base(operand.term.factors[0][0])
    axes = reader.axes(node, everything=False)
    if axes is None or not isinstance(base, Mean) or axes != base.axes:
        return None
    return _lacking(operand, axes)


def reshape(reader: Reader, node: ir.Node) -> Known | None:
    """Reshape to the shape that x has, with 1 where a mean was taken."""
    operand, rank = reader.operand_of(node), reader.rank
    if operand is None or rank is None:
        return None
    ones = operand.missing or reduced_axes(reader, operand.term)
    if ones is None:
        return None
    target = input_at(node, 1)
    dims: Dims | WholeShape | None = dims_of(target, reader.reading) if target is not None else None
    if "shape" in node.attributes:
        dims = tuple(node.attributes["shape"].as_ints())
    if not isinstance(dims, tuple) or len(dims) != rank:
        stated = node.outputs[0].shape
        if stated is None or stated.rank() != rank or reader.x.shape is None:
            return None
        matches = all(
            size == 1 if axis - rank in ones else same_dim(size, reader.x.shape[axis])
            for axis, size in enumerate(stated)
        )
        return _lacking(operand, ()) if matches else None
    inferred = 0
    for axis, size in enumerate(dims):
        if axis - rank in ones:
            if size != 1:
                return None
        elif size == -1:
            inferred += 1
        elif size == 0 and node.attributes.get_int("allowzero", 0) == 0:
            if any(gap + rank < axis for gap in operand.missing):
                return None
        elif not is_size(reader, size, axis):
            return None
    return _lacking(operand, ()) if inferred <= 1 else None


def expand(reader: Reader, node: ir.Node) -> Known | None:
    """Expand to at most the shape of x: broadcasting would do the same."""
    operand = reader.operand_of(node)
    if operand is None or operand.missing or reader.terms.varies(operand.term.factors):
        return None
    return operand if is_within(reader, node) else None


def _lacking(operand: Known, missing: tuple[int, ...]) -> Known:
    return Known(operand.term, missing, operand.dtype, operand.clashes)
