"""What is known while the nodes above one x are read: values as terms over x, and the axes and sizes of x itself."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.constants import Array
from normfuse.graph.reading import input_at
from normfuse.graph.site import Reading
from normfuse.recognise.dims import unwrapped
from normfuse.recognise.parameters import Factor, Parameters
from normfuse.recognise.terms import NUMBER_ONE, Extent, Parameter, Term, Terms, X

FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class Known:
    """A value that is a term over x, in type ``dtype`` (None: not stated).

    missing: the axes of x, counted from the end, that the value lacks because a mean did not keep them. clashes: such
    a mean was combined along other axes than its own, so that the value only looks like its term.
    """

    term: Term
    missing: tuple[int, ...] = ()
    dtype: ir.DataType | None = None
    clashes: bool = False

    def as_term(self, term: Term | None) -> Known | None:
        """Return the same value, but that it is ``term``; None where nothing is known of it."""
        return None if term is None else Known(term, self.missing, self.dtype, self.clashes)


class Reader:
    """What has been read above one x. ``known`` holds it in the order of the graph, ``table`` the parameters met.

    An entry of the table is the array that says the same as its value in a shape that is known; None for its own.
    mean_types: the type in which the base of that number was averaged.
    """

    def __init__(self, x: ir.Value, reading: Reading, parameters: Parameters) -> None:
        self.x = x
        self.reading = reading
        self.parameters = parameters
        self.terms = Terms()
        self.rank = reading.ranks.of(x)
        self.known: dict[ir.Value, Known] = {x: Known(X, (), x.dtype)}
        self.table: dict[ir.Value, Array | None] = {}
        self.mean_types: dict[int, ir.DataType | None] = {}
        self.origin = unwrapped(x)

    def entered(self, value: ir.Value, array: Array | None = None) -> Factor | None:
        """Enter ``value`` in the table of parameters; None where its shape is not known."""
        if value not in self.table:
            self.table[value] = array
        index = list(self.table).index(value)
        shape = self.parameters.shape(value) if array is None else array.shape
        return None if shape is None else Factor(self.terms.of(Parameter(index)), len(shape), None)

    def parameter_index(self, base: int) -> int:
        """Return the place in ``table`` of a parameter, given by the number of its base."""
        parameter = self.terms.base(base)
        assert isinstance(parameter, Parameter)
        return parameter.index

    def operand_of(self, node: ir.Node) -> Known | None:
        """Return what is known of the first input of ``node``."""
        value = node.inputs[0]
        return None if value is None else self.known.get(value)

    def count(self, axes: tuple[int, ...]) -> Term:
        """Return the number of entries of x along ``axes``."""
        total = NUMBER_ONE
        for axis in axes:
            size = self.size(axis)
            factor = self.terms.of(Extent(axis)) if size is None else Term(float(size), ())
            product = self.terms.multiply(total, factor)
            assert product is not None
            total = product
        return total

    def size(self, axis: int) -> int | None:
        """Return the size of x along ``axis``, counted from the end, where the file states it."""
        shape = self.x.shape
        if shape is None or -axis > shape.rank():
            return None
        size = shape[axis]
        return size if isinstance(size, int) else None

    def axes(self, node: ir.Node, *, everything: bool = True) -> tuple[int, ...] | None:
        """Return the axes of a reduction, ascending from the end; from version 18 (ReduceSum: 13) on an input."""
        attribute, operand = node.attributes.get("axes"), input_at(node, 1)
        if attribute is not None:
            given: tuple[int, ...] | None = tuple(attribute.as_ints())
        elif operand is not None:
            given = self.reading.constants.integers(operand)
            if given is None:
                return None
        else:
            given = ()
        assert given is not None
        if not given:
            if node.attributes.get_int("noop_with_empty_axes", 0) or not everything or self.rank is None:
                return None
            return tuple(range(-self.rank, 0))
        return self.negative(given)

    def negative(self, axes: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return ``axes`` of x counted from the end, ascending; None where its rank is needed and not known."""
        if self.rank is None:
            return tuple(sorted(set(axes))) if all(axis < 0 for axis in axes) else None
        if any(not -self.rank <= axis < self.rank for axis in axes):
            return None
        return tuple(sorted({axis % self.rank - self.rank for axis in axes}))

    def averaged(self, operand: Known, axes: tuple[int, ...], *, kept: bool) -> Known | None:
        """Return the mean of ``operand`` over ``axes``."""
        if operand.missing:
            return None
        term = self.terms.mean(operand.term, axes)
        if term is None:
            return None
        base = term.factors[0][0]
        self.mean_types.setdefault(base, operand.dtype)
        return Known(term, () if kept else axes, operand.dtype, operand.clashes)
