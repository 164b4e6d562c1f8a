"""Parameters: values of a graph that no input reaches, whether their arrays are known or may be overridden."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.graph.constants import Array
from normfuse.graph.editing import initializer
from normfuse.graph.reading import input_at, is_op, is_standard
from normfuse.graph.site import Reading
from normfuse.recognise.dims import Dim
from normfuse.recognise.terms import Term

_RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_LARGEST_OPERAND = 1 << 22
"""Elements of a parameter that is written anew; a γ has thousands."""


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand that is constant, of ``rank`` axes: a number of type ``dtype``, or a parameter of more elements."""

    term: Term
    rank: int
    dtype: np.dtype[np.generic] | None


class Parameters:
    """The parameters of one graph; found in one pass over its nodes, without reading data."""

    def __init__(self, graph: Iterable[ir.Node], reading: Reading) -> None:
        self._reading = reading
        self._computed: set[ir.Value] = set()
        self._shapes: dict[ir.Value, tuple[int, ...] | None] = {}
        self._scalars: dict[ir.Value, Array | None] = {}
        self._numbers: dict[ir.Value, Factor | None] = {}
        for node in graph:
            if self._is_constant(node):
                self._computed.update(node.outputs)

    def _is_constant(self, node: ir.Node) -> bool:
        if node.op_type in ("Shape", "CastLike", "Size"):
            return is_standard(node) and self._reading.constants.array(node.outputs[0]) is not None
        for value in node.inputs:
            if value is not None and not self.holds(value):
                return False
        if not is_standard(node) or node.op_type in _RANDOM:
            return False
        return all(attribute.type != ir.AttributeType.GRAPH for attribute in node.attributes.values())

    def holds(self, value: ir.Value) -> bool:
        """Whether ``value`` is a parameter."""
        return value in self._computed or value.is_initializer() or self._reading.constants.tensor(value) is not None

    def array(self, value: ir.Value) -> Array | None:
        """Return the array of ``value``; None where it may be overridden, or nobody here computes its operator."""
        array = self._reading.constants.array(value)
        if array is not None or not self.holds(value):
            return array
        source = self._seen_through(value)
        return None if source is value else self.array(source)

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the shape of ``value`` where all of it is known."""
        if value not in self._shapes:
            self._shapes[value] = self._shape(value)
        return self._shapes[value]

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        tensor = self._reading.constants.tensor(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        if value.shape is not None and value.shape.is_static():
            return tuple(value.shape.numpy())
        array = self.array(value)
        return None if array is None else array.shape

    def scalar(self, value: ir.Value) -> Array | None:
        """Return the array of ``value`` where it has one element and is a float or an integer."""
        if value not in self._scalars:
            self._scalars[value] = self._scalar(value)
        return self._scalars[value]

    def _scalar(self, value: ir.Value) -> Array | None:
        shape = self.shape(value)
        if shape is None or any(size != 1 for size in shape):
            return None
        array = self.array(value)
        if array is not None and array.dtype.kind == "c" and not array.imag.any():
            array = array.real  # torch.onnx casts sizes to COMPLEX128 where it means BFLOAT16
        return array if array is not None and array.size == 1 and array.dtype.kind in "fiuV" else None

    def number(self, value: ir.Value) -> Factor | None:
        """Return a parameter of one element as a finite number."""
        if value not in self._numbers:
            scalar = self.scalar(value)
            number = math.nan if scalar is None else float(scalar.astype(np.float64).reshape(-1)[0])
            is_known = scalar is not None and math.isfinite(number)
            self._numbers[value] = (
                Factor(Term(number, ()), scalar.ndim, scalar.dtype) if scalar is not None and is_known else None
            )
        return self._numbers[value]

    def _seen_through(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        source = None if node is None or not is_op(node, "Identity", "Dropout") else input_at(node, 0)
        return value if source is None else source


def reshaped_as(array: Array, dims: Sequence[int | Dim | None]) -> Array | None:
    """Return ``array`` in the shape ``dims`` where all its entries but one are known: the last one follows."""
    target = [size if isinstance(size, int) else -1 for size in dims]
    if target.count(-1) > 1 or 0 in target:
        return None
    try:
        return array.reshape(target)
    except ValueError:
        return None


def detached(name: str, array: Array, like: Array) -> ir.Value | None:
    """Return ``array``, rounded once to the type of ``like``, as a constant in no graph; None where it overflows."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(array).astype(like.dtype)
    if rounded.size > _LARGEST_OPERAND or not np.isfinite(rounded.astype(np.float64)).all():
        return None
    return initializer(name, ir.tensor(np.ascontiguousarray(rounded)))
