"""Frames: what a Pad lays around a value before a convolution of a branch, one constant per channel.

Beside a plain Pad there is Diverse Branch's, which pads with what the batch norm before it makes of a zero: a Pad of zeros
whose border is then overwritten, by one ScatterND for each side, between Transposes. What a chain of these does is found
by running it on a value that is unknown (NaN) inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Reading

_LONGEST = 16
"""Nodes of one frame: four sides take twelve."""

_LARGEST = 1 << 22
"""Elements of a value that is run."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """nodes: last first; the last of them is the Pad, which reads ``source``. value: () or (C,).

    begin, end: how many positions are laid around, spatial axis by spatial axis.
    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    value: Float64
    begin: tuple[int, ...]
    end: tuple[int, ...]


def read_frame(node: ir.Node, reading: Reading) -> Frame | None:
    """Return the frame that ends with ``node``; None where there is none, or its border is not one constant a channel."""
    nodes = [node]
    while is_op(nodes[-1], "ScatterND", "Transpose") and len(nodes) < _LONGEST:
        data = input_at(nodes[-1], 0)
        producer = None if data is None else data.producer()
        if data is None or producer is None or len(data.uses()) != 1 or data.is_graph_output():
            return None
        if producer.graph is not node.graph:
            return None
        nodes.append(producer)
    pad = nodes[-1]
    source = input_at(pad, 0)
    if not is_op(pad, "Pad") or source is None or any(has_parameters(each) for each in nodes):
        return None
    padding = _padding(pad, reading)
    if padding is None:
        return None
    begin, end, fill = padding
    if min(*begin, *end) < 0 or any((*begin[:2], *end[:2])):
        return None
    value = np.asarray(fill) if len(nodes) == 1 else _border(nodes[::-1], source, begin, end, fill, reading)
    return None if value is None else Frame(tuple(nodes), source, value, begin[2:], end[2:])


def _padding(pad: ir.Node, reading: Reading) -> tuple[tuple[int, ...], tuple[int, ...], float] | None:
    """Return what a Pad adds before and behind every axis, and with which value."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    axes = None
    if reading.opset >= 11:
        pads = reading.constants.integers(input_at(pad, 1))
        value, chosen = input_at(pad, 2), input_at(pad, 3)
        fill = 0.0 if value is None else reading.constants.scalar(value)
        if chosen is not None:
            axes, rank = reading.constants.integers(chosen), reading.ranks.of(input_at(pad, 0))
            if axes is None or rank is None:
                return None
        else:
            rank = 0 if pads is None else len(pads) // 2
    else:
        pads, fill = tuple(pad.attributes.get_ints("pads", ())), pad.attributes.get_float("value", 0.0)
        rank = len(pads) // 2
    if pads is None or fill is None or not np.isfinite(fill) or rank < 3:
        return None
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    if len(pads) != 2 * len(axes):
        return None
    sides = [[0] * rank, [0] * rank]
    for index, axis in enumerate(axes):
        sides[0][axis], sides[1][axis] = pads[index], pads[index + len(axes)]
    return tuple(sides[0]), tuple(sides[1]), fill


def _border(
    nodes: list[ir.Node],
    source: ir.Value,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    fill: float,
    reading: Reading,
) -> Float64 | None:
    """Return the border that ``nodes`` leave around a value of NaN, (C,); None where it is not one value a channel."""
    shape = () if source.shape is None else tuple(source.shape)
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) != len(begin) or len(sizes) != len(shape):
        return None
    padded = tuple(sum(each) for each in zip(begin, sizes, end, strict=True))
    if np.prod(padded) > _LARGEST:
        return None
    inside = tuple(slice(first, first + size) for first, size in zip(begin, sizes, strict=True))
    result = np.full(padded, fill)
    result[inside] = np.nan
    for node in nodes[1:]:
        after = _transposed(node, result) if is_op(node, "Transpose") else _scattered(node, result, reading)
        if after is None:
            return None
        result = after
    if result.shape != padded or not np.isnan(result[inside]).all():
        return None
    border = np.ones(padded, bool)
    border[inside] = False
    rows = np.moveaxis(result, 1, 0)[:, np.moveaxis(border, 1, 0)[0]]
    if rows.size == 0 or not np.isfinite(rows).all() or (rows != rows[:, :1]).any():
        return None
    return np.ascontiguousarray(rows[:, 0])


def _transposed(node: ir.Node, data: Float64) -> Float64 | None:
    perm = node.attributes.get_ints("perm", tuple(range(data.ndim))[::-1])
    return data.transpose(perm) if sorted(perm) == list(range(data.ndim)) else None


def _scattered(node: ir.Node, data: Float64, reading: Reading) -> Float64 | None:
    """ScatterND: ``output[indices[i]] = updates[i]``."""
    indices = reading.constants.array(input_at(node, 1))
    updates = reading.constants.array(input_at(node, 2))
    if indices is None or updates is None or node.attributes.get_string("reduction", "none") != "none":
        return None
    depth = indices.shape[-1] if indices.ndim else 0
    if not 0 < depth <= data.ndim or updates.shape != (*indices.shape[:-1], *data.shape[depth:]):
        return None
    limits = np.asarray(data.shape[:depth])
    if (indices >= limits).any() or (indices < -limits).any():
        return None
    result = data.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates.astype(np.float64)
    return result
