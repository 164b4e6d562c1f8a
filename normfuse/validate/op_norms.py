"""Normalizations in float64, all statistics in two passes.

onnx.reference is not usable for most of them: BatchNormalization 9 to 13 takes batch statistics when ``momentum`` is
set and 7 rejects ``spatial``; GroupNormalization computes E[x²] − E[x]²; MeanVarianceNormalization mixes float32.
Source: ONNX operator changelog; onnxruntime ContribOperators.md for com.microsoft.
"""

from __future__ import annotations

import math

import numpy as np

from normfuse.validate.call import Call, Operator, OperatorKey, Results
from normfuse.validate.op_basic import activate
from normfuse.validate.rounding import Array


def along_channel(vector: Array, rank: int) -> Array:
    """Return ``vector`` (C) as (1, C, 1, …) of ``rank``."""
    return vector.reshape(1, -1, *(1,) * (rank - 2))


def is_training(call: Call) -> bool:
    """Return whether a BatchNormalization takes batch statistics.

    From opset 14 an attribute says so; before, the number of outputs: more than one is training.
    """
    if call.opset >= 14:
        return bool(call.int("training_mode", 0))
    return any(call.outputs[1:])


def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Results:
    """y = (x − μ) / sqrt(σ² + ε) · γ + β with stored μ, σ² (C), or those of the batch in training mode.

    ``spatial`` = 0 (opset 1 to 8): one statistic per activation, operands of shape (C, *spatial).
    Training returns also the running statistics, and before opset 14 the saved ones.
    """
    epsilon = call.float("epsilon", 1e-5)
    momentum = call.float("momentum", 0.9)
    spatial = call.opset >= 9 or bool(call.int("spatial", 1))
    shape = (1, -1, *(1,) * (x.ndim - 2)) if spatial else (1, *x.shape[1:])
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    if not is_training(call):
        return (
            _normalize(x, mean.reshape(shape), var.reshape(shape), epsilon) * scale.reshape(shape)
            + bias.reshape(shape),
        )
    own_mean, own_var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = _normalize(x, own_mean, own_var, epsilon) * scale.reshape(shape) + bias.reshape(shape)
    flat_mean, flat_var = own_mean.reshape(mean.shape), own_var.reshape(var.shape)
    running = (mean * momentum + flat_mean * (1 - momentum), var * momentum + flat_var * (1 - momentum))
    return (y, *running, flat_mean, flat_var)[: len(call.outputs)]


def _normalize(x: Array, mean: Array, var: Array, epsilon: float) -> Array:
    return (x - mean) / np.sqrt(var + epsilon)


def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Results:
    """Statistics of one channel of one sample; γ, β (C)."""
    axes = tuple(range(2, x.ndim))
    y = _normalize(x, x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True), call.float("epsilon", 1e-5))
    return (y * along_channel(scale, x.ndim) + along_channel(bias, x.ndim),)


def layer_normalization(call: Call, x: Array, scale: Array, bias: Array | None = None) -> Results:
    """Statistics over the axes from ``axis`` on; returns Y, Mean, InvStdDev."""
    axis = call.int("axis", -1)
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1.0 / np.sqrt(x.var(axis=axes, keepdims=True) + call.float("epsilon", 1e-5))
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias, mean, inverse)


def rms_normalization(call: Call, x: Array, scale: Array | None = None) -> Results:
    """y = x / sqrt(mean(x²) + ε) · γ over the axes from ``axis`` on; also SimplifiedLayerNormalization's InvStdDev."""
    axes = tuple(range(call.int("axis", -1) % x.ndim, x.ndim))
    inverse = 1.0 / np.sqrt((x * x).mean(axis=axes, keepdims=True) + call.float("epsilon", 1e-5))
    y = x * inverse
    return (y if scale is None else y * scale, inverse)[: len(call.outputs)]


def group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Results:
    """Statistics of one group of one sample. γ, β are (G) in opset 18 to 20 and (C) from 21: told by their length."""
    groups = call.int("num_groups", 1)
    parts = x.reshape(x.shape[0], groups, -1)
    y = _normalize(
        parts, parts.mean(axis=2, keepdims=True), parts.var(axis=2, keepdims=True), call.float("epsilon", 1e-5)
    ).reshape(x.shape)
    per_channel = [_per_channel(vector, x.shape[1], groups) for vector in (scale, bias)]
    return (y * along_channel(per_channel[0], x.ndim) + along_channel(per_channel[1], x.ndim),)


