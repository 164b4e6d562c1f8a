"""Reductions and norms of constants: what weight normalization, weight standardisation and shape arithmetic are made of.

Sums of half types accumulate in float32 and round once, as a runtime's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.reference import evaluate
from normfuse.spec import AffineAxes, AffineLayout, Batch, NormSpec, PerChannel, Statistics, Stored, Trailing

Array = npt.NDArray[np.generic]
Axes = tuple[int, ...]

_HALVES = ("float16", "bfloat16")


def reduce(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """Evaluate ``node``, a ReduceX with ``axes`` as an attribute or (from version 18, ReduceSum 13) as an input."""
    data = arrays[0]
    if data is None:
        return None
    attribute = node.attributes.get("axes")
    given: Axes = ()
    if attribute is not None:
        given = tuple(attribute.as_ints())
    elif len(arrays) > 1 and arrays[1] is not None:
        given = tuple(int(axis) for axis in arrays[1].reshape(-1))
    if not given and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return None
    if any(not -data.ndim <= axis < data.ndim for axis in given):
        return None  # ill-formed; runtimes differ in what they make of it
    axes = tuple(sorted({axis % data.ndim for axis in given})) or tuple(range(data.ndim))
    wide = data.astype(np.float32) if str(data.dtype) in _HALVES else data
    with np.errstate(all="ignore"):
        result = FUNCTIONS[node.op_type](wide, axes)
        if node.attributes.get_int("keepdims", 1) == 1:
            result = np.expand_dims(result, axes)
        return np.asarray(result).astype(data.dtype)


def normalise(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """Evaluate a norm of a weight in float64: BatchNormalization, InstanceNormalization, LayerNormalization.

    A BatchNormalization in training mode (timm's StdConv) takes the statistics of its batch, which is the weight.
    """
    x = arrays[0]
    names = {"BatchNormalization": ("x", "scale", "bias", "mean", "var")}.get(node.op_type, ("x", "scale", "bias"))
    present = dict(zip(names, arrays, strict=False))
    if x is None or any(array is None for array in present.values()) or (x.ndim < 3 and node.op_type[0] == "I"):
        return None
    affine = AffineLayout("scale" in present, "bias" in present)
    statistics: Statistics = PerChannel()
    if node.op_type == "BatchNormalization":
        trains = len(node.outputs) > 1 or node.attributes.get_int("training_mode", 0) == 1
        statistics = Batch() if trains else Stored()
    elif node.op_type == "LayerNormalization":
        axis = node.attributes.get_int("axis", -1)
        statistics = Trailing(tuple(range(axis - x.ndim if axis >= 0 else axis, 0)))
        affine = AffineLayout("scale" in present, "bias" in present, AffineAxes.NORMALISED)
    spec = NormSpec(statistics, node.attributes.get_float("epsilon", 1e-5), affine=affine)
    return evaluate(spec, {name: array for name, array in present.items() if array is not None}).astype(x.dtype)


FUNCTIONS: dict[str, Callable[[Any, Axes], Any]] = {
    "ReduceMean": lambda x, axes: x.mean(axes),
    "ReduceSum": lambda x, axes: x.sum(axes),
    "ReduceProd": lambda x, axes: x.prod(axes),
    "ReduceMax": lambda x, axes: x.max(axes),
    "ReduceMin": lambda x, axes: x.min(axes),
    "ReduceL1": lambda x, axes: np.abs(x).sum(axes),
    "ReduceL2": lambda x, axes: np.sqrt(np.square(x).sum(axes)),
    "ReduceSumSquare": lambda x, axes: np.square(x).sum(axes),
}
