"""Sampling between the elements of a tensor at computed positions. Source: ONNX GridSample, DeformConv, RoiAlign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, Results
from normfuse.validate.op_linear import add_bias, window_pads
from normfuse.validate.rounding import Array

Tap = tuple[Array, Array]
"""Along one axis: an index for every position, perhaps outside, and the weight of the element there."""

_CUBIC = -0.75


def _linear(position: Array) -> list[Tap]:
    first = np.floor(position)
    return [(first, first + 1.0 - position), (first + 1.0, position - first)]


def _nearest(position: Array) -> list[Tap]:
    return [(np.rint(position), np.ones_like(position))]


def _cubic(position: Array) -> list[Tap]:
    """Keys' kernel with a = −3/4: (a+2)d³ − (a+3)d² + 1 within a step, a(d³ − 5d² + 8d − 4) within two."""
    first, a = np.floor(position), _CUBIC
    taps = []
    for step in (-1.0, 0.0, 1.0, 2.0):
        d = np.abs(position - first - step)
        near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
        far = a * (((d - 5.0) * d + 8.0) * d - 4.0)
        taps.append((first + step, near if step in (0.0, 1.0) else far))
    return taps


_KERNELS: dict[str, Callable[[Array], list[Tap]]] = {
    "linear": _linear, "bilinear": _linear, "nearest": _nearest, "cubic": _cubic, "bicubic": _cubic,
}  # fmt: skip


def _sampled(x: Array, taps: Sequence[list[Tap]]) -> Array:
    """Return x (N, C, *sizes) at the positions (N, *out) that ``taps`` gives by axis: (N, C, *out). Outside x is 0."""
    out = taps[0][0][0].shape
    flat = x.reshape(*x.shape[:2], -1)
    result = np.zeros((*x.shape[:2], math.prod(out[1:])), dtype=x.dtype)
    for chosen in itertools.product(*taps):
        index, weight = np.zeros(out, dtype=np.intp), np.ones(out)
        for (place, share), size in zip(chosen, x.shape[2:], strict=True):
            is_inside = (place >= 0) & (place < size)
            index = index * size + np.where(is_inside, place, 0).astype(np.intp)
            weight = np.where(is_inside | np.isnan(share), weight * share, 0.0)
        rows, shares = index.reshape(len(x), 1, -1), weight.reshape(len(x), 1, -1)
        # An element that has no share is not read: 0 · ∞ is NaN.
        result += np.where(shares == 0.0, 0.0, np.take_along_axis(flat, rows, axis=2) * shares)
    return result.reshape(*x.shape[:2], *out[1:])


def _reflected(position: Array, low: float, high: float) -> Array:
    """Fold positions back at ``low`` and ``high`` until they lie between."""
    if high <= low:
        return np.full_like(position, low)
    away = np.abs(position - low) % (2.0 * (high - low))
    return low + np.minimum(away, 2.0 * (high - low) - away)


def grid_sample(call: Call, x: Array, grid: Array) -> Results:
    """Sample x (N, C, *sizes) at grid (N, *out, rank), whose last axis counts the axes of x from the last one.

    −1 and 1 are the centres of the outermost elements with ``align_corners``, their far edges without.
    """
    is_aligned = bool(call.int("align_corners", 0))
    mode, padding = call.text("mode", "linear"), call.text("padding_mode", "zeros")
    if mode not in _KERNELS or padding not in ("zeros", "border", "reflection"):
        raise ValueError(f"mode {mode} with padding_mode {padding} is not known")
    kernel = _KERNELS[mode]

    def reflected(position: Array, size: int) -> Array:
        if padding != "reflection":
            return position
        return _reflected(position, *((0.0, size - 1.0) if is_aligned else (-0.5, size - 0.5)))

    def held(place: Array, size: int) -> Array:
        return np.clip(place, 0.0, size - 1.0) if padding == "border" else reflected(place, size)

    taps = []
    for axis, size in enumerate(x.shape[2:]):
        g = grid[..., x.ndim - 3 - axis]
        position = (g + 1.0) / 2.0 * (size - 1.0) if is_aligned else ((g + 1.0) * size - 1.0) / 2.0
        taps.append([(held(place, size), weight) for place, weight in kernel(reflected(position, size))])
    return (_sampled(x, taps),)


