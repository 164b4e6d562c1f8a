"""The operators that norms are written in, each with its rule: what its result is, given what its inputs are.

A rule is given what is known of the inputs of one node and returns what is known of its output, or None: then the node
is no part of a norm over x. It never looks further than that node, its parameters and its shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from normfuse.graph.reading import has_parameters, is_standard
from normfuse.recognise.elementwise import (
    Rule,
    binary,
    cast,
    cast_like,
    clip,
    difference,
    dropout,
    greatest,
    power,
    product,
    quotient,
    relu,
    same,
    total,
    unary,
)
from normfuse.recognise.means import average_pool, euclidean, global_pool, mean, reduction, summed, summed_powers
from normfuse.recognise.reader import Known, Reader
from normfuse.recognise.terms import Term
from normfuse.recognise.views import expand, reshape, squeeze, unsqueeze

_RULES: Mapping[str, Rule] = {
    "Identity": same,
    "Dropout": dropout,
    "Cast": cast,
    "CastLike": cast_like,
    "Neg": unary(lambda _, term: Term(-term.coefficient, term.factors)),
    "Abs": unary(lambda terms, term: terms.magnitude(term)),
    "Sqrt": unary(lambda terms, term: terms.power(term, 0.5)),
    "Reciprocal": unary(lambda terms, term: terms.power(term, -1.0)),
    "Pow": power,
    "Mul": binary(product),
    "Div": binary(quotient),
    "Add": binary(total),
    "Sub": binary(difference),
    "Max": greatest,
    "Clip": clip,
    "Relu": relu,
    "ReduceMean": reduction(mean),
    "ReduceSum": reduction(summed),
    "ReduceSumSquare": reduction(summed_powers(2.0)),
    "ReduceL1": reduction(summed_powers(1.0)),
    "ReduceL2": reduction(euclidean),
    "GlobalAveragePool": global_pool,
    "AveragePool": average_pool,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Reshape": reshape,
    "Expand": expand,
}

READ = frozenset(_RULES)
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool", "AveragePool"}
)


def read(reader: Reader, node: ir.Node) -> Known | None:
    """Return what the first output of ``node`` is; None where no rule says it."""
    rule = _RULES.get(node.op_type)
    if rule is None or not is_standard(node) or has_parameters(node):
        return None
    try:
        return rule(reader, node)
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError):
        return None  # an ill-formed node is no norm; the checker will say so
