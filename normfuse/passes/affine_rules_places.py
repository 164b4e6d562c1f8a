"""Rules for operators that move values about: reshaping, joining, choosing, and blocks between depth and space."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.passes.affine_passing import Context, Outcome, Passed
from normfuse.passes.slices import kept
from normfuse.passes.spread import Dims, Spread


def transpose(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Transpose: the axes of the factors go along."""
    perm = [axis % f.rank for axis in node.attributes.get_ints("perm", tuple(range(f.rank))[::-1])]
    if sorted(perm) != list(range(f.rank)):
        return "permutes another number of axes"
    return Passed(((0, f.transposed([int(axis) for axis in np.argsort(perm)] if backward else perm)),))


def reshape(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Reshape, Flatten, Squeeze, Unsqueeze: row-major order stays, so the factors are split, merged, repeated."""
    target = context.sizes.integers(input_at(node, 1))
    if node.attributes.get_int("allowzero", 0) and (target is None or 0 in target):
        return "may reshape to a size of zero"
    before, after = context.sizes.of(input_at(node, 0)), context.sizes.of(node.outputs[0])
    if before is None or after is None:
        return "has an input or output whose sizes are not known"
    pair = (after, before) if backward else (before, after)
    if len(pair[0]) != f.rank:
        return "has an output whose sizes are not known"
    moved = f.regrouped(*pair)
    if moved is None:
        return "reshapes the channels together with axes whose sizes are not known"
    return Passed(((0, moved),))


def concat(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Concat: along its axis each input gets its slice, along others the whole; forward, the rest the identity."""
    axis = node.attributes.get_int("axis", 1) % f.rank
    if backward and f.size(axis) == 1:
        return Passed(tuple((index, f) for index in range(len(node.inputs))))
    sizes = _concat_sizes(node, axis, context)
    if sizes is None or (backward and sum(sizes) != f.size(axis)):
        return "joins channels whose number is not known"
    starts = np.cumsum([0, *sizes])
    parts = [np.arange(starts[index], starts[index + 1]) for index in range(len(sizes))]
    if backward:
        return Passed(tuple((index, f.take(part, axis)) for index, part in enumerate(parts)))
    placed = f.placed(parts[place], axis, sum(sizes))
    return "joins channels of another number" if placed is None else Passed(((0, placed),))


def _concat_sizes(node: ir.Node, axis: int, context: Context) -> list[int] | None:
    sizes = []
    for value in node.inputs:
        dims = context.sizes.of(value)
        size = None if dims is None else dims[axis]
        if size is None:
            return None
        sizes.append(size)
    return sizes


def split(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Split: backward the channels of the other outputs keep the identity; forward each output gets its slice."""
    axis = node.attributes.get_int("axis", 0) % f.rank
    sizes = _split_sizes(node, axis, context)
    if sizes is None:
        return "splits channels whose number is not known"
    starts = np.cumsum([0, *sizes])
    parts = [np.arange(starts[index], starts[index + 1]) for index in range(len(sizes))]
    if not backward:
        return Passed(tuple((index, f.take(part, axis)) for index, part in enumerate(parts)))
    placed = f.placed(parts[place], axis, sum(sizes))
    return "splits channels of another number" if placed is None else Passed(((0, placed),), shrinks=True)


def _split_sizes(node: ir.Node, axis: int, context: Context) -> list[int] | None:
    dims = context.sizes.of(input_at(node, 0))
    total = None if dims is None else dims[axis]
    if total is None:
        return None
    explicit = input_at(node, 1)
    stated: Dims | None = tuple(node.attributes.get_ints("split", ())) or None
    if explicit is not None:
        stated = context.sizes.integers(explicit)
        if stated is None:
            return None
    if stated is not None:
        parts = [size for size in stated if size is not None]
        return parts if sum(parts) == total and len(parts) == len(stated) == len(node.outputs) else None
    each = -(-total // len(node.outputs))
    sizes = [each] * (total // each) + ([total % each] if total % each else [])
    return sizes if len(sizes) == len(node.outputs) else None


def slice_(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Slice: the channels that it leaves out keep the identity."""
    dims = context.sizes.of(input_at(node, 0))
    picked = None if dims is None else kept(node, dims, context.sizes.integers)
    if dims is None or picked is None:
        return "slices at computed places"
    for axis, indices in picked.items():
        if f.size(axis) == 1:
            continue
        size = dims[axis]
        if size is None:
            return "slices channels whose number is not known"
        if indices is None:
            return "slices at computed places"
        if not backward:
            f = f.take(indices, axis)
            continue
        placed = f.placed(indices, axis, size)
        if placed is None:
            return "slices channels of another number"
        f = placed
    return Passed(((0, f),), shrinks=True)


def gather(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Gather by a constant vector: an index that comes twice needs one and the same factor."""
    array = context.reading.constants.array(input_at(node, 1))
    dims = context.sizes.of(input_at(node, 0))
    if array is None or dims is None:
        return "gathers at computed indices"
    if array.ndim != 1:
        return "gathers by indices that are no vector"
    axis = node.attributes.get_int("axis", 0) % f.rank
    size = dims[axis]
    if f.size(axis) == 1:
        return Passed(((0, f),), shrinks=True)
    if size is None:
        return "gathers from channels whose number is not known"
    picked = np.asarray(array, np.int64) % size
    if not backward:
        return Passed(((0, f.take(picked, axis)),))
    placed = f.placed(picked, axis, size)
    if placed is None:
        return "gathers one channel twice, with different factors"
    return Passed(((0, placed),), shrinks=True)


def depth_to_space(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """DepthToSpace: of channel c·b², DCR counts (b, b, c), CRD (c, b, b). SpaceToDepth is the inverse of DCR."""
    if f.varies - {1}:
        return "moves axes along which the factors vary"
    if f.size(1) == 1:
        return Passed(((0, f),))
    blocks = node.attributes.get_int("blocksize", 1) ** 2
    crd = node.op_type == "DepthToSpace" and node.attributes.get_string("mode", "DCR") == "CRD"
    widens = backward == (node.op_type == "DepthToSpace")
    small = f.size(1) if widens else f.size(1) // blocks
    order = np.repeat(np.arange(small), blocks) if crd else np.tile(np.arange(small), blocks)
    if widens:
        return Passed(((0, f.take(order, 1)),))
    placed = f.placed(order, 1, small)
    if placed is None:
        return "gathers channels with different factors into one"
    return Passed(((0, placed),))
