"""γ and β as operands: the parameters that a term names, brought together and into the shape of the norm."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.graph.constants import Array
from normfuse.recognise.core import Core
from normfuse.recognise.layout import Axes, Layout, layout_of, lies_along, size_of
from normfuse.recognise.parameters import detached
from normfuse.recognise.reader import Reader
from normfuse.recognise.terms import Factors
from normfuse.spec import AffineAxes, Trailing


@dataclass(frozen=True, slots=True)
class Affine:
    """γ and β as the site holds them, and the layout that says along what they lie."""

    layout: Layout
    scale: ir.Value | None = None
    bias: ir.Value | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter: a value of the graph as it is (value), or an array of our own making."""

    name: str
    shape: tuple[int, ...]
    value: ir.Value | None
    array: Array | None


def rows_of(core: Core, reader: Reader, x: ir.Value, interior: Set[ir.Node]) -> tuple[Row | None, Row | None] | str:
    """Return γ and β of ``core``; else why they are no operands. x: the operand of the norm."""
    if core.bias and not core.centred:
        return "an RMS norm has no bias"
    scale = _scale(core, reader, interior, x)
    bias = _bias(core, reader, interior)
    if isinstance(scale, str) or isinstance(bias, str):
        return scale if isinstance(scale, str) else str(bias)
    return scale, bias


def affine_of(
    rows: tuple[Row | None, Row | None], axes: Axes, x: ir.Value, rank: int | None, *, centred: bool
) -> Affine | str:
    """Return the layout of a mean over ``axes`` with the affine ``rows``; else why there is none."""
    present = [row for row in rows if row is not None]
    if not present:
        layout = layout_of(axes, rank, centred=centred, affine=None)
        return Affine(layout) if layout is not None else "its axes are those of no norm"
    along = [lies_along(row.shape, x, rank) for row in present]
    if any(each is None for each in along):
        return f"'{present[along.index(None)].name}' is not proven to broadcast within '{x.name}'"
    union: Axes = tuple(sorted({axis for each in along if each is not None for axis in each}))
    layout = layout_of(axes, rank, centred=centred, affine=union)
    if layout is None:
        return f"its affine lies along axes {list(union)}, its mean along axes {list(axes)}"
    operands = [None if row is None else shaped(row, layout, x) for row in rows]
    for row, operand in zip(rows, operands, strict=True):
        if row is not None and operand is None:
            return f"'{row.name}' cannot be brought into the shape of the normalised axes"
    return Affine(layout, *operands)


def _scale(core: Core, reader: Reader, interior: Set[ir.Node], x: ir.Value) -> Row | str | None:
    if core.scale:
        return _product(core.scale, core.sign, core.axes, reader, interior)
    if core.sign > 0:
        return None
    # μ − x without a γ that could take the sign.
    sizes = [size_of(x, axis) for axis in core.axes]
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes) or x.dtype is None or core.axes != tuple(range(-len(sizes), 0)):
        return "its result has the opposite sign, and no scale takes it"
    negative = np.full(known, -1.0).astype(x.dtype.numpy())
    return Row(f"{x.name}_sign", negative.shape, None, negative)


def _bias(core: Core, reader: Reader, interior: Set[ir.Node]) -> Row | str | None:
    if not core.bias:
        return None
    if len(core.bias) == 1:
        return _product(*core.bias[0], core.axes, reader, interior)
    rows = [_product(factors, coefficient, core.axes, reader, interior) for factors, coefficient in core.bias]
    arrays = [row.array for row in rows if isinstance(row, Row) and row.array is not None]
    if len(arrays) != len(rows):
        return "its biases are not all constant"
    total = np.asarray(sum(array.astype(np.float64) for array in arrays))
    return Row("bias", total.shape, None, total.astype(arrays[0].dtype))


def _product(factors: Factors, coefficient: float, axes: Axes, reader: Reader, interior: Set[ir.Node]) -> Row | str:
    """Return ``coefficient · Π parameter^exponent``: the parameter itself where it stands alone.

    Its array is not read where it can only be the operand as it is: a vector of a norm over one axis.
    """
    values = list(reader.table)
    parameters = [(values[reader.parameter_index(base)], exponent) for base, exponent in factors]
    value, exponent = parameters[0]
    name = str(value.name)
    if len(parameters) == 1 and exponent == 1.0 and coefficient == 1.0 and reader.table[value] is None:
        shape = reader.parameters.shape(value)
        if shape is None:
            return f"the shape of '{value.name}' is unknown"
        if value.producer() not in interior:
            reshapes = len(shape) > 1 or len(axes) > 1
            return Row(name, shape, value, reader.parameters.array(value) if reshapes else None)
    arrays = []
    for each, _ in parameters:
        array = reader.table[each]
        array = reader.parameters.array(each) if array is None else array
        if array is None:
            return f"'{each.name}' is not constant"
        arrays.append(array)
    with np.errstate(all="ignore"):
        total = np.asarray(coefficient, np.float64)
        for array, (_, power) in zip(arrays, parameters, strict=True):
            total = total * np.power(array.astype(np.float64), power)
    like = arrays[0]
    rounded = total.astype(like.dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        return f"'{value.name}' leaves the range of its type"
    return Row(name, total.shape, None, rounded)


def shaped(row: Row, layout: Layout, x: ir.Value) -> ir.Value | None:
    """Return the operand: exactly the normalised shape where that is trailing, else any shape that broadcasts."""
    statistics = layout.statistics
    trailing = isinstance(statistics, Trailing) and statistics.axes == tuple(range(-len(statistics.axes), 0))
    if layout.affine is not AffineAxes.NORMALISED or not trailing:
        if row.value is not None:
            return row.value
        return None if row.array is None else detached(row.name, row.array, row.array)
    assert isinstance(statistics, Trailing)
    sizes = [size_of(x, axis) for axis in statistics.axes]
    target = tuple(size for size in sizes if size is not None)
    if len(target) != len(sizes):
        return None
    if row.shape == target and row.value is not None:
        return row.value
    if row.array is None:
        return None
    # Leading axes of size 1 go; axes that γ broadcasts along are written out.
    array = row.array.reshape(row.array.shape[max(0, row.array.ndim - len(target)) :])
    return detached(row.name, np.broadcast_to(array, target), row.array)
