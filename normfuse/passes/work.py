"""What one run of a model takes: multiply-adds, parameters, and bytes read and written, computed from sizes."""

from __future__ import annotations

import functools
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


class Meter:
    """Measures a model before and after a change; what the change left alone is looked at once.

    A value keeps its sizes and its type through every rewrite, and an operator its sizes.
    """

    def __init__(self) -> None:
        self._bytes: dict[ir.Value, int | None] = {}
        self._products: dict[ir.Node, int | None] = {}
        self._symbolic: set[ir.Value] = set()
        self._parameters: dict[ir.Value, int] = {}

    def measure(self, model: ir.Model) -> Work:
        """Return the work of one run of ``model``, each body of a branch or a loop counted once. Changes nothing.

        Multiply-adds: of Conv, ConvTranspose, Gemm and MatMul, and one for each element of a result of Add, Sub, Sum, Mul,
        Div, Neg and BatchNormalization; other operators count none. Bytes: what each operator reads, weights included, and
        writes; views (Reshape and its kin) count none. A size that is known only when the model runs counts as 1, so that
        the figures are those of one sample. None where the rank of a value that counts is not known.
        """
        constants = Constants(model)
        parameters = 0
        products: list[int | None] = []
        moved: list[int | None] = []
        symbolic = False
        for graph, opset in bodies(model):
            sizes = Sizes(Reading(opset, constants, Ranks(constants), False))
            for initializer in graph.initializers.values():
                if initializer not in self._parameters:
                    self._parameters[initializer] = _parameters(initializer, sizes)
                parameters += self._parameters[initializer]
            for node in graph:
                if node.op_type in _VIEWS and is_standard(node):
                    continue
                if node not in self._products:
                    self._products[node] = multiply_adds(node, sizes.of)
                products.append(self._products[node])
                for value in (*node.inputs, *node.outputs):
                    if value is None or value.name == "":
                        continue
                    if value not in self._bytes:
                        self._look(value, sizes)
                    moved.append(self._bytes[value])
                    symbolic = symbolic or value in self._symbolic
        return Work(_sum(products), parameters, _sum(moved), symbolic)

    def _look(self, value: ir.Value, sizes: Sizes) -> None:
        dims = sizes.of(value)
        self._bytes[value] = None if dims is None else _count(dims) * _itemsize(value.dtype)
        if dims is not None and None in dims:
            self._symbolic.add(value)


def _sum(terms: list[int | None]) -> int | None:
    """Return a sum that is not known where one term is not."""
    return None if None in terms else sum(term for term in terms if term is not None)


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


@functools.cache
def _itemsize(dtype: ir.DataType | None) -> int:
    if dtype is None:
        return _BYTES_OF_UNKNOWN
    try:
        return max(1, math.ceil(dtype.itemsize))
    except TypeError:  # texts have no size
        return _BYTES_OF_UNKNOWN


def _parameters(initializer: ir.Value, sizes: Sizes) -> int:
    """Return how many floating-point numbers an initializer holds."""
    dtype, dims = initializer.dtype, sizes.of(initializer)
    return 0 if dims is None or dtype is None or not dtype.is_floating_point() else _count(dims)
