"""The ``standard`` form: the ONNX operator of the norm, or the shortest exact equivalent where the opset has none.

LayerNormalization from opset 17 on, GroupNormalization with parameters per channel from 21, RMSNormalization from 23,
InstanceNormalization and BatchNormalization always. GroupNormalization-18, whose parameters are per group, is
deprecated and refused by onnx.checker: below opset 21 a group norm is Reshape, InstanceNormalization, Reshape, affine.
A layer norm below 17 and an RMS norm below 23 are elementary operators, those that runtimes fuse where they do.
Source: ONNX operator changelog.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.emit.fusible import emit_fusible, is_fusible
from normfuse.emit.kernels import has_kernel
from normfuse.emit.primitive import emit_primitive, total, with_affine
from normfuse.emit.writing import (
    HALVES,
    Draft,
    channel_count,
    output_type,
    role,
    sizes_of,
    type_of,
    unwritable,
    wide_type,
)
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import (
    Activation,
    AffineAxes,
    ComputeType,
    PerChannel,
    PerGroup,
    Statistics,
    Stored,
    Trailing,
    canonical,
)

UNIT_EPSILON = 2.0**-16
"""With it, variance 1 − ε plus ε is 1 in float32 exactly; and it is above cuDNN's smallest epsilon, 1e-5."""


def emit_standard(site: NormSite, reading: Reading, opset: int) -> Replacement | Declined:
    """Write ``site`` in the standard operators of ``opset``, 7 or newer."""
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    operator = operator_of(site, opset)
    if operator is None and is_fusible(site, opset):
        return emit_fusible(site, reading, opset)
    if operator is None or not _holds_outputs(site, operator):
        return emit_primitive(site, reading, opset)
    if operator in ("LayerNormalization", "RMSNormalization"):
        return _emit_trailing(site, reading, opset, operator)
    rank = reading.ranks.of(site.operands.x)
    if site.spec.channel_axis == -1 and rank is None:
        return emit_primitive(site, reading, opset)
    if operator == "BatchNormalization":
        return _emit_stored(site, Draft(opset, reading.constants), rank)
    return _emit_per_sample(site, reading, opset, operator)


def emit_reshaped(site: NormSite, reading: Reading, opset: int) -> Replacement | Declined:
    """Write a norm of groups as Reshape, InstanceNormalization, Reshape, BatchNormalization at any opset from 7 on.

    Where GroupNormalization has no kernel of its own this is faster, and right at large means.
    """
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    rank = reading.ranks.of(site.operands.x)
    if not _holds_outputs(site, "InstanceNormalization") or (site.spec.channel_axis == -1 and rank is None):
        return emit_primitive(site, reading, opset)
    return _emit_per_sample(site, reading, opset, "InstanceNormalization")


def operator_of(site: NormSite, opset: int) -> str | None:
    """Return the operator that ``site`` is written with at ``opset``; None where it takes elementary operators.

    InstanceNormalization for PerGroup statistics means: between two Reshapes.
    """
    spec, statistics = site.spec, _statistics(site)
    if isinstance(statistics, Stored):
        return "BatchNormalization"
    if isinstance(statistics, Trailing):
        contiguous = statistics.axes == tuple(range(-len(statistics.axes), 0))
        along = spec.affine.axes is AffineAxes.NORMALISED or not (spec.affine.scale or spec.affine.bias)
        if not contiguous or not along or (not spec.affine.scale and _normalised_shape(site) is None):
            return None
        if spec.centred:
            return "LayerNormalization" if opset >= 17 else None
        return "RMSNormalization" if opset >= 23 else None
    if not spec.centred or not isinstance(statistics, PerChannel | PerGroup):
        return None
    if isinstance(statistics, PerChannel):
        return "InstanceNormalization"
    if opset >= 21:
        return "GroupNormalization"
    return "InstanceNormalization" if has_kernel("InstanceNormalization", wide_type(site)) else None


def _normalised_shape(site: NormSite) -> tuple[int, ...] | None:
    """Return the sizes of the normalised axes; None where one is unknown."""
    statistics = site.spec.statistics
    return sizes_of(site.operands.x, len(statistics.axes)) if isinstance(statistics, Trailing) else None


def takes_reshapes(site: NormSite) -> bool:
    """Whether InstanceNormalization says ``site`` only between two Reshapes: groups of several channels."""
    return isinstance(_statistics(site), PerGroup)


def _statistics(site: NormSite) -> Statistics:
    """Return the canonical statistics, but those of groups where x has rank 2, which InstanceNormalization refuses."""
    shape = site.operands.x.shape
    if shape is not None and shape.rank() == 2:
        return site.spec.statistics
    return canonical(site.spec, channels=channel_count(site)).statistics


def _holds_outputs(site: NormSite, operator: str) -> bool:
    return operator == "LayerNormalization" or all(role(site, output) == "sum" for output in site.extra_outputs)


