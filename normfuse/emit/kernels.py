"""Which execution provider has a kernel of which norm operator, by type of x.

Measured on onnxruntime 1.32, CPUExecutionProvider: an ``InferenceSession`` of the operator alone, created per type
(float16 runs through inserted Casts around the float32 kernel); what is missing fails with NOT_IMPLEMENTED. The table
holds what is used to decide how a norm is written; GroupNormalization has no kernel of its own and is inlined.
"""

from __future__ import annotations

import onnx_ir as ir

from normfuse.emit.target import Provider

_FLOAT16_FLOAT = frozenset({ir.DataType.FLOAT16, ir.DataType.FLOAT})

KERNELS: dict[tuple[Provider, str], frozenset[ir.DataType]] = {
    (Provider.CPU, "InstanceNormalization"): _FLOAT16_FLOAT,
    (Provider.CPU, "BatchNormalization"): _FLOAT16_FLOAT | {ir.DataType.DOUBLE},
    (Provider.CPU, "LayerNormalization"): _FLOAT16_FLOAT | {ir.DataType.DOUBLE, ir.DataType.BFLOAT16},
    (Provider.CPU, "RMSNormalization"): _FLOAT16_FLOAT | {ir.DataType.DOUBLE},
}


def has_kernel(op_type: str, dtype: ir.DataType, provider: Provider = Provider.CPU) -> bool:
    """Whether ``provider`` runs ``op_type`` of the default domain on ``dtype``."""
    return dtype in KERNELS.get((provider, op_type), frozenset())
