"""Constant weights and biases that a DequantizeLinear makes: ``(integers − zero_point) · scale``.

The integers are stored, or a QuantizeLinear makes them of a constant when the file runs. Between the DequantizeLinear and
what reads the weight may stand operators that only lay its elements out anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, Float64
from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Declined, Reading

_MOST_VIEWS = 8


_VIEWS = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A QuantizeLinear of constants. ratio: floats/scale, in float64, before it is rounded; zero: its zero point, spread."""

    node: ir.Node
    floats: Array
    ratio: Float64
    zero: Array


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """``node`` as what it holds. scale: (), (size along ``axis``,), or where ``block`` is not 0 of the integers' rank.

    Both scale and zero keep the types of the graph. zero None: zero. source: where the integers come from, if they are not
    stored. views: the nodes behind ``node`` that lay the elements out anew, first first.
    """

    node: ir.Node
    integers: Array
    scale: Array
    zero: Array | None
    axis: int
    block: int
    source: Source | None = None
    views: tuple[ir.Node, ...] = ()

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

    def values(self, reading: Reading) -> Array | None:
        """Return the weight: computed in float64, rounded once to the type of the scale, laid out as it is read."""
        wide = self.integers.astype(np.float64)
        if self.zero is not None:
            wide = wide - self.spread(self.zero).astype(np.float64)
        return self.laid_out(
            np.asarray((wide * self.spread(self.scale).astype(np.float64)).astype(self.scale.dtype)), reading
        )

    def laid_out(self, array: Array, reading: Reading) -> Array | None:
        """Return what the views make of an array of the shape of the integers."""
        result: Array | None = array
        for node in self.views:
            result = None if result is None else reading.constants.applied(node, result)
        return result

    def stored_axis(self, axis: int, reading: Reading) -> int | None:
        """Return which axis of the integers ``axis`` of the weight is; None where it is none, or a part of one."""
        if not self.views:
            return axis
        for candidate, size in enumerate(self.integers.shape):
            shape = [size if at == candidate else 1 for at in range(self.integers.ndim)]
            places = np.broadcast_to(np.arange(size).reshape(shape), self.integers.shape)
            found = self.laid_out(places, reading)
            if found is None or found.shape[axis] != size:
                continue
            if (np.moveaxis(found, axis, -1) == np.arange(size)).all():
                return candidate
        return None


def read_quantized(value: ir.Value | None, reading: Reading) -> Quantized | Declined | None:
    """Return the constant that a DequantizeLinear makes, or why it is none; None where ``value`` has another origin."""
    node = None if value is None else value.producer()
    views: list[ir.Node] = []
    while node is not None and is_op(node, *_VIEWS) and len(views) < _MOST_VIEWS and not has_parameters(node):
        views.insert(0, node)
        operand = input_at(node, 0)
        node = None if operand is None else operand.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    name = f"DequantizeLinear '{describe(node)}'"
    if has_parameters(node):
        return Declined(f"an attribute of {name} is a parameter of the function", node)
    source = _read_source(input_at(node, 0), reading)
    if isinstance(source, Declined):
        return source
    arrays: list[Array | None] = []
    for index in range(3):
        operand = input_at(node, index)
        array = reading.constants.array(operand) if index or source is None else source[1]
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
    found = Quantized(node, integers, scale, zero, axis, block, None if source is None else source[0], tuple(views))
    fits = found.is_per_tensor or (
        axis < integers.ndim and (scale.ndim == integers.ndim if block else scale.shape == (integers.shape[axis],))
    )
    if not fits or (zero is not None and zero.shape != scale.shape):
        return Declined(f"the scale of {name} does not fit its integers", node)
    return found


def _read_source(value: ir.Value | None, reading: Reading) -> tuple[Source, Array] | Declined | None:
    """Return a QuantizeLinear of constants and the integers that it makes; None where ``value`` comes from elsewhere.

    The integers are for judging: at a tie a runtime may round another way, so they are never written into a file.
    """
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "QuantizeLinear") or has_parameters(node):
        return None
    floats, scale, zero = (reading.constants.array(input_at(node, index)) for index in range(3))
    for index in range(3):
        operand = input_at(node, index)
        if operand is not None and reading.constants.array(operand) is None:
            return Declined(
                f"'{operand.name}' of QuantizeLinear '{describe(node)}' {reading.constants.obstacle(operand)}", node
            )
    asked = node.attributes.get_int("output_dtype", 0)
    dtype = zero.dtype if zero is not None else ir.DataType(asked).numpy() if asked else np.dtype(np.uint8)
    if floats is None or scale is None or "int" not in dtype.name:
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    own = Quantized(node, floats, scale, zero, axis + floats.ndim if axis < 0 else axis, block)
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    try:
        with np.errstate(all="ignore"):
            ratio = floats.astype(np.float64) / own.spread(scale).astype(np.float64)
        shift = np.zeros(floats.shape, np.int64) if zero is None else own.spread(zero).astype(np.int64)
        shift = np.broadcast_to(shift, floats.shape)
    except (ValueError, IndexError):
        return Declined(f"the scale of QuantizeLinear '{describe(node)}' does not fit its input", node)
    if not np.isfinite(ratio).all():
        return Declined(f"the input of QuantizeLinear '{describe(node)}' over its scale is not finite", node)
    integers = np.clip(np.rint(ratio) + shift, int(info.min), int(info.max)).astype(dtype)
    return Source(node, floats, ratio, shift), integers
