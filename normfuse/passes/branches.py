"""Branches: the linear maps between a value and what it is made of, read backward from the value.

A branch is a chain of nodes whose results nobody else reads: per-channel affine maps, Conv, AveragePool, Pad. First the chain
is traced by operator alone; a chain that is wanted is then read as a :class:`~normfuse.passes.stencil.Stencil`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.affine import ChannelAffine, Float64, FoldError
from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.cancellation import FARTHEST_MEAN, mean_distance
from normfuse.passes.frames import Frame, read_frame
from normfuse.passes.linear import read_linear
from normfuse.passes.stencil import Grid, Sizes, Stencil, diagonal, succession
from normfuse.recognise.affine_chain import Channels, Link, Norms, read_link

_LONGEST = 16
"""The most steps of one branch."""

_BORDER_ROUNDINGS = 16.0
"""How far, in units of float32's rounding of the largest border, a border may lie from the bias that it repeats."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A chain of nodes from ``source`` to a value, last node first. ``source`` is input ``at[1]`` of node ``at[0]``."""

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    at: tuple[ir.Node, int]

    @property
    def convolutions(self) -> tuple[ir.Node, ...]:
        """The Conv nodes of the chain, last first."""
        return tuple(node for node in self.nodes if is_op(node, "Conv"))


