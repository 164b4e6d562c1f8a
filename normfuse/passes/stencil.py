"""Convolutions as stencils, and the algebra of such maps: sum, succession, an affine map per channel behind.

``y[m, o] = bias[m] + Σ_c Σ_i weight[m, c, i] · x[c, stride·o + dilation·i − begin]``, with x zero outside its extent; per
spatial axis there are ``⌊(size + slack − 1) / stride⌋ + 1`` positions o, ``slack = begin + end − dilation·(kernel − 1)``.
An identity, an average pooling and a BatchNormalization are stencils with one input channel per group.

Everything is float64; nothing is rounded here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from normfuse.affine import ChannelAffine, Float64, FoldError

Sizes = tuple[int | None, ...]
"""The spatial extent of a value, axis by axis; None where it is not known before it runs."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the taps of a stencil lie along one spatial axis."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0

    @property
    def last(self) -> int:
        """The offset of the last tap from the position's origin; the first lies at −begin."""
        return self.dilation * (self.kernel - 1) - self.begin

    @property
    def slack(self) -> int:
        """What the padding adds to the extent beyond what the kernel takes."""
        return self.end - self.last

    @property
    def is_point(self) -> bool:
        """Whether there is one tap, and no padding."""
        return self.kernel == 1 and self.begin == 0 and self.end == 0

    def positions(self, size: int) -> int:
        """Return how many positions an axis of ``size`` has."""
        return (size + self.slack - 1) // self.stride + 1

    def taps(self, inner: Grid) -> slice:
        """Return which taps of this grid are those of ``inner``, whose taps it contains."""
        first = (self.begin - inner.begin) // self.dilation
        step = inner.dilation // self.dilation if inner.kernel > 1 else 1
        return slice(first, first + step * (inner.kernel - 1) + 1, step)


