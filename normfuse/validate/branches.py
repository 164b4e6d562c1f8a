"""Bodies of If, Loop and Scan that differ between two graphs: which the inputs entered, and how to enter the others.

A body is addressed by the outputs of the nodes that hold it, from the top level down: those names are the same in both
graphs. One that differs and that no input enters is judged all the same: its If takes that branch, its Loop makes two
trips, whatever the condition says, in both graphs. Only where that fails is it left open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.validate.cones import Cone, same_tensor
from normfuse.validate.oracle import Oracle
from normfuse.validate.scopes import captured_by, is_control, label

Path = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Body:
    """One body. around: itself and the bodies that hold it; entering it means to enter them all."""

    node: ir.Node
    attribute: str
    graph: ir.Graph
    around: frozenset[ir.Graph]

    @property
    def words(self) -> str:
        """How a report calls it."""
        return f"{self.attribute} of {self.node.op_type} '{label(self.node)}'"

    @property
    def enough(self) -> int:
        """How many trips show all that it does: a second trip of a Loop reads what the first has carried."""
        return 2 if self.node.op_type == "Loop" else 1


def bodies(nodes: Iterable[ir.Node]) -> dict[Path, Body]:
    """Return every body in ``nodes``, nested ones included."""
    found: dict[Path, Body] = {}
    _collect(nodes, (), frozenset(), found)
    return found


def _collect(nodes: Iterable[ir.Node], path: Path, around: frozenset[ir.Graph], found: dict[Path, Body]) -> None:
    for node in nodes:
        if not is_control(node):
            continue
        for name, attribute in node.attributes.items():
            if attribute.type != ir.AttributeType.GRAPH:
                continue
            graph = attribute.as_graph()
            here = (*path, (next((value.name or "" for value in node.outputs), ""), name))
            found[here] = Body(node, name, graph, around | {graph})
            _collect(graph, here, around | {graph}, found)


def changed_bodies(cones: tuple[Cone, Cone], shared: Collection[str]) -> list[tuple[Body, Body | None]]:
    """Return the bodies of the first cone that differ from those of the second, each with its counterpart, if any."""
    theirs = bodies(cones[1].nodes)
    found: list[tuple[Body, Body | None]] = []
    for path, body in bodies(cones[0].nodes).items():
        other = theirs.get(path)
        if other is None or not _same(body.graph, other.graph, shared):
            found.append((body, other))
    return found


def _same(a: ir.Graph, b: ir.Graph, shared: Collection[str]) -> bool:
    if ir.serde.serialize_graph(a).SerializeToString(deterministic=True) != ir.serde.serialize_graph(
        b
    ).SerializeToString(deterministic=True):
        return False
    return all(_same_outer(x, y, shared) for x, y in zip(captured_by([a]), captured_by([b]), strict=True))


def _same_outer(a: ir.Value, b: ir.Value, shared: Collection[str]) -> bool:
    if a.const_value is not None and b.const_value is not None:
        return same_tensor(a.const_value, b.const_value)
    return a.name in shared or a.producer() is None


def is_dead(oracle: Oracle, body: Body) -> bool:
    """Return whether a constant decides that ``body`` never runs, or never again: nothing depends on it then."""
    if body.node.op_type == "Scan":
        return False
    values = body.node.inputs[:2] if body.node.op_type == "Loop" else body.node.inputs[:1]
    return all(value is None or value.const_value is not None or oracle.is_constant(value) for value in values)


def loops(nodes: Iterable[ir.Node]) -> frozenset[ir.Graph]:
    """Return the bodies of all Loops in ``nodes``."""
    return frozenset(body.graph for body in bodies(nodes).values() if body.node.op_type == "Loop")
