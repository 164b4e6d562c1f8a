"""Reading nodes as terms over one value x: elementwise arithmetic, means in all spellings, and what keeps a meaning.

``read`` is given what is known of the inputs of one node and returns what is known of its output, or None: then the
node is no part of a norm over x. It never looks further than that node, its parameters and its shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.graph.constants import Array
from normfuse.graph.reading import has_parameters, input_at, is_op, is_standard, reads_output
from normfuse.graph.site import Reading
from normfuse.recognise.dims import Dim, Dims, WholeShape, dims_of, is_dim, same_dim, unwrapped
from normfuse.recognise.parameters import Parameters, reshaped_as
from normfuse.recognise.terms import NUMBER_ONE, Extent, Mean, Parameter, Term, Terms, X

_SIZES = ("Cast", "CastLike", "Identity", "Squeeze", "Unsqueeze", "Reshape", "ReduceProd", "Gather", "Slice")
"""What exporters put between the shape of x and a size of it."""

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


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand that is constant: a number, or a parameter of more elements."""

    term: Term
    rank: int
    dtype: np.dtype[np.generic] | None


Operand = Known | Factor


class Reader:
    """Reads the nodes above one x. ``known`` holds what has been read, in the order of the graph."""

    def __init__(self, x: ir.Value, reading: Reading, parameters: Parameters) -> None:
        self.x = x
        self.reading = reading
        self.parameters = parameters
        self.terms = Terms()
        self.rank = reading.ranks.of(x)
        self.known: dict[ir.Value, Known] = {x: Known(X, (), x.dtype)}
        self.table: dict[ir.Value, Array | None] = {}
        self.mean_types: dict[int, ir.DataType | None] = {}
        self._origin = unwrapped(x)

    def read(self, node: ir.Node) -> Known | None:
        """Return what the first output of ``node`` is; None where no rule says it."""
        if not is_standard(node) or has_parameters(node):
            return None
        rule = _RULES.get(node.op_type)
        if rule is None:
            return None
        try:
            return rule(self, node)
        except (ValueError, IndexError, TypeError, AttributeError, OverflowError):
            return None  # an ill-formed node is no norm; the checker will say so

    def operand(self, value: ir.Value | None) -> Operand | None:
        """Return what is known of an operand, a constant included."""
        if value is None:
            return None
        known = self.known.get(value)
        if known is not None:
            return known
        if self.parameters.holds(value):
            return self._constant(self._unexpanded(value))
        extent = self.extent(value)
        return self._reformed(value) if extent is None else Factor(extent, 0, None)

    def _unexpanded(self, value: ir.Value) -> ir.Value:
        """Return what an Expand to at most the shape of x was made of: broadcasting would do the same."""
        node = value.producer()
        while is_op(node, "Expand") and node is not None and _within(self, node, self.rank):
            source = input_at(node, 0)
            if source is None or not self.parameters.holds(source):
                break
            value, node = source, source.producer()
        return value

    def _reformed(self, value: ir.Value) -> Factor | None:
        """Read a parameter whose shape is computed from that of x: Reshape to one axis of x, Expand to all of x."""
        node = value.producer()
        source = None if node is None or not is_op(node, "Reshape", "Expand") else input_at(node, 0)
        if node is None or source is None:
            return None
        if source not in self.table and not self.parameters.holds(source):
            inner = self._reformed(source)
            if inner is None:
                return None
        array = self.table.get(source)
        array = self.parameters.array(source) if array is None else array
        if array is None:
            return None
        if node.op_type == "Reshape":
            dims = dims_of(input_at(node, 1), self.reading)
            array = reshaped_as(array, dims) if isinstance(dims, tuple) else None
        elif not _within(self, node, self.rank):
            return None
        return None if array is None else self._entered(value, array)

    def _constant(self, value: ir.Value) -> Factor | None:
        scalar = self.parameters.scalar(value)
        if scalar is not None:
            number = float(scalar.astype(np.float64).reshape(-1)[0])
            return Factor(Term(number, ()), scalar.ndim, scalar.dtype) if math.isfinite(number) else None
        return self._entered(value)

    def _entered(self, value: ir.Value, array: Array | None = None) -> Factor | None:
        """Enter ``value`` in the table of parameters; ``array`` where it says the same in a shape that is known."""
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

    def extent(self, value: ir.Value, depth: int = 0) -> Term | None:
        """Read a number that is a product of sizes of x: ``Shape · Gather · ReduceProd · Cast``, ``Size``."""
        node = value.producer()
        if node is None or depth > 8 or not is_standard(node):
            return None
        if node.op_type in _SIZES:
            dims = dims_of(value if node.op_type in ("Gather", "Slice") else input_at(node, 0), self.reading)
            if isinstance(dims, tuple) and None not in dims and (len(dims) == 1 or node.op_type == "ReduceProd"):
                return self._product(dims)
            source = input_at(node, 0)
            return None if source is None or node.op_type in ("Gather", "Slice") else self.extent(source, depth + 1)
        if node.op_type in ("Mul", "Add", "Sub"):
            return self._combined(node, depth)
        if node.op_type == "Size" and self.rank is not None:
            source = input_at(node, 0)
            known = None if source is None else self.known.get(source)
            if known is not None and not known.missing and self.terms.varies(known.term.factors):
                return self.count(tuple(range(-self.rank, 0)))
        return None

    def _combined(self, node: ir.Node, depth: int) -> Term | None:
        """Read a product of two sizes, or a size and a number: N − 1 of an unbiased variance."""
        operands: list[Term] = []
        for value in node.inputs:
            number = None if value is None else self.reading.constants.scalar(value)
            operand = (
                None if value is None else Term(number, ()) if number is not None else self.extent(value, depth + 1)
            )
            if operand is None:
                return None
            operands.append(operand)
        if len(operands) != 2:
            return None
        one, other = operands
        if node.op_type == "Mul":
            return self.terms.multiply(one, other)
        sign = -1.0 if node.op_type == "Sub" else 1.0
        if one.is_number and other.is_number:
            return Term(one.coefficient + sign * other.coefficient, ())
        return self.terms.add(one, other, sign)

    def _product(self, dims: Dims) -> Term | None:
        total = NUMBER_ONE
        for size in dims:
            factor = Term(float(size), ()) if isinstance(size, int) else self._size(size)
            product = None if factor is None else self.terms.multiply(total, factor)
            if product is None:
                return None
            total = product
        return total

    def _size(self, dim: Dim | None) -> Term | None:
        if dim is None or self.rank is None or dim.axis >= self.rank:
            return None
        source = self.known.get(dim.value)
        is_x = source is not None and not source.missing and self.terms.varies(source.term.factors)
        if not is_x and unwrapped(dim.value) is not self._origin and not is_dim(dim, self.x, dim.axis):
            return None
        return self.count((dim.axis - self.rank,))

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