def _per_channel(vector: Array, channels: int, groups: int) -> Array:
    if vector.size not in (channels, groups):
        raise ValueError(f"scale and bias need {channels} or {groups} entries; got {vector.size}")
    return vector if vector.size == channels else np.repeat(vector, channels // groups)


def mean_variance_normalization(call: Call, x: Array) -> Results:
    """y = (x − μ) / (σ + 1e-9) over ``axes``: the body that ONNX gives, epsilon outside the root."""
    axes = call.ints("axes", (0, 2, 3))
    return ((x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-9),)


def lp_normalization(call: Call, x: Array) -> Results:
    """y = x / ‖x‖_p along ``axis``; 0 where the norm is 0."""
    axis = call.int("axis", -1)
    norm = (
        np.abs(x).sum(axis=axis, keepdims=True)
        if call.int("p", 2) == 1
        else np.sqrt((x * x).sum(axis=axis, keepdims=True))
    )
    return (np.where(norm == 0, 0.0, x / np.where(norm == 0, 1.0, norm)),)


def local_response(call: Call, x: Array) -> Results:
    """ONNX LRN: y = x / (bias + alpha/size · Σ x²)^beta over ``size`` channels."""
    size = call.int("size", 1)
    square = x * x
    total = np.zeros_like(x)
    for channel in range(x.shape[1]):
        low = max(0, channel - (size - 1) // 2)
        high = min(x.shape[1], channel + math.ceil((size - 1) / 2) + 1)
        total[:, channel] = square[:, low:high].sum(axis=1)
    return (x / (call.float("bias", 1.0) + call.float("alpha", 1e-4) / size * total) ** call.float("beta", 0.75),)


def skip_layer_normalization(
    call: Call, x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None
) -> Results:
    """com.microsoft SkipLayerNormalization: LayerNorm of x + skip + bias; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    mean = total.mean(axis=-1, keepdims=True)
    inverse = 1.0 / np.sqrt(total.var(axis=-1, keepdims=True) + call.float("epsilon", 1e-12))
    y = (total - mean) * inverse * gamma
    return (y if beta is None else y + beta, mean, inverse, total)


def skip_simplified(call: Call, x: Array, skip: Array, gamma: Array, bias: Array | None = None) -> Results:
    """com.microsoft SkipSimplifiedLayerNormalization: RMSNorm of x + skip + bias."""
    total = x + skip if bias is None else x + skip + bias
    inverse = 1.0 / np.sqrt((total * total).mean(axis=-1, keepdims=True) + call.float("epsilon", 1e-12))
    return (total * inverse * gamma, np.zeros(0), inverse, total)


def group_norm_contrib(
    call: Call, x: Array, gamma: Array, beta: Array, skip: Array | None = None, bias: Array | None = None
) -> Results:
    """com.microsoft GroupNorm and SkipGroupNorm: channels last by default, ``activation`` 1 is SiLU.

    SkipGroupNorm normalizes x + skip + bias (skip (N, H, W, C), (N, 1, 1, C) or (N, C)) and returns the sum as well.
    """
    last = bool(call.int("channels_last", 1))
    total = x
    if skip is not None:
        total = total + (skip.reshape(x.shape[0], 1, 1, -1) if skip.ndim == 2 and x.ndim == 4 else skip)
    if bias is not None:
        total = total + bias
    first = np.moveaxis(total, -1, 1) if last else total
    inner = Call(
        "GroupNormalization",
        "",
        21,
        {"num_groups": call.int("groups", 1), "epsilon": call.float("epsilon", 1e-5)},
        (True,),
    )
    y = group_normalization(inner, np.ascontiguousarray(first), gamma, beta)[0]
    assert y is not None
    y = np.moveaxis(y, 1, -1) if last else y
    y = activate(y, "Silu") if call.int("activation", 0) else y
    return (y, total)[: len(call.outputs)]


OPERATORS: dict[OperatorKey, Operator] = {
    ("", "BatchNormalization"): batch_normalization,
    ("", "InstanceNormalization"): instance_normalization,
    ("", "LayerNormalization"): layer_normalization,
    ("", "SimplifiedLayerNormalization"): rms_normalization,
    ("com.microsoft", "SimplifiedLayerNormalization"): rms_normalization,
    ("", "RMSNormalization"): rms_normalization,
    ("", "GroupNormalization"): group_normalization,
    ("", "MeanVarianceNormalization"): mean_variance_normalization,
    ("", "LpNormalization"): lp_normalization,
    ("", "LRN"): local_response,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_simplified,
    ("com.microsoft", "GroupNorm"): group_norm_contrib,
    ("com.microsoft", "SkipGroupNorm"): group_norm_contrib,
}
