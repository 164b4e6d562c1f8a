"""Reading the shape operand of a Reshape: constants, ``Shape(x)``, and what exporters build from it.

A dimension is an int where it is known, a :class:`Dim` where it is provably one axis of some value, else None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op
from normfuse.graph.site import Reading

_DEEPEST = 32
"""Nodes followed upwards in one shape expression; exporters use about six."""


@dataclass(frozen=True, slots=True)
class Dim:
    """The size of ``value`` along ``axis``, counted from the front."""

    value: ir.Value
    axis: int


@dataclass(frozen=True, slots=True)
class WholeShape:
    """The shape of ``value``, whose rank is unknown."""

    value: ir.Value


Dims = tuple[int | Dim | None, ...]


SizeOf = Callable[[ir.Value, int], int | None]
"""The size of a value along an axis, where somebody knows it who looked at more than the value itself."""


def _not_looked_up(value: ir.Value, axis: int) -> int | None:
    return None


def dims_of(
    shape: ir.Value | None, reading: Reading, depth: int = 0, size_of: SizeOf = _not_looked_up
) -> Dims | WholeShape | None:
    """Read ``shape``, a vector (or scalar) of integers; None where nothing is known of it.

    size_of: where to ask for sizes that the file does not state.
    """
    if shape is None or depth > _DEEPEST:
        return None
    constant = reading.constants.integers(shape)
    if constant is not None:
        return constant
    node = shape.producer()
    if node is None:
        return None
    if is_op(node, "Shape"):
        return _shape(node, reading, size_of)
    if is_op(node, "Identity", "Cast", "Squeeze", "Unsqueeze"):
        return dims_of(input_at(node, 0), reading, depth + 1, size_of)
    if is_op(node, "Reshape"):
        inner = dims_of(input_at(node, 0), reading, depth + 1, size_of)
        target = reading.constants.integers(input_at(node, 1))
        return inner if target is not None and len(target) <= 1 else None
    if is_op(node, "Concat"):
        return _concat(node, reading, depth, size_of)
    if is_op(node, "Gather", "Slice"):
        inner = dims_of(input_at(node, 0), reading, depth + 1, size_of)
        if inner is None:
            return None
        picked = _gathered(node, reading) if node.op_type == "Gather" else _sliced(node, reading)
        return None if picked is None else _pick(inner, picked)
    if is_op(node, *_ARITHMETIC):
        return _calculated(node, reading, depth, size_of)
    rank = None if shape.shape is None else shape.shape.rank()
    return (None,) if rank == 0 or (shape.shape is not None and list(shape.shape) == [1]) else None


def _shape(node: ir.Node, reading: Reading, size_of: SizeOf) -> Dims | WholeShape | None:
    value = input_at(node, 0)
    if value is None:
        return None
    rank = reading.ranks.of(value)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    if rank is not None:
        return tuple(dim(value, axis, size_of) for axis in range(rank))[slice(start, end)]
    if start == 0 and end is None:
        return WholeShape(value)
    # Without the rank, only positions counted from the front are known.
    return tuple(Dim(value, axis) for axis in range(start, end)) if end is not None and 0 <= start < end else None


def dim(value: ir.Value, axis: int, size_of: SizeOf = _not_looked_up) -> int | Dim:
    """Return the size of ``value`` along ``axis``: the int where the file states it, or ``size_of`` knows it."""
    stated = None if value.shape is None else value.shape[axis]
    size = stated if isinstance(stated, int) else size_of(value, axis)
    return Dim(value, axis) if size is None else size


def _concat(node: ir.Node, reading: Reading, depth: int, size_of: SizeOf) -> Dims | None:
    parts: list[int | Dim | None] = []
    for operand in node.inputs:
        part = dims_of(operand, reading, depth + 1, size_of)
        if part is None or isinstance(part, WholeShape):
            return None
        parts += part
    return tuple(parts)


def _calculated(node: ir.Node, reading: Reading, depth: int, size_of: SizeOf) -> Dims | None:
    """Calculate with sizes that are known: C / G, or ``(axis == 1) · (C − 1) + 1``."""
    one, other = (dims_of(operand, reading, depth + 1, size_of) for operand in node.inputs)
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return None
    length = max(len(one), len(other))
    if len(one) not in (1, length) or len(other) not in (1, length):
        return None
    pairs = zip(one * (length // len(one)), other * (length // len(other)), strict=True)
    dtype = node.outputs[0].dtype
    truncates = dtype is not None and dtype.is_integer()
    return tuple(_calculate(node.op_type, left, right, truncates) for left, right in pairs)


def _calculate(op_type: str, left: int | Dim | None, right: int | Dim | None, truncates: bool) -> int | None:
    """truncates: whether a quotient is one of integers; where sizes were cast before, only one without rest is known."""
    if not isinstance(left, int) or not isinstance(right, int):
        return None
    if op_type != "Div":
        return _ARITHMETIC[op_type](left, right)
    return left // right if left >= 0 and right > 0 and (truncates or left % right == 0) else None


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
}


def _gathered(node: ir.Node, reading: Reading) -> tuple[int, ...] | None:
    return reading.constants.integers(input_at(node, 1)) if node.attributes.get_int("axis", 0) == 0 else None


def _sliced(node: ir.Node, reading: Reading) -> slice | None:
    """Read a slice of a vector, by attributes (before opset 10) or by inputs."""
    starts: Sequence[int] | None
    ends: Sequence[int] | None
    steps: Sequence[int] | None = (1,)
    if "starts" in node.attributes:
        starts, ends = node.attributes.get_ints("starts"), node.attributes.get_ints("ends")
    else:
        starts = reading.constants.integers(input_at(node, 1))
        ends = reading.constants.integers(input_at(node, 2))
        if input_at(node, 4) is not None:
            steps = reading.constants.integers(input_at(node, 4))
    if not starts or not ends or not steps or len(starts) != 1 or len(ends) != 1 or steps[0] < 1:
        return None
    return slice(starts[0], ends[0], steps[0])


def _pick(dims: Dims | WholeShape, picked: tuple[int, ...] | slice) -> Dims | None:
    if isinstance(dims, WholeShape):
        if isinstance(picked, slice):
            if picked.start < 0 or not 0 <= picked.stop < 64:
                return None  # an end such as INT64_MAX needs the rank
            picked = tuple(range(picked.start, picked.stop, picked.step or 1))
        return tuple(Dim(dims.value, axis) for axis in picked) if min(picked, default=0) >= 0 else None
    if isinstance(picked, slice):
        return dims[picked]
    return tuple(dims[axis] for axis in picked) if all(-len(dims) <= axis < len(dims) for axis in picked) else None


def unwrapped(value: ir.Value) -> ir.Value:
    """Return the value of the same shape from which Casts, Identities and Dropouts made ``value``."""
    producer = value.producer()
    while (
        producer is not None
        and is_op(producer, "Cast", "CastLike", "Identity", "Dropout")
        and value is producer.outputs[0]
        and producer.inputs[0] is not None
    ):
        value = producer.inputs[0]
        producer = value.producer()
    return value


def is_dim(size: int | Dim | None, value: ir.Value, axis: int) -> bool:
    """Whether ``size`` is provably the size of ``value`` along ``axis``."""
    own = None if value.shape is None or axis >= value.shape.rank() else value.shape[axis]
    if isinstance(size, int):
        return isinstance(own, int) and own == size
    if size is None:
        return False
    if size.axis == axis and unwrapped(size.value) is unwrapped(value):
        return True
    other = None if size.value.shape is None or size.axis >= size.value.shape.rank() else size.value.shape[size.axis]
    return same_dim(own, other)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether the shapes that the file states for ``a`` and ``b`` are equal, dimension by dimension."""
    if a.shape is None or b.shape is None or a.shape.rank() != b.shape.rank():
        return False
    return all(same_dim(one, other) for one, other in zip(a.shape, b.shape, strict=True))


def same_dim(one: int | ir.SymbolicDim | None, other: int | ir.SymbolicDim | None) -> bool:
    """Whether two sizes are equal: the same number, or the same name."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return one is not None and other is not None and one.value is not None and one.value == other.value
