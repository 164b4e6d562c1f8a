"""The cone of x: everything that is computed from x and parameters alone, read as terms, in the order of the graph."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Set

import onnx_ir as ir

from normfuse.graph.site import Reading
from normfuse.recognise.parameters import Parameters
from normfuse.recognise.reader import Reader
from normfuse.recognise.vocabulary import READ, read

_MOST_NODES = 96
"""Nodes read above one x. The longest norm known here has 40."""


def read_cone(
    x: ir.Value, reading: Reading, parameters: Parameters, order: Mapping[ir.Node, int], claimed: Set[ir.Node]
) -> Reader:
    """Return a reader that knows the values above ``x``; nodes of ``claimed`` and of subgraphs are not entered."""
    reader = Reader(x, reading, parameters)
    waiting: list[tuple[int, ir.Node]] = []
    seen: set[ir.Node] = set()

    def visit(value: ir.Value) -> None:
        for user, _ in value.uses():
            if user in seen or user.op_type not in READ:
                continue
            position = order.get(user)
            if position is None or user in claimed:
                continue
            seen.add(user)
            heapq.heappush(waiting, (position, user))

    visit(x)
    for _ in range(_MOST_NODES):
        if not waiting:
            break
        _, node = heapq.heappop(waiting)
        known = read(reader, node)
        if known is not None:
            reader.known[node.outputs[0]] = known
            visit(node.outputs[0])
    return reader
