"""Pooling in float64 over strided views. Source: ONNX MaxPool, AveragePool, Global*Pool; onnxruntime FusedConv."""

from __future__ import annotations

import math

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
    """Largest value of each window, and where it is asked for its index in x as one row, the first of equal ones."""
    fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    view = _taps(call, _padded(call, x, fill)[0])
    taps = list(np.ndindex(*view.shape[x.ndim :]))
    result = np.asarray(view[(Ellipsis, *taps[0])]).copy()
    if not any(call.outputs[1:]):
        for tap in taps[1:]:
            np.maximum(result, view[(Ellipsis, *tap)], out=result)
        return (result,)
    if call.int("storage_order", 0):
        raise NotOurs
    places = _places(call, x)
    # A window may begin in the padding, which is never the largest.
    index = np.broadcast_to(places[taps[0]], result.shape).copy()
    for tap in taps[1:]:
        part = view[(Ellipsis, *tap)]
        is_larger = (part > result) | ((part != part) & (result == result)) | (index < 0)
        np.copyto(result, part, where=is_larger)
        np.copyto(index, places[tap], where=is_larger)
    plane = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) * math.prod(x.shape[2:])
    return (result, index + plane)


def _places(call: Call, x: Array) -> dict[tuple[int, ...], Array]:
    """Return, by tap, the place in a plane of x that it reads in every window; a negative number in the padding."""
    kernel = call.ints("kernel_shape", ())
    plane = np.arange(math.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:])
    view = _taps(call, _padded(call, plane, -1)[0])
    return {tap: view[(Ellipsis, *tap)] for tap in np.ndindex(*kernel)}


def average_pool(call: Call, x: Array) -> Results:
    """Mean of each window over the positions that count."""
    padded, weights = _padded(call, x, 0.0)
    axes = tuple(range(x.ndim, 2 * x.ndim - 2))
    view, count = _taps(call, padded), _taps(call, weights)
    return (view.sum(axis=axes) / count.sum(axis=axes),)


def lp_pool(call: Call, x: Array) -> Results:
    """(Σ |x|^p)^(1/p) over each window."""
    p = call.float("p", 2.0)
    view = _taps(call, _padded(call, np.abs(x) ** p, 0.0)[0])
    return (view.sum(axis=tuple(range(x.ndim, 2 * x.ndim - 2))) ** (1.0 / p),)


def global_lp(call: Call, x: Array) -> Results:
    """(Σ |x|^p)^(1/p) over the spatial axes."""
    p = call.float("p", 2.0)
    return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p),)


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
    ("", "LpPool"): lp_pool,
    ("", "GlobalLpPool"): global_lp,
    ("", "GlobalAveragePool"): global_average,
    ("", "GlobalMaxPool"): global_max,
    ("com.microsoft", "FusedConv"): fused_conv,
}
