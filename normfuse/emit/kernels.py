"""Which execution provider has a kernel of which norm operator, and which spelling of a norm is its fastest exact one.

Measured by ``tools/measure_kernels.py``, which prints the tables: onnxruntime 1.32, CPUExecutionProvider, one thread;
onnxruntime 1.31.1, CUDAExecutionProvider, on one NVIDIA H200 (docs/benchmarks/cuda.md). KERNELS: an ``InferenceSession`` of
the operator alone at opset 23, created per type (float16 runs through inserted Casts around the CPU's float32 kernel); what
is missing does not load, or falls back to the CPU. GroupNormalization has no kernel of its own and is inlined.
"""

from __future__ import annotations

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

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
    # CUDA has no kernel for InstanceNormalization 22, which runs on the CPU between two copies.
    (Provider.CUDA, "BatchNormalization"): _WITH_DOUBLE,
    (Provider.CUDA, "LayerNormalization"): _WITH_DOUBLE | {ir.DataType.BFLOAT16},
    (Provider.CUDA, "RMSNormalization"): _WITH_DOUBLE | {ir.DataType.BFLOAT16},
    (Provider.CUDA, "SimplifiedLayerNormalization"): _WITH_DOUBLE | {ir.DataType.BFLOAT16},
    (Provider.CUDA, "com.microsoft.SkipLayerNormalization"): _WITH_BFLOAT16,
    (Provider.CUDA, "com.microsoft.SkipSimplifiedLayerNormalization"): _WITH_BFLOAT16,
}


class Spelling(enum.Enum):
    """How ``auto`` writes a norm.

    OPERATOR: the standard one of the opset; as it is where the opset has none. PRIMITIVE: elementary operators instead of
    the operator that the model has; as it is where it has none. FUSIBLE: elementary operators that the runtime fuses,
    where the opset has no operator. NATIVE: the operator of ours that fuses it with its residual and activation.
    """

    OPERATOR = "operator"
    RESHAPED = "Reshape, InstanceNormalization, Reshape, BatchNormalization"
    PRIMITIVE = "primitive"
    FUSIBLE = "elementary operators that the runtime fuses"
    NATIVE = "an operator of ai.normfuse"


_HALF, _BRAIN, _FLOAT, _DOUBLE = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE
_O, _R, _P = Spelling.OPERATOR, Spelling.RESHAPED, Spelling.PRIMITIVE

# Times a copy of x, measured. group: GroupNormalization 8 (float) and NaN at mean/std 1e4, RESHAPED 2.9-3.1, primitive
# 5.5-6.1. instance: operator 1.5-1.7, primitive 5.1-5.2; no kernel for bfloat16 and float64. layer: operator 1.6-2.0,
# primitive 4.4-6.1, but the kernel for bfloat16 is slow: 24-29 against 13-18; float64 is even, and stays. rms: operator
# 1.4, primitive 2.9-3.7; no kernel for bfloat16. Below the opset of the operator FUSIBLE: layer, float 1.7 (primitive 4.1);
# rms, float 1.3 (3.1-3.2), float16 3.9-5.0 (5.9-8.4), bfloat16 10 (12-13).
FASTEST: dict[tuple[Provider, str], dict[ir.DataType, Spelling]] = {
    (Provider.CPU, "instance"): {_HALF: _O, _BRAIN: _P, _FLOAT: _O, _DOUBLE: _P},
    (Provider.CPU, "group"): {_HALF: _R, _BRAIN: _R, _FLOAT: _R, _DOUBLE: _P},
    (Provider.CPU, "layer"): {_HALF: _O, _BRAIN: _P, _FLOAT: _O, _DOUBLE: _O},
    (Provider.CPU, "rms"): {_HALF: _O, _BRAIN: _P, _FLOAT: _O, _DOUBLE: _O},
    # group: GroupNormalization 4.5-6.4 and NaN at mean/std 1e4, primitive 3.2-5.6, RESHAPED 119-267; instance: operator
    # 114-179, primitive 3.8-6.9; layer: operator 1.1-2.6, primitive 3.2-6.6; rms: operator 1.1-2.5, primitive 2.6-5.3.
    (Provider.CUDA, "instance"): {_HALF: _P, _BRAIN: _P, _FLOAT: _P},
    (Provider.CUDA, "group"): {_HALF: _P, _BRAIN: _P, _FLOAT: _P},
    (Provider.CUDA, "layer"): {_HALF: _O, _BRAIN: _O, _FLOAT: _O},
    (Provider.CUDA, "rms"): {_HALF: _O, _BRAIN: _O, _FLOAT: _O},
}
"""By provider, kind of norm and type of x. What is not here was not measured: it stays as it is."""

MEASURED_FROM: dict[tuple[Provider, str], int] = {(Provider.CUDA, "InstanceNormalization"): 22}
"""The opset from which FASTEST speaks of models with an operator: an older version of it may have a kernel, untimed."""

_ALL = frozenset({_HALF, _BRAIN, _FLOAT, _DOUBLE})

