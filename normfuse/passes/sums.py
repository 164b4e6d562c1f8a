"""Sums as they are written, Add, Sub and Sum nested in each other, read as one list of signed operands."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.reading import is_op
from normfuse.graph.site import Reading


@dataclass(frozen=True, slots=True)
class Term:
    """One operand of a sum: input ``index`` of ``node``, whatever that is when it is asked for, times ±1."""

    node: ir.Node
    index: int
    sign: int

    @property
    def value(self) -> ir.Value:
        """The operand."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum: the node whose output is its value, all its nodes, its operands from left to right."""

    root: ir.Node
    nodes: tuple[ir.Node, ...]
    terms: tuple[Term, ...]


def read_sum(root: ir.Node, reading: Reading) -> Sum | None:
    """Return the sum whose value is the output of ``root``; None where there is none, or it is part of a larger one."""
    if not _is_sum(root, reading) or _is_inside(root, reading):
        return None
    nodes: list[ir.Node] = [root]
    terms: list[Term] = []
    stack = _operands(root, 1)
    while stack:
        term = stack.pop()
        producer = term.value.producer()
        if producer is not None and _is_sum(producer, reading) and _is_inside(producer, reading):
            nodes.append(producer)
            stack.extend(_operands(producer, term.sign))
        else:
            terms.append(term)
    return Sum(root, tuple(nodes), tuple(terms))


def _operands(node: ir.Node, sign: int) -> list[Term]:
    """Return the operands of one node, the last first."""
    terms = [
        Term(node, index, -sign if node.op_type == "Sub" and index == 1 else sign)
        for index, value in enumerate(node.inputs)
        if value is not None
    ]
    return terms[::-1]


def _is_sum(node: ir.Node, reading: Reading) -> bool:
    """Whether ``node`` adds values of one shape, or of shapes that broadcast as in NumPy (Add from opset 7 on)."""
    return is_op(node, "Add", "Sub", "Sum") and (reading.opset >= 7 or "broadcast" not in node.attributes)


def _is_inside(node: ir.Node, reading: Reading) -> bool:
    """Whether the output of ``node`` is only an operand of another sum in the same graph."""
    output = node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output():
        return False
    (reader, _), *_ = uses
    return reader.graph is node.graph and _is_sum(reader, reading)
