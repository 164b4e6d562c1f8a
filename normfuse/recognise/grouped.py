"""Norms of a view: ``Reshape · norm · Reshape`` with the statistics of channel groups in between.

Channels first, (N, C, *spatial) is seen as (N, G, …) and averaged over all axes after G; channels last,
(N, *spatial, C) as (N, *spatial, G, C/G) and averaged over all axes but N and G.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import NormSite, Reading
from normfuse.recognise.affine_operands import Row
from normfuse.recognise.dims import is_dim, same_shape
from normfuse.recognise.grouping import groups_of, not_restored
from normfuse.recognise.layout import Axes, size_of
from normfuse.recognise.parameters import detached
from normfuse.recognise.reshaped import sole_user
from normfuse.spec import AffineAxes, ComputeType


@dataclass(frozen=True, slots=True)
class View:
    """x behind the Reshapes ``there``, one or two, and the Reshape ``back`` that restores its shape."""

    x: ir.Value
    there: tuple[ir.Node, ...]
    back: ir.Node
    groups: int
    channel_axis: Literal[1, -1]

    def leaving(self, interior: Collection[ir.Node]) -> tuple[ir.Node, ...]:
        """Return those of ``there`` that nothing but ``interior`` reads; the norm does not need the others to go."""
        inside, leaving = set(interior), list[ir.Node]()
        for node in reversed(self.there):
            output = node.outputs[0]
            if output.is_graph_output() or not {user for user, _ in output.uses()} <= inside:
                break
            inside.add(node)
            leaving.insert(0, node)
        return tuple(leaving)


def view_of(viewed: ir.Value, result: ir.Value, axes: Axes, reading: Reading) -> View | None:
    """Return the view in which a mean over ``axes`` of ``viewed`` is one over groups of channels, if it is one."""
    there, back = viewed.producer(), sole_user(result)
    if there is None or back is None or not is_op(there, "Reshape") or not is_op(back, "Reshape"):
        return None
    x, rank = input_at(there, 0), reading.ranks.of(viewed)
    if x is None or rank is None or input_at(back, 0) is not result or has_parameters(there) or has_parameters(back):
        return None
    if rank >= 3 and axes == tuple(range(2 - rank, 0)):
        steps = _steps(there, reading)
        x = input_at(steps[0], 0)
        groups = "" if x is None else groups_of(x, steps[0], reading)
        if x is None or isinstance(groups, str) or not_restored(x, back, groups, reading) is not None:
            return None
        return View(x, steps, back, groups, 1)
    if rank >= 4 and axes == (*range(1 - rank, -2), -1):
        return _channels_last(x, viewed, there, back, rank, reading)
    return None


def _steps(there: ir.Node, reading: Reading) -> tuple[ir.Node, ...]:
    """Return ``there`` with the Reshape before it, where ``there`` but flattens what lies behind the first two axes."""
    before = _producer(input_at(there, 0))
    flattens = reading.constants.integers(input_at(there, 1)) == (0, 0, -1)
    if before is None or not flattens or there.attributes.get_int("allowzero", 0) == 1:
        return (there,)
    return (before, there) if is_op(before, "Reshape") and not has_parameters(before) else (there,)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _channels_last(
    x: ir.Value, viewed: ir.Value, there: ir.Node, back: ir.Node, rank: int, reading: Reading
) -> View | None:
    channels = size_of(x, -1)
    target = reading.constants.integers(input_at(there, 1))
    if target is not None and len(target) == rank == 4 and _collapses(x, target, channels):
        return View(x, (there,), back, target[2], -1) if same_shape(back.outputs[0], x) else None
    groups, size = size_of(viewed, -2), size_of(viewed, -1)
    if reading.ranks.of(x) != rank - 1 or groups is None or size is None or channels != groups * size:
        return None
    if viewed.shape is None or not same_shape(back.outputs[0], x):
        return None
    kept = (is_dim(_stated(viewed, axis), x, axis) for axis in range(rank - 2))
    return View(x, (there,), back, groups, -1) if all(kept) else None


def _collapses(x: ir.Value, target: tuple[int, ...], channels: int | None) -> bool:
    """Whether a Reshape to ``target`` sees (N, *spatial, C) as (N, positions, G, C/G)."""
    samples, positions, groups, size = target
    if positions != -1 or min(groups, size) < 1 or channels != groups * size or x.shape is None or x.shape.rank() < 3:
        return False
    return samples == 0 or x.shape[0] == samples


def within_casts(site: NormSite) -> NormSite:
    """Take in the Cast that widens x for the norm alone, and the Cast of the result back to the type of x."""
    x = site.operands.x
    up = x.producer()
    source = None if up is None or not is_op(up, "Cast") else up.inputs[0]
    if up is None or source is None or source.dtype not in _COMPUTED or x.dtype not in _COMPUTED[source.dtype]:
        return site
    if x.is_graph_output() or not {user for user, _ in x.uses()} <= set(site.interior):
        return site
    assert x.dtype is not None
    down = sole_user(site.output)
    back = down if is_op(down, "Cast") and down is not None and down.outputs[0].dtype == source.dtype else None
    return replace(
        site,
        spec=replace(site.spec, compute_type=_COMPUTED[source.dtype][x.dtype]),
        operands=replace(site.operands, x=source),
        spelling=f"Cast·{site.spelling}{'·Cast' if back is not None else ''}",
        root=site.root if back is None else back,
        interior=(up, *site.interior, *(() if back is None else (back,))),
    )


_WIDE = {ir.DataType.FLOAT: ComputeType.FLOAT, ir.DataType.DOUBLE: ComputeType.DOUBLE}
_COMPUTED = {
    ir.DataType.FLOAT16: _WIDE,
    ir.DataType.BFLOAT16: _WIDE,
    ir.DataType.FLOAT: {ir.DataType.DOUBLE: ComputeType.DOUBLE},
}
"""The types that x is widened to, by its own type."""


def _stated(value: ir.Value, axis: int) -> int | None:
    return size_of(value, axis - value.shape.rank()) if value.shape is not None else None


def grouped_rows(
    rows: tuple[Row | None, Row | None], view: View, viewed: ir.Value, rank: int
) -> tuple[AffineAxes, ir.Value | None, ir.Value | None] | None:
    """Return γ and β of the view as operands per group or per channel of x; None where they lie otherwise."""
    group_axis = 1 - rank if view.channel_axis == 1 else -2
    group_shape = tuple(view.groups if axis == group_axis else 1 for axis in range(-rank, 0))
    size = size_of(viewed, group_axis + 1)
    channel_shape = tuple(
        size if axis == group_axis + 1 else each for axis, each in zip(range(-rank, 0), group_shape, strict=True)
    )
    present = [row for row in rows if row is not None]
    if not present:
        return AffineAxes.CHANNEL, None, None
    padded = [(1,) * (rank - len(row.shape)) + row.shape for row in present]
    if all(shape == group_shape for shape in padded) and view.groups > 1:
        operands = [None if row is None else _as_it_is(row) for row in rows]
        return _complete(AffineAxes.GROUP, rows, operands)
    channels = size_of(view.x, view.channel_axis) if view.channel_axis == -1 else _channels(view.x)
    if size is None or channels != view.groups * size:
        return None
    operands = []
    for row in rows:
        if row is None:
            operands.append(None)
            continue
        shape = (1,) * (rank - len(row.shape)) + row.shape
        if any(each not in (1, most) for each, most in zip(shape, channel_shape, strict=True)) or row.array is None:
            return None
        full = np.broadcast_to(row.array.reshape(shape), [int(each or 1) for each in channel_shape]).reshape(-1)
        operands.append(detached(row.name, full, row.array))
    return _complete(AffineAxes.CHANNEL, rows, operands)


def _channels(x: ir.Value) -> int | None:
    return None if x.shape is None else size_of(x, 1 - x.shape.rank())


def _as_it_is(row: Row) -> ir.Value | None:
    if row.value is not None:
        return row.value
    return None if row.array is None else detached(row.name, row.array, row.array)


def _complete(
    axes: AffineAxes, rows: tuple[Row | None, Row | None], operands: list[ir.Value | None]
) -> tuple[AffineAxes, ir.Value | None, ir.Value | None] | None:
    missing = any(row is not None and operand is None for row, operand in zip(rows, operands, strict=True))
    return None if missing else (axes, operands[0], operands[1])
