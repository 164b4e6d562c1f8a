"""What a normalization computes: mathematics only, no ONNX, no arrays.

Every norm here is ``y = (x − μ_S) / sqrt(σ²_S + ε) · γ + β``. Norms differ in the set S that shares statistics, in
whether the mean is subtracted, and in the axes along which γ and β vary; :class:`NormSpec` says that and nothing else.

Sources: batch norm, Ioffe and Szegedy 2015; instance norm, Ulyanov et al. 2016; layer norm, Ba et al. 2016; group norm,
Wu and He 2018; RMS norm, Zhang and Sennrich 2019.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Stored:
    """S is the training set: running mean and variance are operands, so the norm is a per-channel affine map."""


@dataclass(frozen=True, slots=True)
class Batch:
    """S is one channel of the whole batch: (N, *spatial)."""


@dataclass(frozen=True, slots=True)
class PerGroup:
    """S is one group of C / ``groups`` consecutive channels of one sample, with all its positions."""

    groups: int


@dataclass(frozen=True, slots=True)
class PerChannel:
    """S is one channel of one sample: (*spatial)."""


@dataclass(frozen=True, slots=True)
class Trailing:
    """S is what lies along ``axes`` at one position. ``axes`` count from the end, ascending: (-2, -1)."""

    axes: tuple[int, ...]


Statistics = Stored | Batch | PerGroup | PerChannel | Trailing


class AffineAxes(enum.Enum):
    """The axes along which γ and β vary."""

    CHANNEL = "channel"
    GROUP = "group"
    NORMALISED = "normalised"


@dataclass(frozen=True, slots=True)
class AffineLayout:
    """Which of γ (``scale``) and β (``bias``) are present, and along what they vary."""

    scale: bool = False
    bias: bool = False
    axes: AffineAxes = AffineAxes.CHANNEL


class ComputeType(enum.Enum):
    """The type in which statistics are computed (ONNX: ``stash_type``)."""

    INPUT = "input"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT = "float32"
    DOUBLE = "float64"


class Activation(enum.Enum):
    """An element-wise function that follows the norm in the same operator."""

    NONE = "none"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    SILU = "silu"
    GELU = "gelu"


@dataclass(frozen=True, slots=True)
class NormSpec:
    """One normalization. ``channel_axis`` is 1 (channels first) or -1 (channels last).

    slope: of LEAKY_RELU, what values below zero are multiplied with.
    """

    statistics: Statistics
    epsilon: float
    centred: bool = True
    affine: AffineLayout = field(default_factory=AffineLayout)
    channel_axis: Literal[1, -1] = 1
    compute_type: ComputeType = ComputeType.INPUT
    activation: Activation = Activation.NONE
    slope: float = 0.0


def kind(spec: AnyNorm) -> str:
    """Return the field's name of ``spec``: batch, instance, group, layer or rms; lp, local_response, global_response."""
    if not isinstance(spec, NormSpec):
        return _OTHER[type(spec)]
    if isinstance(spec.statistics, Stored | Batch):
        return "batch"
    if isinstance(spec.statistics, PerChannel):
        return "instance"
    if isinstance(spec.statistics, PerGroup):
        return "group"
    return "layer" if spec.centred else "rms"


def canonical(spec: NormSpec, *, channels: int | None = None, rank: int | None = None) -> NormSpec:
    """Return the one spec that stands for all specs of the same function.

    With C = ``channels`` and R = ``rank`` of x where known:
    GroupNorm in C groups is InstanceNorm; LayerNorm over (C, *spatial) with a per-channel (or no) affine is GroupNorm
    in one group, over *spatial InstanceNorm; γ and β per group are those per channel with repeated
    entries; an absent affine has no axes; a leaky ReLU of slope 0 is ReLU, of slope 1 nothing.
    """
    affine = spec.affine
    if not (affine.scale or affine.bias):
        affine = AffineLayout()
    elif affine.axes is AffineAxes.GROUP:
        affine = replace(affine, axes=AffineAxes.CHANNEL)
    statistics = spec.statistics
    if isinstance(statistics, Trailing):
        statistics = Trailing(tuple(sorted(statistics.axes)))
        per_channel = spec.centred and spec.channel_axis == 1 and affine.axes is AffineAxes.CHANNEL
        if per_channel and rank is not None and statistics.axes == tuple(range(1 - rank, 0)):
            statistics = PerGroup(1)
        elif per_channel and rank is not None and rank > 2 and statistics.axes == tuple(range(2 - rank, 0)):
            statistics = PerChannel()
    if isinstance(statistics, PerGroup) and statistics.groups == channels:
        statistics = PerChannel()
    activation, slope = spec.activation, spec.slope
    if activation is Activation.LEAKY_RELU and slope in (0.0, 1.0):
        activation = Activation.RELU if slope == 0.0 else Activation.NONE
    if activation is not Activation.LEAKY_RELU:
        slope = 0.0
    return replace(spec, statistics=statistics, affine=affine, activation=activation, slope=slope)


# Norms of other kinds: recognised and reported under their own names, not written anew.


@dataclass(frozen=True, slots=True)
class LpNorm:
    """``x / max(‖x‖_p, ε)`` or ``x / (‖x‖_p + ε)`` over ``axes``, up to a factor; p is 1 or 2."""

    p: int
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LocalResponseNorm:
    """``x / (k + α · mean of x² over size neighbouring channels)^β`` (Krizhevsky et al. 2012)."""

    size: int


@dataclass(frozen=True, slots=True)
class GlobalResponseNorm:
    """``x · g / (mean(g) + ε)`` with g = ‖x‖₂ over ``axes`` (ConvNeXt V2, Woo et al. 2023)."""

    axes: tuple[int, ...]


OtherNorm = LpNorm | LocalResponseNorm | GlobalResponseNorm
AnyNorm = NormSpec | OtherNorm

_OTHER = {LpNorm: "lp", LocalResponseNorm: "local_response", GlobalResponseNorm: "global_response"}
