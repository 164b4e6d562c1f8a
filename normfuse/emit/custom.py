"""The ``custom`` form: one node of domain ``ai.normfuse``, and its body as a function in the model.

Operators GroupNorm, InstanceNorm, LayerNorm and RMSNorm, version 1. Inputs (x[, scale[, bias[, residual]]]), of one type;
scale and bias are (C), or lie along the normalised axes; residual has the shape of x. Outputs (y[, sum]) with
``sum = x + residual``. Attributes: epsilon; num_groups of GroupNorm; axis of LayerNorm and RMSNorm, which normalise from
it on; activation ("none", "relu", "silu", "gelu"); channels_last of GroupNorm and InstanceNorm.

onnxruntime takes a registered kernel where there is one, else the body; so does no other runtime need to know the domain
(measured with onnxruntime 1.17 to 1.32). A norm that these four do not say is written in its standard form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from normfuse.emit.functions import DOMAIN, VERSION, body, signature
from normfuse.emit.standard import emit_standard, per_channel
from normfuse.emit.writing import (
    HALVES,
    Draft,
    channel_count,
    copied,
    output_type,
    role,
    type_of,
    unwritable,
    wide_type,
)
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import AffineAxes, ComputeType, PerChannel, PerGroup, Trailing, canonical


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of ai.normfuse with the attributes that say which norm it is."""

    name: str
    attributes: tuple[tuple[str, int], ...] = ()


def emit_custom(site: NormSite, reading: Reading, opset: int) -> Replacement | Declined:
    """Write ``site`` as an operator of ai.normfuse with the body for models of ``opset``, 7 or newer."""
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    operator = custom_operator(site, opset, reading.ranks.of(site.operands.x))
    if operator is None:
        return emit_standard(site, reading, opset)
    if site.spec.affine.axes is AffineAxes.GROUP and channel_count(site) is None:
        return Declined(
            f"the number of channels of '{site.operands.x.name}' is unknown (run shape inference)", site.root
        )
    return _emit(site, Draft(opset, reading.constants), operator)


def custom_operator(site: NormSite, opset: int, rank: int | None) -> Operator | None:
    """Return the operator of ``site``; None where it has none: stored statistics, axes with gaps, saved statistics."""
    spec = site.spec
    if any(role(site, output) != "sum" for output in site.extra_outputs):
        return None
    statistics = canonical(spec, channels=channel_count(site), rank=rank).statistics
    if rank == 2 and isinstance(spec.statistics, PerGroup):
        statistics = spec.statistics  # an instance norm of one position is a constant, and no operator takes it
    if isinstance(statistics, Trailing):
        return _trailing_operator(site, opset, rank)
    if not spec.centred or (spec.affine.axes is AffineAxes.NORMALISED and (spec.affine.scale or spec.affine.bias)):
        return None
    if isinstance(statistics, PerGroup):
        return Operator("GroupNorm", (("num_groups", statistics.groups),))
    return Operator("InstanceNorm") if isinstance(statistics, PerChannel) else None


def _trailing_operator(site: NormSite, opset: int, rank: int | None) -> Operator | None:
    spec = site.spec
    assert isinstance(spec.statistics, Trailing)
    axis = -len(spec.statistics.axes)
    if spec.statistics.axes != tuple(range(axis, 0)):
        return None
    if (spec.affine.scale or spec.affine.bias) and spec.affine.axes is not AffineAxes.NORMALISED:
        return None
    if opset < 11:
        # The body's Flatten takes negative axes from version 11 on.
        if rank is None:
            return None
        axis += rank
    return Operator("LayerNorm" if spec.centred else "RMSNorm", (("axis", axis),))


def _emit(site: NormSite, draft: Draft, operator: Operator) -> Replacement:
    spec, operands = site.spec, site.operands
    dtype = _type(site)
    x = draft.cast(operands.x, dtype)
    residual = operands.residual
    for addend in (operands.residual_bias, None if residual is None or _same_shape(residual, operands.x) else residual):
        if addend is not None:
            x = draft.op("Add", x, draft.cast(addend, dtype))
            x.shape = copied(operands.x.shape)
    if residual is not None and not _same_shape(residual, operands.x):
        residual = None
    # γ and β of a trailing norm keep their shape; those of the others are (C).
    trailing = operator.name in ("LayerNorm", "RMSNorm")
    inputs: list[ir.Value | None] = [x, None, None, None if residual is None else draft.cast(residual, dtype)]
    for index, (value, wanted, fill) in enumerate(
        ((operands.scale, spec.affine.scale, 1.0), (operands.bias, spec.affine.bias, 0.0)), start=1
    ):
        if wanted and value is not None:
            keeps = draft.cast(value, dtype) if trailing else None
            inputs[index] = keeps or per_channel(site, draft, value, fill, dtype, channel_count(site))
    names = ("x", "scale", "bias", "residual")
    present = {name for name, value in zip(names, inputs, strict=True) if value is not None}
    if residual is not None and site.extra_outputs:
        present.add("sum")
    while inputs[-1] is None:
        inputs.pop()
    last = spec.channel_axis == -1 and not trailing
    numbers: dict[str, int | float] = {**dict(operator.attributes), "epsilon": spec.epsilon}
    key = signature(operator.name, draft.opset, dtype, frozenset(present), spec.activation, numbers, channels_last=last)
    attributes: dict[str, Any] = {**numbers}
    if spec.activation.value != "none":
        attributes["activation"] = spec.activation.value
    if last:
        attributes["channels_last"] = 1
    y = draft.op(
        operator.name,
        *inputs,
        domain=DOMAIN,
        overload=key.overload,
        outputs=2 if key.sum else 1,
        **attributes,
    )
    node = y.producer()
    assert node is not None
    for output in node.outputs:
        output.shape = copied(operands.x.shape)
    total = node.outputs[1] if key.sum else x
    stated = output_type(site)
    rewires = [(site.output, y if stated is None else draft.cast(y, stated))]
    rewires += [
        (output, total if output.dtype is None else draft.cast(total, output.dtype)) for output in site.extra_outputs
    ]
    return draft.replacement(site, rewires, functions=(body(key),), domains=((DOMAIN, VERSION),))


def _type(site: NormSite) -> ir.DataType:
    """Return the type of every operand: that of x, or a wider one where a parameter or the statistics are wider.

    Half types need none: body and kernels compute in float32.
    """
    own, operands = type_of(site), site.operands
    assert own is not None
    values = (operands.scale, operands.bias, operands.residual, operands.residual_bias)
    if site.spec.compute_type is ComputeType.DOUBLE or any(
        v is not None and v.dtype not in (None, own) for v in values
    ):
        return wide_type(site)
    return wide_type(site) if own in HALVES and operands.residual_bias is not None else own


def _same_shape(residual: ir.Value, x: ir.Value) -> bool:
    """Whether both shapes are known, and the same axis by axis."""
    return residual.shape is not None and x.shape is not None and residual.shape == x.shape
