"""Linear operators that absorb an affine map of their input: ``W(a·x + b) + c = (W∘a)x + (Wb + c)``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.affine import ChannelAffine, Float64, FoldError, WeightLayout, columns, conv_inputs, rows, through_weight
from normfuse.graph.editing import describe
from normfuse.graph.site import Declined, Reading
from normfuse.passes.linear import (
    Linear,
    Rebuild,
    Rewritten,
    folded_bias,
    folded_weight,
    is_unpadded,
    like,
    matmul_and_add,
    read_linear,
    with_bias,
)
from normfuse.passes.spread import Spread


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A linear operator that takes a map of its input.

    linear: as it was. moved: (M,), what the shift adds to its output channels. adds: the Add that a MatMul needs now.
    """

    rebuild: Rebuild
    linear: Linear
    moved: Float64
    adds: int = 0

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of its weight."""
        return self.linear.weight.dtype

    @property
    def channels(self) -> int:
        """The number of output channels."""
        return self.moved.size


def absorb_input(node: ir.Node, index: int, f: Spread, reading: Reading) -> Absorbed | Declined:
    """Return how to write ``linear ∘ f`` as the same operator; f is the map of input ``index``.

    The new operator reads what its input is when it is written. The shift passes a Conv without padding, and a
    ConvTranspose that gives each output element exactly one input element.
    """
    name = f"{node.op_type} '{describe(node)}'"
    linear = read_linear(node, reading)
    if isinstance(linear, Declined):
        return linear
    if index == linear.weight_at or index != (1 - linear.weight_at):
        return Declined(f"{name} reads it as weight or bias", node)
    placed = _input_side(linear, f)
    if placed is None:
        return Declined(f"the factors do not lie along the input channels of {name}", node)
    layout, affine = placed
    if affine.shift.any():
        if node.op_type == "Conv" and not _reads_no_padding(node, linear.weight.shape):
            return Declined(f"{name} pads its input: at the border the shift would be missing", node)
        if node.op_type == "ConvTranspose" and not _is_pointwise(node, linear.weight.shape):
            return Declined(f"{name} spreads its input: not every output sees the shift once", node)
    side = replace(linear, layout=layout)
    try:
        # What a flushed weight loses is weighed against nothing: the shift here is the input's, not the output's.
        weight = folded_weight(side, ChannelAffine(affine.scale, np.zeros_like(affine.shift)), reading)
        moved = _moved(linear, affine.shift, layout)
        after = ChannelAffine(np.ones(moved.size), moved)
        bias = folded_bias(linear, after)
    except FoldError as error:
        return Declined(str(error), node)
    if linear.bias_at is not None:
        if linear.bias is None and not moved.any():
            return Absorbed(lambda: _only_weight(node, weight), linear, moved)
        return Absorbed(lambda: with_bias(node, node.inputs[0], weight, bias, reading), linear, moved)
    becomes_gemm = linear.channels.rank == 2 and linear.weight_at == 1
    if bias.any() and not becomes_gemm and reading.opset < 7:
        return Declined("below opset 7 an Add of a vector needs attributes that this rank does not have", node)
    adds = 1 if bias.any() and not becomes_gemm else 0
    return Absorbed(lambda: matmul_and_add(linear, weight, bias, reading), linear, moved, adds)


def _reads_no_padding(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a Conv pads nothing, whatever the size of its input: no pads, or SAME of a kernel of one element."""
    same = node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return is_unpadded(node) or (same and all(size == 1 for size in shape[2:]))


def _only_weight(node: ir.Node, weight: ir.Value) -> Rewritten:
    inputs = list(node.inputs)
    inputs[1] = weight
    new = like(node, node.op_type, inputs, dict(node.attributes))
    return Rewritten((new,), new.outputs[0], (weight,))


def _input_side(linear: Linear, f: Spread) -> tuple[WeightLayout, ChannelAffine] | None:
    """Return how the input channels lie in the weight, and ``f`` as a map of them."""
    node, shape = linear.node, linear.weight.shape
    if f.rank != linear.channels.rank:
        return None
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        if group < 1 or shape[0] % group:
            return None
        layout, axis = conv_inputs(shape, group), 1
    elif node.op_type == "ConvTranspose":
        layout, axis = WeightLayout(1, 1, shape[0], math.prod(shape[1:])), 1
    elif node.op_type == "Gemm":
        layout = columns(shape) if node.attributes.get_int("transB", 0) else rows(shape)
        axis = 0 if node.attributes.get_int("transA", 0) else 1
    elif linear.weight_at == 1:
        layout, axis = rows(shape), f.rank - 1
    else:
        layout, axis = columns(shape), f.rank - 2
    affine = f.along_axis(axis, layout.channels)
    return None if affine is None else (layout, affine)


def _is_pointwise(node: ir.Node, shape: tuple[int, ...]) -> bool:
    attributes = node.attributes
    plain = all(size == 1 for size in shape[2:]) and all(step == 1 for step in attributes.get_ints("strides", ()))
    extra = (*attributes.get_ints("pads", ()), *attributes.get_ints("output_padding", ()))
    fixed = "output_shape" in attributes or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    return plain and not any(extra) and not fixed


def _moved(linear: Linear, shift: Float64, layout: WeightLayout) -> Float64:
    """Return what the constant ``shift`` of the input adds to each output channel."""
    node, weight = linear.node, linear.weight
    if not shift.any():
        return np.zeros(linear.channels.count)
    if node.op_type == "Conv":
        return through_weight(weight, shift, layout)
    if node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)
        taps = weight.reshape(group, weight.shape[0] // group, weight.shape[1]).astype(np.float64)
        return np.asarray(np.einsum("gio,gi->go", taps, shift.reshape(group, -1)).reshape(-1))
    if node.op_type == "Gemm":
        matrix = weight.T if node.attributes.get_int("transB", 0) else weight
        return np.asarray(node.attributes.get_float("alpha", 1.0) * (shift @ matrix.astype(np.float64)))
    return np.asarray(shift @ weight.astype(np.float64) if linear.weight_at == 1 else weight.astype(np.float64) @ shift)
