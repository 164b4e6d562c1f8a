"""Ranks and channel counts: what can be proven of a value's axes without running shape inference."""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.constants import Constants
from normfuse.graph.reading import input_at, is_standard
from normfuse.graph.reductions import FUNCTIONS

_SAME_RANK = frozenset(
    "Identity Cast CastLike Dropout Relu LeakyRelu PRelu ThresholdedRelu Sigmoid Tanh Elu Selu Celu "
    "HardSigmoid HardSwish Clip Softplus Softsign Erf Gelu Mish Swish Abs Neg Sqrt Exp Log Sin Cos Reciprocal "
    "Floor Ceil Round Sign Transpose BatchNormalization InstanceNormalization LayerNormalization "
    "GroupNormalization RMSNormalization LRN MeanVarianceNormalization LpNormalization MaxPool AveragePool "
    "LpPool GlobalAveragePool GlobalMaxPool Softmax LogSoftmax Hardmax Pad Slice Concat Split Resize Upsample "
    "Tile DepthToSpace SpaceToDepth CumSum QuantizeLinear DequantizeLinear".split()
)
"""Operators whose outputs have the rank of their first input."""

_BROADCAST = frozenset("Add Sub Mul Div Pow Max Min Sum Mean Where And Or Xor Equal Greater Less Mod".split())


class Ranks:
    """The number of axes of every value of a model for which the graph proves it.

    Reads the shapes that the file carries; where they are missing, one pass in the order of the nodes, linear in the
    size of the graph, carries ranks through the operators. Made for a graph that does not change meanwhile.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._inferred: dict[ir.Value, int | None] = {}
        self._visited: set[ir.Graph] = set()

    def of(self, value: ir.Value | None) -> int | None:
        """Return the rank of ``value``, or None where it is not proven."""
        if value is None:
            return None
        if value.shape is not None:
            return value.shape.rank()
        tensor = self._constants.tensor(value)
        if tensor is not None:
            return len(tensor.shape)
        graph = value.graph
        if graph is not None and graph not in self._visited:
            self._visited.add(graph)
            for node in graph:
                rank = self._of_result(node)
                for output in node.outputs:
                    if output.shape is None:
                        self._inferred[output] = rank
        return self._inferred.get(value)

    def _of_result(self, node: ir.Node) -> int | None:
        if not is_standard(node):
            return None
        if node.op_type in ("Gemm", "Flatten"):
            return 2
        if node.op_type in ("Conv", "ConvTranspose"):
            rank = self.of(input_at(node, 1))
            return self.of(input_at(node, 0)) if rank is None else rank
        if node.op_type in _SAME_RANK:
            return self.of(input_at(node, 0))
        if node.op_type == "Reshape":
            if "shape" in node.attributes:  # opset 1 to 4
                return len(node.attributes["shape"].as_ints())
            return self._length(input_at(node, 1))
        if node.op_type == "ConstantOfShape":
            return self._length(input_at(node, 0))
        if node.op_type == "Expand":
            rank, length = self.of(input_at(node, 0)), self._length(input_at(node, 1))
            return None if rank is None or length is None else max(rank, length)
        if node.op_type in ("Squeeze", "Unsqueeze", *FUNCTIONS):
            return self._without_axes(node)
        if node.op_type == "MatMul" or node.op_type in _BROADCAST:
            ranks = [self.of(operand) for operand in node.inputs]
            known = [rank for rank in ranks if rank is not None]
            if not known or len(known) != len(ranks) or (node.op_type == "MatMul" and min(known) < 2):
                return None
            return max(known)
        return None

    def _without_axes(self, node: ir.Node) -> int | None:
        """Return the rank of what a reduction, Squeeze or Unsqueeze of constant axes leaves."""
        rank, value = self.of(input_at(node, 0)), input_at(node, 1)
        if node.op_type in FUNCTIONS and node.attributes.get_int("keepdims", 1) != 0:
            return rank
        attribute = node.attributes.get("axes")
        axes = tuple(attribute.as_ints()) if attribute is not None and not attribute.is_ref() else ()
        if value is not None:
            axes = self._constants.integers(value) or ()
        if rank is None or not axes:
            return None  # without axes a reduction takes them all, a Squeeze those of size one
        return rank + len(axes) if node.op_type == "Unsqueeze" else rank - len(axes)

    def _length(self, vector: ir.Value | None) -> int | None:
        """Return the number of entries of a shape operand, whether or not they are known."""
        array = self._constants.array(vector)
        if array is not None:
            return array.size
        stated = None if vector is None or vector.shape is None or vector.shape.rank() != 1 else vector.shape[0]
        if isinstance(stated, int) or vector is None:
            return stated if isinstance(stated, int) else None
        return self._computed_length(vector.producer())

    def _computed_length(self, node: ir.Node | None) -> int | None:
        """Return the number of entries of a shape that is put together of sizes: Concat of Unsqueeze of Gather of Shape."""
        if node is None or not is_standard(node):
            return None
        if node.op_type == "Concat":
            lengths = [self._length(operand) for operand in node.inputs]
            return None if None in lengths else sum(length or 0 for length in lengths)
        if node.op_type in ("Cast", "Identity"):
            return self._length(input_at(node, 0))
        if node.op_type == "Unsqueeze":
            return 1  # a shape is a vector: what becomes part of one was a scalar
        if node.op_type == "Shape" and not {"start", "end"} & node.attributes.keys():
            return self.of(input_at(node, 0))
        return None


def channels(value: ir.Value, axis: int = 1) -> int | None:
    """Return the size of ``value`` along ``axis`` where the file states it."""
    if value.shape is None or not -value.shape.rank() <= axis < value.shape.rank():
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None
