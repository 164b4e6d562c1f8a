"""What the two Reshapes around a group norm are proven to do: to group channels, and to restore the shape."""

from __future__ import annotations

import math

import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.graph.site import Reading
from normfuse.recognise.dims import Dim, WholeShape, dims_of, is_dim, same_dim, same_shape, unwrapped


def groups_of(x: ir.Value, there: ir.Node, reading: Reading) -> int | str:
    """Return G where ``there`` views x as (N, G, rest) with G dividing C; else what is not proven."""
    target = _target(there, reading)
    stated = there.outputs[0].shape
    count = _dim_at(target, 1)
    channels = None if x.shape is None or x.shape.rank() < 2 else x.shape[1]
    if count == 0 and there.attributes.get_int("allowzero", 0) == 0:
        count = channels if isinstance(channels, int) else None
    elif not isinstance(count, int) and stated is not None and stated.rank() > 1 and isinstance(stated[1], int):
        count = stated[1]
    rank = reading.ranks.of(x)
    if not isinstance(count, int) or count < 1:
        return "the number of groups is not constant: it is computed for the Reshape before InstanceNormalization"
    if rank is not None and rank < 2:
        return f"'{x.name}' has rank {rank}: no axis of channels"
    if not _keeps_batch(x, there, target, count):
        return "the Reshape before InstanceNormalization is not proven to keep the batch axis"
    if not isinstance(channels, int):
        return f"the number of channels of '{x.name}' is unknown, so the groups may cut one (run shape inference)"
    if channels % count:
        return f"{count} groups do not divide the {channels} channels of '{x.name}'"
    return count


def _keeps_batch(x: ir.Value, there: ir.Node, target: tuple[int | Dim | None, ...] | None, groups: int) -> bool:
    first = _dim_at(target, 0)
    if first == 0:
        return there.attributes.get_int("allowzero", 0) == 0
    if first == -1 and target is not None and x.shape is not None:
        sizes, rest = list(x.shape)[1:], list(target)[2:]
        known = [size for size in sizes if isinstance(size, int)]
        wanted = [size for size in rest if isinstance(size, int) and size > 0]
        if len(known) != len(sizes) or len(wanted) != len(rest):
            return False
        return math.prod(known) == groups * math.prod(wanted)
    if first != -1 and is_dim(first, x, 0):
        return True
    stated = there.outputs[0].shape
    if stated is None or x.shape is None or x.shape.rank() < 1 or stated.rank() < 2:
        return False
    return same_dim(stated[0], x.shape[0])


def not_restored(x: ir.Value, back: ir.Node, groups: int, reading: Reading) -> str | None:
    """Say what is missing for the result of ``back`` to have the shape of x; None where it is proven."""
    if same_shape(back.outputs[0], x):
        return None
    target = input_at(back, 1)
    dims = dims_of(target, reading) if target is not None else _target(back, reading)
    unproven = f"the Reshape after InstanceNormalization is not proven to restore the shape of '{x.name}'"
    if isinstance(dims, WholeShape):
        return None if unwrapped(dims.value) is unwrapped(x) else unproven
    rank = reading.ranks.of(x)
    if dims is None or len(dims) != rank:
        return unproven
    copies = back.attributes.get_int("allowzero", 0) == 0
    inferred = 0
    for axis, size in enumerate(dims):
        if size == -1:
            inferred += 1
        elif size == 0 and copies:
            # A zero copies the axis of what was normalised: N at axis 0, G at axis 1.
            if axis != 0 and not (axis == 1 and is_dim(groups, x, 1)):
                return unproven
        elif not is_dim(size, x, axis):
            return unproven
    # As many elements as x, all axes but one proven: the last one is too.
    return None if inferred <= 1 else unproven


def _target(reshape: ir.Node, reading: Reading) -> tuple[int | Dim | None, ...] | None:
    attribute = reshape.attributes.get("shape")
    if attribute is not None:  # opset 1 to 4
        return tuple(attribute.as_ints())
    dims = dims_of(input_at(reshape, 1), reading)
    return None if isinstance(dims, WholeShape) else dims


def _dim_at(target: tuple[int | Dim | None, ...] | None, axis: int) -> int | Dim | None:
    """Return entry ``axis`` of a target; None where it has none."""
    return target[axis] if target is not None and axis < len(target) else None
