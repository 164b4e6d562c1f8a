"""What a Slice keeps: which indices, along which axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.passes.spread import Dims, Indices

Integers = Callable[[ir.Value | None], Dims | None]
"""Reads a vector of integers, None for an entry that is not known."""


def kept(node: ir.Node, dims: Dims, integers: Integers) -> dict[int, Indices | None] | None:
    """Return, by axis, the indices that a Slice of a value of sizes ``dims`` keeps.

    None for an axis along which they are not known, or for all where not even the axes are.
    """
    rank = len(dims)
    starts: Dims | None
    ends: Dims | None
    if "starts" in node.attributes:  # below opset 10
        starts = tuple(node.attributes.get_ints("starts", ()))
        ends = tuple(node.attributes.get_ints("ends", ()))
        axes: Dims | None = tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
        steps: Dims | None = None
    else:
        starts, ends, axes, steps = (integers(input_at(node, place)) for place in (1, 2, 3, 4))
        if (axes is None and input_at(node, 3) is not None) or (steps is None and input_at(node, 4) is not None):
            return None
    if starts is None or ends is None:
        return None if axes is None or None in axes else {(axis or 0) % rank: None for axis in axes}
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    found: dict[int, Indices | None] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis is None or not -rank <= axis < rank:
            return None
        size = dims[axis]
        is_known = start is not None and end is not None and step is not None and size is not None
        found[axis % rank] = _range(start or 0, end or 0, step or 1, size or 0) if is_known else None
    return found


def _range(start: int, end: int, step: int, size: int) -> Indices:
    """Return what ``[start:end:step]`` keeps of ``size`` elements, clamped as ONNX Slice does."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return np.arange(min(max(start, 0), size), min(max(end, 0), size), step, dtype=np.int64)
    return np.arange(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step, dtype=np.int64)
