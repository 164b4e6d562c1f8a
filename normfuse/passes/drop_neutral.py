"""Take away arithmetic that changes nothing: Add and Sub of zeros, Mul and Div by ones, of one shape with its operand.

``x + 0 = x`` and ``1 · x = x`` hold to the last bit, NaN and infinity included; the sign of a zero alone may differ.
A bias that was never trained is such a term, and it hides the MatMul before it from what runtimes fuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.editing import Editor, Replacement
from normfuse.graph.reading import input_at, is_op
from normfuse.graph.site import Reading
from normfuse.passes.affine_own import own_map
from normfuse.passes.affine_plan import Ground, is_annotated


@dataclass(frozen=True, slots=True)
class Neutral:
    """A node whose output is its input ``place``."""

    node: ir.Node
    place: int

    def carry_out(self, editor: Editor) -> None:
        """Let everything that reads the node read its operand; a graph output keeps its name."""
        output, operand = self.node.outputs[0], self.node.inputs[self.place]
        assert operand is not None
        if output.is_graph_output():
            editor.apply(Replacement((self.node,), (), ((output, operand),)), at=self.node)
            return
        for user, place in tuple(output.uses()):
            user.replace_input_with(place, operand)
        editor.apply(Replacement((self.node,), (), ()), at=self.node)


def neutral_nodes(graph: Iterable[ir.Node], leave: Set[ir.Node], reading: Reading) -> list[Neutral]:
    """Return the nodes of ``graph`` that change nothing, ``leave`` aside. Changes nothing.

    leave: what belongs to a norm, whose parameters may be ones and zeros.
    """
    ground = Ground({}, reading)
    found: list[Neutral] = []
    stands_for: dict[ir.Value, ir.Value] = {}
    renamed: set[ir.Value] = set()  # these become graph outputs themselves
    for node in graph:
        if not is_op(node, "Add", "Sub", "Mul", "Div") or node in leave or not _has_units(node, reading):
            continue
        own = own_map(node, ground)
        operand = input_at(node, own[0]) if isinstance(own, tuple) and own[1].is_identity else None
        if not isinstance(own, tuple) or operand is None:
            continue
        output, origin = node.outputs[0], stands_for.get(operand, operand)
        if is_annotated(operand) or is_annotated(output):
            continue
        if output.is_graph_output() and (not _may_be_output(origin, output.graph) or origin in renamed):
            continue
        if output.is_graph_output():
            renamed.add(origin)
        stands_for[output] = origin
        found.append(Neutral(node, own[0]))
    return found


def _has_units(node: ir.Node, reading: Reading) -> bool:
    """A cheap look ahead: whether a constant operand begins with a 0 or 1."""
    arrays = [reading.constants.array(operand) for operand in node.inputs]
    return any(array is not None and array.size and array.reshape(-1)[0] in (0, 1) for array in arrays)


def _may_be_output(value: ir.Value, graph: ir.Graph | None) -> bool:
    """Whether ``value`` can take the name of an output of ``graph``."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()
