"""What of a map stays where not all of it can go: at which value, as which operator, and what that costs at run time.

A plan may leave a rest only where the whole is less work afterwards: fewer passes over memory, or as many and less
arithmetic. A pass is one operator over as many elements as the norm has; ``share`` is what part of them a rest has.
Measured on onnxruntime's CPU provider (``tools/cheapest_map.py``, microseconds a call, one thread, warm):

    constants of one number per channel      BatchNormalization    Add    Mul and Add
    (1, 2048)                                               3.1    1.1            1.9
    (8, 512)                                                2.0    1.6            2.9
    (1, 64, 7, 7)                                           1.5    2.2
    (1, 256, 14, 14)                                       12.2   15.8           30.3
    (1, 64, 28, 28)                                         6.9    7.0
    (1, 64, 56, 56)                                        54.7   54.1           92.4
    (1, 28, 28, 16), along the last axis                    2.2   13.9
    (1, 14, 14, 768), along the last axis                  21.0   27.6
    Conv, Relu, this, Conv of (8, 64, 28, 28)               626    833            986

So one BatchNormalization is never slower than Mul and Add, and only for matrices of few rows, and for channels of a
thousand elements or more, no faster than Add alone; and between convolutions, where onnxruntime keeps a blocked layout that
an Add of a constant leaves, Add is slower at any size. Of an input of the graph, where no such layout is left, a norm's shift
stays as one Add whatever the size: less arithmetic over the same bytes, and where channels are short 1 µs per 10 000
elements at most, once a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, Float64
from normfuse.emit.standard import UNIT_EPSILON
from normfuse.graph.editing import initializer
from normfuse.passes.spread import Dims, Spread

LONG_CHANNEL = 1024
"""Elements of a channel in one sample from which on an Add of one constant per channel is as fast as the norm."""

LONG_ROW = 512
"""Elements of a row of a matrix from which on an Add of one constant per element is as fast as the norm."""

_BLOCKED = frozenset(
    "Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool Concat Add Sum Mul Relu LeakyRelu Sigmoid Tanh HardSigmoid "
    "BatchNormalization Clip Resize Upsample Identity Dropout".split()
)
"""Operators whose results onnxruntime may keep in its blocked layout."""

_ARITHMETIC = {"BatchNormalization": 2, "Mul": 1, "Add": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """``f(value)``, written as ``operators``: before ``reader``, or, where that is None, behind the value for all readers.

    costs: the operators that it is in the end. share: how many elements it has, of the norm's. dtype, channels: of the
    value. is_whole: all of the map that was asked of the value, not its shift or scale alone. place: the first input of
    the reader that is the value.
    """

    value: ir.Value
    f: Spread
    reader: ir.Node | None
    operators: tuple[str, ...]
    costs: tuple[str, ...]
    share: Fraction
    dtype: ir.DataType
    channels: int
    is_whole: bool
    place: int

    @property
    def what(self) -> str:
        """Name it: the whole map, its shift or its scale."""
        if self.f.is_linear:
            return "its scale"
        return "its shift" if (self.f.scale == 1.0).all() else "a norm"


@dataclass(frozen=True, slots=True, order=True)
class Work:
    """Passes over the elements of the norm, and operations on each of them; compared in this order."""

    passes: Fraction
    operations: Fraction
    nodes: int

    @staticmethod
    def of(operators: Iterable[tuple[str, Fraction]]) -> Work:
        """Return the work of operators, each with its share of the elements."""
        rows = [(share, _ARITHMETIC.get(operator, 1) * share) for operator, share in operators]
        return Work(sum((a for a, _ in rows), Fraction()), sum((b for _, b in rows), Fraction()), len(rows))


def rest(
    value: ir.Value,
    source: ir.Node | None,
    f: Spread,
    reader: ir.Node | None,
    share: Fraction | None,
    dims: Dims | None,
    dtype: ir.DataType | None,
    *,
    is_whole: bool,
    has_norms: bool = True,
) -> Rest | None:
    """Return ``f`` of ``value`` in the cheapest spelling; None where its type or size is not known, or cannot hold f.

    source: what will make the value then. has_norms: whether a BatchNormalization stays one operator.
    """
    if share is None or dims is None or len(dims) != f.rank or dtype not in _TYPES or not _is_held(f, dtype):
        return None
    channels = None if f.rank < 2 else f.size(1) if f.size(1) > 1 else dims[1]
    is_norm = channels is not None and f.varies <= {1} and bool(f.scale.all())
    single = "Mul" if f.is_linear else "Add" if (f.scale == 1.0).all() else None
    is_fast = not has_norms or _is_fast(source, f, dims)
    if single is not None and (is_fast or (source is None and single == "Add" and is_norm)):
        operators: tuple[str, ...] = (single,)
    elif is_norm:
        operators = ("BatchNormalization",)
    elif is_fast:
        operators = ("Mul", "Add")
    else:
        return None
    place = 0 if reader is None else next(index for index, operand in enumerate(reader.inputs) if operand is value)
    costing = costs(operators, has_norms)
    return Rest(value, f, reader, operators, costing, share, dtype, channels or 0, is_whole, place)


def costs(operators: Sequence[str], has_norms: bool) -> tuple[str, ...]:
    """Return what ``operators`` are in the end: where there are no norms, a BatchNormalization is a Mul and an Add."""
    spelled = {} if has_norms else {"BatchNormalization": ("Mul", "Add")}
    return tuple(each for operator in operators for each in spelled.get(operator, (operator,)))


_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


def _is_held(f: Spread, dtype: ir.DataType) -> bool:
    """Whether the type holds what is written of f, the place where it is zero included, without overflow."""
    largest = float(np.finfo(dtype.numpy()).max) / 4.0
    with np.errstate(all="ignore"):
        zeros = np.where(f.scale == 0.0, 0.0, f.shift / f.scale)
        variances = np.where(f.scale == 0.0, 0.0, 1.0 / np.square(f.scale))
    return all(bool((np.abs(row) < largest).all()) for row in (f.scale, f.shift, zeros, variances))


def _is_fast(source: ir.Node | None, f: Spread, dims: Dims) -> bool:
    """Whether an Add or a Mul by the constants of f is no slower than a BatchNormalization of as many elements."""
    if f.rank > 2 and source is not None and source.op_type in _BLOCKED:
        return False
    if not f.varies:
        return True
    if f.rank == 2 and f.varies == {1}:
        return f.size(1) >= LONG_ROW
    behind = dims[max(f.varies) + 1 :]
    return None not in behind and math.prod(size or 0 for size in behind) >= LONG_CHANNEL


@dataclass(frozen=True, slots=True)
class Written:
    """The nodes of a rest, the value that holds its result, and the constants they read."""

    nodes: tuple[ir.Node, ...]
    output: ir.Value
    initializers: tuple[ir.Value, ...]


def write(one: Rest, value: ir.Value) -> Written:
    """Write a rest that reads ``value``, which an earlier change may have put in the place of its own.

    A BatchNormalization is written as one whose result lies around zero with variance 1: mean −b/a, variance 1/a²; so it
    is judged as the norm that it stands for, should it be read again.
    """
    dtype = one.dtype.numpy()
    x = value
    base = str(value.name or "rest")
    nodes: list[ir.Node] = []
    values: list[ir.Value] = []

    def constant(name: str, array: Float64) -> ir.Value:
        values.append(initializer(f"{base}_{name}", np.asarray(array, dtype)))
        return values[-1]

    if one.operators == ("BatchNormalization",):
        rows = [
            constant(name, row) for name, row in zip(_PARAMETERS, _parameters(one.f, one.channels, dtype), strict=True)
        ]
        attributes = {"epsilon": ir.AttrFloat32("epsilon", UNIT_EPSILON)}
        nodes.append(ir.Node("", "BatchNormalization", [x, *rows], attributes))
    else:
        for operator in one.operators:
            row = one.f.scale if operator == "Mul" else one.f.shift
            nodes.append(ir.Node("", operator, [x, constant(operator.lower(), _trimmed(row))]))
            x = nodes[-1].outputs[0]
    return Written(tuple(nodes), nodes[-1].outputs[0], tuple(values))


_PARAMETERS = ("scale", "bias", "mean", "variance")


def _parameters(f: Spread, channels: int, dtype: np.dtype[np.generic]) -> tuple[Float64, Float64, Float64, Float64]:
    """Return γ, β, μ, σ² of a BatchNormalization that is f; its variance as its type rounds it counts in γ."""
    affine = f.along_axis(1, channels)
    assert affine is not None
    mean = np.asarray((-affine.shift / affine.scale).astype(dtype), np.float64)
    variance: Array = np.maximum(1.0 / np.square(affine.scale) - UNIT_EPSILON, 0.0).astype(dtype)
    gamma = affine.scale * np.sqrt(np.asarray(variance, np.float64) + UNIT_EPSILON)
    return gamma, affine.shift + affine.scale * mean, mean, np.asarray(variance, np.float64)


def _trimmed(row: Float64) -> Float64:
    """Return ``row`` without leading axes of size 1: it broadcasts the same."""
    while row.ndim and row.shape[0] == 1:
        row = row[0]
    return row
