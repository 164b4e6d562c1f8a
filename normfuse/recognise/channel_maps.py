"""Batch norms that are left as arithmetic on constants: Mul and Add, Sub and Div, or a depthwise 1x1 Conv (S8 to S10).

A chain counts when it both scales and shifts channels; a Mul alone (layer scale) or an Add alone (a bias) is no norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np
import onnx_ir as ir

from normfuse.affine import ChannelAffine
from normfuse.graph.channels import channels
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import NormSite, Operands, Reading
from normfuse.recognise.affine_chain import Channels, Link, follow, is_linear, read_link
from normfuse.recognise.parameters import detached
from normfuse.recognise.reader import FLOATS
from normfuse.spec import AffineLayout, NormSpec, Stored

_ARITHMETIC = ("Mul", "Add", "Sub", "Div")
_MOVING = ("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""What may stand between a norm and its affine without being either."""


def find_channel_maps(graph: Iterable[ir.Node], reading: Reading, claimed: Set[ir.Node]) -> tuple[NormSite, ...]:
    """Return the per-channel affine maps of one graph that no norm stands before.

    Behind a linear operator (FrozenBatchNorm) a leading Add is its bias, and what scales and shifts behind that is the map.
    claimed: nodes of other norms, and those at which one was declined.
    """
    found: list[NormSite] = []
    taken: set[ir.Node] = set(claimed)
    for node in graph:
        if node in taken:
            continue
        site = None
        if is_op(node, *_ARITHMETIC):
            site = _chain(node, reading, claimed)
        elif is_op(node, "Conv") and node.attributes.get_int("group", 1) > 1:
            site = _depthwise(node, reading)
        if site is not None and not taken.intersection(site.interior):
            found.append(site)
            taken.update(site.interior)
    return tuple(found)


def _chain(node: ir.Node, reading: Reading, claimed: Set[ir.Node]) -> NormSite | None:
    """Read the chain that begins at ``node``."""
    moving = [value for value in node.inputs if value is not None and reading.constants.array(value) is None]
    if len(moving) != 1 or len(node.inputs) != 2:
        return None
    (x,) = moving
    if x.dtype not in FLOATS or x.is_initializer():
        return None
    before = _origin(x)
    if before is not None and (before in claimed or is_op(before, *_ARITHMETIC)):
        return None  # the affine of a norm, or the middle of something else
    if is_linear(before) and before is not x.producer():
        return None  # where its bias stands is not to be seen from here
    rank = reading.ranks.of(x)
    if rank is None or rank < 2:
        return None
    for axis in dict.fromkeys((1, rank - 1)):
        count = channels(x, axis)
        if count is None or count < 2:
            continue
        links = _links(node, x, Channels(count, axis, rank), reading)
        if is_linear(before) and links and links[0].node.op_type == "Add":
            x, links = links[0].node.outputs[0], links[1:]
        affine = _composed(links, count)
        if affine is not None:
            return _site(x, links, affine, axis)
    return None


def _origin(value: ir.Value) -> ir.Node | None:
    """Return the node that computed the numbers of ``value``, wherever they were moved since."""
    node = value.producer()
    while is_op(node, *_MOVING) and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _links(node: ir.Node, x: ir.Value, along: Channels, reading: Reading) -> tuple[Link, ...]:
    first = read_link(node, x, along, {}, reading)
    if not isinstance(first, Link) or first.affine is None:
        return ()
    return (first, *follow(node.outputs[0], along, {}, reading))


def _composed(links: tuple[Link, ...], count: int) -> ChannelAffine | None:
    """Return the map of ``links`` where it scales and shifts, and at least one of the two differs among channels."""
    kinds = {link.node.op_type for link in links}
    if not kinds & {"Mul", "Div"} or not kinds & {"Add", "Sub"}:
        return None
    affine = ChannelAffine.identity(count)
    varies = False
    for link in links:
        if link.affine is not None:
            affine = affine.then(link.affine)
            varies = varies or bool(np.ptp(link.affine.scale) or np.ptp(link.affine.shift))
    if not varies or not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return None
    return affine


def _depthwise(node: ir.Node, reading: Reading) -> NormSite | None:
    """Read a Conv with a kernel of 1 and one filter per channel."""
    x, weight, bias = input_at(node, 0), input_at(node, 1), input_at(node, 2)
    if x is None or weight is None or bias is None or has_parameters(node):
        return None
    tensor = reading.constants.tensor(weight)
    shape = None if tensor is None else tuple(tensor.shape.numpy())
    count = node.attributes.get_int("group", 1)
    if shape is not None and (len(shape) < 3 or shape != (count, *(1,) * (len(shape) - 1))):
        return None
    array, shift = reading.constants.array(weight), reading.constants.array(bias)
    if array is None or shift is None or array.ndim < 3 or array.shape != (count, *(1,) * (array.ndim - 1)):
        return None
    if channels(x) not in (count, None):
        return None
    attributes = node.attributes
    if any(attributes.get_ints("pads", ())) or any(step != 1 for step in attributes.get_ints("strides", ())):
        return None
    affine = ChannelAffine(array.astype(np.float64).reshape(-1), shift.astype(np.float64))
    return _site(x, (Link(node, affine),), affine, 1)


def _site(x: ir.Value, links: tuple[Link, ...], affine: ChannelAffine, axis: int) -> NormSite | None:
    """Return the map as a batch norm of mean 0 and variance 1, its parameters in float32 or wider."""
    like = np.zeros(0, np.float64 if x.dtype == ir.DataType.DOUBLE else np.float32)
    count = affine.scale.size
    rows = [
        detached(f"{links[-1].node.outputs[0].name}_{name}", row, like)
        for name, row in (
            ("scale", affine.scale),
            ("bias", affine.shift),
            ("mean", np.zeros(count)),
            ("var", np.ones(count)),
        )
    ]
    if any(row is None for row in rows):
        return None
    spec = NormSpec(Stored(), 0.0, affine=AffineLayout(True, True), channel_axis=1 if axis == 1 else -1)
    nodes = tuple(link.node for link in links)
    return NormSite(spec, Operands(x, *rows), "·".join(node.op_type for node in nodes), nodes[-1], nodes)