Rule = Callable[[Reader, ir.Node], Known | None]


def _same(reader: Reader, node: ir.Node) -> Known | None:
    return reader.known.get(node.inputs[0]) if node.inputs[0] is not None else None


def _dropout(reader: Reader, node: ir.Node) -> Known | None:
    if reads_output(node, 1):
        return None
    if reader.reading.opset < 7:
        return _same(reader, node) if node.attributes.get_int("is_test", 0) else None
    training = input_at(node, 2)
    inactive = training is None or reader.reading.constants.scalar(training) == 0.0
    return _same(reader, node) if inactive else None


def _cast(reader: Reader, node: ir.Node) -> Known | None:
    operand = _same(reader, node)
    attribute = node.attributes.get("to")
    if operand is None or attribute is None or attribute.type != ir.AttributeType.INT:
        return None
    dtype = ir.DataType(attribute.as_int())
    return replace(operand, dtype=dtype) if dtype in FLOATS else None


def _cast_like(reader: Reader, node: ir.Node) -> Known | None:
    operand, like = _same(reader, node), input_at(node, 1)
    dtype = None if like is None else like.dtype
    if dtype is None and like in reader.known:
        dtype = reader.known[like].dtype
    return replace(operand, dtype=dtype) if operand is not None and dtype in FLOATS else None


def _unary(function: Callable[[Terms, Term], Term | None]) -> Rule:
    def rule(reader: Reader, node: ir.Node) -> Known | None:
        operand = _same(reader, node)
        term = None if operand is None else function(reader.terms, operand.term)
        return None if operand is None or term is None else replace(operand, term=term)

    return rule


def _pow(reader: Reader, node: ir.Node) -> Known | None:
    operand, exponent = _same(reader, node), input_at(node, 1)
    if operand is None or exponent is None or not reader.parameters.holds(exponent):
        return None
    number = reader.parameters.scalar(exponent)
    if number is None or not _keeps_rank(reader, operand, number.ndim):
        return None
    term = reader.terms.power(operand.term, float(number.astype(np.float64).reshape(-1)[0]))
    return None if term is None else replace(operand, term=term)


