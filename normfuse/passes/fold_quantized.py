"""Fold inference BatchNormalization into the scales of a quantised weight before it; nothing is quantised anew.

``a ∘ ((q − z)·s ∗ x + v) + shift = (q − z)·(a·s) ∗ x + (a·v + shift)``. The integers stay as they are, but for channels
whose a is negative or 0; where a QuantizeLinear of a constant makes them, that constant changes in their place. The bias
becomes a float one: an int32 bias would hold the shift only to half a step.
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
from normfuse.passes.quantized import Quantized, read_quantized
from normfuse.passes.rescale import scaled
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
        return quantized.values(reading) if isinstance(quantized, Quantized) else reading.constants.array(value)

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
        axis = weight.stored_axis(_output_axis(linear), reading)
        if axis is None:
            raise FoldError("its output channels lie along no axis of the integers")
        folded = scaled(weight, affine.scale, axis, reading.opset)
        bias = folded_bias(linear, affine)
    except FoldError as error:
        return Declined(str(error), node)
    return lambda: _rewritten(linear, weight, folded, bias, reading)


def _rewritten(linear: Linear, old: Quantized, new: Quantized, bias: Array, reading: Reading) -> Rewritten:
    """Return the operator behind a DequantizeLinear of its own; what of that did not change is shared with the old."""
    chain = (old.node, *old.views)
    stays = [any(len(later.outputs[0].uses()) > 1 for later in chain[index:]) for index in range(len(chain))]
    before, constants = old.node, []
    inputs: list[ir.Value | None] = []
    nodes: list[ir.Node] = []
    for value, was, array in zip(
        before.inputs, (old.integers, old.scale, old.zero), (new.integers, new.scale, new.zero), strict=False
    ):
        if array is was or value is None or array is None:
            inputs.append(value)
        elif array is new.integers and new.source is not None:
            quantize = new.source.node
            floats = quantize.inputs[0]
            assert floats is not None
            constants.append(initializer(f"{floats.name}_folded", new.source.floats))
            nodes.append(
                _again(quantize, [constants[-1], *quantize.inputs[1:]], stays=len(value.uses()) > 1 or stays[0])
            )
            inputs.append(nodes[-1].outputs[0])
        else:
            constants.append(initializer(f"{value.name}_folded", array))
            inputs.append(constants[-1])
    attributes = dict(before.attributes)
    if not new.block:
        attributes["axis"] = ir.AttrInt64("axis", new.axis)
    nodes.append(_again(before, inputs, attributes, stays=stays[0]))
    for view, remains in zip(old.views, stays[1:], strict=True):
        nodes.append(_again(view, [nodes[-1].outputs[0], *view.inputs[1:]], stays=remains))
    weight = nodes[-1].outputs[0]
    if linear.bias_at is None:
        rest = matmul_and_add(linear, weight, bias, reading)
    else:
        rest = with_bias(linear.node, linear.node.inputs[0], weight, bias, reading)
    constants.extend(value for value in rest.initializers if value is not weight)
    return Rewritten((*nodes, *rest.nodes), rest.output, tuple(constants))


def _again(
    node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr] | None = None, *, stays: bool
) -> ir.Node:
    """Return ``node`` with other inputs, under its name unless it stays itself."""
    new = like(node, node.op_type, inputs, dict(node.attributes) if attributes is None else attributes)
    new.outputs[0].type, new.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    if stays:
        new.name = None
    return new