# CPU, by tools/break_even.py, times as fast as what is written without the library, at 65536 elements: group 2.0 (float),
# 3.7 (float16), 3.6 (bfloat16), 6.8 (double); instance 1.5, 1.9, 5.6, 5.9; layer 2.5, 2.2, 5.0, 19; rms 1.7, 1.9, 4.6, 5.1.
# On CUDA, times a copy of x: group 1.3-2.0, instance 1.0-2.0, layer 1.1-2.0, rms 1.1-2.1, which is no gain for float.
NATIVE: dict[tuple[Provider, str], frozenset[ir.DataType]] = {
    (Provider.CPU, "instance"): _ALL,
    (Provider.CPU, "group"): _ALL,
    (Provider.CPU, "layer"): _ALL,
    (Provider.CPU, "rms"): _ALL,
    (Provider.CUDA, "instance"): _ALL - {_DOUBLE},
    (Provider.CUDA, "group"): _ALL - {_DOUBLE},
    (Provider.CUDA, "layer"): _ALL - {_DOUBLE},
    (Provider.CUDA, "rms"): frozenset({_HALF, _BRAIN}),
}
"""Where the native operators win over an operator of onnxruntime, by provider and kind of norm."""

NATIVE_TYPES: dict[Provider, frozenset[ir.DataType]] = {Provider.CPU: _ALL, Provider.CUDA: _ALL - {_DOUBLE}}
"""Where they have kernels, which win over elementary operators: those take 2-10 times as long."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The fewest elements from which a native operator is worth its call: ``call + row * lines``, less where it saves calls.

    A line is a run of consecutive elements that share parameters, or of a layer norm statistics: a row of a layer norm, the
    positions of one channel, or the channels of one position where they lie last.
    """

    call: int
    row: int

    def is_reached(self, lines: int | None, length: int) -> bool:
        """Whether ``lines`` of ``length`` elements are as many; of so many lines that a call is nothing, where None."""
        return length >= self.row if lines is None else lines * length >= self.call + self.row * lines


_ALONE, _JOINED, _LAST = "", "joined", "channels last"

BREAK_EVEN: dict[tuple[Provider, str, ir.DataType, str], BreakEven] = {
    (Provider.CPU, "group", _FLOAT, _ALONE): BreakEven(-256, 8),
    (Provider.CPU, "group", _FLOAT, _JOINED): BreakEven(-256, 8),
    (Provider.CPU, "group", _HALF, _ALONE): BreakEven(-1024, 8),
    (Provider.CPU, "group", _HALF, _JOINED): BreakEven(-1024, 8),
    (Provider.CPU, "group", _DOUBLE, _JOINED): BreakEven(-256, 8),
    (Provider.CPU, "instance", _FLOAT, _ALONE): BreakEven(512, 64),
    (Provider.CPU, "instance", _HALF, _ALONE): BreakEven(512, 64),
    (Provider.CPU, "instance", _FLOAT, _JOINED): BreakEven(-256, 24),
    (Provider.CPU, "instance", _HALF, _JOINED): BreakEven(-256, 24),
    (Provider.CPU, "instance", _FLOAT, _LAST): BreakEven(1024, 8),
    (Provider.CPU, "instance", _HALF, _LAST): BreakEven(1024, 8),
    (Provider.CPU, "layer", _FLOAT, _ALONE): BreakEven(-256, 24),
    (Provider.CPU, "layer", _FLOAT, _JOINED): BreakEven(-256, 24),
}
"""By provider, kind of norm, type, and what it takes in or where its channels lie: "", "joined" (a residual, an activation),
"channels last". What is not here wins at every size. Measured by ``tools/break_even.py``, onnxruntime 1.32, one thread.
"""


def has_kernel(op_type: str, dtype: ir.DataType, provider: Provider = Provider.CPU) -> bool:
    """Whether ``provider`` runs ``op_type`` on ``dtype``; operators of another domain than the default with theirs."""
    return dtype in KERNELS.get((provider, op_type), frozenset())


def fastest(kind: str, dtype: ir.DataType, provider: Provider) -> Spelling | None:
    """Return the fastest exact spelling of a norm of ``kind`` on ``provider``; None where none was measured."""
    return FASTEST.get((provider, kind), {}).get(dtype)


def is_timed(operators: AbstractSet[str], opset: int, provider: Provider) -> bool:
    """Whether FASTEST speaks of a norm with these ``operators`` in a model of ``opset``."""
    return all(opset >= MEASURED_FROM.get((provider, operator), 0) for operator in operators)


def native_wins(kind: str, dtype: ir.DataType, provider: Provider, *, alone: bool = False) -> bool:
    """Whether the native operators were measured to be the fastest for a norm of ``kind``, where their library is.

    alone: the model's opset has no operator for it.
    """
    types = NATIVE_TYPES.get(provider) if alone else NATIVE.get((provider, kind))
    return types is not None and dtype in types


def is_worth_its_call(
    kind: str, dtype: ir.DataType, provider: Provider, *, joined: bool, last: bool, lines: int | None, length: int
) -> bool:
    """Whether ``lines`` of ``length`` elements (BreakEven) are enough for a native operator; lines None are unknown.

    ``joined``: it takes in a residual or an activation, another call otherwise. ``last``: its channels lie last.
    """
    least = BREAK_EVEN.get((provider, kind, dtype, _LAST if last else _JOINED if joined else _ALONE))
    return least is None or least.is_reached(lines, length)