@dataclass(frozen=True, slots=True, eq=False)
class Stencil:
    """A convolution. weight: (M, C/group, *kernel); bias: (M,); grids: one per spatial axis."""

    weight: Float64
    bias: Float64
    group: int
    grids: tuple[Grid, ...]

    @property
    def inputs(self) -> int:
        """The number of input channels, C."""
        return int(self.weight.shape[1]) * self.group

    @property
    def outputs(self) -> int:
        """The number of output channels, M."""
        return int(self.weight.shape[0])

    @property
    def is_pointwise(self) -> bool:
        """Whether every position reads one position, and no padding."""
        return all(grid.is_point for grid in self.grids)

    @property
    def work(self) -> int:
        """Multiply-adds per position."""
        return self.weight.size

    def rounding(self, moment: Float64) -> Float64:
        """Return what rounding does to each output of inputs of which E[x²] = ``moment`` (C,), squared, in units of u².

        ``(K/6)·Σ w²·E[x²]``, K the accumulation length (docs/validation.md).
        """
        outputs, inputs = self.weight.shape[:2]
        squares = (self.weight.reshape(self.group, outputs // self.group, inputs, -1) ** 2).sum(axis=3)
        sums = np.einsum("gmc,gc->gm", squares, np.broadcast_to(moment, (self.inputs,)).reshape(self.group, inputs))
        return np.asarray(sums.reshape(-1) * (self.weight[0].size / 6.0))

    def then(self, affine: ChannelAffine) -> Stencil:
        """Return ``affine ∘ self``."""
        factor = affine.scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=self.weight * factor, bias=affine.scale * self.bias + affine.shift)


def diagonal(affine: ChannelAffine, grids: tuple[Grid, ...]) -> Stencil:
    """Return the stencil whose every tap on channel c is ``affine.scale[c]``, with bias ``affine.shift``."""
    channels, kernel = affine.scale.size, tuple(grid.kernel for grid in grids)
    column = affine.scale.reshape(channels, 1, *[1] * len(kernel))
    return Stencil(np.broadcast_to(column, (channels, 1, *kernel)), affine.shift, channels, grids)


def regrouped(weight: Float64, group: int, fewer: int) -> Float64:
    """Return a weight of ``group`` groups as one of ``fewer``, which divide them: zero between the former groups."""
    if group == fewer:
        return weight
    inner = group // fewer
    outputs, inputs, *kernel = weight.shape
    view = weight.reshape(fewer, inner, outputs // group, inputs, *kernel)
    wide = np.zeros((fewer, inner, outputs // group, inner, inputs, *kernel))
    for index in range(inner):
        wide[:, index, :, index] = view[:, index]
    return wide.reshape(outputs, inner * inputs, *kernel)


def total(first: Stencil, second: Stencil, sizes: Sizes) -> Stencil:
    """Return ``first + second``, maps of one input, on the coarsest grid that has the taps of both.

    sizes: those of the input. Raises FoldError where the two do not have the same outputs for certain.
    """
    group = _common_group(first, second)
    grids = tuple(_union(*axis) for axis in zip(first.grids, second.grids, sizes, strict=True))
    weight = np.zeros((first.outputs, first.inputs // group, *(grid.kernel for grid in grids)))
    for part in (first, second):
        taps = tuple(grid.taps(inner) for grid, inner in zip(grids, part.grids, strict=True))
        weight[(slice(None), slice(None), *taps)] += regrouped(part.weight, part.group, group)
    return Stencil(weight, first.bias + second.bias, group, grids)


def total_work(first: Stencil, second: Stencil, sizes: Sizes) -> int:
    """Return ``total(first, second, sizes).work`` without computing a weight. Raises FoldError as that does."""
    group = _common_group(first, second)
    grids = [_union(*axis) for axis in zip(first.grids, second.grids, sizes, strict=True)]
    return first.outputs * (first.inputs // group) * math.prod(grid.kernel for grid in grids)


def covers(whole: Stencil, *parts: Stencil) -> bool:
    """Whether every weight of ``whole``, a sum of ``parts``, is one of theirs: a weight of zero makes NaN of what it reads."""
    given = np.zeros(whole.weight.shape, bool)
    for part in parts:
        taps = tuple(grid.taps(inner) for grid, inner in zip(whole.grids, part.grids, strict=True))
        given[(slice(None), slice(None), *taps)] |= regrouped(np.ones(part.weight.shape), part.group, whole.group) > 0.0
    return bool(given.all())


def _common_group(first: Stencil, second: Stencil) -> int:
    """Return the number of groups of a sum. Raises FoldError where one operand would broadcast to the other."""
    if first.inputs != second.inputs or first.outputs != second.outputs:
        raise FoldError(f"they map {first.inputs} to {first.outputs} and {second.inputs} to {second.outputs} channels")
    return math.gcd(first.group, second.group)


def _union(first: Grid, second: Grid, size: int | None) -> Grid:
    """Return the coarsest grid with the taps of both; it has the same number of positions.

    Tap i of a grid lies at ``dilation·i − begin``. The union begins where the earlier of the two does, and its dilation
    is the greatest that divides both dilations and the distance between the two beginnings.
    """
    if first.stride != second.stride:
        raise FoldError(f"their strides differ: {first.stride} and {second.stride}")
    if first.slack != second.slack:
        if size is None:
            raise FoldError("their outputs differ in size for some sizes of the input")
        if first.positions(size) != second.positions(size):
            raise FoldError(
                f"their outputs differ in size: {first.positions(size)} and {second.positions(size)} positions"
            )
    begin, last = max(first.begin, second.begin), max(first.last, second.last)
    dilations = [grid.dilation for grid in (first, second) if grid.kernel > 1]
    dilation = math.gcd(*dilations, abs(first.begin - second.begin)) or 1
    kernel = (begin + last) // dilation + 1
    return Grid(kernel, first.stride, dilation if kernel > 1 else 1, begin, first.slack + last)


def succession(first: Stencil, second: Stencil) -> Stencil:
    """Return ``second ∘ first``, one of which has a kernel of 1. Raises FoldError where that is no stencil.

    Behind a first of kernel 1 and stride s, dilation, padding and stride of the second count in steps of s. The second
    pads with zeros where the first would have put its bias: padding and a bias before it do not go together. Padding of
    the first is read as zeros by a second without padding, and gets its bias.
    """
    group = math.gcd(first.group, second.group)
    outer = regrouped(second.weight, second.group, group)
    inner = regrouped(first.weight, first.group, group)
    middle, kernel = inner.shape[0] // group, (inner.shape if second.is_pointwise else outer.shape)[2:]
    shape = (group, second.outputs // group, middle, -1), (group, middle, first.inputs // group, -1)
    weight = np.einsum("gmjk,gjcl->gmckl", outer.reshape(shape[0]), inner.reshape(shape[1]), optimize=True)
    if second.is_pointwise:
        grids = tuple(replace(a, stride=a.stride * b.stride) for a, b in zip(first.grids, second.grids, strict=True))
    elif any(grid.kernel > 1 for grid in first.grids):
        is_wide = any(grid.kernel > 1 for grid in second.grids)
        raise FoldError(
            f"{'two kernels larger than 1 follow' if is_wide else 'a kernel larger than 1 and padding follow'} each other"
        )
    elif first.bias.any() and any(grid.begin or grid.end for grid in second.grids):
        raise FoldError("the padding lies between two convolutions, of which the first has a bias")
    else:
        grids = tuple(_behind_point(a, b) for a, b in zip(first.grids, second.grids, strict=True))
    per_tap = outer.reshape(group, second.outputs // group, middle, -1).sum(axis=3)
    passed = (per_tap @ first.bias.reshape(group, middle, 1)).reshape(-1)
    size = (second.outputs, first.inputs // group, *kernel)
    return Stencil(weight.reshape(size), passed + second.bias, group, grids)


def _behind_point(point: Grid, grid: Grid) -> Grid:
    """Return ``grid`` on the positions of ``point``, a kernel of 1, as a grid on the input of that.

    The slack of the two is ``point.slack + stride·grid.slack``, by which both have the same number of positions.
    """
    step = point.stride
    return Grid(
        grid.kernel,
        grid.stride * step,
        grid.dilation * step,
        grid.begin * step + point.begin,
        grid.end * step + point.end,
    )
