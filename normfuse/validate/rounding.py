"""Float types: which there are, their unit roundoff, and rounding a float64 array to one of them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

FLOATS: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.DOUBLE: np.dtype(np.float64),
}

# u = 2^-p where p is the number of significand bits, the hidden one included (IEEE 754; bfloat16 keeps 8).
_ROUNDOFF = {
    ir.DataType.FLOAT16: 2.0**-11,
    ir.DataType.BFLOAT16: 2.0**-8,
    ir.DataType.FLOAT: 2.0**-24,
    ir.DataType.DOUBLE: 2.0**-53,
}


def is_float(dtype: ir.DataType | None) -> bool:
    """Return whether the oracle holds values of ``dtype`` as float64."""
    return dtype in FLOATS


def unit_roundoff(dtype: ir.DataType) -> float:
    """Return u of ``dtype``; float32's for a type that is not a float."""
    return _ROUNDOFF.get(dtype, _ROUNDOFF[ir.DataType.FLOAT])


def largest(dtype: ir.DataType) -> float:
    """Return the largest finite number of a float ``dtype``."""
    return float(ml_dtypes.finfo(FLOATS[dtype]).max)  # type: ignore[no-untyped-call]


def round_to(array: Array, dtype: ir.DataType) -> Array:
    """Return ``array`` rounded to the float ``dtype`` (round to nearest, overflow to infinity), in that type."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(FLOATS[dtype])


def widen(array: Array) -> Array:
    """Return a float ``array`` as float64; anything else unchanged. No copy where it is float64 already."""
    if array.dtype == np.float64:
        return array
    if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float64)
    return array
