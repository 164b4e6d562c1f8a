"""Move BatchNormalization through the graph until linear operators absorb it.

``fold_batchnorm`` folds a norm into the operator beside it. Here the per-channel affine map of a norm that was left,
with the constants behind it, travels: backward to the operators that make its input, or forward to those that read its
output, through Concat, Relu, pooling, Reshape and the rest of the table in ``affine_rules``. So does the map of a Mul, Add,
Sub, Div by a constant, or a Neg. A map moves whole or not at all, and never to where it would cost more than before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import Editor, Replacement, describe, initializer
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.affine_backward import plan_backward
from normfuse.passes.affine_forward import plan_forward
from normfuse.passes.affine_own import own_map
from normfuse.passes.affine_plan import Ground, Plan, name
from normfuse.passes.cancellation import Moments, is_accurate, mean_distance
from normfuse.passes.fold_batchnorm import compose
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import Channels, Link, Norms, follow, norm_affine
from normfuse.report.records import Rewrite
from normfuse.spec import Stored

_MAPS = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg"})
"""Operators that may be a map of their own."""


@dataclass(frozen=True, slots=True)
class Move:
    """A norm that moves, decided but not done.

    norms: those that vanish. links: the norm with the constants behind it. is_backward: to what makes its input, which
    is input ``place`` of the first link.
    """

    norms: tuple[ir.Node, ...]
    links: tuple[ir.Node, ...]
    plan: Plan
    is_backward: bool
    place: int = 0

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
            x = self.links[0].inputs[self.place]
            for node in self.links:
                _bypass(node, next(index for index, value in enumerate(node.inputs) if value is x), editor)
        for node, index in self.plan.gone:
            _bypass(node, index, editor)
        written = [*copied, *self._rebuild(editor), *self._exchange(editor)]
        if self.is_backward:
            x = self.links[0].inputs[self.place]
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


def move_affines(
    graph: ir.Graph,
    norms: Norms,
    reading: Reading,
    *,
    duplicate: bool = False,
    leave: Set[ir.Node] = frozenset(),
) -> list[Move | Declined]:
    """Decide for each BatchNormalization and each constant factor or term of ``graph`` whether it can move away.

    duplicate: a linear operator that others read too may absorb in a copy of its own. leave: nodes that stay: of norms
    of other kinds, for one.

    Changes nothing. The moves do not touch each other. Where two norms want the same operator one of them waits: decide
    again, on the changed graph, until nothing moves. The reasons are those of norms.
    """
    ground = Ground({node: outcome for node, outcome in norms.items() if node not in leave}, reading, duplicate)
    ground.claimed.update(leave)
    outcomes: list[Move | Declined] = []
    for node in reversed(graph):
        if node.op_type not in _MAPS or node in ground.claimed:
            continue
        if is_op(node, "BatchNormalization") and node in ground.norms:
            outcome = _decide(node, ground)
        elif is_op(node, "Mul", "Add", "Sub", "Div", "Neg"):
            outcome = _decide_arithmetic(node, ground)
        else:
            continue
        if outcome is None:
            continue
        outcomes.append(outcome)
        if isinstance(outcome, Move):
            ground.claimed.update(outcome.nodes)
    return outcomes[::-1]


def _decide_arithmetic(node: ir.Node, ground: Ground) -> Move | Declined | None:
    """Decide for a factor or term: it moves where that leaves fewer operators; on, only a factor.

    How far a mean lies from zero is not known here, so a shift does not go on. The reason of a norm that is written so is
    kept, any other is not.
    """
    own = own_map(node, ground)
    if not isinstance(own, tuple):
        return None
    place, f = own
    x = node.inputs[place]
    if x is None or f.is_identity:
        return None
    back = _fewer(_checked(plan_backward(x, f, node, ground), (node,), node), node)
    if isinstance(back, Plan):
        return _move((node,), back, ground.norms, is_backward=True, place=place)
    declined = Declined(back.reason, node) if node in ground.norms else None
    if not f.is_linear or node.outputs[0].is_graph_output() or _ends_gelu(node, x):
        return declined
    ahead = _fewer(_checked(plan_forward(node.outputs[0], f, node, ground), (node,), node), node)
    if isinstance(ahead, Declined) or ahead.gone:
        return declined
    return _move((node,), ahead, ground.norms, is_backward=False, place=place)


def _fewer(plan: Plan | Declined, node: ir.Node) -> Plan | Declined:
    """Return the plan where it takes away more operators than it brings."""
    if isinstance(plan, Plan) and plan.adds > len(plan.gone):
        return Declined("a MatMul without bias would need an Add in its place", node)
    return plan


def _ends_gelu(node: ir.Node, x: ir.Value) -> bool:
    """Whether ``node`` may be the half of x·(1 + erf(x/√2))·½, or of its form with tanh: runtimes know it by all parts."""
    product = x.producer()
    if not is_op(node, "Mul", "Div") or not is_op(product, "Mul") or product is None:
        return False
    sums = [value.producer() for value in product.inputs if value is not None]
    inner = [
        value.producer() for term in sums if term is not None and is_op(term, "Add") for value in term.inputs if value
    ]
    return any(is_op(source, "Erf", "Tanh") for source in inner)


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
    whole = compose(chain, channels.count)
    f = Spread.along(whole, 1, rank)
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
    assert isinstance(site, NormSite)
    if ahead.products and not is_accurate(Moments.of(site, whole, reading), ahead.products):
        distance = mean_distance(site, reading)
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


def _move(links: tuple[ir.Node, ...], plan: Plan, norms: Norms, *, is_backward: bool, place: int = 0) -> Move:
    gone = (*links, *(node for node, _ in plan.gone))
    return Move(tuple(node for node in gone if node in norms), links, plan, is_backward, place)


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
    wanted: Callable[[str, ir.Node, tuple[ir.Node, ...]], str | None],
    *,
    duplicate: bool = False,
) -> Moves:
    """Move what moves, until nothing does.

    reading: of the graph as it is now. wanted: takes the kind of a move, the norm, and the nodes that it
    touches; returns the move's id, or None where it was not asked for.
    """
    leave = {
        node
        for site in norms.values()
        if isinstance(site, NormSite) and not isinstance(site.spec.statistics, Stored)
        for node in site.interior
    }
    rewrites: list[Rewrite] = []
    plans: dict[ir.Node, str] = {}
    declined: list[Declined] = []
    while True:
        staying = {node: outcome for node, outcome in norms.items() if node.graph is not None}
        outcomes = move_affines(graph, staying, reading(), duplicate=duplicate, leave=leave)
        moves = [outcome for outcome in outcomes if isinstance(outcome, Move)]
        for move in moves:
            first = move.links[0]
            kind = "move-batchnorm" if move.norms else "move-affine"
            identifier = wanted(kind, first, move.nodes)
            if identifier is None:
                if first in norms:
                    declined.append(Declined("its move was not selected", first))
                leave.add(first)
                continue
            removed = tuple(describe(node) for node in move.nodes)
            plan = f"fold into {', '.join(describe(node) for node in move.into)}"
            note = move.note  # by the names that the file has: values that mean something else get another one
            plans.update(dict.fromkeys(move.norms, plan))
            rewrites.append(Rewrite(identifier, kind, removed, move.carry_out(editor), note))
        if not moves:
            declined.extend(outcome for outcome in outcomes if isinstance(outcome, Declined))
            return Moves(tuple(rewrites), plans, tuple(declined))
