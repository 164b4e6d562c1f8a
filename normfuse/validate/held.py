"""A value as the oracle holds it, and the type that the graph gives to each result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call
from normfuse.validate.rounding import is_float


class Held(NamedTuple):
    """A value as the oracle holds it: float64, integers, bools, a list, or None; and the type that the graph gives
    it."""

    data: Any
    dtype: ir.DataType

    @property
    def nbytes(self) -> int:
        """The bytes of an array; 0 for what is none."""
        return int(self.data.nbytes) if isinstance(self.data, np.ndarray) else 0


def nominal_type(call: Call, result: Any, inputs: Sequence[Held | None]) -> ir.DataType:
    """Return the type that the graph gives ``result``: what the operator says, else that of its first float input."""
    if isinstance(result, np.ndarray) and result.dtype != np.float64:
        return ir.DataType.from_numpy(result.dtype)
    attribute = call.attributes.get(
        "to" if call.op == "Cast" else "dtype" if "dtype" in call.attributes else "output_dtype"
    )
    if isinstance(attribute, int) and is_float(ir.DataType(attribute)):
        return ir.DataType(attribute)
    tensor = call.attributes.get("value")
    if tensor is not None and hasattr(tensor, "dtype"):
        return ir.DataType(tensor.dtype)
    ordered = inputs[1:] if call.op in ("CastLike", "DequantizeLinear", "Where") else inputs
    floats = [item.dtype for item in ordered if item is not None and is_float(item.dtype)]
    return floats[0] if floats else ir.DataType.FLOAT
