"""Quantised weights times a factor a channel: the scales change, the integers at most their sign."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from normfuse.affine import Float64, FoldError
from normfuse.passes.quantized import Quantized, Source

_PER_AXIS = 13
"""The opset in which DequantizeLinear took a scale per position of one axis."""

_BELOW_A_TIE = 0.499
"""A ratio up to the largest integer and this rounds to it in float32 too, and so does its negative."""


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
    return replace(_signed(weight, factor, axis), scale=scale)


def _signed(weight: Quantized, factor: Float64, axis: int) -> Quantized:
    """Return the integers with the signs of ``factor``, channel by channel: negated, or at the zero point for 0."""
    if np.all(factor > 0.0):
        return weight
    source = None if weight.source is None else _signed_source(weight, weight.source, factor, axis)
    integers = np.moveaxis(weight.integers, axis, 0)
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
    return replace(weight, integers=np.ascontiguousarray(np.moveaxis(result, 0, axis)), source=source)


def _signed_source(weight: Quantized, source: Source, factor: Float64, axis: int) -> Source:
    """Return what a QuantizeLinear quantises with the signs of ``factor``: rounding to even knows no sign.

    Raises FoldError where it is cut at the lowest integer, or takes another zero for zero than the DequantizeLinear does.
    """
    name = weight.integers.dtype.name
    zero = np.zeros((), np.int64) if weight.zero is None else weight.spread(weight.zero).astype(np.int64)
    floats, ratio = np.moveaxis(source.floats, axis, 0).copy(), np.moveaxis(source.ratio, axis, 0)
    differs = np.moveaxis(np.broadcast_to(zero, source.zero.shape) != source.zero, axis, 0)
    largest = int(ml_dtypes.iinfo(weight.integers.dtype).max)  # type: ignore[no-untyped-call]
    for channel in np.flatnonzero(factor <= 0.0):
        what = f"the scale is {'negative' if factor[channel] else 'zero'} in channel {channel}, and "
        if differs[channel].any():
            raise FoldError(f"{what}its weight is quantised with another zero point")
        if factor[channel] and (np.abs(ratio[channel]) > largest + _BELOW_A_TIE).any():
            raise FoldError(f"{what}its weight is cut where it is quantised: {name} is not symmetric")
        floats[channel] = -floats[channel] if factor[channel] else 0
    return replace(source, floats=np.ascontiguousarray(np.moveaxis(floats, 0, axis)))
