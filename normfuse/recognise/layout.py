"""Along what γ and β lie, and which statistics mean the same as a mean over those axes of x.

Axes count from the end. A parameter lies along the axes where its size is not 1; there it has exactly the size of x,
or it would enlarge the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from normfuse.spec import AffineAxes, Batch, PerChannel, PerGroup, Statistics, Trailing

Axes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Statistics with the axes of the affine and the axis of the channels."""

    statistics: Statistics
    affine: AffineAxes = AffineAxes.CHANNEL
    channel_axis: Literal[1, -1] = 1


def lies_along(shape: tuple[int, ...], x: ir.Value, rank: int | None) -> Axes | None:
    """Return the axes of x along which a parameter of ``shape`` lies; None where it does not fit x exactly."""
    if rank is not None and len(shape) > rank:
        return None
    axes = tuple(axis for axis in range(-len(shape), 0) if shape[axis] != 1)
    for axis in axes:
        if size_of(x, axis) != shape[axis]:
            return None
    if rank is None and len(shape) > 1:
        return None
    return axes


def size_of(x: ir.Value, axis: int) -> int | None:
    """Return the size of x along ``axis`` where the file states it."""
    if x.shape is None or -axis > x.shape.rank():
        return None
    size = x.shape[axis]
    return size if isinstance(size, int) else None


def layout_of(axes: Axes, rank: int | None, *, centred: bool, affine: Axes | None) -> Layout | None:
    """Return how to say a mean over ``axes`` with an affine along ``affine`` (None: no affine).

    None where no spec says the two together; then the affine stays outside. Statistics over all positions of an image
    are those of an instance norm unless γ lies along the positions; a single axis is that of a layer norm unless γ
    lies along the channels.
    """
    for layout in _candidates(axes, rank, centred=centred, has_affine=affine is not None):
        if affine is None or _fits(affine, axes, rank, layout):
            return layout
    return None


def _fits(affine: Axes, axes: Axes, rank: int | None, layout: Layout) -> bool:
    if layout.affine is AffineAxes.NORMALISED:
        return set(affine) <= set(axes)
    if rank is None:
        return False
    return affine == ((-1,) if layout.channel_axis == -1 else (1 - rank,))


def _candidates(axes: Axes, rank: int | None, *, centred: bool, has_affine: bool) -> list[Layout]:
    trailing = Layout(Trailing(axes), AffineAxes.NORMALISED if has_affine else AffineAxes.CHANNEL)
    if rank is None or rank < 2:
        return [trailing]  # a vector has neither samples nor channels
    first: list[Layout] = []
    after: list[Layout] = []
    images = rank >= 4
    if centred and rank >= 3 and axes == tuple(range(2 - rank, 0)):
        (first if images and not has_affine else after).append(Layout(PerChannel()))
    elif centred and rank >= 3 and axes == tuple(range(1 - rank, -1)):
        (first if images and not has_affine else after).append(Layout(PerChannel(), channel_axis=-1))
    elif centred and rank >= 3 and axes == tuple(range(1 - rank, 0)):
        first.append(Layout(PerGroup(1)))
        after.append(Layout(PerGroup(1), channel_axis=-1))
    elif centred and axes == tuple(axis for axis in range(-rank, 0) if axis != 1 - rank):
        return [Layout(Batch())]
    elif centred and rank >= 3 and axes == tuple(range(-rank, -1)):
        return [Layout(Batch(), channel_axis=-1)]
    if not has_affine:
        return [*first, trailing, *after]
    if not centred:
        after += [Layout(Trailing(axes)), Layout(Trailing(axes), channel_axis=-1)]
    return [*first, trailing, *after]
