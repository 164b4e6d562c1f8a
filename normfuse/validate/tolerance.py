"""Every constant of the verdict, with where it comes from (docs: "When are two graphs the same?").

T is the float64 value of the reference graph, r the reference's result, c the candidate's, u the type's unit roundoff.
Changing a number here needs the measurement that says why.
"""

from __future__ import annotations

import math

import ml_dtypes
import onnx_ir as ir

from normfuse.validate.rounding import FLOATS, unit_roundoff

# Four runs with every initializer and result perturbed by its rounding: rms over four draws of each element knows P_g
# of a group of 16 elements to about 9 % (1/sqrt(2·64)).
PERTURBED_RUNS = 4
# A group with fewer elements, pooled over an input family, is judged only as part of its output.
GROUP_ELEMENTS = 16
# A segment stops perturbing when its smallest group has seen this many draws: the same 9 %.
SEGMENT_DRAWS = 4 * GROUP_ELEMENTS
# The rounding of a weight moves all elements of a channel alike: where its input has a large mean, every perturbed run is
# one draw, however many elements there are, and the error is one more. The ratio of a draw to the rms of n has
# Student's t distribution of n degrees of freedom: it exceeds 5 with a chance of 13 % for one run, 0.7 % for four and
# 2e-5 for 32. So many runs, of every feed, a segment gets before it is accused.
ACCUSING_RUNS = 32

# 160 legal variants (all optimization levels, folds in float32 and float64, chains of 50 and 100 blocks, residual
# nets with 50 and 100 BatchNorms, 10 seeds) reached 1.42·B per output and 2.02·B per channel; 120 single segments
# 2.23·B.
OUTPUT_FACTOR = 3.0
CHANNEL_FACTOR = 5.0
# The maximum of n normal draws is about sqrt(2 ln n)·σ: 4 σ for a few thousand elements, and twice that for luck. The
# maximum that the perturbed runs reached is allowed as well: with channels of very different size the largest error
# is that of the largest channel, many times the rms over all of them.
MAXIMUM_FACTOR = 8.0
MAXIMUM_OF_NOISE = 4.0

# P above this share of the values: the input is ill-conditioned, neither proof nor accusation. 1e-2 was measured with
# float32; a half type reaches it after a dozen healthy operators, so there it is the rounding of 64 operators of the
# same size.
ILL_CONDITIONED = 1e-2
ILL_CONDITIONED_ROUNDINGS = 64.0

# Discrete results are undecided where the oracle's margin is at most 10·B: seen by perturbing ten times as much.
UNDECIDED_SCALE = 10.0

# Round, Floor, Ceil and Sign jump by one at least, so half of it tells a jump from rounding; other floats that jump (Mod,
# ThresholdedRelu, Shrink) by their divisor or threshold, which is told from rounding by the share of ILL_CONDITIONED.
JUMP = 0.5

# The reference's own error is taken for a failure of the runtime (and no budget for the candidate) where it exceeds
# both one percent of the values and thirty times what rounding explains.
REFERENCE_FAILS_SHARE = 1e-2
REFERENCE_FAILS_ROUNDINGS = 30.0

# A shared value whose segment is off by more than this share of its rms may mean something else in the candidate,
# whatever reads it: unrelated values of one scale differ by sqrt(2) of their rms. Less is an error.
GROSS_SHARE = 0.5
# So many shared values may turn out to mean something else before the local check gives up.
GROSS_LIMIT = 32

# A segment of more nodes than this is not local: branches that merge, or a norm written in primitives, are a third of it.
LOCAL_NODES = 64

# A channel whose deviation is below this share of its tensor's carries no information through a segment (a dead ReLU).
DEAD_SHARE = 1e-6

# A usual epsilon is 1e-5: at this deviation it is a tenth of the variance and one that is ten times as large or as small
# changes the result by 4 % or more, while MeanVarianceNormalization's 1e-9 beside the deviation stays below rounding.
QUIET_DEVIATION = 1e-2

# Tensors of a torch module and values of the graph exported from it are one where they differ by less than this share:
# a norm that is wrong by a tenth is still found beside its module, and told from every other value.
SAME_SHARE = 0.1
SAME_FOR_SURE = 1e-6


def tiny(dtype: ir.DataType) -> float:
    """Return the absolute error that underflow alone may cause: flushing to zero for float32 and float64, else one
    quantum."""
    info = ml_dtypes.finfo(FLOATS[dtype])  # type: ignore[no-untyped-call]
    if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return float(info.smallest_normal)
    return float(info.smallest_subnormal)


def budget(original_error: float, noise: float, size: float, dtype: ir.DataType) -> float:
    """Return B = max(rms(r − T), P, u·rms(T)) + tiny. The floor is there since r may be luckily right, or 0 of 0."""
    return max(original_error, noise, unit_roundoff(dtype) * size) + tiny(dtype)


def largest_allowed(original_largest: float, noise: float, noise_largest: float, floor: float) -> float:
    """Return 8·max(max|r − T|, max|T̃ − T|, 4·P), with 4·``floor`` where there is no noise at all."""
    return MAXIMUM_FACTOR * max(original_largest, noise_largest, MAXIMUM_OF_NOISE * max(noise, floor))


def is_ill_conditioned(noise: float, size: float, dtype: ir.DataType) -> bool:
    """Return whether rounding alone changes the result by more than the stated share."""
    share = (
        max(ILL_CONDITIONED, ILL_CONDITIONED_ROUNDINGS * unit_roundoff(dtype))
        if dtype != ir.DataType.DOUBLE
        else ILL_CONDITIONED
    )
    return noise > share * size and noise > tiny(dtype)


def in_ulp(error: float, size: float, dtype: ir.DataType) -> float:
    """Return ``error`` in units in the last place of a value of ``size``; NaN where there is no size."""
    unit = 2.0 * unit_roundoff(dtype) * size
    return error / unit if unit > 0 else math.nan