def _operator_type(site: NormSite, opset: int, operator: str) -> ir.DataType:
    """Return the type in which the operator runs: that of x, or a wider one where it must not round in between."""
    own, wide, operands = type_of(site), wide_type(site), site.operands
    assert own is not None
    parameters = (operands.scale, operands.bias, operands.mean, operands.var)
    if any(value is not None and value.dtype not in (None, own) for value in parameters):
        return wide
    if site.spec.compute_type is ComputeType.DOUBLE or output_type(site) != own:
        return wide
    added = operator == "RMSNormalization" and operands.bias is not None
    if own in HALVES and (added or operands.residual is not None or site.spec.activation is not Activation.NONE):
        return wide
    stashes = operator in ("LayerNormalization", "RMSNormalization", "GroupNormalization")
    if own in HALVES and not stashes and site.spec.compute_type is ComputeType.FLOAT:
        return wide
    if own == ir.DataType.BFLOAT16:
        since = {"InstanceNormalization": 22, "BatchNormalization": 14}.get(operator, 0)
        return own if opset >= since else wide
    return own


def _emit_trailing(site: NormSite, reading: Reading, opset: int, operator: str) -> Replacement:
    """Write LayerNormalization or RMSNormalization, which takes no β: it is added after.

    stash_type stays 1, which widens half types and narrows nothing.
    """
    draft, spec = Draft(opset, reading.constants), site.spec
    dtype = _operator_type(site, opset, operator)
    x = total(site, draft, dtype)
    assert isinstance(spec.statistics, Trailing)
    parameters = [draft.cast(value, dtype) for value in (site.operands.scale, site.operands.bias) if value is not None]
    if not spec.affine.scale:
        # The operator demands γ; ones cost less than the elementary operators (1.5 times on onnxruntime's CPU).
        shape = _normalised_shape(site)
        assert shape is not None
        parameters.insert(0, draft.constant("ones", np.ones(shape), dtype))
    shift = parameters.pop() if operator == "RMSNormalization" and len(parameters) == 2 else None
    extras = {output: role(site, output) for output in site.extra_outputs}
    count = 3 if "inverse deviation" in extras.values() else 2 if "mean" in extras.values() else 1
    y = draft.op(
        operator, x, *parameters, dtype=dtype, outputs=count, axis=-len(spec.statistics.axes), epsilon=spec.epsilon
    )
    node = y.producer()
    assert node is not None
    shifted = y if shift is None else draft.op("Add", y, shift)
    rewires = [(site.output, _finished(site, draft, shifted))]
    for output, what in extras.items():
        if what == "sum":
            rewires.append((output, x if output.dtype is None else draft.cast(x, output.dtype)))
            continue
        saved = node.outputs[1 if what == "mean" else 2]
        # Mean and InvStdDev are float32 (bfloat16 for that stash_type) whatever the type of x.
        saved.dtype = ir.DataType.FLOAT
        rewires.append((output, draft.cast(saved, output.dtype or ir.DataType.FLOAT)))
    return draft.replacement(site, rewires)


def _emit_stored(site: NormSite, draft: Draft, rank: int | None) -> Replacement:
    operands = site.operands
    dtype = _operator_type(site, draft.opset, "BatchNormalization")
    x = _channels_first(site, draft, draft.cast(operands.x, dtype), rank)
    parameters = [
        draft.reshaped(draft.cast(value, dtype), (-1,))
        for value in (operands.scale, operands.bias, operands.mean, operands.var)
        if value is not None
    ]
    y = draft.op("BatchNormalization", x, *parameters, epsilon=site.spec.epsilon)
    return draft.replacement(site, [(site.output, _finished(site, draft, _channels_back(site, draft, y, rank)))])


def _emit_per_sample(site: NormSite, reading: Reading, opset: int, operator: str) -> Replacement | Declined:
    """Write InstanceNormalization, GroupNormalization-21, or InstanceNormalization between two Reshapes."""
    spec, draft = site.spec, Draft(opset, reading.constants)
    rank, channels = reading.ranks.of(site.operands.x), channel_count(site)
    statistics = _statistics(site)
    between = operator == "InstanceNormalization" and takes_reshapes(site)
    obstacle = _parameter_obstacle(site, rank, channels, between=between)
    if obstacle is not None:
        return Declined(obstacle, site.root)
    own = type_of(site)
    dtype = wide_type(site) if between and own in HALVES else _operator_type(site, opset, operator)
    added = total(site, draft, dtype)
    x = _channels_first(site, draft, added, rank)
    if between:
        y = _between_reshapes(site, draft, x, rank, channels)
    else:
        scale = per_channel(site, draft, site.operands.scale, 1.0, dtype, channels)
        bias = per_channel(site, draft, site.operands.bias, 0.0, dtype, channels)
        attributes: dict[str, Any] = {"num_groups": statistics.groups} if isinstance(statistics, PerGroup) else {}
        if operator == "GroupNormalization" and dtype == ir.DataType.DOUBLE:
            attributes["stash_type"] = int(dtype)  # the default rounds x to float32
        y = draft.op(operator, x, scale, bias, epsilon=spec.epsilon, **attributes)
    rewires = [(site.output, _finished(site, draft, _channels_back(site, draft, y, rank)))]
    rewires += [
        (output, added if output.dtype is None else draft.cast(added, output.dtype)) for output in site.extra_outputs
    ]
    return draft.replacement(site, rewires)


