"""The affine that follows a norm that has none of its own: Mul, Add and Sub by parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import is_op
from normfuse.graph.site import NormSite, Reading
from normfuse.recognise.affine_operands import Row, shaped
from normfuse.recognise.layout import Axes, Layout, lies_along
from normfuse.recognise.reshaped import sole_user
from normfuse.recognise.standard import is_constant
from normfuse.spec import AffineAxes, AffineLayout, NormSpec, Trailing


def with_following_affine(site: NormSite, reading: Reading) -> NormSite:
    """Return ``site`` with the γ and β that follow it; ``site`` itself where it has a β or none follows.

    Mul and Add move to axes as the norm can say them: along the normalised axes for Trailing statistics, else along
    the channels. A Mul after the Add is not taken: γ comes before β.
    """
    if site.spec.affine.bias:
        return site
    node = sole_user(site.output)
    if node is not None and is_op(node, "Mul") and not site.spec.affine.scale:
        scale = _operand(node, site, reading)
        if scale is not None:
            site = _grown(site, node, replace(_layout(site.spec), scale=True), scale, None)
            node = sole_user(site.output)
    if not site.spec.centred or node is None or not is_op(node, "Add", "Sub"):
        return site
    bias = _operand(node, site, reading)
    if bias is None:
        return site
    return _grown(site, node, replace(_layout(site.spec), bias=True), site.operands.scale, bias)


def _layout(spec: NormSpec) -> AffineLayout:
    if spec.affine.scale:
        return spec.affine
    axes = AffineAxes.NORMALISED if isinstance(spec.statistics, Trailing) else AffineAxes.CHANNEL
    return AffineLayout(axes=axes)


def _grown(
    site: NormSite, node: ir.Node, affine: AffineLayout, scale: ir.Value | None, bias: ir.Value | None
) -> NormSite:
    return replace(
        site,
        spec=replace(site.spec, affine=affine),
        operands=replace(site.operands, scale=scale, bias=bias),
        spelling=f"{site.spelling}·{node.op_type}",
        root=node,
        interior=(*site.interior, node),
    )


def _operand(node: ir.Node, site: NormSite, reading: Reading) -> ir.Value | None:
    """Return the other operand of ``node`` as γ or β of the norm, where it is one."""
    others = [value for value in node.inputs if value is not None and value is not site.output]
    if len(others) != 1 or (reading.opset < 7 and "axis" in node.attributes):
        return None
    (value,) = others
    if not is_constant(value, reading) and not value.is_initializer():
        return None
    row = row_of(value, reading)
    if row is None or (node.op_type == "Sub" and node.inputs[0] is not site.output):
        return None
    if node.op_type == "Sub":
        if row.array is None:
            return None
        row = Row(row.name, row.shape, None, np.negative(row.array))
    layout = Layout(site.spec.statistics, _layout(site.spec).axes, site.spec.channel_axis)
    axes = lies_along(row.shape, site.operands.x, reading.ranks.of(site.operands.x))
    if axes is None or not _belongs(axes, site, reading):
        return None
    return shaped(row, layout, site.operands.x)


def _belongs(axes: Axes, site: NormSite, reading: Reading) -> bool:
    statistics = site.spec.statistics
    if isinstance(statistics, Trailing):
        return set(axes) <= set(statistics.axes)
    rank = reading.ranks.of(site.operands.x)
    if rank is None:
        return False
    return axes == ((-1,) if site.spec.channel_axis == -1 else (1 - rank,))


def row_of(value: ir.Value, reading: Reading) -> Row | None:
    """Return a parameter with its shape, and its array where that is known."""
    tensor = reading.constants.tensor(value)
    if tensor is not None:
        return Row(str(value.name), tuple(tensor.shape.numpy()), value, reading.constants.array(value))
    array = reading.constants.array(value)
    if array is not None:
        return Row(str(value.name), array.shape, value, array)
    if value.shape is None or not value.shape.is_static():
        return None
    return Row(str(value.name), tuple(value.shape.numpy()), value, None)
