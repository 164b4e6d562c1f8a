"""Pooling in float64 over strided views. Source: ONNX MaxPool, AveragePool, Global*Pool; onnxruntime FusedConv."""

from __future__ import annotations

import numpy as np

from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, Results
from normfuse.validate.op_basic import activate
from normfuse.validate.op_linear import add_bias, convolve, window_pads, windows
from normfuse.validate.rounding import Array


def _padded(call: Call, x: Array, fill: float) -> tuple[Array, Array]:
    """Return x padded with ``fill``, and an array of ones where an average counts the position.

    ``ceil_mode`` appends what the last window lacks; a window that starts in that part is dropped.
    """
    kernel = call.ints("kernel_shape", ())
    rank = len(kernel)
    strides = call.ints("strides", (1,) * rank)
    dilations = call.ints("dilations", (1,) * rank)
    before, after = window_pads(call, x.shape[2:], kernel)
    counted = bool(call.int("count_include_pad", 0))
    lacking = [0] * rank
    if call.int("ceil_mode", 0):
        for i, size in enumerate(x.shape[2:]):
            room = size + before[i] + after[i] - (kernel[i] - 1) * dilations[i] - 1
            count = -(-room // strides[i]) + 1
            if (count - 1) * strides[i] >= size + before[i]:
                count -= 1
            lacking[i] = max(0, (count - 1) * strides[i] - room)
    inner = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    outer = [(0, 0), (0, 0), *((0, more) for more in lacking)]
    weights = np.pad(np.ones((1, 1, *x.shape[2:])), inner, constant_values=1.0 if counted else 0.0)
    padded = np.pad(np.pad(x, inner, constant_values=fill), outer, constant_values=fill)
    return padded, np.pad(weights, outer)


def _taps(call: Call, x: Array) -> Array:
    kernel = call.ints("kernel_shape", ())
    return windows(x, kernel, call.ints("strides", (1,) * len(kernel)), call.ints("dilations", (1,) * len(kernel)))


def max_pool(call: Call, x: Array) -> Results:
    """Largest value of each window; the output of indices is left to onnx.reference."""
    if any(call.outputs[1:]) or x.dtype.kind != "f":
        raise NotOurs
    padded, _ = _padded(call, x, -np.inf)
    view = _taps(call, padded)
    result = None
    for tap in np.ndindex(*view.shape[x.ndim :]):
        part = view[(Ellipsis, *tap)]
        result = part.copy() if result is None else np.maximum(result, part, out=result)
    return (result,)


def average_pool(call: Call, x: Array) -> Results:
    """Mean of each window over the positions that count."""
    padded, weights = _padded(call, x, 0.0)
    axes = tuple(range(x.ndim, 2 * x.ndim - 2))
    view, count = _taps(call, padded), _taps(call, weights)
    return (view.sum(axis=axes) / count.sum(axis=axes),)


def global_average(call: Call, x: Array) -> Results:
    """Mean over the spatial axes."""
    return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),)


def global_max(call: Call, x: Array) -> Results:
    """Maximum over the spatial axes."""
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def fused_conv(call: Call, x: Array, weight: Array, bias: Array | None = None, z: Array | None = None) -> Results:
    """com.microsoft FusedConv: Conv, + Z, then ``activation`` with ``activation_params``."""
    y = add_bias(convolve(x, weight, call), bias)
    y = y if z is None else y + z
    first, second = (*(float(item) for item in call.attributes.get("activation_params", ())), None, None)[:2]
    return (activate(y, call.text("activation", ""), first, second),)


OPERATORS: dict[OperatorKey, Operator] = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "GlobalAveragePool"): global_average,
    ("", "GlobalMaxPool"): global_max,
    ("com.microsoft", "FusedConv"): fused_conv,
}