@dataclass(frozen=True, slots=True, eq=False)
class FarMean:
    """What is known where a norm of the source itself is a branch, and its mean lies far from zero.

    reason: why the norm would rather stay. moment: E[x²] of each channel of the source. error: what the norm's own rounding
    does to each channel, squared, in units of u².
    """

    reason: str
    moment: Float64
    error: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A trace as a stencil. work: the multiply-adds that its nodes take per output position."""

    trace: Trace
    stencil: Stencil
    work: int
    far: FarMean | None = None

    def times(self, factor: int) -> Branch:
        """Return the branch with its result multiplied."""
        channels = self.stencil.outputs
        return replace(
            self, stencil=self.stencil.then(ChannelAffine(np.full(channels, float(factor)), np.zeros(channels)))
        )


def traces(at: tuple[ir.Node, int], reading: Reading) -> list[Trace]:
    """Return the chains that end in input ``at[1]`` of node ``at[0]``: of no node, of one, and so on backward."""
    value = at[0].inputs[at[1]]
    assert value is not None
    found = [Trace((), value, at)]
    graph = at[0].graph
    for _ in range(_LONGEST):
        node = value.producer()
        if node is None or node.graph is not graph or len(value.uses()) != 1 or value.is_graph_output():
            break
        frame = read_frame(node, reading)
        if frame is not None:
            value = frame.source
            found.append(Trace((*found[-1].nodes, *frame.nodes), value, (frame.nodes[-1], 0)))
            continue
        index = _input_of_map(node, reading)
        source = None if index is None else node.inputs[index]
        if index is None or source is None:
            break
        value = source
        found.append(Trace((*found[-1].nodes, node), value, (node, index)))
    return found


def _input_of_map(node: ir.Node, reading: Reading) -> int | None:
    """Return which input ``node`` maps linearly, judged by its operator; None where it is no such map."""
    if is_op(node, "Conv", "AveragePool", "BatchNormalization", "Identity", "Dropout"):
        return 0
    if not is_op(node, "Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    fixed = [reading.constants.array(value) is not None for value in node.inputs]
    return fixed.index(False) if fixed.count(False) == 1 else None


def read_branch(trace: Trace, channels: Channels, norms: Norms, reading: Reading) -> Branch | Declined:
    """Return ``trace`` as a branch whose result has ``channels``, or why it is none and at which node."""
    behind, stencil, work = ChannelAffine.identity(channels.count), None, 0
    border, far = np.zeros(channels.count), None
    nodes = list(trace.nodes)
    while nodes:
        node = nodes[0]
        frame = read_frame(node, reading)
        try:
            if frame is not None or is_op(node, "Conv", "AveragePool"):
                step = _convolution(node, channels, reading) if frame is None else _framed(frame, channels)
                step = _without(border, step.then(behind))
                work += step.work * (1 if stencil is None else math.prod(grid.stride for grid in stencil.grids))
                stencil = step if stencil is None else succession(step, stencil)
                channels = Channels(step.inputs, channels.axis, channels.rank)
                border = np.zeros(channels.count) if frame is None else np.broadcast_to(frame.value, (channels.count,))
                # What is padded with c is padded with zeros when c is taken away before.
                behind = ChannelAffine(np.ones(channels.count), -border)
            else:
                if not any(is_op(after, "Conv", "AveragePool") for after in nodes):
                    far = _far_mean(norms.get(node), reading)
                    if far is not None and (stencil is not None or len(nodes) > 1):
                        raise FoldError(far.reason)
                behind = _affine(node, channels, norms, reading).then(behind)
                work += channels.count
        except FoldError as error:
            return Declined(str(error), node)
        del nodes[: 1 if frame is None else len(frame.nodes)]
    first = _without(border, diagonal(behind, (Grid(1),) * (channels.rank - 2)))
    if stencil is None:
        return Branch(trace, first, work, far)
    try:
        return Branch(trace, stencil if _is_identity(behind) else succession(first, stencil), work)
    except FoldError as error:
        return Declined(str(error), trace.nodes[-1])


def _framed(frame: Frame, channels: Channels) -> Stencil:
    """Return the padding with zeros of a frame, and its value added everywhere."""
    if len(frame.begin) != channels.rank - 2 or frame.value.size not in (1, channels.count):
        raise FoldError(f"{frame.nodes[-1].op_type} '{describe(frame.nodes[-1])}' pads other axes or channels")
    grids = tuple(Grid(1, begin=begin, end=end) for begin, end in zip(frame.begin, frame.end, strict=True))
    value = np.broadcast_to(frame.value, (channels.count,))
    return diagonal(ChannelAffine(np.ones(channels.count), value), grids)


def _without(border: Float64, step: Stencil) -> Stencil:
    """Return ``step`` with the bias that ``border`` was taken from at 0 where the two are one up to rounding.

    A border of the file was computed in its type from what the bias is made of: five roundings of two terms, both below
    a few times the largest value. What is dropped is less than the rounding of that value by the operators themselves.
    """
    size = np.abs(border).max(initial=0.0)
    if not size or (np.abs(step.bias) > _BORDER_ROUNDINGS * 2.0**-24 * size).any():
        return step
    return replace(step, bias=np.zeros_like(step.bias))


def _is_identity(affine: ChannelAffine) -> bool:
    return bool(np.all(affine.scale == 1.0)) and not affine.shift.any()


def _far_mean(site: NormSite | Declined | None, reading: Reading) -> FarMean | None:
    """Return what is known of a norm between which and the source no convolution stands, if its mean is too far away.

    Merging takes away the one place where the mean is subtracted before products are rounded, as folding a norm into what
    stands behind it does. Behind the norm of the source itself, what it normalises is known: E[x²] = μ² + σ². The norm
    rounds a·x and a·μ, one rounding each of a third of u² (docs/validation.md).
    """
    distance = mean_distance(site, reading) if isinstance(site, NormSite) else 0.0
    if distance <= FARTHEST_MEAN or not isinstance(site, NormSite):
        return None
    reason = (
        f"its mean lies up to {distance:.3g} deviations from zero: in a convolution, the result would lose accuracy"
    )
    arrays = [reading.constants.array(value) for value in (site.operands.scale, site.operands.mean, site.operands.var)]
    scale, mean, var = (np.ones(1) if array is None else np.asarray(array, np.float64) for array in arrays)
    moment = mean**2 + var
    return FarMean(reason, moment, scale**2 / (var + site.spec.epsilon) * (moment + mean**2) / 3.0)


def _affine(node: ir.Node, channels: Channels, norms: Norms, reading: Reading) -> ChannelAffine:
    """Return what ``node`` does to each channel. Raises FoldError where that is not known."""
    index = _input_of_map(node, reading)
    value = None if index is None else node.inputs[index]
    link = None if value is None else read_link(node, value, channels, norms, reading)
    if isinstance(link, Declined):
        raise FoldError(link.reason)
    if not isinstance(link, Link):
        raise FoldError(f"{node.op_type} '{describe(node)}' is no per-channel constant")
    return ChannelAffine.identity(channels.count) if link.affine is None else link.affine


def _convolution(node: ir.Node, channels: Channels, reading: Reading) -> Stencil:
    """Return a Conv or AveragePool as a stencil. Raises FoldError where it is none."""
    name = f"{node.op_type} '{describe(node)}'"
    if has_parameters(node):
        raise FoldError(f"an attribute of {name} is a parameter of the function")
    sizes = spatial_sizes(input_at(node, 0), channels.rank - 2)
    if node.op_type == "AveragePool":
        kernel = node.attributes.get_ints("kernel_shape", ())
        if len(kernel) != channels.rank - 2:
            raise FoldError(f"the kernel of {name} has {len(kernel)} axes")
        grids = read_grids(node, tuple(kernel), sizes)
        if node.attributes.get_int("ceil_mode", 0):
            raise FoldError(f"{name} has ceil_mode: its last window may be cut")
        counted = node.attributes.get_int("count_include_pad", 0)
        if not counted and any(grid.begin or grid.end for grid in grids):
            raise FoldError(f"{name} does not count its padding")
        share = np.full(channels.count, 1.0 / math.prod(kernel))
        return diagonal(ChannelAffine(share, np.zeros(channels.count)), grids)
    linear = read_linear(node, reading)
    if isinstance(linear, Declined):
        raise FoldError(linear.reason)
    weight = np.asarray(linear.weight, np.float64)
    group = node.attributes.get_int("group", 1)
    if weight.ndim != channels.rank or weight.shape[0] != channels.count or group < 1 or weight.shape[0] % group:
        raise FoldError(f"{name} has a weight of shape {list(weight.shape)} in {group} groups")
    if not np.isfinite(weight).all():
        raise FoldError(f"the weight of {name} is not finite")
    bias = np.zeros(weight.shape[0]) if linear.bias is None else np.asarray(linear.bias, np.float64)
    return Stencil(weight, bias, group, read_grids(node, weight.shape[2:], sizes))


def spatial_sizes(value: ir.Value | None, axes: int) -> Sizes:
    """Return the extents of the spatial ``axes`` of ``value``, as far as the file states them."""
    if value is None or value.shape is None or value.shape.rank() != axes + 2:
        return (None,) * axes
    return tuple(dim if isinstance(dim, int) else None for dim in list(value.shape)[2:])


def read_grids(node: ir.Node, kernel: tuple[int, ...], sizes: Sizes) -> tuple[Grid, ...]:
    """Return where the taps of a Conv or AveragePool lie, ``auto_pad`` spelled out. Raises FoldError if not known.

    SAME pads so that there are ⌈size/stride⌉ positions; of an odd padding the larger half is at the end (SAME_UPPER).
    """
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", (1,) * rank)
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank) if auto_pad == "NOTSET" else (0,) * 2 * rank
    if not len(strides) == len(dilations) == len(pads) // 2 == rank or min(pads) < 0:
        raise FoldError(f"the attributes of {node.op_type} '{describe(node)}' do not fit its kernel")
    grids = []
    for axis, taps in enumerate(kernel):
        begin, end, stride, dilation = pads[axis], pads[axis + rank], strides[axis], dilations[axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            size = 1 if stride == 1 else sizes[axis]  # at stride 1 the padding does not depend on it
            if size is None:
                raise FoldError(f"the padding of {node.op_type} '{describe(node)}' depends on the size of its input")
            whole = max((-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size, 0)
            begin, end = (whole // 2, -(-whole // 2)) if auto_pad == "SAME_UPPER" else (-(-whole // 2), whole // 2)
        grids.append(Grid(taps, stride, dilation if taps > 1 else 1, begin, end))
    return tuple(grids)
