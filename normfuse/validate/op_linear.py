"""Convolutions and matrix products in float64.

onnx.reference computes an im2col by Python loops for some ranks; here every rank is one strided view and a BLAS
product. Source: ONNX operators Conv-1/11/22, ConvTranspose-1/11/22, Gemm-1…13, MatMul; onnxruntime contrib
FusedMatMul, FusedGemm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normfuse.validate.call import Call, Operator, OperatorKey, Results
from normfuse.validate.rounding import Array

# An im2col matrix is built in slices along the first spatial axis so that none takes more than this.
_COLUMN_BYTES = 64 * 2**20


def window_pads(call: Call, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial axis, ``auto_pad`` resolved."""
    rank = len(spatial)
    strides = call.ints("strides", (1,) * rank)
    dilations = call.ints("dilations", (1,) * rank)
    mode = call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if mode == "SAME_UPPER" else more)
            after.append(more if mode == "SAME_UPPER" else less)
        return before, after
    pads = call.ints("pads", (0,) * (2 * rank))
    return list(pads[:rank]), list(pads[rank:])


def windows(x: Array, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    """Return the view (N, C, *out, *kernel) of padded ``x`` (N, C, *spatial)."""
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=axes)
    step = tuple(slice(None, None, s) for s in strides)
    tap = tuple(slice(None, None, d) for d in dilations)
    return view[(slice(None), slice(None), *step, *tap)]


def _at(array: Array, index: tuple[Any, ...]) -> Array:
    """Return ``array[index]``; NumPy's stubs do not take an Ellipsis among unpacked integers."""
    return np.asarray(array[index])


