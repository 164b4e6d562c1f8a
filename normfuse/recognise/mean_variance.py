"""MeanVarianceNormalization: a norm whose epsilon, 1e-9, is added to the deviation instead of the variance (S16)."""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op
from normfuse.graph.site import LIFTS, Declined, NormSite, Operands, Reading
from normfuse.recognise.followers import with_following_affine
from normfuse.recognise.layout import layout_of
from normfuse.recognise.standard import spelling, unreadable
from normfuse.spec import AffineLayout, NormSpec

_FLAG = "its epsilon, 1e-9, is added to the deviation, outside the root"
_EPSILON = 1e-18
"""The square of the operator's: √(σ² + 1e-18) lies between σ and σ + 1e-9."""


def mean_variance_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Read MeanVarianceNormalization: ``axes`` (0, 2, 3) by default from version 9 on, ``across_channels`` before."""
    if not is_op(node, "MeanVarianceNormalization"):
        return None
    objection = unreadable(node, inputs=1)
    if objection is not None:
        return objection
    if not reading.lift_flagged:
        return Declined(f"{_FLAG} {LIFTS}", node)
    x = input_at(node, 0)
    rank = reading.ranks.of(x)
    if x is None or rank is None:
        return Declined("the rank of its input is unknown (run shape inference)", node)
    if reading.opset >= 9:
        given = tuple(node.attributes.get_ints("axes", (0, 2, 3)))
    else:
        given = tuple(range(1 if node.attributes.get_int("across_channels", 0) else 2, rank))
    if not given or any(not -rank <= axis < rank for axis in given):
        return Declined(f"its axes {list(given)} are not axes of '{x.name}', whose rank is {rank}", node)
    axes = tuple(sorted({axis % rank - rank for axis in given}))
    layout = layout_of(axes, rank, centred=True, affine=None)
    if layout is None:
        return Declined(f"no norm is over axes {list(axes)}", node)
    spec = NormSpec(layout.statistics, _EPSILON, affine=AffineLayout(), channel_axis=layout.channel_axis)
    site = NormSite(spec, Operands(x), spelling(node, reading), node, (node,), flag=_FLAG)
    return with_following_affine(site, reading)
