"""Linear operators that absorb an affine map: where weight, bias and channels lie, and how they are written anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from normfuse.affine import (
    Array,
    ChannelAffine,
    Float64,
    FoldError,
    WeightLayout,
    check_range,
    columns,
    conv_inputs,
    conv_outputs,
    conv_transpose_outputs,
    fold_into_weight,
    fold_shift,
    folded_slices,
    rows,
    through_weight,
)
from normfuse.graph.editing import describe, initializer
from normfuse.graph.reading import has_parameters, input_at
from normfuse.graph.site import Declined, Reading
from normfuse.graph.tensors import is_external
from normfuse.recognise.affine_chain import Channels

_LAZY_BYTES = 1 << 20
"""Weights that lie in a file and are larger than this are folded while they are saved, slice by slice."""


ReadConstant = Callable[[ir.Value | None], Array | None]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear operator with constant weight.

    weight and bias are indices of ``node.inputs``; bias_at None: the operator takes none. bias: its constant, if any.
    channels: those of its output (or, for :func:`read_consumer`, of its input). beta: the factor of the bias (Gemm).
    """

    node: ir.Node
    weight_at: int
    weight: Array
    bias_at: int | None
    bias: Array | None
    layout: WeightLayout
    channels: Channels
    beta: float = 1.0

    @property
    def length(self) -> int:
        """How many products an element of the output is the sum of; of a ConvTranspose, at most."""
        shape = self.weight.shape
        if self.node.op_type == "Conv":
            return math.prod(shape[1:])
        if self.node.op_type == "ConvTranspose":
            return math.prod((shape[0] // self.node.attributes.get_int("group", 1), *shape[2:]))
        transposed = self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) != 0
        return int(shape[1] if transposed or self.weight_at == 0 else shape[0])


class FoldedTensor(ir.LazyTensor):
    """A folded weight that is computed when it is read, and slice by slice when it is written to a file."""

    def __init__(self, source: ir.TensorProtocol, scale: Float64, layout: WeightLayout) -> None:
        def fold() -> ir.TensorProtocol:
            return ir.tensor(fold_into_weight(np.asarray(source.numpy()), scale, layout), dtype=source.dtype)

        super().__init__(fold, source.dtype, ir.Shape(source.shape.numpy()))
        self._source, self._scale = source, scale
        self._slices: Callable[[], Any] = lambda: folded_slices(np.asarray(source.numpy()), scale, layout)

    def tofile(self, file: IO[bytes]) -> None:
        """Write the little-endian bytes of the folded weight without holding more than one slice."""
        for part in self._slices():
            little = part if part.dtype.byteorder != ">" else part.astype(part.dtype.newbyteorder("<"))
            file.write(np.ascontiguousarray(little).view(np.uint8).data)

    def fingerprint(self) -> bytes:
        """Return a sample of the source weight and the scale: what the folded weight is made of."""
        source = self._source
        if isinstance(source, FoldedTensor):
            return source.fingerprint() + self._scale.tobytes()
        array = np.asarray(source.numpy()).reshape(-1)
        return np.ascontiguousarray(array[:: max(1, array.size // 4096)]).tobytes() + self._scale.tobytes()


def read_linear(node: ir.Node, reading: Reading, array: ReadConstant | None = None) -> Linear | Declined:
    """Return ``node`` (Conv, ConvTranspose, Gemm or MatMul) as a linear map onto its output channels.

    array: what reads the weight and the bias, by default ``reading.constants.array``.
    """
    array = reading.constants.array if array is None else array
    if has_parameters(node):
        return Declined(f"an attribute of {node.op_type} '{describe(node)}' is a parameter of the function", node)
    weight_at, weight = _weight(node, array)
    if weight is None:
        value = input_at(node, 1)
        if value is None:
            return Declined(f"{node.op_type} '{describe(node)}' has no weight", node)
        return Declined(
            f"the weight '{value.name}' of {node.op_type} '{describe(node)}' {reading.constants.obstacle(value)}", node
        )
    if weight.dtype.kind not in "fV" and weight.dtype.name != "bfloat16":
        return Declined(f"the weight of {node.op_type} '{describe(node)}' is {weight.dtype.name}", node)
    bias_at = None if node.op_type == "MatMul" else 2
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    bias_value = None if bias_at is None or beta == 0.0 else input_at(node, bias_at)
    bias = array(bias_value)
    if bias_value is not None and bias is None:
        obstacle = reading.constants.obstacle(bias_value)
        return Declined(f"the bias '{bias_value.name}' of {node.op_type} '{describe(node)}' {obstacle}", node)
    placed = _place(node, weight, reading, left=weight_at == 0)
    if isinstance(placed, Declined):
        return placed
    layout, channels = placed
    if bias is not None and node.op_type != "Gemm" and bias.shape != (channels.count,):
        return Declined(f"the bias of {node.op_type} '{describe(node)}' has shape {list(bias.shape)}", node)
    return Linear(node, weight_at, weight, bias_at, bias, layout, channels, beta)


def _weight(node: ir.Node, array: ReadConstant) -> tuple[int, Array | None]:
    """Return the constant weight and which input it is: the second, or for MatMul the first, from the left."""
    weight = array(input_at(node, 1))
    if weight is None and node.op_type == "MatMul":
        return 0, array(input_at(node, 0))
    return 1, weight


def _place(node: ir.Node, weight: Array, reading: Reading, *, left: bool) -> tuple[WeightLayout, Channels] | Declined:
    name = f"{node.op_type} '{describe(node)}'"
    if node.op_type in ("Conv", "ConvTranspose"):
        if weight.ndim < 3:
            return Declined(f"the weight of {name} has rank {weight.ndim}", node)
        if node.op_type == "Conv":
            return conv_outputs(weight.shape), Channels(weight.shape[0], 1, weight.ndim)
        group = node.attributes.get_int("group", 1)
        if group < 1 or weight.shape[0] % group:
            return Declined(f"{name} has {weight.shape[0]} input channels in {group} groups", node)
        layout = conv_transpose_outputs(weight.shape, group)
        return layout, Channels(layout.channels, 1, weight.ndim)
    if weight.ndim != 2:
        return Declined(f"the weight of {name} has rank {weight.ndim}", node)
    if node.op_type == "Gemm":
        layout = rows(weight.shape) if node.attributes.get_int("transB", 0) else columns(weight.shape)
        return layout, Channels(layout.channels, 1, 2)
    other = reading.ranks.of(input_at(node, 1 if left else 0))
    if other is None:
        return Declined(f"the rank of {name} is not known, so its channel axis cannot be proven", node)
    if other < 2:
        return Declined(f"{name} takes a vector", node)
    if left:
        return rows(weight.shape), Channels(weight.shape[0], other - 2, other)
    return columns(weight.shape), Channels(weight.shape[1], other - 1, other)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A linear operator written anew: the nodes, the value that now holds the result, the new initializers."""

    nodes: tuple[ir.Node, ...]
    output: ir.Value
    initializers: tuple[ir.Value, ...]


Rebuild = Callable[[], Rewritten]
"""Makes the nodes when they are wanted: a node reads its inputs from the moment it is made, in a graph or not."""


def absorb(linear: Linear, affine: ChannelAffine, reading: Reading) -> Rebuild | Declined:
    """Return how to write ``affine ∘ linear`` as the same operator, or why its type cannot hold it.

    MatMul, which takes no bias, becomes Gemm where both operands are matrices, else MatMul and Add.
    """
    node = linear.node
    try:
        weight = folded_weight(linear, affine, reading)
        bias = folded_bias(linear, affine)
    except FoldError as error:
        return Declined(str(error), node)
    if linear.bias_at is not None:
        return lambda: with_bias(node, node.inputs[0], weight, bias, reading)
    if bias.any() and linear.channels.rank != 2 and reading.opset < 7:
        return Declined("below opset 7 an Add of a vector needs attributes that this rank does not have", node)
    return lambda: matmul_and_add(linear, weight, bias, reading)


def with_bias(node: ir.Node, x: ir.Value | None, weight: ir.Value, bias: Array, reading: Reading) -> Rewritten:
    """Return ``node`` (Conv, ConvTranspose, Gemm) reading ``x``, with another weight and bias."""
    bias_value = _named_constant(f"{node.name or node.op_type}.bias", input_at(node, 2), bias)
    attributes = dict(node.attributes)
    if node.op_type == "Gemm":
        attributes.pop("beta", None)
        if reading.opset < 7:
            attributes["broadcast"] = ir.AttrInt64("broadcast", 1)
    new = like(node, node.op_type, [x, weight, bias_value], attributes)
    return Rewritten((new,), new.outputs[0], (weight, bias_value))


def matmul_and_add(linear: Linear, weight: ir.Value, bias: Array, reading: Reading) -> Rewritten:
    """Return a MatMul with another weight and a bias (C,): alone where that is zero, as Gemm where both are matrices."""
    node = linear.node
    inputs = list(node.inputs)
    inputs[linear.weight_at] = weight
    if not bias.any():
        new = like(node, "MatMul", inputs, dict(node.attributes))
        return Rewritten((new,), new.outputs[0], (weight,))
    if linear.channels.rank == 2 and linear.weight_at == 1:
        value = _named_constant(f"{node.name or 'MatMul'}.bias", None, bias)
        attributes = {"broadcast": ir.AttrInt64("broadcast", 1)} if reading.opset < 7 else {}
        new = like(node, "Gemm", [*inputs, value], attributes)
        return Rewritten((new,), new.outputs[0], (weight, value))
    shape = [1] * linear.channels.rank
    shape[linear.channels.axis] = linear.channels.count
    value = _named_constant(f"{node.name or 'MatMul'}.bias", None, bias.reshape(shape[linear.channels.axis :]))
    product = like(node, "MatMul", inputs, dict(node.attributes))
    product.outputs[0].type = node.outputs[0].type
    product.outputs[0].shape = node.outputs[0].shape
    shifted = ir.Node("", "Add", [product.outputs[0], value])
    return Rewritten((product, shifted), shifted.outputs[0], (weight, value))


def folded_weight(linear: Linear, affine: ChannelAffine, reading: Reading) -> ir.Value:
    """Return the weight scaled along ``linear.layout`` as an initializer. Raises FoldError by its type's range."""
    value = linear.node.inputs[linear.weight_at]
    assert value is not None
    check_range(linear.weight, affine, linear.layout)
    stored = reading.constants.tensor(value)
    if stored is not None and (is_external(stored) or type(stored) is FoldedTensor) and stored.nbytes > _LAZY_BYTES:
        return initializer(f"{value.name}_folded", FoldedTensor(stored, affine.scale, linear.layout))
    return initializer(f"{value.name}_folded", fold_into_weight(linear.weight, affine.scale, linear.layout))


def folded_bias(linear: Linear, affine: ChannelAffine) -> Array:
    """Return the new bias, (C,), or (M, C) for a Gemm whose C has rows of its own."""
    bias = linear.bias
    if bias is None:
        return fold_shift(None, affine, linear.weight.dtype)
    wide = np.asarray(bias, np.float64) * linear.beta
    if wide.ndim == 2 and wide.shape[0] == 1:
        wide = wide[0]
    return fold_shift(np.asarray(wide), affine, linear.weight.dtype)


def _named_constant(fallback: str, old: ir.Value | None, array: Array) -> ir.Value:
    name = f"{old.name}_folded" if old is not None and old.name else fallback
    return initializer(name, array)


def like(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr]) -> ir.Node:
    """Return a node with the name, metadata and documentation of ``node``."""
    return ir.Node(
        node.domain,
        op_type,
        inputs,
        attributes,
        num_outputs=1,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
        version=node.version,
    )


def read_consumer(node: ir.Node, value: ir.Value, reading: Reading) -> Linear | Declined | None:
    """Return ``node`` as a linear map of the channels of ``value``, its input; None where it is none.

    Only where a constant input stays one under the map: a Conv without padding, or a Gemm of ``value`` itself.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm") or input_at(node, 0) is not value:
        return None
    linear = read_linear(node, reading)
    if isinstance(linear, Declined):
        return linear
    shape = linear.weight.shape
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0) or linear.node.attributes.get_float("alpha", 1.0) != 1.0:
            return Declined(f"Gemm '{describe(node)}' transposes or scales its input", node)
        layout = columns(shape) if node.attributes.get_int("transB", 0) else rows(shape)
        return Linear(node, 1, linear.weight, 2, linear.bias, layout, Channels(layout.channels, 1, 2), linear.beta)
    if not is_unpadded(node):
        return Declined(f"Conv '{describe(node)}' pads its input: at the border the shift would be missing", node)
    group = node.attributes.get_int("group", 1)
    if group < 1 or shape[0] % group:
        return Declined(f"Conv '{describe(node)}' has {shape[0]} output channels in {group} groups", node)
    layout = conv_inputs(shape, group)
    return Linear(node, 1, linear.weight, 2, linear.bias, layout, Channels(layout.channels, 1, len(shape)))


def is_unpadded(node: ir.Node) -> bool:
    """Whether a convolution reads no padding, whatever the size of its input."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad in ("NOTSET", ""):
        return not any(node.attributes.get_ints("pads", ()))
    return auto_pad == "VALID"


def absorb_before(linear: Linear, affine: ChannelAffine, first: ir.Node, reading: Reading) -> Rebuild | Declined:
    """Return how to write ``linear ∘ affine`` reading what ``first`` reads when the nodes are made.

    Not what it reads now: an earlier change may have replaced that value. ``linear`` comes from :func:`read_consumer`.
    """
    node = linear.node
    try:
        weight = folded_weight(linear, affine, reading)
        if node.op_type == "Conv":
            moved = through_weight(linear.weight, affine.shift, linear.layout)
        else:
            matrix = linear.weight if linear.layout == rows(linear.weight.shape) else linear.weight.T
            moved = affine.shift @ matrix.astype(np.float64)
        bias = folded_bias(linear, ChannelAffine(np.ones(moved.size), moved))
    except FoldError as error:
        return Declined(str(error), node)
    return lambda: with_bias(node, first.inputs[0], weight, bias, reading)
