"""Move BatchNormalization through the graph until linear operators absorb it.

``fold_batchnorm`` folds a norm into the operator beside it. Here the per-channel affine map of a norm that was left,
with the constants behind it, travels: backward to the operators that make its input, or forward to those that read its
output, through Concat, Relu, pooling, Reshape and the rest of the table in ``affine_rules``. A map moves whole or not at
all, and never to where it would cost more than the norm did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import Editor, Replacement, describe, initializer
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.affine_backward import plan_backward
from normfuse.passes.affine_forward import plan_forward
from normfuse.passes.affine_plan import Ground, Plan, name
from normfuse.passes.fold_batchnorm import FARTHEST_MEAN, compose, mean_distance
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import Channels, Link, Norms, follow, norm_affine
from normfuse.report.records import Rewrite

FARTHEST_AVERAGED_MEAN = 1.0
"""The same bound where the map passes a mean on its way to the operator behind: averaging n elements makes their
deviation smaller by up to sqrt(n) and leaves μ."""


@dataclass(frozen=True, slots=True)
class Move:
    """A norm that moves, decided but not done.

    norms: those that vanish. links: the norm with the constants behind it. is_backward: to what makes its input.
    """

    norms: tuple[ir.Node, ...]
    links: tuple[ir.Node, ...]
    plan: Plan
    is_backward: bool

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
    def note(self) -> str:
        """Say what the map passed, and what was copied for it."""
        through = ", ".join(name(node) for node in self.plan.through)
        copies = ", ".join(name(node) for _, _, node, _ in self.plan.copies)
        way = f"{'back' if self.is_backward else 'on'} through {through}" if through else ""
        return "; ".join(part for part in (way, f"in a copy of {copies}" if copies else "") if part)

    def carry_out(self, editor: Editor) -> tuple[str, ...]:
        """Change the graph; return the names of the operators that were written anew."""
        for value in self.plan.moved:
            # What a value means has changed: its old name would claim otherwise (the validator compares by name).
            value.name = editor.unique(f"{value.name}_moved")
        copied = self._copy(editor)
        if not self.is_backward:
            x = self.links[0].inputs[0]
            for node in self.links:
                _bypass(node, next(index for index, value in enumerate(node.inputs) if value is x), editor)
        for node, index in self.plan.gone:
            _bypass(node, index, editor)
        written = [*copied, *self._rebuild(editor), *self._exchange(editor)]
        if self.is_backward:
            x = self.links[0].inputs[0]
            assert x is not None
            editor.apply(Replacement(self.links, (), ((self.output, x),)), at=self.links[0])
        return tuple(written)

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
            for place, operand in enumerate(reader.inputs):
                if operand is value:
                    reader.replace_input_with(place, rewritten.output)
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


def move_affines(graph: ir.Graph, norms: Norms, reading: Reading, *, duplicate: bool = False) -> list[Move | Declined]:
    """Decide for each BatchNormalization of ``graph`` whether it can move away. Changes nothing.

    duplicate: a linear operator that others read too may absorb in a copy of its own.

    The moves do not touch each other. Where two norms want the same operator one of them waits: decide again, on the
    changed graph, until nothing moves.
    """
    ground = Ground(norms, reading, duplicate)
    outcomes: list[Move | Declined] = []
    for norm in reversed(graph):
        if not is_op(norm, "BatchNormalization") or norm not in norms or norm in ground.claimed:
            continue
        outcome = _decide(norm, ground)
        if outcome is None:
            continue
        outcomes.append(outcome)
        if isinstance(outcome, Move):
            ground.claimed.update(outcome.nodes)
    return outcomes[::-1]


def _decide(norm: ir.Node, ground: Ground) -> Move | Declined | None:
    norms, reading = ground.norms, ground.reading
    affine = norm_affine(norm, None, norms, reading)
    x = norm.inputs[0]
    rank = ground.rank(x)
    if affine is None or isinstance(affine, Declined):
        return affine
    if x is None or rank is None or rank < 2:
        producer = None if x is None else x.producer()
        source = "" if producer is None else f", from {name(producer)},"
        return Declined(f"the rank of its input{source} is not known", norm)
    channels = Channels(affine.scale.size, 1, rank)
    chain = (Link(norm, affine, is_norm=True), *follow(norm.outputs[0], channels, norms, reading))
    if any(link.node in ground.claimed for link in chain):
        return Declined("another norm behind it moves first", norm)
    f = Spread.along(compose(chain, channels.count), 1, rank)
    if f.is_identity:
        return Declined("it changes nothing", norm)
    links = tuple(link.node for link in chain)
    back = _checked(plan_backward(x, f, norm, ground), links, norm)
    if isinstance(back, Plan):
        return _move(links, back, norms, is_backward=True)
    if links[-1].outputs[0].is_graph_output():
        return Declined(back.reason, norm)
    ahead = _checked(plan_forward(links[-1].outputs[0], f, links[-1], ground), links, norm)
    if isinstance(ahead, Declined):
        return Declined(f"back: {back.reason}; on: {ahead.reason}", norm)
    site = norms[norm]
    distance = mean_distance(site, reading) if isinstance(site, NormSite) else 0.0
    if distance > (FARTHEST_AVERAGED_MEAN if ahead.averages else FARTHEST_MEAN):
        far = f"its mean lies up to {distance:.3g} deviations from zero, and the result would lose accuracy"
        return Declined(f"back: {back.reason}; on: {far}", norm)
    return _move(links, ahead, norms, is_backward=False)


def _checked(plan: Plan | Declined, links: tuple[ir.Node, ...], norm: ir.Node) -> Plan | Declined:
    """Return the plan unless it brings more operators than it takes away, or may leave the range of float16."""
    if isinstance(plan, Declined):
        return plan
    if plan.adds > len(links) + len(plan.gone):
        return Declined(f"{plan.adds} MatMul without bias would need an Add each", norm)
    if not plan.linears and not plan.copies and not plan.constants:
        return Declined("no linear operator absorbs it", norm)
    if plan.half and plan.strained:
        return Declined(f"the values of {name(plan.strained[0])} might leave the range of float16", norm)
    return plan


def _move(links: tuple[ir.Node, ...], plan: Plan, norms: Norms, *, is_backward: bool) -> Move:
    gone = (*links, *(node for node, _ in plan.gone))
    return Move(tuple(node for node in gone if node in norms), links, plan, is_backward)


@dataclass(frozen=True, slots=True)
class Moves:
    """What :func:`move_norms` did and did not do. plans: of each norm that vanished, where it went."""

    rewrites: tuple[Rewrite, ...]
    plans: Mapping[ir.Node, str]
    declined: tuple[Declined, ...]


def move_norms(
    graph: ir.Graph,
    norms: Norms,
    reading: Callable[[], Reading],
    editor: Editor,
    wanted: Callable[[ir.Node, tuple[ir.Node, ...]], str | None],
    *,
    duplicate: bool = False,
) -> Moves:
    """Move what moves, until nothing does.

    reading: of the graph as it is now. wanted: takes a norm and the nodes that its move touches; returns the
    move's id, or None where it was not asked for.
    """
    free = {node: outcome for node, outcome in norms.items() if is_op(node, "BatchNormalization")}
    rewrites: list[Rewrite] = []
    plans: dict[ir.Node, str] = {}
    declined: list[Declined] = []
    while free:
        outcomes = move_affines(graph, free, reading(), duplicate=duplicate)
        moves = [outcome for outcome in outcomes if isinstance(outcome, Move)]
        for move in moves:
            norm = move.links[0]
            identifier = wanted(norm, move.nodes)
            if identifier is None:
                declined.append(Declined("its move was not selected", norm))
                del free[norm]
                continue
            removed = tuple(describe(node) for node in move.nodes)
            plan = f"fold into {', '.join(describe(node) for node in move.into)}"
            note = move.note  # by the names that the file has: values that mean something else get another one
            plans.update(dict.fromkeys(move.norms, plan))
            rewrites.append(Rewrite(identifier, "move-batchnorm", removed, move.carry_out(editor), note))
        free = {node: outcome for node, outcome in free.items() if node.graph is not None}
        if not moves:
            declined.extend(outcome for outcome in outcomes if isinstance(outcome, Declined))
            break
    return Moves(tuple(rewrites), plans, tuple(declined))