def _keeps_rank(reader: Reader, operand: Known, rank: int) -> bool:
    """Whether a constant of ``rank`` axes leaves the rank of ``operand`` as it is."""
    if rank == 0 or (rank == 1 and not operand.missing):
        return True
    return reader.rank is not None and rank <= reader.rank - len(operand.missing)


def _multiply(reader: Reader, node: ir.Node) -> Known | None:
    return _binary(reader, node, lambda one, other: _product(reader.terms, one, other))


def _divide(reader: Reader, node: ir.Node) -> Known | None:
    def divided(one: Operand, other: Operand) -> Term | None:
        if isinstance(other, Factor) and other.term.is_number:
            return _scaled(one.term, other.term.coefficient, other.dtype, inverse=True)
        inverse = reader.terms.power(other.term, -1.0)
        return None if inverse is None else reader.terms.multiply(one.term, inverse)

    return _binary(reader, node, divided)


def _add(reader: Reader, node: ir.Node) -> Known | None:
    return _binary(reader, node, lambda one, other: reader.terms.add(one.term, other.term))


def _subtract(reader: Reader, node: ir.Node) -> Known | None:
    return _binary(reader, node, lambda one, other: reader.terms.add(one.term, other.term, -1.0))


def _binary(reader: Reader, node: ir.Node, combine: Callable[[Operand, Operand], Term | None]) -> Known | None:
    """Combine two operands whose shapes broadcast as the term says: by the axes of x, and never beyond them."""
    if len(node.inputs) != 2 or (reader.reading.opset < 7 and "axis" in node.attributes):
        return None
    operands = [reader.operand(value) for value in node.inputs]
    one, other = operands
    if one is None or other is None:
        return None
    missing: tuple[int, ...] = ()
    dtype: ir.DataType | None = None
    clashes = any(isinstance(operand, Known) and operand.clashes for operand in (one, other))
    if isinstance(one, Known) and isinstance(other, Known):
        joint = _joint(reader, one, other)
        missing, clashes = joint or (), clashes or joint is None
        dtype = one.dtype or other.dtype
    else:
        known, factor = (one, other) if isinstance(one, Known) else (other, one)
        if not isinstance(known, Known) or not isinstance(factor, Factor):
            return None
        if not all(reader.terms.is_size(base) for base, _ in factor.term.factors) and (
            known.missing or factor.rank > (reader.rank or factor.rank)
        ):
            return None
        if not _keeps_rank(reader, known, factor.rank if factor.term.is_number else 0):
            return None
        missing, dtype = known.missing, known.dtype
    term = combine(one, other)
    return None if term is None else Known(term, missing, dtype, clashes)


def _joint(reader: Reader, one: Known, other: Known) -> tuple[int, ...] | None:
    """Return the axes that the combination lacks; None where the two broadcast along different axes of x."""
    if one.missing == other.missing:
        return one.missing
    if one.missing and other.missing:
        return None
    missing = one.missing or other.missing
    rank = reader.rank
    # Leading axes that a mean did not keep are put back by broadcasting.
    leading = rank is not None and missing == tuple(range(-rank, len(missing) - rank))
    return () if leading else None


def _product(terms: Terms, one: Operand, other: Operand) -> Term | None:
    for term, number in ((one.term, other), (other.term, one)):
        if isinstance(number, Factor) and number.term.is_number:
            return _scaled(term, number.term.coefficient, number.dtype, inverse=False)
    return terms.multiply(one.term, other.term)


def _scaled(term: Term, number: float, dtype: np.dtype[np.generic] | None, *, inverse: bool) -> Term | None:
    """Return ``term`` times (or divided by) a number; 1/N that was rounded to its type undoes a factor N exactly."""
    if number == 0.0:
        return None
    coefficient = term.coefficient
    product = coefficient / number if inverse else coefficient * number
    if dtype is not None and coefficient != 1.0 and dtype.kind in "fV" and abs(product - 1.0) < 0.01:
        undoing = coefficient if inverse else 1.0 / coefficient
        if float(np.asarray(undoing).astype(dtype).astype(np.float64)) == number:
            product = 1.0
    return Term(product, term.factors)


def _reduce(function: Callable[[Reader, Known, tuple[int, ...], bool], Known | None]) -> Rule:
    def rule(reader: Reader, node: ir.Node) -> Known | None:
        operand = _same(reader, node)
        axes = None if operand is None else reader.axes(node)
        if operand is None or axes is None:
            return None
        return function(reader, operand, axes, node.attributes.get_int("keepdims", 1) == 1)

    return rule


