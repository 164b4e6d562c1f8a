"""Which nodes a norm consists of: those between x and the result that nobody else needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.reading import is_op
from normfuse.recognise.reader import Reader
from normfuse.recognise.terms import X

_MOST_ESCORTS = 24
"""Nodes of shape arithmetic on interior values; exporters use about six."""


@dataclass(frozen=True, slots=True)
class Interior:
    """The nodes that go, in the order of the graph, and the value that stands for x."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value


def interior_of(root: ir.Node, reader: Reader, order: Mapping[ir.Node, int]) -> Interior:
    """Return the nodes that compute the result of ``root`` from x.

    Casts of x belong to it where nobody else reads them; nodes that read only the shape or type of an interior value
    (Shape, CastLike) belong to it where their results end in it.
    """
    inside: set[ir.Node] = {root}
    views: dict[ir.Value, None] = {}
    pending = [root]
    while pending:
        for value in pending.pop().inputs:
            known = None if value is None else reader.known.get(value)
            if value is None or known is None:
                continue
            if known.term == X and not known.missing:
                views[value] = None
                continue
            producer = value.producer()
            if producer is not None and producer not in inside:
                inside.add(producer)
                pending.append(producer)
    x = _source(list(views), reader, inside)
    escorts: set[ir.Node] = set()
    for node in tuple(inside):
        if node is not root:
            escorts |= _escorts(node.outputs[0], inside, order)
    nodes = sorted((node for node in inside | escorts if node in order), key=lambda node: order[node])
    return Interior(tuple(nodes), x)


def _source(views: list[ir.Value], reader: Reader, inside: set[ir.Node]) -> ir.Value:
    """Return the value that all ``views`` of x are made of, and take the Casts in between ``inside`` where they go."""
    waiting = [view for view in views if view is not reader.x]
    kept = len(waiting) < len(views)
    ends: dict[ir.Value, None] = {}
    while waiting:
        view = waiting.pop()
        node = view.producer()
        source = None if node is None else node.inputs[0]
        if node is None or source is None:
            ends[view] = None
            continue
        private = not view.is_graph_output() and all(user in inside for user, _ in view.uses())
        if not private or narrows(source, view, reader):
            ends[view] = None
            continue
        inside.add(node)
        if source is reader.x:
            kept = True
        elif source not in ends:
            waiting.append(source)
    if len(ends) == 1 and not kept:
        return next(iter(ends))
    return reader.x


def narrows(source: ir.Value, view: ir.Value, reader: Reader) -> bool:
    """Whether ``view`` is ``source`` rounded to a smaller type: then it, and not ``source``, is what is normalised."""
    widths = [reader.known[value].dtype if value in reader.known else None for value in (source, view)]
    return widths[0] is not None and widths[1] is not None and widths[0].itemsize > widths[1].itemsize


def _escorts(value: ir.Value, inside: set[ir.Node], order: Mapping[ir.Node, int]) -> set[ir.Node]:
    """Return the nodes that read only the shape or type of ``value``, as far as their results end inside."""
    found: set[ir.Node] = set()
    for user, index in value.uses():
        if user in inside or not (is_op(user, "Shape", "Size") or (is_op(user, "CastLike") and index == 1)):
            continue
        chain = _chain(user, inside, order)
        if chain is not None:
            found |= chain
    return found


def _chain(node: ir.Node, inside: set[ir.Node], order: Mapping[ir.Node, int]) -> set[ir.Node] | None:
    chain = {node}
    pending = [node]
    while pending:
        for output in pending.pop().outputs:
            if output.is_graph_output():
                return None
            for user, _ in output.uses():
                if user in inside or user in chain:
                    continue
                if user not in order or len(chain) >= _MOST_ESCORTS:
                    return None
                chain.add(user)
                pending.append(user)
    return chain
