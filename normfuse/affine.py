"""The algebra of batch normalization at inference: ``y[:, c] = scale[c] · x[:, c] + shift[c]``.

Everything here is computed in float64 and rounded once, to the type of the weight, on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Float64 = npt.NDArray[np.float64]

_SLICE = 1 << 16
"""Elements folded at a time: 512 KB in float64, small enough to stay in a core's cache."""

_LARGEST_ACTIVATION = 65504.0
"""Activations up to the largest float16 are assumed when a flushed weight is weighed against the shift."""


_PARAMETERS = ("scale", "bias", "mean", "variance")


class FoldError(ValueError):
    """A fold that its own type cannot hold, or parameters that describe no affine map. The text is a reason."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAffine:
    """``y[:, c] = scale[c] · x[:, c] + shift[c]``; both of shape (C,), float64."""

    scale: Float64
    shift: Float64

    @staticmethod
    def identity(channels: int) -> ChannelAffine:
        """Return the map that changes nothing."""
        return ChannelAffine(np.ones(channels), np.zeros(channels))

    @staticmethod
    def from_batchnorm(gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float) -> ChannelAffine:
        """Return ``(x − μ)/sqrt(σ² + ε)·γ + β`` as scale ``γ/sqrt(σ² + ε)`` and shift ``β − μ·scale``.

        All of shape (C,), any float types. Raises FoldError where a parameter is not finite or ``σ² + ε ≤ 0``.
        """
        rows = [np.asarray(row, np.float64).reshape(-1) for row in (gamma, beta, mean, var)]
        if len({row.size for row in rows}) != 1:
            sizes = ", ".join(f"{name} {row.size}" for name, row in zip(_PARAMETERS, rows, strict=True))
            raise FoldError(f"its parameters differ in length: {sizes}")
        finite = np.isfinite(rows)
        if not finite.all():
            which, channel = np.argwhere(~finite)[0]
            raise FoldError(f"its {_PARAMETERS[which]} is {rows[which][channel]} in channel {channel}")
        denominator = rows[3] + epsilon
        if denominator.size and float(denominator.min()) <= 0.0:
            channel = int(np.argmin(denominator))
            raise FoldError(
                f"variance + epsilon is {denominator[channel]:.3g} in channel {channel}; it must be positive"
            )
        scale = rows[0] / np.sqrt(denominator)
        return ChannelAffine(scale, rows[1] - rows[2] * scale)

    def then(self, after: ChannelAffine) -> ChannelAffine:
        """Return ``after ∘ self``."""
        return ChannelAffine(after.scale * self.scale, after.scale * self.shift + after.shift)


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """How channels lie in a weight: as (outer, shared, inner, rest), channel c is (outer, inner) = divmod(c, inner).

    Conv's output channels: (1, 1, M, C/g·k…). ConvTranspose's: (g, Cin/g, Cout/g, k…). Conv's input channels:
    (g, M/g, C/g, k…). The columns of a (K, N) matrix: (1, K, N, 1); its rows: (1, 1, K, N).
    """

    outer: int
    shared: int
    inner: int
    rest: int

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.outer * self.inner

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The four-axis view of the weight."""
        return (self.outer, self.shared, self.inner, self.rest)


def conv_outputs(shape: tuple[int, ...]) -> WeightLayout:
    """Return the layout of the output channels of a Conv weight (M, C/g, *kernel)."""
    return WeightLayout(1, 1, shape[0], math.prod(shape[1:]))