def _mean(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    return reader.averaged(operand, axes, kept=kept)


def _total(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    """Σ = N · mean, with N the entries of x along the axes: what is summed must have them all."""
    if not reader.terms.varies(operand.term.factors):
        return None
    mean = reader.averaged(operand, axes, kept=kept)
    term = None if mean is None else reader.terms.multiply(mean.term, reader.count(axes))
    return None if mean is None or term is None else replace(mean, term=term)


def _total_of_power(exponent: float) -> Callable[[Reader, Known, tuple[int, ...], bool], Known | None]:
    def total(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
        term = reader.terms.magnitude(operand.term) if exponent == 1.0 else reader.terms.power(operand.term, exponent)
        return None if term is None else _total(reader, replace(operand, term=term), axes, kept)

    return total


def _euclidean(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    squares = _total_of_power(2.0)(reader, operand, axes, kept)
    term = None if squares is None else reader.terms.power(squares.term, 0.5)
    return None if squares is None or term is None else replace(squares, term=term)


def _global_pool(reader: Reader, node: ir.Node) -> Known | None:
    operand = _same(reader, node)
    if operand is None or reader.rank is None or reader.rank < 3:
        return None
    return reader.averaged(operand, tuple(range(2 - reader.rank, 0)), kept=True)


def _average_pool(reader: Reader, node: ir.Node) -> Known | None:
    """AveragePool whose window is the whole image is a mean."""
    operand, rank = _same(reader, node), reader.rank
    if operand is None or rank is None or rank < 3:
        return None
    window = list(node.attributes.get_ints("kernel_shape", ()))
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    )
    spread = any(step != 1 for step in node.attributes.get_ints("dilations", ()))
    if padded or spread or node.attributes.get_int("ceil_mode", 0) != 0:
        return None
    if window != [reader.size(axis) for axis in range(2 - rank, 0)] or not reader.terms.varies(operand.term.factors):
        return None
    return reader.averaged(operand, tuple(range(2 - rank, 0)), kept=True)


def _unsqueeze(reader: Reader, node: ir.Node) -> Known | None:
    """Unsqueeze that puts back the axes which a mean did not keep."""
    operand = _same(reader, node)
    if operand is None or not operand.missing:
        return None
    axes = reader.axes(node, everything=False)
    return replace(operand, missing=()) if axes == operand.missing else None


def _squeeze(reader: Reader, node: ir.Node) -> Known | None:
    """Squeeze of axes that a mean has made 1."""
    operand = _same(reader, node)
    if operand is None or operand.missing or len(operand.term.factors) != 1:
        return None
    base = reader.terms.base(operand.term.factors[0][0])
    axes = reader.axes(node, everything=False)
    if axes is None or not isinstance(base, Mean) or axes != base.axes:
        return None
    return replace(operand, missing=axes)


def _reshape(reader: Reader, node: ir.Node) -> Known | None:
    """Reshape to the shape that x has, with 1 where a mean was taken."""
    operand, rank = _same(reader, node), reader.rank
    if operand is None or rank is None:
        return None
    ones = operand.missing or reduced_axes(reader, operand.term)
    if ones is None:
        return None
    target = input_at(node, 1)
    dims: Dims | WholeShape | None = dims_of(target, reader.reading) if target is not None else None
    if "shape" in node.attributes:
        dims = tuple(node.attributes["shape"].as_ints())
    if not isinstance(dims, tuple) or len(dims) != rank:
        stated = node.outputs[0].shape
        if stated is None or stated.rank() != rank or reader.x.shape is None:
            return None
        matches = all(
            size == 1 if axis - rank in ones else same_dim(size, reader.x.shape[axis])
            for axis, size in enumerate(stated)
        )
        return replace(operand, missing=()) if matches else None
    inferred = 0
    for axis, size in enumerate(dims):
        if axis - rank in ones:
            if size != 1:
                return None
        elif size == -1:
            inferred += 1
        elif size == 0 and node.attributes.get_int("allowzero", 0) == 0:
            if any(gap + rank < axis for gap in operand.missing):
                return None
        elif not _is_size(reader, size, axis):
            return None
    return replace(operand, missing=()) if inferred <= 1 else None


def _is_size(reader: Reader, size: int | Dim | None, axis: int) -> bool:
    if isinstance(size, Dim):
        source = reader.known.get(size.value)
        full = source is not None and not source.missing and size.axis == axis
        if full and source is not None:
            reduced = reduced_axes(reader, source.term)
            return reduced is None or axis - (reader.rank or 0) not in reduced
    return is_dim(size, reader.x, axis)


def reduced_axes(reader: Reader, term: Term) -> tuple[int, ...] | None:
    """Return the axes along which ``term`` has size 1; None where it has the shape of x, () where it is not clear."""
    if reader.terms.varies(term.factors):
        return None
    found: set[tuple[int, ...]] = set()
    pending = [term.factors]
    while pending:
        for base, _ in pending.pop():
            meaning = reader.terms.base(base)
            if isinstance(meaning, Mean):
                found.add(meaning.axes)
            elif isinstance(meaning, Extent):
                continue
            elif hasattr(meaning, "addends"):
                pending += [factors for factors, _ in meaning.addends]
            elif hasattr(meaning, "of"):
                pending.append(meaning.of)
            else:
                return None
    return found.pop() if len(found) == 1 else None


def _expand(reader: Reader, node: ir.Node) -> Known | None:
    """Expand to at most the shape of x: broadcasting would do the same."""
    operand, rank = _same(reader, node), reader.rank
    if operand is None or operand.missing or reader.terms.varies(operand.term.factors):
        return None
    return operand if _within(reader, node, rank) else None


def _within(reader: Reader, node: ir.Node, rank: int | None) -> bool:
    dims = dims_of(input_at(node, 1), reader.reading)
    if isinstance(dims, WholeShape):
        return unwrapped(dims.value) is reader._origin
    if rank is None or dims is None or len(dims) > rank:
        return False
    return all(size == 1 or _is_size(reader, size, axis) for axis, size in enumerate(dims, rank - len(dims)))


def _greatest(reader: Reader, node: ir.Node) -> Known | None:
    """Max(v, c), a floor under what is not negative anyway, or was not computed exactly."""
    known = [reader.known[value] for value in node.inputs if value in reader.known]
    others = [value for value in node.inputs if value not in reader.known]
    if len(known) != 1 or len(others) != 1 or others[0] is None:
        return None
    least = reader.parameters.scalar(others[0]) if reader.parameters.holds(others[0]) else None
    return _floored(reader, known[0], least)


def _clip(reader: Reader, node: ir.Node) -> Known | None:
    operand = _same(reader, node)
    if operand is None:
        return None
    if "min" in node.attributes or "max" in node.attributes:  # before opset 11
        if "max" in node.attributes and node.attributes.get_float("max", 0.0) < 3e38:
            return None
        least = node.attributes.get_float("min", None)
        return None if least is None else _floored(reader, operand, np.asarray(least))
    minimum, maximum = input_at(node, 1), input_at(node, 2)
    if minimum is None or not reader.parameters.holds(minimum):
        return None
    if maximum is not None:
        most = reader.reading.constants.scalar(maximum)
        if most is None or most < 3e38:
            return None
    return _floored(reader, operand, reader.parameters.scalar(minimum))


def _relu(reader: Reader, node: ir.Node) -> Known | None:
    operand = _same(reader, node)
    return None if operand is None else _floored(reader, operand, np.asarray(0.0))


def _floored(reader: Reader, operand: Known, least: Array | None) -> Known | None:
    if least is None or not _keeps_rank(reader, operand, least.ndim):
        return None
    term = reader.terms.floor(operand.term, float(least.astype(np.float64).reshape(-1)[0]))
    return None if term is None else replace(operand, term=term)


_RULES: Mapping[str, Rule] = {
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Neg": _unary(lambda _, term: Term(-term.coefficient, term.factors)),
    "Abs": _unary(lambda terms, term: terms.magnitude(term)),
    "Sqrt": _unary(lambda terms, term: terms.power(term, 0.5)),
    "Reciprocal": _unary(lambda terms, term: terms.power(term, -1.0)),
    "Pow": _pow,
    "Mul": _multiply,
    "Div": _divide,
    "Add": _add,
    "Sub": _subtract,
    "Max": _greatest,
    "Clip": _clip,
    "Relu": _relu,
    "ReduceMean": _reduce(_mean),
    "ReduceSum": _reduce(_total),
    "ReduceSumSquare": _reduce(_total_of_power(2.0)),
    "ReduceL1": _reduce(_total_of_power(1.0)),
    "ReduceL2": _reduce(_euclidean),
    "GlobalAveragePool": _global_pool,
    "AveragePool": _average_pool,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
}

READ = frozenset(_RULES)
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool", "AveragePool"}
)