def deform_conv(
    call: Call, x: Array, weight: Array, offset: Array, bias: Array | None = None, mask: Array | None = None
) -> Results:
    """Convolution of x (N, C, *spatial) by weight (M, C/group, *kernel), each tap moved by ``offset`` and times ``mask``.

    offset: (N, offset_group · Πkernel · rank, *out); mask: the same without rank. Between elements x is linear.
    """
    kernel, rank = weight.shape[2:], weight.ndim - 2
    strides, dilations = call.ints("strides", (1,) * rank), call.ints("dilations", (1,) * rank)
    before, _ = window_pads(call, x.shape[2:], kernel)
    group, groups = call.int("group", 1), call.int("offset_group", 1)
    out = offset.shape[2:]
    batch = len(x) * groups
    moved = offset.reshape(batch, -1, rank, *out)
    factors = None if mask is None else mask.reshape(batch, -1, 1, *out)
    planes = x.reshape(batch, -1, *x.shape[2:])
    starts = np.meshgrid(*(np.arange(n) * s - p for n, s, p in zip(out, strides, before, strict=True)), indexing="ij")
    columns = []
    for number, tap in enumerate(np.ndindex(*kernel)):
        positions = (starts[axis] + tap[axis] * dilations[axis] + moved[:, number, axis] for axis in range(rank))
        part = _sampled(planes, [_linear(position) for position in positions])
        part = part if factors is None else part * factors[:, number]
        columns.append(part.reshape(len(x), x.shape[1], *out))
    rows = np.stack(columns, axis=2).reshape(len(x), group, -1, math.prod(out))
    product = weight.reshape(group, weight.shape[0] // group, -1) @ rows
    return (add_bias(product.reshape(len(x), -1, *out), bias),)


def roi_align(call: Call, x: Array, regions: Array, images: Array) -> Results:
    """Mean of bilinear samples in each bin of each region: x (N, C, H, W), regions (R, 4) to (R, C, height, width).

    A sample farther than one element outside is 0, one that is nearer takes the value at the border.
    """
    if call.text("mode", "avg") != "avg":
        raise NotOurs
    transformation = "half_pixel" if call.opset >= 16 else "output_half_pixel"
    has_half_pixels = call.text("coordinate_transformation_mode", transformation) == "half_pixel"
    bins = (call.int("output_height", 1), call.int("output_width", 1))
    ratio = call.int("sampling_ratio", 0)
    corners = regions[:, [1, 0, 3, 2]] * call.float("spatial_scale", 1.0) - (0.5 if has_half_pixels else 0.0)
    result = np.zeros((len(regions), x.shape[1], *bins))
    for number, (corner, image) in enumerate(zip(corners, images, strict=True)):
        extents = corner[2:] - corner[:2] if has_half_pixels else np.maximum(corner[2:] - corner[:2], 1.0)
        steps = extents / bins
        counts = [ratio if ratio > 0 else math.ceil(step) for step in steps]
        if min(counts) <= 0:
            continue
        axes = [
            start + (np.arange(bins_ * count) + 0.5) / count * step
            for start, step, bins_, count in zip(corner[:2], steps, bins, counts, strict=True)
        ]
        taps = []
        for position, size in zip(np.meshgrid(*axes, indexing="ij"), x.shape[2:], strict=True):
            is_near = (position >= -1.0) & (position <= size)
            held = np.clip(position, 0.0, size - 1.0)[None]
            taps.append([(place, np.where(is_near, weight, 0.0)) for place, weight in _linear(held)])
        samples = _sampled(x[image : image + 1], taps)[0]
        result[number] = samples.reshape(-1, bins[0], counts[0], bins[1], counts[1]).mean(axis=(2, 4))
    return (result,)


OPERATORS: dict[OperatorKey, Operator] = {
    ("", "GridSample"): grid_sample,
    ("", "DeformConv"): deform_conv,
    ("", "RoiAlign"): roi_align,
}
