"""What rounding does to one operator: the standard deviation, in units of u, of the error of each element it writes.

P_g, the budget of rounding, is the rms over runs in which every result gets u·κ·N(0, 1) of this size added and every
initializer is multiplied by 1 + u·U(−1, 1). Half types accumulate in float32 on every provider that we know, so the
part that grows with the accumulation length, and the statistics of a norm, take float32's u there; each result is
still rounded once to its own type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normfuse.validate.call import Call
from normfuse.validate.op_linear import convolve, convolve_transposed
from normfuse.validate.op_norms import along_channel, is_training
from normfuse.validate.rounding import Array

_FLOAT_ROUNDOFF = 2.0**-24
# A result rounded to nearest is off by a uniform error of half-width u·|y|: its deviation is that over √3.
_UNIFORM = 1.0 / math.sqrt(3.0)

# They move, choose or negate numbers and so round nothing.
EXACT = frozenset(
    [
        "Abs",
        "ArgMax",
        "ArgMin",
        "Ceil",
        "Clip",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "If",
        "Loop",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Not",
        "OneHot",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Round",
        "Scan",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ]
)
# Operators of many roundings whose inner sums we do not look into: one rounding of the size of the whole tensor is
# added.
_COMPOUND = frozenset(
    [
        "Attention",
        "DFT",
        "Einsum",
        "GRU",
        "GridSample",
        "GroupQueryAttention",
        "LRN",
        "LSTM",
        "LpPool",
        "MatMulNBits",
        "MultiHeadAttention",
        "RNN",
        "Resize",
        "RotaryEmbedding",
        "STFT",
        "Upsample",
    ]
)
_CONVOLUTIONS = {"Conv": convolve, "FusedConv": convolve, "ConvTranspose": convolve_transposed}
_MEANS = frozenset({"ReduceMean", "AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True, slots=True)
class Noise:
    """One perturbed run: all its noise is multiplied by ``scale``."""

    seed: int
    scale: float = 1.0


def ordinary(runs: int) -> tuple[Noise, ...]:
    """Return the noise of ``runs`` runs that measure P."""
    return tuple(Noise(seed) for seed in range(runs))


def undecided(runs: int, scale: float) -> tuple[Noise, ...]:
    """Return the noise of ``runs`` runs that show which discrete results lie near a tie.

    In pairs of opposite sign: whichever side the tie is on, one of the two moves towards it.
    """
    return tuple(Noise(seed // 2, -scale if seed % 2 else scale) for seed in range(runs))


def deviation(call: Call, inputs: Sequence[Array | None], y: Array, roundoff: float) -> Array | None:
    """Return the standard deviation of the rounding error of ``y`` (any shape that broadcasts to y's), or None if
    exact.

    Linear maps: sqrt(K/6)·sqrt(Σ w²x²), K the accumulation length; BatchNormalization: sqrt((a·x)² + (a·μ)² + β²)/√3;
    other norms the same with |γ||μ|/σ in place of a·μ; else |y|/√3.
    """
    if call.op in EXACT:
        return None
    arrays = [item for item in inputs if item is not None]
    rounded = roundoff * _UNIFORM * np.abs(y)
    inner = min(roundoff, _FLOAT_ROUNDOFF)
    if call.op in _CONVOLUTIONS:
        terms = math.prod(arrays[1].shape[1:])
        if call.op == "ConvTranspose":
            terms = arrays[1].shape[0] // call.int("group", 1) * math.prod(arrays[1].shape[2:])
        x, weight = _scaled(arrays[0]), _scaled(arrays[1])
        squares = _CONVOLUTIONS[call.op](np.square(x[0]), np.square(weight[0]), call)
        return np.hypot(rounded, inner * x[1] * weight[1] * np.sqrt(terms / 6.0 * squares))
    if call.op in ("Gemm", "MatMul", "FusedMatMul"):
        return np.hypot(rounded, inner * _product(call, arrays[0], arrays[1]))
    if call.op in ("ReduceSum", "ReduceMean", "ReduceL1") and arrays[0].size and y.size:
        # One sum of K terms is a product with ones: sqrt(K/6)·sqrt(Σx²); a mean divides it by K. Bounded by the
        # tensor's rms.
        length = arrays[0].size / y.size
        size = math.sqrt(length / 6.0) * math.sqrt(float(np.square(arrays[0]).sum()) / y.size)
        return np.hypot(rounded, inner * size / (length if call.op == "ReduceMean" else 1.0))
    if call.op in _MEANS:
        return np.hypot(rounded, inner * math.sqrt(float(np.square(arrays[0]).mean()) / 6.0))
    if call.op == "BatchNormalization":
        return _of_batch_norm(call, arrays, roundoff)
    if "Norm" in call.op and call.op not in ("LpNormalization",):
        return np.hypot(rounded, _of_norm(call, arrays, y, roundoff, inner))
    if call.op in ("Softmax", "LogSoftmax"):
        # exp(x) turns an absolute error u·|x| into a relative one.
        logarithm = np.log(np.maximum(y, 1e-300)) if call.op == "Softmax" else y
        return rounded * np.hypot(1.0, logarithm)
    if call.op in _COMPOUND:
        return np.asarray(np.hypot(rounded, roundoff * np.sqrt(np.mean(np.square(y)))))
    return rounded


def _scaled(array: Array) -> tuple[Array, float]:
    """Return ``array`` as float32 over its largest magnitude, and that: a deviation is wanted to a percent."""
    largest = float(np.abs(array).max(initial=0.0))
    if not math.isfinite(largest) or not largest:
        return array.astype(np.float32), 1.0
    return (array * (1.0 / largest)).astype(np.float32), largest


def _product(call: Call, a: Array, b: Array) -> Array:
    if call.int("transA", 0) and a.ndim > 1:
        a = a.swapaxes(-1, -2)
    if call.int("transB", 0) and b.ndim > 1:
        b = b.swapaxes(-1, -2)
    alpha = call.float("alpha", 1.0)
    return np.asarray(abs(alpha) * np.sqrt(a.shape[-1] / 6.0 * (np.square(a) @ np.square(b))))


def _of_batch_norm(call: Call, arrays: Sequence[Array], roundoff: float) -> Array:
    x, scale, bias, mean, var = arrays[:5]
    if scale.ndim != 1:
        return roundoff * np.abs(x)  # ``spatial`` = 0, one statistic per activation
    if is_training(call):
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axis=axes), x.var(axis=axes)
    factor = scale / np.sqrt(var + call.float("epsilon", 1e-5))
    constant = along_channel(np.square(factor * mean) + np.square(bias), x.ndim)
    return np.asarray(roundoff * _UNIFORM * np.sqrt(np.square(along_channel(factor, x.ndim) * x) + constant))


def _of_norm(call: Call, arrays: Sequence[Array], y: Array, roundoff: float, inner: float) -> Array:
    """Return the part of a norm that grows with the mean: |γ||μ|/σ at the statistics' u, and β at the result's.

    γ and β by their largest magnitude, μ/σ by the largest of the tensor's sets: only ever a floor of the budget.
    """
    x = arrays[0] + arrays[1] if call.op.startswith("Skip") and arrays[1].shape == arrays[0].shape else arrays[0]
    vectors = [np.abs(item).max() for item in arrays[1:] if item.ndim <= 1 and item.size]
    gamma = float(vectors[0]) if vectors else 1.0
    beta = float(vectors[1]) if len(vectors) > 1 else 0.0
    axes = _statistics_axes(call, x)
    if "RMS" in call.op or "Simplified" in call.op:
        ratio = np.zeros(1)
    else:
        ratio = np.abs(x.mean(axis=axes, keepdims=True)) / np.sqrt(
            x.var(axis=axes, keepdims=True) + call.float("epsilon", 1e-5)
        )
    typical = float(np.sqrt(np.mean(np.square(ratio))))
    return np.asarray(_UNIFORM * math.hypot(inner * gamma * typical, roundoff * beta))


def _statistics_axes(call: Call, x: Array) -> tuple[int, ...]:
    if call.op == "InstanceNormalization":
        return tuple(range(2, x.ndim))
    if call.op.startswith("Group") or call.op == "SkipGroupNorm":
        return tuple(range(1, x.ndim))
    if call.op == "MeanVarianceNormalization":
        return call.ints("axes", (0, 2, 3))
    return tuple(range(call.int("axis", -1) % x.ndim, x.ndim))
