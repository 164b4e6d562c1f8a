"""A per-channel affine map wherever its channels lie: ``y = scale · x + shift``, broadcast over the axes of a value.

``ChannelAffine`` knows channels; a ``Spread`` knows axes. Behind a Reshape the channels of a BatchNormalization may lie
along two axes, behind a Flatten each may be repeated: both are arrays with the rank of the value, and the algebra of
moving them is NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from normfuse.affine import ChannelAffine, Float64

Dims = tuple[int | None, ...]
"""The size of each axis of a value; None where it is not known before it runs."""

Indices = npt.NDArray[np.int64]

_MOST_FACTORS = 1 << 22
"""Factors of one map, after a Flatten repeated them: 32 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """``y = scale · x + shift``; scale and shift: float64, of the rank of x, each axis of size 1 or of x's size.

    An axis along which nothing varies has size 1: :meth:`of` sees to that.
    """

    scale: Float64
    shift: Float64

    @staticmethod
    def of(scale: Float64, shift: Float64) -> Spread:
        """Return the map with every axis along which it does not vary of size 1."""
        return Spread(_squashed(scale), _squashed(shift))

    @staticmethod
    def along(affine: ChannelAffine, axis: int, rank: int) -> Spread:
        """Return ``affine`` with its channels along ``axis`` of ``rank`` axes."""
        shape = [1] * rank
        shape[axis] = affine.scale.size
        return Spread.of(affine.scale.reshape(shape), affine.shift.reshape(shape))

    @property
    def rank(self) -> int:
        """The number of axes."""
        return self.scale.ndim

    @property
    def varies(self) -> frozenset[int]:
        """The axes along which scale or shift varies."""
        return varying(self.scale) | varying(self.shift)

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return bool((self.scale == 1.0).all()) and self.is_linear

    @property
    def is_linear(self) -> bool:
        """Whether the shift is zero."""
        return not self.shift.any()

    @property
    def is_positive(self) -> bool:
        """Whether every scale is above zero."""
        return bool((self.scale > 0.0).all())

    def size(self, axis: int) -> int:
        """Return the number of factors along ``axis``: 1 where nothing varies."""
        return int(max(self.scale.shape[axis], self.shift.shape[axis]))

    def after(self, first: Spread) -> Spread:
        """Return ``self ∘ first``."""
        return Spread.of(self.scale * first.scale, self.scale * first.shift + self.shift)

    def equals(self, other: Spread) -> bool:
        """Whether both are one and the same map, to the last bit."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)

    def only_scale(self) -> Spread:
        """Return the map without its shift."""
        return Spread(self.scale, np.zeros((1,) * self.rank))

    def split(self) -> tuple[tuple[Spread, Spread], ...]:
        """Return the pairs (first, second) of a scale and a shift whose succession the map is, unless it is one of them."""
        if self.is_linear or (self.scale == 1.0).all():
            return ()
        ones = np.ones((1,) * self.rank)
        found = [(self.only_scale(), Spread(ones, self.shift))]
        if self.scale.all():
            with np.errstate(over="ignore"):
                first = Spread.of(ones, self.shift / self.scale)
            if np.isfinite(first.shift).all():
                found.append((first, self.only_scale()))
        return tuple(found)

    def along_axis(self, axis: int, count: int) -> ChannelAffine | None:
        """Return the map as one of ``count`` channels along ``axis``; None where it varies along another axis."""
        if self.varies - {axis} or self.size(axis) not in (1, count):
            return None
        rows = [np.broadcast_to(row.reshape(-1), (count,)).copy() for row in (self.scale, self.shift)]
        return ChannelAffine(rows[0], rows[1])

    def transposed(self, perm: Sequence[int]) -> Spread:
        """Return the map of ``transpose(x, perm)``."""
        return Spread(self.scale.transpose(perm), self.shift.transpose(perm))

    def take(self, indices: Indices, axis: int) -> Spread:
        """Return the map of ``x`` with only ``indices`` (a vector) of ``axis``."""
        rows = [row if row.shape[axis] == 1 else row.take(indices, axis) for row in (self.scale, self.shift)]
        return Spread.of(rows[0], rows[1])

    def widened(self, axis: int, count: int) -> tuple[Float64, Float64]:
        """Return scale and shift with ``count`` factors along ``axis``."""
        rows = []
        for row in (self.scale, self.shift):
            shape = list(row.shape)
            shape[axis] = count
            rows.append(np.broadcast_to(row, shape).copy())
        return rows[0], rows[1]

    def placed(self, indices: Indices, axis: int, count: int) -> Spread | None:
        """Return the map of x from that of ``x[…, indices, …]``: elsewhere the identity.

        None where an index comes twice with two maps, or their number is another.
        """
        if self.size(axis) not in (1, len(indices)):
            return None
        scale, shift = self.widened(axis, len(indices))
        shape = list(scale.shape)
        shape[axis] = count
        full = [np.ones(shape), np.zeros([*shift.shape[:axis], count, *shift.shape[axis + 1 :]])]
        for row, part in zip(full, (scale, shift), strict=True):
            target, source = np.moveaxis(row, axis, 0), np.moveaxis(part, axis, 0)
            target[indices] = source
            if not np.array_equal(target[indices], source):
                return None
        return Spread.of(full[0], full[1])

    def regrouped(self, before: Dims, after: Dims) -> Spread | None:
        """Return the map of ``reshape(x, after)`` from that of x, of shape ``before``; None where it cannot be known.

        Row-major order means that runs of axes with equal products hold the same elements: within such a run the
        factors are repeated and reshaped. Between known runs at both ends one unknown run may lie; nothing may vary
        along it.
        """
        runs = _runs(before, after)
        if runs is None:
            return None
        rows = []
        for row in (self.scale, self.shift):
            shape: list[int] = []
            full: list[int] = []
            for (start, stop), (new_start, new_stop) in runs:
                own = row.shape[start:stop]
                if all(size == 1 for size in own):
                    full += own
                    shape += [1] * (new_stop - new_start)
                    continue
                sizes = before[start:stop]
                target = after[new_start:new_stop]
                if any(size is None for size in (*sizes, *target)):
                    return None
                full += [size or 0 for size in sizes]
                shape += [size or 0 for size in target]
            if int(np.prod(full, dtype=np.int64)) > _MOST_FACTORS:
                return None
            rows.append(np.broadcast_to(row, full).reshape(shape))
        return Spread.of(rows[0], rows[1])


def varying(row: Float64) -> frozenset[int]:
    """Return the axes along which ``row`` has more than one entry."""
    return frozenset(axis for axis, size in enumerate(row.shape) if size != 1)


def _squashed(row: Float64) -> Float64:
    """Return ``row`` with every axis along which it does not vary of size 1."""
    for axis, size in enumerate(row.shape):
        if size > 1:
            first = row.take([0], axis)
            if np.array_equal(np.broadcast_to(first, row.shape), row):
                row = first
    return np.asarray(row, np.float64)


Run = tuple[tuple[int, int], tuple[int, int]]


def _runs(before: Dims, after: Dims) -> list[Run] | None:
    """Return runs of axes that hold the same elements, from the left and from the right, the unknown one between."""
    if any(size == 0 for size in (*before, *after)):
        return None
    left, i, j = _matched(before, after)
    rest_before, rest_after = before[i:], after[j:]
    right, p, q = _matched(rest_before[::-1], rest_after[::-1])
    runs = list(left)
    if (i, j) != (len(before), len(after)):
        end_i, end_j = len(before) - p, len(after) - q
        if end_i > i or end_j > j:
            runs.append(((i, end_i), (j, end_j)))
        for (start, stop), (new_start, new_stop) in reversed(right):
            runs.append(((len(before) - stop, len(before) - start), (len(after) - new_stop, len(after) - new_start)))
    return runs


def _matched(before: Dims, after: Dims) -> tuple[list[Run], int, int]:
    """Return the longest row of runs with equal, known products from the front, and where it ends in both."""
    runs: list[Run] = []
    start = new_start = i = j = 0
    one = other = 1
    while True:
        if one == other and (i > start or j > new_start):
            # Ones that follow belong to this run or the next: it makes no difference.
            runs.append(((start, i), (new_start, j)))
            start, new_start, one, other = i, j, 1, 1
        if one <= other and i < len(before) and (one < other or (j < len(after) or before[i] == 1)):
            size = before[i]
            if size is None:
                break
            one, i = one * size, i + 1
        elif j < len(after) and (other < one or after[j] == 1 or i < len(before)):
            size = after[j]
            if size is None:
                break
            other, j = other * size, j + 1
        else:
            break
    return runs, start, new_start
