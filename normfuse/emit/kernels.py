"""Which execution provider has a kernel of which norm operator, and which spelling of a norm is its fastest exact one.

Measured on onnxruntime 1.32, CPUExecutionProvider, one thread, by ``tools/measure_kernels.py``, which prints the tables.
KERNELS: an ``InferenceSession`` of the operator alone, created per type (float16 runs through inserted Casts around the
float32 kernel); what is missing does not load. GroupNormalization has no kernel of its own and is inlined. CUDA: nothing
was measured, so no operator counts as having a kernel there, and what a model has stays.
"""

from __future__ import annotations

import enum

import onnx_ir as ir

from normfuse.emit.target import Provider

_FLOAT16_FLOAT = frozenset({ir.DataType.FLOAT16, ir.DataType.FLOAT})
_WITH_DOUBLE = _FLOAT16_FLOAT | {ir.DataType.DOUBLE}
_WITH_BFLOAT16 = _FLOAT16_FLOAT | {ir.DataType.BFLOAT16}

KERNELS: dict[tuple[Provider, str], frozenset[ir.DataType]] = {
    (Provider.CPU, "InstanceNormalization"): _FLOAT16_FLOAT,
    (Provider.CPU, "BatchNormalization"): _WITH_DOUBLE,
    (Provider.CPU, "LayerNormalization"): _WITH_DOUBLE | {ir.DataType.BFLOAT16},
    (Provider.CPU, "RMSNormalization"): _WITH_DOUBLE,
    # onnxruntime's own; SimplifiedLayerNormalization stands in the default domain.
    (Provider.CPU, "SimplifiedLayerNormalization"): _WITH_DOUBLE | {ir.DataType.BFLOAT16},
    (Provider.CPU, "com.microsoft.SkipLayerNormalization"): _WITH_BFLOAT16,
    (Provider.CPU, "com.microsoft.SkipSimplifiedLayerNormalization"): _WITH_BFLOAT16,
}


class Spelling(enum.Enum):
    """How ``auto`` writes a norm. OPERATOR: the standard one of the opset, and as it is where the opset has none."""

    OPERATOR = "operator"
    RESHAPED = "Reshape, InstanceNormalization, Reshape, BatchNormalization"
    PRIMITIVE = "primitive"


FASTEST: dict[tuple[Provider, str], dict[ir.DataType, Spelling]] = {
    (Provider.CPU, "instance"): {
        ir.DataType.FLOAT: Spelling.OPERATOR,
        ir.DataType.FLOAT16: Spelling.OPERATOR,
    },
    (Provider.CPU, "group"): {
        ir.DataType.FLOAT: Spelling.RESHAPED,
        ir.DataType.FLOAT16: Spelling.RESHAPED,
        ir.DataType.BFLOAT16: Spelling.RESHAPED,
    },
    (Provider.CPU, "layer"): {
        ir.DataType.FLOAT: Spelling.OPERATOR,
        ir.DataType.FLOAT16: Spelling.OPERATOR,
        ir.DataType.BFLOAT16: Spelling.OPERATOR,
        ir.DataType.DOUBLE: Spelling.OPERATOR,
    },
    (Provider.CPU, "rms"): {
        ir.DataType.FLOAT: Spelling.OPERATOR,
        ir.DataType.FLOAT16: Spelling.OPERATOR,
        ir.DataType.DOUBLE: Spelling.OPERATOR,
    },
}
"""By provider, kind of norm and type of x. What is not here was not measured, or has no kernel: it stays as it is."""


def has_kernel(op_type: str, dtype: ir.DataType, provider: Provider = Provider.CPU) -> bool:
    """Whether ``provider`` runs ``op_type`` on ``dtype``; operators of another domain than the default with theirs."""
    return dtype in KERNELS.get((provider, op_type), frozenset())


def fastest(kind: str, dtype: ir.DataType, provider: Provider) -> Spelling | None:
    """Return the fastest exact spelling of a norm of ``kind`` on ``provider``; None where none was measured."""
    return FASTEST.get((provider, kind), {}).get(dtype)
