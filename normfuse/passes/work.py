"""What one run of a model takes: multiply-adds, parameters, and bytes read and written, computed from sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.reading import bodies, has_parameters, input_at, is_standard
from normfuse.graph.site import Reading
from normfuse.passes.sizes import Sizes
from normfuse.passes.spread import Dims
from normfuse.report.records import Work

_VIEWS = frozenset("Identity Dropout Reshape Flatten Squeeze Unsqueeze Constant ConstantOfShape Shape Size".split())
"""Operators that move nothing at inference, or nothing that counts."""

_EACH = frozenset("Add Sub Mul Div Neg Sum BatchNormalization".split())
"""Operators that take one multiply-add for each element of their result."""

_LINEAR = frozenset("Conv ConvTranspose Gemm MatMul".split())

_BYTES_OF_UNKNOWN = 4
"""Of a value whose type is not stated: float32."""


def measure_work(model: ir.Model) -> Work:
    """Return the work of one run of ``model``, each body of a branch or a loop counted once.

    Multiply-adds: of Conv, ConvTranspose, Gemm and MatMul, and one for each element of a result of Add, Sub, Sum, Mul, Div,
    Neg and BatchNormalization; other operators count none. Bytes: what each operator reads, weights included, and writes;
    views (Reshape and its kin) count none. A size that is known only when the model runs counts as 1, so that the figures
    are those of one sample. None where the rank of a value that counts is not known. Changes nothing.
    """
    constants = Constants(model)
    parameters, products, moved = 0, _Sum(), _Sum()
    symbolic = False
    for graph, opset in bodies(model):
        parameters += sum(_size(value) for value in graph.initializers.values())
        sizes = Sizes(Reading(opset, constants, Ranks(constants), False))
        for node in graph:
            if node.op_type in _VIEWS and is_standard(node):
                continue
            values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name != ""]
            dims = [sizes.of(value) for value in values]
            symbolic = symbolic or any(None in known for known in dims if known is not None)
            products.add(multiply_adds(node, sizes.of))
            for value, known in zip(values, dims, strict=True):
                moved.add(None if known is None else _count(known) * _bytes(value))
    return Work(products.total, parameters, moved.total, symbolic)


class _Sum:
    """A sum that is not known as soon as one term is not."""

    def __init__(self) -> None:
        self.total: int | None = 0

    def add(self, term: int | None) -> None:
        self.total = None if self.total is None or term is None else self.total + term


def multiply_adds(node: ir.Node, of: Callable[[ir.Value | None], Dims | None]) -> int | None:
    """Return the multiply-adds of one operator by the sizes ``of`` its values; None where a rank is not known."""
    if not is_standard(node) or node.op_type not in _EACH | _LINEAR:
        return 0
    x, y = of(input_at(node, 0)), of(node.outputs[0])
    if x is None or y is None:
        return None
    if node.op_type in _EACH:
        return _count(y)
    if has_parameters(node):
        return None
    if node.op_type == "MatMul":
        return _count(y) * (x[-1] or 1) if x else None
    if node.op_type == "Gemm":
        return _count(y) * ((x[0] if node.attributes.get_int("transA", 0) else x[1]) or 1)
    weight = of(input_at(node, 1))
    if weight is None:
        return None
    return _count(y if node.op_type == "Conv" else x) * _count(weight[1:])


def _count(dims: Dims) -> int:
    return math.prod(1 if size is None else size for size in dims)


def _bytes(value: ir.Value) -> int:
    dtype = value.dtype
    if dtype is None:
        return _BYTES_OF_UNKNOWN
    try:
        return max(1, math.ceil(dtype.itemsize))
    except TypeError:  # texts have no size
        return _BYTES_OF_UNKNOWN


def _size(value: ir.Value) -> int:
    """Return how many floating-point numbers an initializer holds."""
    tensor = value.const_value
    return 0 if tensor is None or not tensor.dtype.is_floating_point() else math.prod(tensor.shape.numpy())
