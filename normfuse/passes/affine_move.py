"""A move that is decided: what it is called in the report, and how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import Editor, Replacement, describe, initializer
from normfuse.passes.affine_plan import NOTHING, Plan, name
from normfuse.passes.affine_rest import Rest, write


@dataclass(frozen=True, slots=True)
class Carried:
    """The names of the operators that were written anew, and the nodes of what is left of the map."""

    names: tuple[str, ...]
    rests: tuple[ir.Node, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A norm that moves, decided but not done.

    norms: those that vanish. links: the norm with the constants behind it. back: the part that goes to what makes its
    input, which is input ``place`` of the first link; on: the part that goes to what reads its output.
    """

    norms: tuple[ir.Node, ...]
    links: tuple[ir.Node, ...]
    back: Plan = NOTHING
    on: Plan = NOTHING
    place: int = 0

    @property
    def is_backward(self) -> bool:
        """Whether all that moves goes back."""
        return not self.on.nodes and not self.on.rests

    @property
    def plan(self) -> Plan:
        """Everything that has to change."""
        return self.back + self.on

    @property
    def output(self) -> ir.Value:
        """The result of the norm and of what moves with it."""
        return self.links[-1].outputs[0]

    @property
    def into(self) -> tuple[ir.Node, ...]:
        """The linear operators that absorb it; where there are none, the operators whose constants do."""
        linears = (*(node for node, _ in self.plan.linears), *(node for _, _, node, _ in self.plan.copies))
        return linears or tuple(dict.fromkeys(node for node, _, _ in self.plan.constants))

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node that changes, goes, or means something else."""
        return tuple(dict.fromkeys((*self.links, *self.plan.nodes)))

    @property
    def goal(self) -> str:
        """Say where the norm went, in the words of a report's plan."""
        remains = "; ".join(self._remains(rest) for rest in self.plan.rests)
        into = ", ".join(describe(node) for node in self.into)
        return "; ".join(part for part in (f"fold into {into}" if into else "", remains) if part)

    @property
    def note(self) -> str:
        """Say what the map passed, what was copied for it, and what is left of it."""
        ways = []
        for direction, plan in (("back", self.back), ("on", self.on)):
            through = ", ".join(name(node) for node in plan.through)
            ways += [f"{direction} through {through}"] if through else []
        copies = ", ".join(name(node) for _, _, node, _ in self.plan.copies)
        copied = [f"in a copy of {copies}"] if copies else []
        return "; ".join((*ways, *copied, *(self._remains(rest) for rest in self.plan.rests)))

    def _remains(self, rest: Rest) -> str:
        """Say what stays where."""
        producer = rest.value.producer()
        if rest.reader in self.links or rest.value is self.output:
            return f"{rest.what} remains in its place"
        where = f"behind {name(producer)}" if rest.reader is None and producer is not None else ""
        return f"{rest.what} remains {where if rest.reader is None else f'before {name(rest.reader)}'}"

    def carry_out(self, editor: Editor) -> Carried:
        """Change the graph; return what was written."""
        plan = self.plan
        behind = {rest.value: rest for rest in plan.rests if rest.reader is None}
        moved = [value for value in plan.moved if value not in behind]
        for value in (*moved, *(value for value, rest in behind.items() if not rest.is_whole)):
            # What a value means has changed: its old name would claim otherwise (the validator compares by name).
            value.name = editor.unique(f"{value.name}_moved")
        # First, while every value is where the plan saw it: what reads it afterwards reads what is left of the map.
        left = [node for rest in plan.rests for node in _leave(rest, editor)]
        copied = self._copy(editor)
        if not self.is_backward:
            x = self.links[0].inputs[self.place]
            for node in self.links:
                _bypass(node, next(index for index, value in enumerate(node.inputs) if value is x), editor)
        for node, index in plan.gone:
            _bypass(node, index, editor)
        written = [*copied, *self._rebuild(editor), *self._exchange(editor)]
        if self.is_backward:
            x = self.links[0].inputs[self.place]
            assert x is not None
            editor.apply(Replacement(self.links, (), ((self.output, x),)), at=self.links[0])
        return Carried((*written, *(describe(node) for node in left)), tuple(left))

    def _rebuild(self, editor: Editor) -> list[str]:
        """Write the linear operators that absorb anew."""
        written: list[str] = []
        for node, rebuild in self.plan.linears:
            rewritten = rebuild()
            rewire = ((node.outputs[0], rewritten.output),)
            editor.apply(Replacement((node,), rewritten.nodes, rewire, rewritten.initializers), at=node)
            written += [describe(new) for new in rewritten.nodes]
        return written

    def _copy(self, editor: Editor) -> list[str]:
        """Write a copy of each linear operator that absorbs for one reader only."""
        written: list[str] = []
        for reader, value, node, rebuild in self.plan.copies:
            rewritten = rebuild()
            for new in rewritten.nodes:
                new.name = editor.unique(f"{describe(node)}_copy")
            editor.apply(Replacement((), rewritten.nodes, (), rewritten.initializers), at=reader)
            _read(reader, value, rewritten.output)
            written += [describe(new) for new in rewritten.nodes]
        return written

    def _exchange(self, editor: Editor) -> list[str]:
        """Write the operators anew whose constants change."""
        operands: dict[ir.Node, list[tuple[int, Array]]] = {}
        for node, index, array in self.plan.constants:
            operands.setdefault(node, []).append((index, array))
        for node, changes in operands.items():
            new, values = _with_constants(node, changes)
            rewires = tuple(zip(node.outputs, new.outputs, strict=True))
            editor.apply(Replacement((node,), (new,), rewires, values), at=node)
        return [describe(node) for node in operands]


def _leave(rest: Rest, editor: Editor) -> tuple[ir.Node, ...]:
    """Write what is left of the map, for one reader or for all that read its value."""
    if rest.reader is not None:
        value = rest.reader.inputs[rest.place]
        assert value is not None
        written = write(rest, value)
        editor.apply(Replacement((), written.nodes, (), written.initializers), at=rest.reader)
        _read(rest.reader, value, written.output)
        return written.nodes
    value = rest.value
    written = write(rest, value)
    producer = value.producer()
    assert producer is not None
    editor.apply(
        Replacement((), written.nodes, ((value, written.output),), written.initializers), at=producer, behind=True
    )
    written.nodes[0].replace_input_with(0, value)
    value.name = editor.unique(f"{written.output.name}_before")
    return written.nodes


def _read(reader: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for place, operand in enumerate(reader.inputs):
        if operand is old:
            reader.replace_input_with(place, new)


def _bypass(node: ir.Node, index: int, editor: Editor) -> None:
    """Let everything that reads ``node`` read its input ``index``; remove it."""
    x = node.inputs[index]
    for user, place in tuple(node.outputs[0].uses()):
        user.replace_input_with(place, x)
    editor.apply(Replacement((node,), (), ()), at=node)


def _with_constants(node: ir.Node, changes: list[tuple[int, Array]]) -> tuple[ir.Node, tuple[ir.Value, ...]]:
    inputs = list(node.inputs)
    values: list[ir.Value] = []
    for index, array in changes:
        inputs.extend([None] * (index + 1 - len(inputs)))  # a constant that was not given is at the end
        old = inputs[index]
        wish = f"{old.name}_moved" if old is not None and old.name else f"{describe(node)}.constant"
        values.append(initializer(wish, ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype))))
        inputs[index] = values[-1]
    new = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        dict(node.attributes),
        num_outputs=len(node.outputs),
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
        version=node.version,
    )
    return new, tuple(values)
