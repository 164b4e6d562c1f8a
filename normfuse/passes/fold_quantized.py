"""Fold inference BatchNormalization into the scales of a quantised weight before it; nothing is quantised anew.

``a ∘ ((q − z)·s ∗ x + v) + shift = (q − z)·(a·s) ∗ x + (a·v + shift)``. The integers stay as they are, but for channels
whose a is negative or 0. The bias becomes a float one: an int32 bias would hold the shift only to half a step.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from normfuse.affine import Array, ChannelAffine, FoldError, check_range
from normfuse.graph.editing import describe, initializer
from normfuse.graph.reading import input_at
from normfuse.graph.site import Declined, Reading
from normfuse.passes.fold_batchnorm import Fold, decide_backward
from normfuse.passes.linear import Linear, Rebuild, Rewritten, folded_bias, like, matmul_and_add, read_linear, with_bias
from normfuse.passes.quantized import Quantized, read_quantized, scaled
from normfuse.recognise.affine_chain import Norms


def fold_quantized(graph: Iterable[ir.Node], norms: Norms, reading: Reading) -> list[Fold | Declined]:
    """Decide for the linear operators with a quantised weight whether the norms behind them fold. Changes nothing."""
    return decide_backward(graph, norms, reading, _read, _absorb)


def _read(node: ir.Node, reading: Reading) -> Linear | Declined | None:
    """Return ``node`` with its dequantised weight and bias; None where its weight is not quantised."""
    weight = read_quantized(input_at(node, 1), reading)
    if node.op_type == "MatMul" and not isinstance(weight, Quantized):
        if reading.constants.array(input_at(node, 0)) is not None:
            return None
        left = read_quantized(input_at(node, 0), reading)
        weight = left if isinstance(left, Quantized) else weight
    if not isinstance(weight, Quantized):
        return weight

    def array(value: ir.Value | None) -> Array | None:
        quantized = read_quantized(value, reading)
        return quantized.values() if isinstance(quantized, Quantized) else reading.constants.array(value)

    linear = read_linear(node, reading, array)
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        name = f"ConvTranspose '{describe(node)}'"
        return Declined(f"{name} is grouped: its output channels lie along no axis of its weight", node)
    return linear


def _output_axis(linear: Linear) -> int:
    """Return the axis of the weight along which the output channels lie."""
    node = linear.node
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": linear.weight_at}[node.op_type]


def _absorb(linear: Linear, affine: ChannelAffine, reading: Reading) -> Rebuild | Declined:
    """Return how to write ``affine ∘ linear`` with the same integers, or why they and their scales cannot hold it."""
    node = linear.node
    weight = read_quantized(node.inputs[linear.weight_at], reading)
    assert isinstance(weight, Quantized)
    try:
        check_range(linear.weight, affine, linear.layout)
        folded = scaled(weight, affine.scale, _output_axis(linear), reading.opset)
        bias = folded_bias(linear, affine)
    except FoldError as error:
        return Declined(str(error), node)
    return lambda: _rewritten(linear, weight, folded, bias, reading)


def _rewritten(linear: Linear, old: Quantized, new: Quantized, bias: Array, reading: Reading) -> Rewritten:
    """Return the operator behind a DequantizeLinear of its own; what of that did not change is shared with the old."""
    before = old.node
    inputs: list[ir.Value | None] = []
    constants: list[ir.Value] = []
    for value, was, array in zip(
        before.inputs, (old.integers, old.scale, old.zero), (new.integers, new.scale, new.zero), strict=False
    ):
        if array is not was and value is not None and array is not None:
            constants.append(initializer(f"{value.name}_folded", array))
            inputs.append(constants[-1])
        else:
            inputs.append(value)
    attributes = dict(before.attributes)
    if not new.block:
        attributes["axis"] = ir.AttrInt64("axis", new.axis)
    dequantize = like(before, "DequantizeLinear", inputs, attributes)
    if len(before.outputs[0].uses()) > 1:
        dequantize.name = None  # the old one stays
    weight = dequantize.outputs[0]
    weight.type, weight.shape = before.outputs[0].type, before.outputs[0].shape
    if linear.bias_at is None:
        rest = matmul_and_add(linear, weight, bias, reading)
    else:
        rest = with_bias(linear.node, linear.node.inputs[0], weight, bias, reading)
    constants.extend(value for value in rest.initializers if value is not weight)
    return Rewritten((dequantize, *rest.nodes), rest.output, tuple(constants))