def conv_inputs(shape: tuple[int, ...], group: int) -> WeightLayout:
    """Return the layout of the input channels of a Conv weight (M, C/g, *kernel)."""
    return WeightLayout(group, shape[0] // group, shape[1], math.prod(shape[2:]))


def conv_transpose_outputs(shape: tuple[int, ...], group: int) -> WeightLayout:
    """Return the layout of the output channels of a ConvTranspose weight (Cin, Cout/g, *kernel)."""
    return WeightLayout(group, shape[0] // group, shape[1], math.prod(shape[2:]))


def columns(shape: tuple[int, ...]) -> WeightLayout:
    """Return the layout of the columns of a matrix (K, N)."""
    return WeightLayout(1, shape[0], shape[1], 1)


def rows(shape: tuple[int, ...]) -> WeightLayout:
    """Return the layout of the rows of a matrix (K, N)."""
    return WeightLayout(1, 1, shape[0], shape[1])


def fold_into_weight(weight: Array, scale: Float64, layout: WeightLayout) -> Array:
    """Return ``weight`` scaled per channel, so that ``affine ∘ linear`` becomes one linear map.

    weight: any shape that ``layout`` views, any float type. scale: (C,). Computed in float64 and rounded once.
    Does not look at the range: :func:`check_range` does, before anything is decided.
    """
    if weight.size <= _SLICE:
        factor = scale.reshape(layout.outer, 1, layout.inner, 1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            product = weight.reshape(layout.shape).astype(np.float64) * factor
            return np.asarray(product.astype(weight.dtype).reshape(weight.shape))
    return np.concatenate([part.reshape(-1) for part in folded_slices(weight, scale, layout)]).reshape(weight.shape)


def folded_slices(weight: Array, scale: Float64, layout: WeightLayout) -> Iterator[Array]:
    """Yield ``fold_into_weight(weight, scale, layout)`` in slices, in the order in which they lie in memory."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for part, channels in _slices(weight, layout):
            yield (part.astype(np.float64) * scale[channels][:, None]).astype(weight.dtype)


def _slices(weight: Array, layout: WeightLayout) -> Iterator[tuple[Array, npt.NDArray[np.intp] | slice]]:
    """Yield parts (rows, rest) of ``weight`` with the channel of each row.

    A matrix whose channels are its columns has rows of one element; they are taken ``inner`` at a time.
    """
    outer, shared, inner, rest = layout.shape
    view = weight.reshape(outer * shared, inner, rest)
    if inner * rest <= _SLICE:
        step = max(1, _SLICE // max(1, inner * rest))
        for start in range(0, outer * shared, step):
            block = view[start : start + step]
            first = (np.arange(start, start + block.shape[0]) // shared) * inner
            channels = (first[:, None] + np.arange(inner)[None, :]).reshape(-1)
            yield block.reshape(-1, rest), channels
        return
    step = max(1, _SLICE // max(1, rest))
    for index in range(outer * shared):
        base = (index // shared) * inner
        for start in range(0, inner, step):
            stop = min(start + step, inner)
            yield view[index, start:stop], slice(base + start, base + stop)


def fold_shift(bias: Array | None, affine: ChannelAffine, dtype: np.dtype[np.generic]) -> Array:
    """Return ``scale · bias + shift`` in ``dtype``; a missing bias counts as zero. Raises FoldError on overflow."""
    wide = affine.shift if bias is None else affine.scale * np.asarray(bias, np.float64) + affine.shift
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = wide.astype(dtype)
    wrong = np.isfinite(wide) & ~np.isfinite(result)
    if wrong.any():
        channel = int(np.flatnonzero(wrong.reshape(-1))[0]) % affine.scale.size
        raise FoldError(f"the folded bias overflows {dtype.name} in channel {channel}")
    return np.asarray(result)


def largest_per_channel(weight: Array, layout: WeightLayout) -> Float64:
    """Return max|w| per channel, (C,), reading the weight once and slice by slice."""
    if weight.size <= _SLICE:
        magnitude = np.abs(weight.reshape(layout.shape))
        if weight.size == 0:
            return np.zeros(layout.channels)
        return np.asarray(magnitude.max(axis=(1, 3)), np.float64).reshape(-1)
    largest = np.zeros(layout.channels)
    for part, channels in _slices(weight, layout):
        peak = np.maximum(part.max(axis=1), -part.min(axis=1)).astype(np.float64)
        if isinstance(channels, slice):
            largest[channels] = np.maximum(largest[channels], peak)
        else:
            np.maximum.at(largest, channels, peak)
    return largest


def check_range(
    weight: Array, affine: ChannelAffine, layout: WeightLayout, dtype: np.dtype[np.generic] | None = None
) -> None:
    """Raise FoldError where the folded weight leaves the range of ``dtype``, by default its own type.

    Overflow: max|w|·|scale| of a channel rounds to infinity. Flush: all of a channel falls below the smallest normal
    number, so that its relative precision is lost, and what is lost could be seen beside the shift: with K weights a
    channel and activations up to 65504, more than half a unit in the last place of the shift.
    """
    dtype = weight.dtype if dtype is None else dtype
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    largest = largest_per_channel(weight, layout)
    if not np.isfinite(largest).all():
        channel = int(np.flatnonzero(~np.isfinite(largest))[0])
        raise FoldError(f"its weight is not finite in channel {channel}")
    folded = largest * np.abs(affine.scale)
    if not folded.size or (folded.min() >= float(info.smallest_normal) and folded.max() <= 0.5 * float(info.max)):
        return
    with np.errstate(over="ignore"):
        overflows = ~np.isfinite(folded.astype(dtype).astype(np.float64))
    if overflows.any():
        channel = int(np.flatnonzero(overflows)[0])
        raise FoldError(
            f"the folded weight overflows {dtype.name} in channel {channel}: "
            f"largest weight {largest[channel]:.3g} times scale {affine.scale[channel]:.3g}"
        )
    tiny = folded < float(info.smallest_normal)
    if not tiny.any():
        return
    lost = layout.shared * layout.rest * 0.5 * float(info.smallest_subnormal) * _LARGEST_ACTIVATION
    visible = tiny & (folded > 0.0) & (lost > 0.5 * float(info.eps) * np.abs(affine.shift))
    if visible.any():
        channel = int(np.flatnonzero(visible)[0])
        raise FoldError(
            f"the folded weight is flushed in {dtype.name}, channel {channel}: "
            f"largest weight {largest[channel]:.3g} times scale {affine.scale[channel]:.3g}"
        )


def through_weight(weight: Array, shift: Float64, layout: WeightLayout) -> Float64:
    """Return what a constant ``shift`` per input channel adds to each output channel of a Conv: Σ w·shift, float64.

    weight: (M, C/g, *kernel). shift: (C,). layout: :func:`conv_inputs`. Returns (M,).
    """
    totals = np.zeros(layout.outer * layout.shared)
    view = weight.reshape(layout.outer * layout.shared, layout.inner, layout.rest)
    for index in range(layout.outer * layout.shared):
        base = (index // layout.shared) * layout.inner
        totals[index] = view[index].astype(np.float64).sum(axis=1) @ shift[base : base + layout.inner]
    return totals