def _parameter_obstacle(site: NormSite, rank: int | None, channels: int | None, *, between: bool) -> str | None:
    """Say what is not known of x that the parameters of the operator need."""
    affine = site.spec.affine
    unknown = f"the number of channels of '{site.operands.x.name}' is unknown (run shape inference)"
    if between:
        needs = (affine.scale or affine.bias) and affine.axes is AffineAxes.CHANNEL
        return unknown if needs and rank is None and channels is None else None
    complete = affine.scale and affine.bias and affine.axes is AffineAxes.CHANNEL
    return unknown if not complete and channels is None else None


def _between_reshapes(site: NormSite, draft: Draft, x: ir.Value, rank: int | None, channels: int | None) -> ir.Value:
    """Write Reshape to (N, G, rest), InstanceNormalization, Reshape back, and the affine.

    Parameters per group are those of the InstanceNormalization. Parameters per channel are one BatchNormalization of
    mean 0 and variance 1, which reads the tensor once where Mul and Add read it twice (1.3 to 1.7 times faster).
    """
    statistics, operands, affine = site.spec.statistics, site.operands, site.spec.affine
    assert isinstance(statistics, PerGroup)
    dtype, groups = x.dtype, statistics.groups
    assert dtype is not None
    per_group = affine.axes is AffineAxes.GROUP
    parameters = []
    for name, value, fill in (("ones", operands.scale, 1.0), ("zeros", operands.bias, 0.0)):
        if per_group and value is not None:
            parameters.append(draft.reshaped(draft.cast(value, dtype), (-1,)))
        else:
            parameters.append(draft.constant(name, np.full(groups, fill), dtype))
    grouped = draft.op("Reshape", x, draft.integers("grouped", (0, groups, -1)))
    y = draft.op("InstanceNormalization", grouped, *parameters, epsilon=site.spec.epsilon)
    y = draft.back(y, x)
    if per_group or not (affine.scale or affine.bias):
        return y
    one_alone = affine.scale != affine.bias and rank is not None
    if one_alone or channels is None or not has_kernel("BatchNormalization", dtype):
        assert rank is not None
        return with_affine(site, draft, y, (-1, *(1,) * (rank - 2)))
    scale = per_channel(site, draft, operands.scale, 1.0, dtype, channels)
    bias = per_channel(site, draft, operands.bias, 0.0, dtype, channels)
    mean = draft.constant("mean", np.zeros(channels), dtype)
    variance = draft.constant("variance", np.full(channels, 1.0 - UNIT_EPSILON), dtype)
    return draft.op("BatchNormalization", y, scale, bias, mean, variance, epsilon=UNIT_EPSILON)


def per_channel(
    site: NormSite, draft: Draft, value: ir.Value | None, fill: float, dtype: ir.DataType, channels: int | None
) -> ir.Value:
    """Return γ or β as a vector (C): filled where it is absent, repeated where it is per group."""
    if value is None:
        assert channels is not None
        return draft.constant("ones" if fill else "zeros", np.full(channels, fill), dtype)
    if site.spec.affine.axes is not AffineAxes.GROUP:
        return draft.reshaped(draft.cast(value, dtype), (-1,))
    assert channels is not None
    assert isinstance(site.spec.statistics, PerGroup)
    size = channels // site.spec.statistics.groups
    array = draft.array(value)
    if array is not None:
        return draft.constant(f"{value.name}per_channel", np.repeat(array.reshape(-1), size), dtype)
    column = draft.reshaped(draft.cast(value, dtype), (-1, 1))
    shape = draft.integers("group_by_channel", (site.spec.statistics.groups, size))
    return draft.reshaped(draft.op("Expand", column, shape), (-1,))


def _channels_first(site: NormSite, draft: Draft, x: ir.Value, rank: int | None) -> ir.Value:
    if site.spec.channel_axis == 1:
        return x
    assert rank is not None
    return draft.transposed(x, (0, rank - 1, *range(1, rank - 1)))


def _channels_back(site: NormSite, draft: Draft, y: ir.Value, rank: int | None) -> ir.Value:
    if site.spec.channel_axis == 1:
        return y
    assert rank is not None
    return draft.transposed(y, (0, *range(2, rank), 1))


def _finished(site: NormSite, draft: Draft, y: ir.Value) -> ir.Value:
    y = draft.activated(y, site.spec.activation, site.spec.slope)
    dtype = output_type(site)
    return y if dtype is None or y.dtype == dtype else draft.op("Cast", y, dtype=dtype, to=int(dtype))
