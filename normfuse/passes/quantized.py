"""Constant weights and biases that a DequantizeLinear makes: ``(integers − zero_point) · scale``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, Float64, FoldError
from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Declined, Reading

_PER_AXIS = 13
"""The opset in which DequantizeLinear took a scale per position of one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """``node`` as what it holds. scale: (), (size along ``axis``,), or where ``block`` is not 0 of the integers' rank.

    Both scale and zero keep the types of the graph. zero None: zero.
    """

    node: ir.Node
    integers: Array
    scale: Array
    zero: Array | None
    axis: int
    block: int

    @property
    def is_per_tensor(self) -> bool:
        """Whether there is one scale for everything."""
        return self.block == 0 and self.scale.size == 1

    def spread(self, parameter: Array) -> Array:
        """Return a scale or zero point so that it broadcasts to the integers."""
        if self.is_per_tensor:
            return parameter.reshape(())
        if self.block:
            return np.repeat(parameter, self.block, self.axis).take(range(self.integers.shape[self.axis]), self.axis)
        return parameter.reshape([-1 if at == self.axis else 1 for at in range(self.integers.ndim)])

    def values(self) -> Array:
        """Return what the node computes: in float64, rounded once to the type of the scale."""
        wide = self.integers.astype(np.float64)
        if self.zero is not None:
            wide = wide - self.spread(self.zero).astype(np.float64)
        return np.asarray((wide * self.spread(self.scale).astype(np.float64)).astype(self.scale.dtype))


def read_quantized(value: ir.Value | None, reading: Reading) -> Quantized | Declined | None:
    """Return the constant that a DequantizeLinear makes, or why it is none; None where ``value`` has another origin."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    name = f"DequantizeLinear '{describe(node)}'"
    if has_parameters(node):
        return Declined(f"an attribute of {name} is a parameter of the function", node)
    arrays: list[Array | None] = []
    for index in range(3):
        operand = input_at(node, index)
        array = reading.constants.array(operand)
        if operand is not None and array is None:
            return Declined(f"'{operand.name}' of {name} {reading.constants.obstacle(operand)}", node)
        arrays.append(array)
    integers, scale, zero = arrays
    if integers is None or scale is None:
        return Declined(f"{name} lacks an input", node)
    if "int" not in integers.dtype.name:
        return Declined(f"{name} holds {integers.dtype.name}, no integers", node)
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    axis = axis + integers.ndim if axis < 0 else axis
    found = Quantized(node, integers, scale, zero, axis, block)
    fits = found.is_per_tensor or (
        axis < integers.ndim and (scale.ndim == integers.ndim if block else scale.shape == (integers.shape[axis],))
    )
    if not fits or (zero is not None and zero.shape != scale.shape):
        return Declined(f"the scale of {name} does not fit its integers", node)
    return found


def scaled(weight: Quantized, factor: Float64, axis: int, opset: int) -> Quantized:
    """Return ``weight`` times ``factor`` (C,) along ``axis``, with the same integers up to sign and zeroed channels.

    Only the scales change: ``factor · ((q − z) · s) = (q − z) · (factor · s)``, rounded once to their type. A negative
    factor negates the integers; a factor of 0 sets them to the zero point, since a scale of 0 is none.
    Raises FoldError where the integers or the type of the scale cannot hold that.
    """
    channels = factor.size
    zero = weight.zero
    if weight.is_per_tensor:
        if opset < _PER_AXIS:
            raise FoldError(f"below opset {_PER_AXIS} a DequantizeLinear has one scale for all channels")
        row = np.broadcast_to(weight.scale.reshape(()), (channels,))
        zero = None if zero is None else np.broadcast_to(zero.reshape(()), (channels,)).copy()
        weight = replace(weight, scale=row, zero=zero, axis=axis)
    elif (weight.axis == axis) == bool(weight.block):
        lie = "hold for blocks" if weight.block else f"lie along axis {weight.axis}, not"
        raise FoldError(f"the scales of its weight {lie} along its output channels")
    wide = weight.scale.astype(np.float64)
    if not np.isfinite(wide).all() or wide.min() < 0.0:
        raise FoldError("a scale of its weight is negative or not finite")
    shape = [channels if at == (axis if weight.block else 0) else 1 for at in range(wide.ndim)]
    wide = wide * np.where(factor == 0.0, 1.0, np.abs(factor)).reshape(shape)
    scale = wide.astype(weight.scale.dtype)
    info = ml_dtypes.finfo(scale.dtype)  # type: ignore[no-untyped-call]
    wrong = ~np.isfinite(scale.astype(np.float64)) | ((wide > 0.0) & (wide < float(info.smallest_normal)))
    if wrong.any():
        raise FoldError(f"a scale of its weight becomes {wide[wrong][0]:.3g}, which {scale.dtype.name} does not hold")
    return replace(weight, scale=scale, integers=_signed(weight, factor, axis))


def _signed(weight: Quantized, factor: Float64, axis: int) -> Array:
    """Return the integers with the signs of ``factor``, channel by channel: negated, or at the zero point for 0."""
    integers = np.moveaxis(weight.integers, axis, 0)
    if np.all(factor > 0.0):
        return weight.integers
    zero = np.zeros((), weight.integers.dtype) if weight.zero is None else weight.spread(weight.zero)
    zeros = np.moveaxis(np.broadcast_to(zero, weight.integers.shape), axis, 0)
    result = integers.copy()
    name = weight.integers.dtype.name
    for channel in np.flatnonzero(factor <= 0.0):
        if factor[channel] == 0.0:
            result[channel] = zeros[channel]
            continue
        what = f"the scale is negative in channel {channel}, and "
        row, lowest = integers[channel].astype(np.int64), int(ml_dtypes.iinfo(weight.integers.dtype).min)  # type: ignore[no-untyped-call]
        if zeros[channel].astype(np.int64).any():
            raise FoldError(f"{what}the zero point of its weight is not 0")
        if lowest == 0 and row.any():
            raise FoldError(f"{what}{name} has no negative numbers")
        if (row == lowest).any() and lowest < 0:
            raise FoldError(f"{what}its weight holds {lowest}, whose negative {name} does not have")
        result[channel] = (-row).astype(weight.integers.dtype)
    return np.ascontiguousarray(np.moveaxis(result, 0, axis))
