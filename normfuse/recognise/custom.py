"""The operators of ``ai.normfuse``, which the ``custom`` form writes (emit/custom.py says what they are)."""

from __future__ import annotations

import re

import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise.standard import epsilon, extra_outputs, unreadable
from normfuse.spec import (
    Activation,
    AffineAxes,
    AffineLayout,
    ComputeType,
    NormSpec,
    PerChannel,
    PerGroup,
    Statistics,
    Trailing,
)

_DOMAIN = "ai.normfuse"
_NAME = re.compile(
    "(?P<add>Add)?(?P<norm>GroupNorm|InstanceNorm|LayerNorm|RMSNorm)(?P<activation>Relu|Silu|Gelu|)"
    "(?P<last>ChannelsLast)?(WithSum)?(_.*)?"
)
_ATTRIBUTES = ("epsilon", "num_groups", "axis")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def custom_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Read ``[Add]Norm[Activation][ChannelsLast][WithSum]`` of ai.normfuse: inputs (x[, residual], scale, bias).

    Where a model has two bodies of one operator, the name of one goes on with the key of its body.
    """
    match = _NAME.fullmatch(node.op_type) if node.domain == _DOMAIN else None
    if match is None:
        return None
    norm, trailing = match["norm"], match["norm"] in ("LayerNorm", "RMSNorm")
    if trailing and match["last"]:
        return None
    objection = unreadable(node, inputs=2 if match["add"] else 1)
    if objection is not None:
        return objection
    for name in node.attributes:
        if name not in _ATTRIBUTES:
            return Declined(f"version 1 of {node.op_type} has no attribute '{name}'", node)
    statistics = _statistics(node, norm, reading)
    if isinstance(statistics, Declined):
        return statistics
    positions = (0, 1, 2, 3) if match["add"] else (0, None, 1, 2)
    x, residual, scale, bias = (None if index is None else input_at(node, index) for index in positions)
    assert x is not None
    axes = AffineAxes.NORMALISED if trailing else AffineAxes.CHANNEL
    spec = NormSpec(
        statistics,
        epsilon(node),
        centred=norm != "RMSNorm",
        affine=AffineLayout(scale is not None, bias is not None, axes),
        channel_axis=-1 if match["last"] else 1,
        compute_type=ComputeType.FLOAT if x.dtype in _HALVES else ComputeType.INPUT,
        activation=Activation(match["activation"].lower() or "none"),
    )
    operands = Operands(x, scale, bias, residual=residual)
    return NormSite(spec, operands, f"{_DOMAIN}.{norm}", node, (node,), extra_outputs(node))


def _statistics(node: ir.Node, name: str, reading: Reading) -> Statistics | Declined:
    if name == "InstanceNorm":
        return PerChannel()
    if name == "GroupNorm":
        groups = node.attributes.get_int("num_groups", 1)
        return PerGroup(groups) if groups > 0 else Declined(f"num_groups must be positive; it is {groups}", node)
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        rank = reading.ranks.of(node.inputs[0])
        if rank is None or axis >= rank:
            return Declined(f"axis {axis} counts from the front, and the rank of its input is unknown", node)
        axis -= rank
    return Trailing(tuple(range(axis, 0)))
