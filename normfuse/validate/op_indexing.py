"""Gathering from and scattering to computed places: onnx.reference goes about them element by element.

Source: ONNX GatherND, ScatterND, ScatterElements, Scatter, Col2Im.
"""

from __future__ import annotations

import math

import numpy as np

from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, Results
from normfuse.validate.op_linear import overlapped
from normfuse.validate.rounding import Array

_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(call: Call, data: Array, places: tuple[Array, ...], updates: Array) -> Results:
    """Return ``data`` with ``updates`` at ``places``: the last one where a place comes twice, or all, by ``reduction``."""
    reduction = call.text("reduction", "none")
    result = data.copy()
    if reduction == "none":
        result[places] = updates
    elif reduction in _REDUCTIONS:
        _REDUCTIONS[reduction].at(result, places, updates)
    else:
        raise ValueError(f"reduction {reduction} is not known")
    return (result,)


def gather_nd(call: Call, data: Array, indices: Array) -> Results:
    """Return data[b, indices[b, …, :]] for every index b of the first ``batch_dims`` axes."""
    batch, depth = call.int("batch_dims", 0), indices.shape[-1]
    count = math.prod(indices.shape[:batch])
    rows = indices.reshape(count, -1, depth)
    found = data.reshape(count, *data.shape[batch:])[
        (np.arange(count)[:, None], *(rows[..., axis] for axis in range(depth)))
    ]
    return (found.reshape(*indices.shape[:-1], *data.shape[batch + depth :]),)


def scatter_nd(call: Call, data: Array, indices: Array, updates: Array) -> Results:
    """ONNX ScatterND: ``updates`` replaces or is reduced into data[indices]."""
    if indices.shape[-1] == 0:
        raise NotOurs
    return _scattered(call, data, tuple(np.moveaxis(indices, -1, 0)), updates)


def scatter_elements(call: Call, data: Array, indices: Array, updates: Array) -> Results:
    """ONNX ScatterElements, and Scatter, its former name: along ``axis``, an index for every element of ``updates``."""
    places = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[call.int("axis", 0)] = indices
    return _scattered(call, data, tuple(places), updates)


def column_to_image(call: Call, columns: Array, image: Array, block: Array) -> Results:
    """Return the sum of overlapping blocks: columns (N, C · Πblock, L) to (N, C, *image)."""
    sizes, kernel = tuple(map(int, image)), tuple(map(int, block))
    rank = len(sizes)
    strides, dilations = call.ints("strides", (1,) * rank), call.ints("dilations", (1,) * rank)
    pads = call.ints("pads", (0,) * (2 * rank))
    span = [size + pads[axis] + pads[rank + axis] for axis, size in enumerate(sizes)]
    out = [(span[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    taps = columns.reshape(columns.shape[0], -1, *kernel, *out)
    inner = tuple(slice(pads[axis], pads[axis] + size) for axis, size in enumerate(sizes))
    return (np.asarray(overlapped(taps, span, strides, dilations)[(slice(None), slice(None), *inner)]),)


OPERATORS: dict[OperatorKey, Operator] = {
    ("", "GatherND"): gather_nd,
    ("", "ScatterND"): scatter_nd,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "Col2Im"): column_to_image,
}
