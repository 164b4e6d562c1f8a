"""The meaning of a NormSpec: its value in NumPy, in float64, with mean and variance in two passes.

Nothing here is fast, and everything else is measured against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from normfuse.spec import (
    Activation,
    AffineAxes,
    Batch,
    NormSpec,
    PerChannel,
    PerGroup,
    Stored,
    Trailing,
)

Array = npt.NDArray[np.generic]
Float64 = npt.NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def evaluate(spec: NormSpec, arrays: Mapping[str, Array]) -> Float64:
    """Return ``activation((x − μ_S) / sqrt(σ²_S + ε) · γ + β)`` in float64; for RMS μ_S is 0, so that σ² = mean x².

    arrays: ``x`` (N, C, *spatial), (N, *spatial, C) where ``spec.channel_axis`` is -1, any shape for Trailing
    statistics; ``scale`` and ``bias`` where ``spec.affine`` has them: C or G entries in any shape, or broadcastable
    from the right where they vary along the normalised axes; ``mean`` and ``var``, C entries, for Stored statistics;
    ``residual`` and ``residual_bias``, added to x first. Raises ValueError where an array is missing or the groups do
    not divide C.
    """
    missing = [name for name in _needed(spec) if name not in arrays]
    if missing:
        raise ValueError(f"the arrays {', '.join(missing)} are missing, which {spec} needs; got {', '.join(arrays)}")
    wide = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    x = wide["x"] + wide.get("residual", 0.0) + wide.get("residual_bias", 0.0)
    # Channels first from here on, except for statistics of trailing axes, which do not ask where channels are.
    moves = spec.channel_axis == -1 and not isinstance(spec.statistics, Trailing)
    if moves:
        x = np.moveaxis(x, -1, 1)
    y = _affine(spec, _normalised(spec, x, wide), wide)
    if moves:
        y = np.moveaxis(y, 1, -1)
    return _activated(spec, y)


def _needed(spec: NormSpec) -> tuple[str, ...]:
    stored = ("mean", "var") if isinstance(spec.statistics, Stored) else ()
    scale = ("scale",) if spec.affine.scale else ()
    return ("x", *stored, *scale, *(("bias",) if spec.affine.bias else ()))


def _normalised(spec: NormSpec, x: Float64, arrays: Mapping[str, Float64]) -> Float64:
    """Return ``(x − μ_S) / sqrt(σ²_S + ε)``."""
    statistics = spec.statistics
    if isinstance(statistics, Stored):
        mean, var = (_along_channels(arrays[name], x.ndim) for name in ("mean", "var"))
        return np.asarray((x - mean) / np.sqrt(var + spec.epsilon))
    if isinstance(statistics, PerGroup):
        if x.shape[1] % statistics.groups:
            raise ValueError(
                f"group norm needs C divisible by the number of groups; got C={x.shape[1]}, groups={statistics.groups}"
            )
        size = x.shape[1] // statistics.groups
        grouped = x.reshape(x.shape[0], statistics.groups, size, *x.shape[2:])
        return _over(grouped, tuple(range(2, grouped.ndim)), spec).reshape(x.shape)
    return _over(x, _axes(statistics, x.ndim), spec)


def _axes(statistics: Batch | PerChannel | Trailing, rank: int) -> tuple[int, ...]:
    if isinstance(statistics, Trailing):
        return statistics.axes
    spatial = tuple(range(2, rank))
    return spatial if isinstance(statistics, PerChannel) else (0, *spatial)


def _over(x: Float64, axes: tuple[int, ...], spec: NormSpec) -> Float64:
    deviation = x - x.mean(axis=axes, keepdims=True) if spec.centred else x
    variance = np.square(deviation).mean(axis=axes, keepdims=True)
    return np.asarray(deviation / np.sqrt(variance + spec.epsilon))


def _affine(spec: NormSpec, y: Float64, arrays: Mapping[str, Float64]) -> Float64:
    if spec.affine.scale:
        y = y * _shaped(spec, arrays["scale"], y)
    if spec.affine.bias:
        y = y + _shaped(spec, arrays["bias"], y)
    return y


def _shaped(spec: NormSpec, parameter: Float64, y: Float64) -> Float64:
    """Return γ or β in a shape that broadcasts against y."""
    if spec.affine.axes is AffineAxes.NORMALISED:
        return parameter
    if spec.affine.axes is AffineAxes.GROUP:
        parameter = np.repeat(parameter.reshape(-1), y.shape[1] // parameter.size)
    if isinstance(spec.statistics, Trailing) and spec.channel_axis == -1:
        return parameter.reshape(-1)
    return _along_channels(parameter, y.ndim)


def _along_channels(parameter: Float64, rank: int) -> Float64:
    return parameter.reshape(-1, *(1,) * (rank - 2))


def _activated(spec: NormSpec, y: Float64) -> Float64:
    activation = spec.activation
    if activation is Activation.RELU:
        return np.maximum(y, 0.0)
    if activation is Activation.LEAKY_RELU:
        return np.where(y < 0, spec.slope * y, y)
    if activation is Activation.SILU:
        # exp(−|y|) does not overflow: y · sigmoid(y), each sign in its own form.
        decay = np.exp(-np.abs(y))
        return np.asarray(y * np.where(y >= 0, 1.0, decay) / (1.0 + decay))
    if activation is Activation.GELU:
        return np.asarray(0.5 * y * (1.0 + _erf(y / math.sqrt(2.0))))
    return y
