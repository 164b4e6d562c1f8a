"""Means in all their spellings: reductions, sums to be divided by N, norms of vectors, and pools over the whole image."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from normfuse.recognise.elementwise import Rule
from normfuse.recognise.reader import Known, Reader

Reduction = Callable[[Reader, Known, tuple[int, ...], bool], Known | None]


def reduction(function: Reduction) -> Rule:
    """Return the rule of an operator that reduces along its axes."""

    def rule(reader: Reader, node: ir.Node) -> Known | None:
        operand = reader.operand_of(node)
        axes = None if operand is None else reader.axes(node)
        if operand is None or axes is None:
            return None
        return function(reader, operand, axes, node.attributes.get_int("keepdims", 1) == 1)

    return rule


def mean(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    """ReduceMean."""
    return reader.averaged(operand, axes, kept=kept)


def summed(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    """Σ = N · mean, with N the entries of x along the axes: what is summed must have them all."""
    if not reader.terms.varies(operand.term.factors):
        return None
    average = reader.averaged(operand, axes, kept=kept)
    return None if average is None else average.as_term(reader.terms.multiply(average.term, reader.count(axes)))


def summed_powers(exponent: float) -> Reduction:
    """ReduceSumSquare and ReduceL1."""

    def powers_summed(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
        term = reader.terms.magnitude(operand.term) if exponent == 1.0 else reader.terms.power(operand.term, exponent)
        powers = operand.as_term(term)
        return None if powers is None else summed(reader, powers, axes, kept)

    return powers_summed


def euclidean(reader: Reader, operand: Known, axes: tuple[int, ...], kept: bool) -> Known | None:
    """ReduceL2."""
    squares = summed_powers(2.0)(reader, operand, axes, kept)
    return None if squares is None else squares.as_term(reader.terms.power(squares.term, 0.5))


def global_pool(reader: Reader, node: ir.Node) -> Known | None:
    """GlobalAveragePool: the mean over all positions."""
    operand = reader.operand_of(node)
    if operand is None or reader.rank is None or reader.rank < 3:
        return None
    return reader.averaged(operand, tuple(range(2 - reader.rank, 0)), kept=True)


def average_pool(reader: Reader, node: ir.Node) -> Known | None:
    """AveragePool whose window is the whole image is a mean."""
    operand, rank = reader.operand_of(node), reader.rank
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
