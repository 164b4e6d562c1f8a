"""Elementwise operators on terms: arithmetic whose operands broadcast as the term says, roots and powers, floors, casts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from normfuse.graph.constants import Array
from normfuse.graph.reading import input_at, reads_output
from normfuse.recognise.operands import Operand, read_operand
from normfuse.recognise.parameters import Factor
from normfuse.recognise.reader import FLOATS, Known, Reader
from normfuse.recognise.terms import Term, Terms

Rule = Callable[[Reader, ir.Node], Known | None]
Combination = Callable[[Terms, Operand, Operand], Term | None]


def same(reader: Reader, node: ir.Node) -> Known | None:
    """Identity: the result is the operand."""
    return reader.operand_of(node)


def dropout(reader: Reader, node: ir.Node) -> Known | None:
    """Dropout that drops nothing."""
    if reads_output(node, 1):
        return None
    if reader.reading.opset < 7:
        return reader.operand_of(node) if node.attributes.get_int("is_test", 0) else None
    training = input_at(node, 2)
    inactive = training is None or reader.reading.constants.scalar(training) == 0.0
    return reader.operand_of(node) if inactive else None


def cast(reader: Reader, node: ir.Node) -> Known | None:
    """Cast to another float type: terms do not show it."""
    operand = reader.operand_of(node)
    attribute = node.attributes.get("to")
    if operand is None or attribute is None or attribute.type != ir.AttributeType.INT:
        return None
    return _as_type(operand, ir.DataType(attribute.as_int()))


def cast_like(reader: Reader, node: ir.Node) -> Known | None:
    """CastLike to another float type."""
    operand, like = reader.operand_of(node), input_at(node, 1)
    dtype = None if like is None else like.dtype
    if dtype is None and like in reader.known:
        dtype = reader.known[like].dtype
    return None if operand is None or dtype is None else _as_type(operand, dtype)


def _as_type(operand: Known, dtype: ir.DataType) -> Known | None:
    return Known(operand.term, operand.missing, dtype, operand.clashes) if dtype in FLOATS else None


def unary(function: Callable[[Terms, Term], Term | None]) -> Rule:
    """Return the rule of an operator with one operand."""

    def rule(reader: Reader, node: ir.Node) -> Known | None:
        operand = reader.operand_of(node)
        return None if operand is None else operand.as_term(function(reader.terms, operand.term))

    return rule


def power(reader: Reader, node: ir.Node) -> Known | None:
    """Pow by a number."""
    operand, exponent = reader.operand_of(node), input_at(node, 1)
    if operand is None or exponent is None or not reader.parameters.holds(exponent):
        return None
    number = reader.parameters.number(exponent)
    if number is None or not _keeps_rank(reader, operand, number.rank):
        return None
    return operand.as_term(reader.terms.power(operand.term, number.term.coefficient))


def _keeps_rank(reader: Reader, operand: Known, rank: int) -> bool:
    """Whether a constant of ``rank`` axes leaves the rank of ``operand`` as it is."""
    if rank == 0 or (rank == 1 and not operand.missing):
        return True
    return reader.rank is not None and rank <= reader.rank - len(operand.missing)


def binary(combine: Combination) -> Rule:
    """Return the rule of an operator with two operands, which broadcast by the axes of x and never beyond them."""

    def rule(reader: Reader, node: ir.Node) -> Known | None:
        if len(node.inputs) != 2 or (reader.reading.opset < 7 and "axis" in node.attributes):
            return None
        one = read_operand(reader, node.inputs[0])
        other = read_operand(reader, node.inputs[1])
        if one is None or other is None:
            return None
        if isinstance(one, Known):
            pair = _both(reader, one, other) if isinstance(other, Known) else _with_factor(reader, one, other)
        else:
            pair = _with_factor(reader, other, one) if isinstance(other, Known) else None
        return None if pair is None else pair.as_term(combine(reader.terms, one, other))

    return rule


def _with_factor(reader: Reader, known: Known, factor: Factor) -> Known | None:
    """Return what is known of ``known`` combined with a constant, its term aside; None where its shape changes."""
    term = factor.term
    if term.is_number:
        return known if _keeps_rank(reader, known, factor.rank) else None
    if (known.missing or factor.rank > (reader.rank or factor.rank)) and not all(
        reader.terms.is_size(base) for base, _ in term.factors
    ):
        return None
    return known


def _both(reader: Reader, one: Known, other: Known) -> Known:
    """Return what is known of two terms combined, their terms aside."""
    dtype = one.dtype or other.dtype
    clashes = one.clashes or other.clashes
    if one.missing == other.missing:
        return Known(one.term, one.missing, dtype, clashes)
    if one.missing and other.missing:
        return Known(one.term, (), dtype, clashes=True)
    missing, rank = one.missing or other.missing, reader.rank
    # Leading axes that a mean did not keep are put back by broadcasting; others broadcast along different axes of x.
    leading = rank is not None and missing == tuple(range(-rank, len(missing) - rank))
    return Known(one.term, (), dtype, clashes or not leading)


def product(terms: Terms, one: Operand, other: Operand) -> Term | None:
    """Return ``one · other``."""
    if isinstance(other, Factor) and other.term.is_number:
        return _scaled(one.term, other.term.coefficient, other.dtype, inverse=False)
    if isinstance(one, Factor) and one.term.is_number:
        return _scaled(other.term, one.term.coefficient, one.dtype, inverse=False)
    return terms.multiply(one.term, other.term)


def quotient(terms: Terms, one: Operand, other: Operand) -> Term | None:
    """Return ``one / other``."""
    if isinstance(other, Factor) and other.term.is_number:
        return _scaled(one.term, other.term.coefficient, other.dtype, inverse=True)
    inverse = terms.power(other.term, -1.0)
    return None if inverse is None else terms.multiply(one.term, inverse)


def total(terms: Terms, one: Operand, other: Operand) -> Term | None:
    """Return ``one + other``."""
    return terms.add(one.term, other.term)


def difference(terms: Terms, one: Operand, other: Operand) -> Term | None:
    """Return ``one − other``."""
    return terms.add(one.term, other.term, -1.0)


def _scaled(term: Term, number: float, dtype: np.dtype[np.generic] | None, *, inverse: bool) -> Term | None:
    """Return ``term`` times (or divided by) a number; 1/N that was rounded to its type undoes a factor N exactly."""
    if number == 0.0:
        return None
    coefficient = term.coefficient
    result = coefficient / number if inverse else coefficient * number
    if dtype is not None and coefficient != 1.0 and dtype.kind in "fV" and abs(result - 1.0) < 0.01:
        undoing = coefficient if inverse else 1.0 / coefficient
        if float(np.asarray(undoing).astype(dtype).astype(np.float64)) == number:
            result = 1.0
    return Term(result, term.factors)


def greatest(reader: Reader, node: ir.Node) -> Known | None:
    """Max(v, c), a floor under what is not negative anyway, or was not computed exactly."""
    known = [reader.known[value] for value in node.inputs if value in reader.known]
    others = [value for value in node.inputs if value not in reader.known]
    if len(known) != 1 or len(others) != 1 or others[0] is None:
        return None
    least = reader.parameters.scalar(others[0]) if reader.parameters.holds(others[0]) else None
    return _floored(reader, known[0], least)


def clip(reader: Reader, node: ir.Node) -> Known | None:
    """Clip from below."""
    operand = reader.operand_of(node)
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


def relu(reader: Reader, node: ir.Node) -> Known | None:
    """Relu: a floor of 0."""
    operand = reader.operand_of(node)
    return None if operand is None else _floored(reader, operand, np.asarray(0.0))


def _floored(reader: Reader, operand: Known, least: Array | None) -> Known | None:
    if least is None or not _keeps_rank(reader, operand, least.ndim):
        return None
    return operand.as_term(reader.terms.floor(operand.term, float(least.astype(np.float64).reshape(-1)[0])))
