"""The norms that are operators of the ONNX standard, one function each.

Source: the ONNX operator changelog, whose versions are cited where they differ.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import has_parameters, input_at, is_op, reads_output
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise.parameters import detached
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerChannel, PerGroup, Stored, Trailing

_TRAINING = (
    "training mode: it normalises with the statistics of the batch (--assume-inference folds it with the running ones)"
)
_STASH_TYPES = {
    ir.DataType.FLOAT16: ComputeType.FLOAT16,
    ir.DataType.BFLOAT16: ComputeType.BFLOAT16,
    ir.DataType.FLOAT: ComputeType.FLOAT,
    ir.DataType.DOUBLE: ComputeType.DOUBLE,
}
_WIDTH = {ir.DataType.FLOAT16: 2, ir.DataType.BFLOAT16: 2, ir.DataType.FLOAT: 4, ir.DataType.DOUBLE: 8}


def batch_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """BatchNormalization 1 to 15 at inference: ``(x − mean) / sqrt(var + ε) · scale + bias``, all four of shape (C)."""
    if not is_op(node, "BatchNormalization"):
        return None
    objection = unreadable(node, inputs=5)
    if objection is not None:
        return objection
    if reading.opset < 9 and node.attributes.get_int("spatial", 1) == 0:
        return Declined("spatial=0 keeps one statistic per element, not per channel", node)
    if any(reads_output(node, index) for index in range(1, len(node.outputs))):
        return Declined("its statistics, which training mode updates, are read", node)
    if trains(node, reading.opset):
        return Declined(_TRAINING, node)
    x, scale, bias, mean, var = node.inputs[:5]
    assert x is not None
    for what, value in (("mean", mean), ("variance", var)):
        if value is not None and value.producer() is not None and not is_constant(value, reading):
            return Declined(f"its running {what} {reading.constants.obstacle(value)}", node)
    spec = NormSpec(Stored(), epsilon(node), affine=AffineLayout(True, True))
    return NormSite(spec, Operands(x, scale, bias, mean, var), spelling(node, reading), node, (node,))


def instance_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """InstanceNormalization 1, 6 and 22: statistics over the positions of one channel and sample; scale, bias (C)."""
    if not is_op(node, "InstanceNormalization"):
        return None
    objection = unreadable(node, inputs=3)
    if objection is not None:
        return objection
    x, scale, bias = node.inputs[:3]
    assert x is not None
    spec = NormSpec(PerChannel(), epsilon(node), affine=AffineLayout(True, True))
    return NormSite(spec, Operands(x, scale, bias), spelling(node, reading), node, (node,))


def group_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """GroupNormalization 18 and 21: statistics over one group of channels of one sample, with its positions.

    scale, bias: (num_groups) in version 18, which is deprecated, (C) from version 21 on.
    """
    if not is_op(node, "GroupNormalization"):
        return None
    objection = unreadable(node, inputs=3)
    if objection is not None:
        return objection
    groups = node.attributes.get_int("num_groups", 0)
    if groups < 1:
        return Declined(f"num_groups must be positive; it is {groups}", node)
    x, scale, bias = node.inputs[:3]
    assert x is not None
    # Version 18 has no stash_type and computes in the type of x.
    compute_type = stash_type(node) if reading.opset >= 21 else ComputeType.INPUT
    axes = AffineAxes.CHANNEL if reading.opset >= 21 else AffineAxes.GROUP
    spec = NormSpec(PerGroup(groups), epsilon(node), affine=AffineLayout(True, True, axes), compute_type=compute_type)
    return NormSite(spec, Operands(x, scale, bias), spelling(node, reading), node, (node,))


def layer_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """LayerNormalization-17: statistics over the axes from ``axis`` on; scale and bias along the same axes.

    onnxruntime's optimizer writes the same operator into models below opset 17; it means the same there.
    """
    if not is_op(node, "LayerNormalization"):
        return None
    return trailing_norm(node, reading, centred=True)


def rms_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """RMSNormalization-23: ``x / sqrt(mean(x²) + ε) · scale`` over the axes from ``axis`` on."""
    if not is_op(node, "RMSNormalization"):
        return None
    return trailing_norm(node, reading, centred=False)


def trailing_norm(node: ir.Node, reading: Reading, *, centred: bool) -> NormSite | Declined:
    """Read an operator with inputs (x, scale[, bias]) and attributes axis, epsilon, stash_type.

    Declines an axis that counts from the front of an x of unknown rank.
    """
    objection = unreadable(node, inputs=2)
    if objection is not None:
        return objection
    x, scale = node.inputs[:2]
    assert x is not None
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        rank = reading.ranks.of(x)
        if rank is None:
            return Declined(f"axis {axis} counts from the front, and the rank of '{x.name}' is unknown", node)
        axis -= rank
        if axis >= 0:
            return Declined(f"axis {axis + rank} is not an axis of '{x.name}', whose rank is {rank}", node)
    bias = input_at(node, 2) if centred else None
    spec = NormSpec(
        Trailing(tuple(range(axis, 0))),
        epsilon(node),
        centred=centred,
        affine=AffineLayout(True, bias is not None, AffineAxes.NORMALISED),
        compute_type=stash_type(node),
    )
    scale, bias = (_one_row(value, x, -axis, reading) for value in (scale, bias))
    return NormSite(spec, Operands(x, scale, bias), spelling(node, reading), node, (node,), extra_outputs(node))


def _one_row(value: ir.Value | None, x: ir.Value, count: int, reading: Reading) -> ir.Value | None:
    """Return the last ``count`` axes of a constant that says the same at every position of x; else ``value``.

    torch writes an RMSNorm without weight with ones of the shape of x. What would broadcast x stays.
    """
    shape = None if value is None else value.shape
    if value is None or shape is None or shape.rank() <= count or x.shape is None or x.shape.rank() != shape.rank():
        return value
    if any(
        not isinstance(size, int) or size != own for size, own in zip(shape[:-count], x.shape[:-count], strict=True)
    ):
        return value
    array = reading.constants.array(value)
    if array is None or array.size == 0:
        return value
    rows = array.reshape(-1, *array.shape[-count:])
    return detached(str(value.name), rows[0], array) or value if (rows == rows[0]).all() else value


def trains(node: ir.Node, opset: int) -> bool:
    """Whether a BatchNormalization of ``opset`` uses and updates the statistics of the batch.

    Updated statistics among the outputs mean training in every version; from 14 on they are ill-formed without
    ``training_mode``, as torch's older exporter wrote them for an InstanceNorm left in training.
    """
    if sum(output.name != "" for output in node.outputs) > 1:
        return True
    if opset >= 14:
        return node.attributes.get_int("training_mode", 0) == 1
    return opset < 7 and node.attributes.get_int("is_test", 0) == 0


def unreadable(node: ir.Node, *, inputs: int) -> Declined | None:
    """Say why ``node`` cannot be read.

    An attribute that a caller binds, a missing one of its first ``inputs`` inputs, a type of statistics that is none.
    """
    if has_parameters(node):
        name = next(name for name, attribute in node.attributes.items() if attribute.is_ref())
        return Declined(f"attribute '{name}' is a parameter of the function", node)
    for index in range(inputs):
        if input_at(node, index) is None:
            return Declined(f"input {index} is missing", node)
    stash = node.attributes.get_int("stash_type", 1)
    if stash not in [int(dtype) for dtype in _WIDTH]:
        return Declined(f"stash_type {stash} is no type of floats", node)
    return None


def is_constant(value: ir.Value, reading: Reading) -> bool:
    """Whether ``value`` is constant, without reading the data of what is stored."""
    return reading.constants.tensor(value) is not None or reading.constants.array(value) is not None


def epsilon(node: ir.Node, default: float = 1e-5) -> float:
    """Return the attribute, at the float32 precision in which ONNX stores it."""
    return float(np.float32(node.attributes.get_float("epsilon", default)))


def stash_type(node: ir.Node) -> ComputeType:
    """Return the type of the statistics: INPUT where ``stash_type`` is that of x, or narrower and not obeyed.

    LayerNormalization and RMSNormalization keep the statistics of float64 in float64 under stash_type 1, on onnxruntime
    as on onnx.reference; GroupNormalization is inlined as its function body, which does round x to float32.
    """
    stash = ir.DataType(node.attributes.get_int("stash_type", 1))
    x = node.inputs[0]
    own = None if x is None else x.dtype
    wide_enough = own is not None and _WIDTH.get(stash, 0) <= _WIDTH.get(own, 0)
    if stash == own or (wide_enough and node.op_type != "GroupNormalization"):
        return ComputeType.INPUT
    return _STASH_TYPES.get(stash, ComputeType.FLOAT)


def extra_outputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the outputs after the first that something reads."""
    return tuple(node.outputs[index] for index in range(1, len(node.outputs)) if reads_output(node, index))


def spelling(node: ir.Node, reading: Reading) -> str:
    """Name the operator with the version of its definition, as the changelog does ("GroupNormalization-21")."""
    versions = [version for version in _VERSIONS.get(node.op_type, ()) if version <= reading.opset]
    return f"{node.op_type}-{versions[-1]}" if versions else node.op_type


_VERSIONS = {
    "BatchNormalization": (1, 6, 7, 9, 14, 15),
    "InstanceNormalization": (1, 6, 22),
    "GroupNormalization": (18, 21),
    "LayerNormalization": (17,),
    "RMSNormalization": (23,),
}
