"""Per-channel affine maps as they are written: BatchNormalization, and Mul, Add, Sub, Div by constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, ChannelAffine, Float64, FoldError
from normfuse.graph.reading import has_parameters, input_at, is_op, is_standard, reads_output
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import Stored


@dataclass(frozen=True, slots=True)
class Channels:
    """Where the channels of a value lie: ``count`` of them along ``axis`` (not negative) of ``rank`` axes."""

    count: int
    axis: int
    rank: int


@dataclass(frozen=True, slots=True)
class Link:
    """One node of a chain: what it does to each channel. ``affine`` None: nothing (Identity, inference Dropout)."""

    node: ir.Node
    affine: ChannelAffine | None
    is_norm: bool = False


Norms = Mapping[ir.Node, NormSite | Declined]


def follow(value: ir.Value, channels: Channels, norms: Norms, reading: Reading) -> tuple[Link, ...]:
    """Return the longest chain of per-channel affine nodes that starts at ``value``.

    Every value inside the chain has exactly one reader, in the same graph, and is no graph output. The chain ends with
    its last node that changes something.
    """
    links: list[Link] = []
    while True:
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            break
        node, _ = uses[0]  # type: ignore[index]
        if node.graph is not value.graph:
            break
        link = read_link(node, value, channels, norms, reading)
        if not isinstance(link, Link):
            break
        links.append(link)
        value = node.outputs[0]
    while links and links[-1].affine is None:
        links.pop()
    return tuple(links)


def read_link(
    node: ir.Node, value: ir.Value, channels: Channels, norms: Norms, reading: Reading
) -> Link | Declined | None:
    """Return what ``node`` does to the channels of ``value``; None where it is no per-channel affine map."""
    if not is_standard(node):
        return None
    if node.op_type == "BatchNormalization":
        affine = norm_affine(node, channels, norms, reading)
        return Link(node, affine, is_norm=True) if isinstance(affine, ChannelAffine) else affine
    if has_parameters(node):
        return None
    if node.op_type == "Identity":
        return Link(node, None)
    if node.op_type == "Dropout":
        return Link(node, None) if _is_inactive_dropout(node, reading) else None
    if node.op_type in ("Mul", "Add", "Sub", "Div"):
        arithmetic = _arithmetic(node, value, channels, reading)
        return None if arithmetic is None else Link(node, arithmetic, is_stored(norms.get(node)))
    return None


def is_stored(site: NormSite | Declined | None) -> bool:
    """Whether ``site`` is a batch norm with stored statistics, as an operator or as arithmetic."""
    return isinstance(site, NormSite) and isinstance(site.spec.statistics, Stored)


def norm_affine(
    node: ir.Node, channels: Channels | None, norms: Norms, reading: Reading
) -> ChannelAffine | Declined | None:
    """Return the affine map of a BatchNormalization, or why it has none that is known before it runs."""
    site = norms.get(node)
    if not isinstance(site, NormSite):
        return site
    if not is_stored(site):
        return None
    if site.extra_outputs:
        return Declined("its saved statistics are read", node)
    if channels is not None and channels.axis != 1:
        return Declined(
            f"its channels lie along axis 1, the linear operator's along axis {channels.axis} of {channels.rank}", node
        )
    arrays: list[Array] = []
    for name, operand in (
        ("scale", site.operands.scale),
        ("bias", site.operands.bias),
        ("mean", site.operands.mean),
        ("variance", site.operands.var),
    ):
        array = reading.constants.array(operand)
        if operand is None or array is None:
            why = "is missing" if operand is None else f"'{operand.name}' {reading.constants.obstacle(operand)}"
            return Declined(f"its {name} {why}", node)
        arrays.append(array)
    gamma, beta, mean, var = arrays
    try:
        affine = ChannelAffine.from_batchnorm(gamma, beta, mean, var, site.spec.epsilon)
    except FoldError as error:
        return Declined(str(error), node)
    if channels is not None and affine.scale.size != channels.count:
        return Declined(f"it has {affine.scale.size} channels, its input has {channels.count}", node)
    return affine


def _is_inactive_dropout(node: ir.Node, reading: Reading) -> bool:
    if reads_output(node, 1):
        return False
    if reading.opset < 7:
        return node.attributes.get_int("is_test", 0) != 0
    training = input_at(node, 2)
    return training is None or reading.constants.scalar(training) == 0.0


def _arithmetic(node: ir.Node, value: ir.Value, channels: Channels, reading: Reading) -> ChannelAffine | None:
    left, right = input_at(node, 0), input_at(node, 1)
    if left is None or right is None or left is right:
        return None
    constant = right if left is value else left
    if node.op_type == "Div" and constant is left:
        return None
    if "consumed_inputs" in node.attributes and reading.opset >= 6:
        return None
    row = per_channel(node, constant, channels, reading, is_second=constant is right)
    if row is None:
        return None
    ones, zeros = np.ones(channels.count), np.zeros(channels.count)
    if node.op_type == "Mul":
        return ChannelAffine(row, zeros)
    if node.op_type == "Add":
        return ChannelAffine(ones, row)
    if node.op_type == "Sub":
        return ChannelAffine(ones, -row) if constant is right else ChannelAffine(-ones, row)
    return None if not row.all() else ChannelAffine(1.0 / row, zeros)


def per_channel(
    node: ir.Node, constant: ir.Value, channels: Channels, reading: Reading, *, is_second: bool
) -> Float64 | None:
    """Return a constant operand as one factor per channel (C,), or None where it varies along another axis.

    From opset 7 on operands broadcast as in NumPy. Before, only the second operand broadcasts, only where ``broadcast``
    is set, and its axes begin at ``axis``, or end with the last axis where that is not given (ONNX Add-6).
    """
    array = reading.constants.array(constant)
    if array is None or array.ndim > channels.rank or array.dtype.kind == "c":
        return None
    shape = array.shape
    if reading.opset < 7 and array.ndim != channels.rank:
        if not is_second or node.attributes.get_int("broadcast", 0) == 0:
            return None
        start = node.attributes.get_int("axis", channels.rank - array.ndim)
        start = start + channels.rank if start < 0 else start
        if start + array.ndim > channels.rank:
            return None
        shape = (1,) * start + shape + (1,) * (channels.rank - start - array.ndim)
    shape = (1,) * (channels.rank - len(shape)) + shape
    allowed = tuple(channels.count if axis == channels.axis else 1 for axis in range(channels.rank))
    if any(size not in (1, most) for size, most in zip(shape, allowed, strict=True)):
        return None
    row = np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (channels.count,)).copy()
    return row if np.isfinite(row).all() else None


def is_linear(node: ir.Node | None) -> bool:
    """Whether ``node`` is an operator that an affine map can be folded into."""
    return is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul")
