"""Sizes of x that a graph computes: as terms (N of a sum, N − 1 of an unbiased variance), and as what shapes are made of."""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_standard
from normfuse.recognise.dims import Dim, Dims, WholeShape, dims_of, is_dim, unwrapped
from normfuse.recognise.reader import Reader
from normfuse.recognise.terms import NUMBER_ONE, Extent, Mean, Term

_SIZES = ("Cast", "CastLike", "Identity", "Squeeze", "Unsqueeze", "Reshape", "ReduceProd", "Gather", "Slice")
"""What exporters put between the shape of x and a size of it."""

_DEEPEST = 8


def extent_of(reader: Reader, value: ir.Value, depth: int = 0) -> Term | None:
    """Read a number that is a product of sizes of x: ``Shape · Gather · ReduceProd · Cast``, ``Size``."""
    node = value.producer()
    if node is None or depth > _DEEPEST or not is_standard(node):
        return None
    if node.op_type in _SIZES:
        dims = dims_of(value if node.op_type in ("Gather", "Slice") else input_at(node, 0), reader.reading)
        if isinstance(dims, tuple) and None not in dims and (len(dims) == 1 or node.op_type == "ReduceProd"):
            return _product(reader, dims)
        source = input_at(node, 0)
        return None if source is None or node.op_type in ("Gather", "Slice") else extent_of(reader, source, depth + 1)
    if node.op_type in ("Mul", "Add", "Sub"):
        return _combined(reader, node, depth)
    if node.op_type == "Size" and reader.rank is not None:
        source = input_at(node, 0)
        known = None if source is None else reader.known.get(source)
        if known is not None and not known.missing and reader.terms.varies(known.term.factors):
            return reader.count(tuple(range(-reader.rank, 0)))
    return None


def _combined(reader: Reader, node: ir.Node, depth: int) -> Term | None:
    """Read a product of two sizes, or a size and a number: N − 1 of an unbiased variance."""
    operands: list[Term] = []
    for value in node.inputs:
        number = None if value is None else reader.reading.constants.scalar(value)
        operand = (
            None if value is None else Term(number, ()) if number is not None else extent_of(reader, value, depth + 1)
        )
        if operand is None:
            return None
        operands.append(operand)
    if len(operands) != 2:
        return None
    one, other = operands
    if node.op_type == "Mul":
        return reader.terms.multiply(one, other)
    sign = -1.0 if node.op_type == "Sub" else 1.0
    if one.is_number and other.is_number:
        return Term(one.coefficient + sign * other.coefficient, ())
    return reader.terms.add(one, other, sign)


def _product(reader: Reader, dims: Dims) -> Term | None:
    total = NUMBER_ONE
    for size in dims:
        factor = Term(float(size), ()) if isinstance(size, int) else _size(reader, size)
        product = None if factor is None else reader.terms.multiply(total, factor)
        if product is None:
            return None
        total = product
    return total


def _size(reader: Reader, dim: Dim | None) -> Term | None:
    if dim is None or reader.rank is None or dim.axis >= reader.rank:
        return None
    source = reader.known.get(dim.value)
    is_x = source is not None and not source.missing and reader.terms.varies(source.term.factors)
    if not is_x and unwrapped(dim.value) is not reader.origin and not is_dim(dim, reader.x, dim.axis):
        return None
    return reader.count((dim.axis - reader.rank,))


def is_within(reader: Reader, node: ir.Node) -> bool:
    """Whether the Expand ``node`` is to at most the shape of x."""
    rank = reader.rank
    dims = dims_of(input_at(node, 1), reader.reading)
    if isinstance(dims, WholeShape):
        return unwrapped(dims.value) is reader.origin
    if rank is None or dims is None or len(dims) > rank:
        return False
    return all(size == 1 or is_size(reader, size, axis) for axis, size in enumerate(dims, rank - len(dims)))


def is_size(reader: Reader, size: int | Dim | None, axis: int) -> bool:
    """Whether ``size`` is that of x along ``axis``, by itself or as that of a value with the shape of x."""
    if isinstance(size, Dim):
        source = reader.known.get(size.value)
        if source is not None and not source.missing and size.axis == axis:
            reduced = reduced_axes(reader, source.term)
            return reduced is None or axis - (reader.rank or 0) not in reduced
    return is_dim(size, reader.x, axis)


def reduced_axes(reader: Reader, term: Term) -> tuple[int, ...] | None:
    """Return the axes along which ``term`` has size 1; None where it has the shape of x, () where it is not clear."""
    if reader.terms.varies(term.factors):
        return None
    found: set[tuple[int, ...]] = set()
    pending = [term.factors]
    while pending:
        for base, _ in pending.pop():
            meaning = reader.terms.base(base)
            if isinstance(meaning, Mean):
                found.add(meaning.axes)
            elif isinstance(meaning, Extent):
                continue
            elif hasattr(meaning, "addends"):
                pending += [factors for factors, _ in meaning.addends]
            elif hasattr(meaning, "of"):
                pending.append(meaning.of)
            else:
                return None
    return found.pop() if len(found) == 1 else None