def convolve(x: Array, weight: Array, call: Call) -> Array:
    """Return the convolution of x (N, C, *spatial) with weight (M, C/group, *kernel), without bias.

    Raises ValueError where channels do not fit.
    """
    kernel = weight.shape[2:]
    rank = len(kernel)
    group = call.int("group", 1)
    if x.ndim != rank + 2 or x.shape[1] != weight.shape[1] * group or weight.shape[0] % group:
        raise ValueError(f"X {x.shape} and W {weight.shape} do not fit with group={group}")
    strides = call.ints("strides", (1,) * rank)
    dilations = call.ints("dilations", (1,) * rank)
    before, after = window_pads(call, x.shape[2:], kernel)
    if any(before) or any(after):
        x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    view = windows(x, kernel, strides, dilations)
    batch, channels = view.shape[:2]
    out = view.shape[2 : 2 + rank]
    maps = weight.shape[0]
    if weight.shape[1] == 1 and maps == group:
        return _depthwise(view, weight, out)
    flat = weight.reshape(group, maps // group, -1)
    result = np.empty((batch, maps, *out), dtype=np.result_type(x, weight))
    row = channels * math.prod(kernel) * math.prod(out[1:]) * 8
    rows = max(1, min(out[0], _COLUMN_BYTES // max(row, 1)))
    # Small planes are multiplied several samples at a time: one matrix product instead of many thin ones.
    together = max(1, _COLUMN_BYTES // max(row * rows, 1))
    order = (1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
    for first in range(0, batch, together):
        for start in range(0, out[0], rows):
            part = view[first : first + together, :, start : start + rows]
            columns = part.transpose(order).reshape(group, flat.shape[2], -1)
            product = (flat @ columns).reshape(maps, part.shape[0], -1, *out[1:])
            result[first : first + together, :, start : start + rows] = product.swapaxes(0, 1)
    return result


def _depthwise(view: Array, weight: Array, out: tuple[int, ...]) -> Array:
    """Sum over the taps: one multiply-add of whole planes each, no im2col."""
    result = np.zeros((view.shape[0], view.shape[1], *out), dtype=np.result_type(view, weight))
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        factor = _at(weight, (Ellipsis, *tap)).reshape(1, -1, *(1,) * len(out))
        result += _at(view, (Ellipsis, *tap)) * factor
    return result


def _transposed_pads(call: Call, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return what to crop before each axis, and the output sizes (ONNX ConvTranspose, output_shape and auto_pad)."""
    rank = len(spatial)
    strides = call.ints("strides", (1,) * rank)
    dilations = call.ints("dilations", (1,) * rank)
    extra = call.ints("output_padding", (0,) * rank)
    mode = call.text("auto_pad", "NOTSET")
    wanted = call.ints("output_shape", ())[-rank:]
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(spatial, strides, kernel, dilations, extra, strict=True)
    ]
    if not wanted and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(spatial, strides, strict=True))
    if wanted:
        # Where the wanted size is larger, zeros are appended. An odd crop takes one more before, but for SAME_UPPER.
        totals = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
        return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals], list(wanted)
    pads = call.ints("pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
    return list(pads[:rank]), [f - pads[i] - pads[rank + i] for i, f in enumerate(full)]


def convolve_transposed(x: Array, weight: Array, call: Call) -> Array:
    """Return the transposed convolution of x (N, C, *spatial) with weight (C, M/group, *kernel), without bias."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    group = call.int("group", 1)
    if x.ndim != rank + 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(f"X {x.shape} and W {weight.shape} do not fit")
    strides = call.ints("strides", (1,) * rank)
    dilations = call.ints("dilations", (1,) * rank)
    spatial = x.shape[2:]
    crop, sizes = _transposed_pads(call, spatial, kernel)
    per_group = weight.shape[1]
    flat = weight.reshape(group, x.shape[1] // group, -1).swapaxes(1, 2)
    parts = (flat @ x.reshape(x.shape[0], group, x.shape[1] // group, -1)).reshape(
        x.shape[0], group * per_group, *kernel, *spatial
    )
    span = [
        max((n - 1) * s + (k - 1) * d + 1, c + size)
        for n, s, k, d, c, size in zip(spatial, strides, kernel, dilations, crop, sizes, strict=True)
    ]
    keep = tuple(slice(c, c + size) for c, size in zip(crop, sizes, strict=True))
    return _at(overlapped(parts, span, strides, dilations), (slice(None), slice(None), *keep))


def overlapped(parts: Array, span: Sequence[int], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    """Return the sum (N, C, *span) of windows ``parts`` (N, C, *kernel, *out), each where :func:`windows` reads it."""
    rank = len(span)
    kernel, out = parts.shape[2 : 2 + rank], parts.shape[2 + rank :]
    canvas = np.zeros((*parts.shape[:2], *span), dtype=parts.dtype)
    for tap in itertools.product(*(range(k) for k in kernel)):
        where = tuple(
            slice(tap[i] * dilations[i], tap[i] * dilations[i] + (out[i] - 1) * strides[i] + 1, strides[i])
            for i in range(rank)
        )
        canvas[(slice(None), slice(None), *where)] += _at(parts, (slice(None), slice(None), *tap))
    return canvas


def add_bias(y: Array, bias: Array | None) -> Array:
    """Return ``y`` (N, M, *spatial) plus ``bias`` (M) along axis 1."""
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * (y.ndim - 2))


def conv(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Results:
    """ONNX Conv."""
    return (add_bias(convolve(x, weight, call), bias),)


def conv_transpose(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Results:
    """ONNX ConvTranspose."""
    return (add_bias(convolve_transposed(x, weight, call), bias),)


def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Results:
    """Y = alpha · A' B' + beta · C."""
    a = a.T if call.int("transA", 0) else a
    b = b.T if call.int("transB", 0) else b
    y = call.float("alpha", 1.0) * (a @ b)
    return (y if c is None else y + call.float("beta", 1.0) * c,)


def matmul(call: Call, a: Array, b: Array) -> Results:
    """numpy.matmul; com.microsoft FusedMatMul adds alpha, transA, transB on the last two axes."""
    if call.op == "FusedMatMul":
        if call.int("transBatchA", 0) or call.int("transBatchB", 0):
            raise ValueError("transBatchA and transBatchB are not known")
        a = a.swapaxes(-1, -2) if call.int("transA", 0) and a.ndim > 1 else a
        b = b.swapaxes(-1, -2) if call.int("transB", 0) and b.ndim > 1 else b
        return (call.float("alpha", 1.0) * (a @ b),)
    return (np.asarray(a @ b),)


OPERATORS: dict[OperatorKey, Operator] = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("com.microsoft", "FusedMatMul"): matmul,
}
