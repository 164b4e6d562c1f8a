"""The operators of ``ai.normfuse``, which the ``custom`` form writes (emit/custom.py says what they are)."""

from __future__ import annotations

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
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def custom_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """GroupNorm, InstanceNorm, LayerNorm, RMSNorm of ai.normfuse: inputs (x[, scale[, bias[, residual]]]).

    Below IR 10, where functions have no overloads, the operator's name goes on with the key of its body.
    """
    if node.domain != _DOMAIN:
        return None
    name = node.op_type.split("_", 1)[0]
    if name not in ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"):
        return None
    objection = unreadable(node, inputs=1)
    if objection is not None:
        return objection
    activation = node.attributes.get_string("activation", "none")
    if activation not in {entry.value for entry in Activation}:
        return Declined(f"activation '{activation}' is unknown", node)
    statistics = _statistics(node, name, reading)
    if isinstance(statistics, Declined):
        return statistics
    x, scale, bias, residual = (input_at(node, index) for index in range(4))
    assert x is not None
    trailing = isinstance(statistics, Trailing)
    axes = AffineAxes.NORMALISED if trailing else AffineAxes.CHANNEL
    spec = NormSpec(
        statistics,
        epsilon(node),
        centred=name != "RMSNorm",
        affine=AffineLayout(scale is not None, bias is not None, axes),
        channel_axis=-1 if node.attributes.get_int("channels_last", 0) == 1 else 1,
        compute_type=ComputeType.FLOAT if x.dtype in _HALVES else ComputeType.INPUT,
        activation=Activation(activation),
    )
    operands = Operands(x, scale, bias, residual=residual)
    return NormSite(spec, operands, f"{_DOMAIN}.{name}", node, (node,), extra_outputs(node))


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
