"""Norms of other kinds (norms.md S46, S49 to S51), found so that a report can name them; nobody writes them anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.reading import input_at, is_op
from normfuse.graph.site import Reading
from normfuse.recognise.cone import read_cone
from normfuse.recognise.parameters import Parameters
from normfuse.recognise.proposals import proposals, without_casts
from normfuse.recognise.terms import Extent, Factors, Floor, Magnitude, Mean, Parameter, Sum, Term, Terms, Variable
from normfuse.recognise.vocabulary import REDUCTIONS
from normfuse.spec import GlobalResponseNorm, LocalResponseNorm, LpNorm, OtherNorm

_MOST_STEPS = 10
"""Nodes between the square and the average of a local response norm; torch writes five."""


@dataclass(frozen=True, slots=True)
class OtherSite:
    """A norm of another kind: of ``x``, with the first output of ``root`` as its result."""

    spec: OtherNorm
    x: ir.Value
    root: ir.Node


def find_other(graph: Iterable[ir.Node], reading: Reading, claimed: Set[ir.Node]) -> tuple[OtherSite, ...]:
    """Return the norms of other kinds of one graph. claimed: nodes of norms already found."""
    nodes = list(graph)
    order = {node: position for position, node in enumerate(nodes)}
    found: dict[ir.Node, OtherSite] = {}
    parameters: Parameters | None = None
    tried: set[ir.Value] = set()
    for node in nodes:
        site = None if node in claimed else _operator(node, reading) or _local_response(node, reading)
        if site is not None:
            found[site.root] = site
        if node in claimed or not is_op(node, *REDUCTIONS):
            continue
        parameters = Parameters(nodes, reading) if parameters is None else parameters
        for x in proposals(node):
            if x in tried or parameters.holds(x):
                continue
            tried.add(x)
            reader = read_cone(x, reading, parameters, order, claimed)
            for value, known in reader.known.items():
                spec = None if known.missing or known.clashes else _other(known.term, reader.terms)
                root = value.producer()
                if spec is not None and root is not None:
                    found[root] = OtherSite(spec, x, root)
                    break
    return tuple(sorted(found.values(), key=lambda site: order[site.root]))


def _operator(node: ir.Node, reading: Reading) -> OtherSite | None:
    x = input_at(node, 0) if is_op(node, "LpNormalization", "LRN") else None
    if x is None:
        return None
    if node.op_type == "LRN":
        return OtherSite(LocalResponseNorm(node.attributes.get_int("size", 1)), x, node)
    axis, rank = node.attributes.get_int("axis", -1), reading.ranks.of(x)
    if axis >= 0:
        axis = axis - rank if rank is not None else axis
    return OtherSite(LpNorm(node.attributes.get_int("p", 2), (axis,)), x, node)


def _other(term: Term, terms: Terms) -> LpNorm | GlobalResponseNorm | None:
    """Read ``x / ‖x‖``, and with the norm of one axis over its mean along another; the norm is a root of a mean."""
    factors = [item for item in term.factors if not isinstance(terms.base(item[0]), Extent | Parameter)]
    if (0, 1.0) not in factors or any(isinstance(terms.base(base), Parameter) for base, _ in term.factors):
        return None
    rest = [item for item in factors if item != (0, 1.0)]
    below = [item for item in rest if item[1] < 0]
    above = [item for item in rest if item[1] > 0]
    if len(below) != 1 or terms.varies((below[0],)):
        return None
    found = _only_mean((below[0],), terms)
    if found is None:
        return None
    mean, power = found
    if above:
        return _global_response(above, mean, terms) if power == -1.0 else None
    if len(mean.of) != 1:
        return None
    base, exponent = mean.of[0]
    inner = terms.base(base)
    if isinstance(inner, Magnitude) and inner.of == ((0, 1.0),) and (exponent, power) == (1.0, -1.0):
        return LpNorm(1, mean.axes)
    return LpNorm(2, mean.axes) if isinstance(inner, Variable) and (exponent, power) == (2.0, -0.5) else None


def _global_response(above: list[tuple[int, float]], mean: Mean, terms: Terms) -> GlobalResponseNorm | None:
    if len(above) != 1 or above[0][1] != 0.5:
        return None
    squares = terms.base(above[0][0])
    if not isinstance(squares, Mean) or squares.of != ((0, 2.0),):
        return None
    inner = [item for item in mean.of if not isinstance(terms.base(item[0]), Extent)]
    return GlobalResponseNorm(squares.axes) if inner == above else None


def _only_mean(
    factors: Factors, terms: Terms, power: float = 1.0, *, guarded: bool = False
) -> tuple[Mean, float] | None:
    """Return the one mean that ``factors`` are made of, and its exponent in all.

    It may be guarded against zero once: by a floor, or by a positive number that is added, inside a root or behind it.
    """
    real = [item for item in factors if not isinstance(terms.base(item[0]), Extent)]
    if len(real) != 1:
        return None
    base, exponent = real[0]
    inner, power = terms.base(base), power * exponent
    if isinstance(inner, Mean):
        return inner, power
    if guarded:
        return None
    if isinstance(inner, Floor):
        return _only_mean(inner.of, terms, power, guarded=True)
    if isinstance(inner, Sum) and len(inner.addends) == 1 and inner.constant > 0:
        return _only_mean(inner.addends[0][0], terms, power, guarded=True)
    return None


def _local_response(node: ir.Node, reading: Reading) -> OtherSite | None:
    """Read ``Div(x, Pow(Add(Mul(AveragePool(… x² …), α), k), β))``."""
    if not is_op(node, "Div"):
        return None
    x = input_at(node, 0)
    power = _producer(input_at(node, 1), "Pow")
    biased = _producer(input_at(power, 0), "Add") if power is not None else None
    if x is None or biased is None:
        return None
    for value in biased.inputs:
        scaled = _producer(value, "Mul")
        for averaged in () if scaled is None else scaled.inputs:
            size = _window(averaged, without_casts(x))
            if size is not None:
                return OtherSite(LocalResponseNorm(size), without_casts(x), node)
    return None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else without_casts(value).producer()
    return node if is_op(node, op_type) else None


def _window(value: ir.Value | None, x: ir.Value) -> int | None:
    """Follow the average upwards to the square of ``x``; return the length of the AveragePool on the way."""
    size: int | None = None
    for _ in range(_MOST_STEPS):
        if value is None:
            return None
        value = without_casts(value)
        node = value.producer()
        if node is None:
            return None
        if is_op(node, "AveragePool"):
            size = max(node.attributes.get_ints("kernel_shape", (1,)))
        elif is_op(node, "Mul", "Pow"):
            bases = {without_casts(operand) for operand in node.inputs[: 2 if node.op_type == "Mul" else 1] if operand}
            return size if bases == {x} else None
        elif is_op(node, "If"):
            value = next(_captured(node), None)
            continue
        elif not is_op(node, "Squeeze", "Unsqueeze", "Reshape", "Pad"):
            return None
        value = input_at(node, 0)
    return None


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that the branches of an If read from outside."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            for inner in attribute.as_graph():
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)
