"""How much accuracy it costs to subtract a norm's mean behind the products of a linear operator instead of before them.

``W(a·x + b) = (W∘a)x + Wb`` holds, but where x lies around a mean μ that is large beside its deviation σ, the products on the
right are large and cancel against ``Wb``. With ``m = a·μ``, ``s = a·σ``, ``β = a·μ + b`` and the unit roundoff u, the error of
one output is, by the model of rounding that the validator's budget is made of (a sum of K products x errs by
``u·sqrt(K/6)·sqrt(Σ w²x²)``, a norm by ``u·sqrt(((a·x)² + m² + β²)/3)``, what is averaged over N by 1/sqrt(N) of that):

    folded²   = u²·K/6·Σ w²(m² + s²/N)
    original² = u²·(K/6·Σ w²(s²/N + β²) + Σ w²(2m² + s² + β²)/(3N))

The budget of a fold is three times the original's error for an output, five times for a channel; so is the bound here.
Measured on onnxruntime with K from 8 to 2304, N 1, 4, 144, β 0 and 1, |μ|/σ from 1 to 100: every fold within the bound passed
(0.85 of the budget at most), and all but one beyond 1.8 times the bound with N > 1 failed.

The term 2m² is the error of a runtime that computes a norm as ``a·x + b``, as onnxruntime does; one that subtracts first, as
ONNX states it, does not have it. So that no fold lives on that error alone, :data:`FARTHEST_MEAN` bounds ``|m|`` against
``sqrt(s² + β²)`` in every channel as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, ChannelAffine, Float64
from normfuse.graph.site import NormSite, Reading

LARGEST_GROWTH = 3.0
"""Of the error of all output channels together: what the budget of an output is times the original's error."""

LARGEST_CHANNEL_GROWTH = 5.0
"""Of the error of one output channel."""

FARTHEST_MEAN = 8.0
"""Largest |aμ|/sqrt(a²(σ² + ε) + f(μ)²) of a channel. By as much as that the error of one product may grow. Of a norm that
becomes one tap of a merged convolution, whose products are added to those of others, it bounds |μ|/sqrt(σ² + ε)."""

MOST_WEIGHTS = 1 << 24
"""Weights that are squared to see which channels count; of larger operators every channel counts the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What a norm that is the map ``f`` knows of its values: aμ, aσ, f(μ) of each channel, all (C,).

    distance: the largest |aμ|/sqrt(a²(σ² + ε) + f(μ)²).
    """

    mean: Float64
    deviation: Float64
    result: Float64
    distance: float

    @staticmethod
    def of(site: NormSite, f: ChannelAffine, reading: Reading) -> Moments | None:
        """Return the moments of the channels of ``site``, whose map, with what follows it, is ``f``; None if unknown."""
        mean, var = reading.constants.array(site.operands.mean), reading.constants.array(site.operands.var)
        if mean is None or var is None or mean.size != f.scale.size:
            return None
        center = np.asarray(mean, np.float64).reshape(-1)
        spread = np.sqrt(np.maximum(np.asarray(var, np.float64).reshape(-1), 0.0))
        m, s, b = f.scale * center, f.scale * spread, f.scale * center + f.shift
        size = np.sqrt(s * s + f.scale * f.scale * site.spec.epsilon + b * b)
        distance = np.divide(np.abs(m), size, out=np.zeros_like(m), where=m != 0.0)
        return Moments(m, s, b, float(distance.max(initial=0.0)))

    @staticmethod
    def of_steps(affines: Sequence[ChannelAffine]) -> Moments | None:
        """Return the moments of a norm written as these maps, in order; None where a channel is not scaled.

        The first factor divides by the deviation. A term before it subtracts the mean; where there is none before it
        (x·a + b, as FrozenBatchNorm is written), the mean is that of which the norm makes 0.
        """
        f = functools.reduce(ChannelAffine.then, affines)
        first = next((one.scale for one in affines if (one.scale != 1.0).any()), None)
        if first is None or not first.all() or not f.scale.all():
            return None
        centred = affines[0].shift if (affines[0].scale == 1.0).all() else f.shift / f.scale
        m, s = -f.scale * centred, np.abs(f.scale / first)
        b = m + f.shift
        return Moments(m, s, b, float(np.max(np.abs(m) / np.sqrt(s * s + b * b), initial=0.0)))


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The sums of one linear operator: ``length`` products each, of values averaged over ``averaged``.

    energy: Σ w² of each output and input channel, (M, C), where the input channels are the norm's; None: all the same.
    """

    length: int
    averaged: float = 1.0
    energy: Float64 | None = None


def growth(moments: Moments, products: Products) -> float:
    """Return by how many times its bound the folded error exceeds the original's; at most 1 is in bounds."""
    m, s, b = np.square(moments.mean), np.square(moments.deviation), np.square(moments.result)
    s = s / products.averaged
    folded = products.length / 6.0 * (m + s)
    original = products.length / 6.0 * (s + b) + ((2.0 * m + b) / products.averaged + s) / 3.0
    energy = products.energy
    if energy is None or energy.shape[1] != m.size:
        energy = np.ones((1, m.size))
    errors = [_ratio(energy.sum(axis=0) @ folded, energy.sum(axis=0) @ original) / LARGEST_GROWTH]
    errors += [_ratio(row @ folded, row @ original) / LARGEST_CHANNEL_GROWTH for row in energy]
    return max(errors)


def _ratio(folded: float, original: float) -> float:
    if folded == 0.0:
        return 0.0
    return math.sqrt(folded / original) if original > 0.0 else math.inf


def is_accurate(moments: Moments | None, products: Iterable[Products]) -> bool:
    """Whether every operator that absorbs the shift keeps its bound; where nothing is known of the values, it does."""
    if moments is None:
        return True
    return moments.distance <= FARTHEST_MEAN and all(growth(moments, one) <= 1.0 for one in products)


def energy_of(weight: Array, node: ir.Node) -> Float64 | None:
    """Return Σ w² of each output and input channel (M, C) of Conv, or of Gemm's or MatMul's matrix; None where large.

    weight: as it lies in the operator; a MatMul's is its second operand.
    """
    if weight.size > MOST_WEIGHTS:
        return None
    square = np.square(weight.astype(np.float64))
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        own = square.reshape(*weight.shape[:2], -1).sum(axis=2)
        if group == 1:
            return np.asarray(own)
        rows, columns = own.shape
        if rows * columns * group > MOST_WEIGHTS:
            return None
        wide = np.zeros((rows, group, columns))
        wide[np.arange(rows), np.arange(rows) * group // rows] = own
        return wide.reshape(rows, group * columns)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return np.asarray(square)
    return np.asarray(square.T) if node.op_type in ("Gemm", "MatMul") else None


def mean_distance(site: NormSite, reading: Reading) -> float:
    """Return the largest |μ|/sqrt(σ² + ε) of a norm's channels."""
    mean, var = reading.constants.array(site.operands.mean), reading.constants.array(site.operands.var)
    if mean is None or var is None or mean.size == 0:
        return 0.0
    deviation = np.sqrt(np.asarray(var, np.float64) + site.spec.epsilon)
    return float(np.max(np.abs(np.asarray(mean, np.float64)) / deviation))
