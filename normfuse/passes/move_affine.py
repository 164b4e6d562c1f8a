"""Move BatchNormalization through the graph until linear operators absorb it.

``fold_batchnorm`` folds a norm into the operator beside it. Here the per-channel affine map of a norm that was left,
with the constants behind it, travels: backward to the operators that make its input, or forward to those that read its
output, through Concat, Relu, pooling, Reshape and the rest of the table in ``affine_rules``. So does the map of a Mul, Add,
Sub, Div by a constant, or a Neg. The map of a norm moves whole, or in halves, the scale one way and the shift the other, or
in part, where what is left of it is less work than the norm was; never to where it would cost more than before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from normfuse.graph.editing import Editor, describe
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.affine_backward import plan_backward
from normfuse.passes.affine_forward import plan_forward
from normfuse.passes.affine_move import Move
from normfuse.passes.affine_own import own_map
from normfuse.passes.affine_plan import NOTHING, Ground, Plan, name, once
from normfuse.passes.affine_rest import Work, costs
from normfuse.passes.affine_written import WrittenNorm, written_norm
from normfuse.passes.cancellation import Moments, is_accurate, mean_distance
from normfuse.passes.fold_batchnorm import compose
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import Channels, Link, Norms, follow, norm_affine
from normfuse.recognise.standard import batch_norm
from normfuse.report.records import Rewrite
from normfuse.spec import Stored

_MAPS = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg"})
"""Operators that may be a map of their own."""


def move_affines(
    graph: ir.Graph,
    norms: Norms,
    reading: Reading,
    *,
    duplicate: bool = False,
    has_norms: bool = True,
    leave: Set[ir.Node] = frozenset(),
) -> list[Move | Declined]:
    """Decide for each BatchNormalization and each constant factor or term of ``graph`` whether it can move away.

    duplicate: a linear operator that others read too may absorb in a copy of its own. has_norms: whether a
    BatchNormalization that stays is one operator in the end, not a Mul and an Add. leave: nodes that stay: of norms of
    other kinds, for one.

    Changes nothing. The moves do not touch each other. Where two norms want the same operator one of them waits: decide
    again, on the changed graph, until nothing moves. The reasons are those of norms.
    """
    free = {node: outcome for node, outcome in norms.items() if node not in leave}
    ground = Ground(free, reading, duplicate, has_norms)
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
    """Decide for a factor or term: it moves where that leaves fewer operators; on, only a factor, or the whole of a norm.

    How far a mean lies from zero is not known of a term alone, so a shift does not go on by itself. The reason of a norm
    that is written so is kept, any other is not.
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
        return _move((node,), ground.norms, back=back, place=place)
    written = written_norm(node, ground)
    if written is not None:
        moved = _decide_written(written, back.reason, node, ground)
        if isinstance(moved, Move) or not f.is_linear:
            return moved
    declined = Declined(back.reason, node) if node in ground.norms else None
    if not f.is_linear or node.outputs[0].is_graph_output() or _ends_gelu(node, x):
        return declined
    ahead = _fewer(_checked(plan_forward(node.outputs[0], f, node, ground), (node,), node), node)
    if isinstance(ahead, Declined) or ahead.gone:
        return declined
    return _move((node,), ground.norms, on=ahead, place=place)


def _decide_written(written: WrittenNorm, back: str, node: ir.Node, ground: Ground) -> Move | Declined:
    """Decide whether a norm that is written as arithmetic goes on: whole, or in part where less is left to do."""
    links, output = written.links, node.outputs[0]
    x = links[0].inputs[written.place]
    reason = back
    if output.is_graph_output() or x is None:
        return Declined(reason, node)
    ahead = _checked(plan_forward(output, written.f, node, ground), links, node)
    if isinstance(ahead, Declined):
        reason = f"back: {back}; on: {ahead.reason}"
    elif ahead.adds >= len(links) + len(ahead.gone):
        reason = f"back: {back}; on: a MatMul without bias would need an Add in its place"
    elif not is_accurate(written.moments, ahead.products):
        far = f"its mean lies up to {written.moments.distance:.3g} deviations from zero"
        reason = f"back: {back}; on: {far}, and the result would lose accuracy"
    else:
        return _move(links, ground.norms, on=ahead, place=written.place)
    return _partly(x, written.f, links, node, ground, written.moments, place=written.place) or Declined(reason, node)


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
        return _move(links, norms, back=back)
    last = links[-1]
    site = norms[norm]
    moments = Moments.of(site, whole, reading) if isinstance(site, NormSite) else None
    reason = back.reason
    if not last.outputs[0].is_graph_output():
        ahead = _checked(plan_forward(last.outputs[0], f, last, ground), links, norm)
        if isinstance(ahead, Plan) and is_accurate(moments, ahead.products):
            return _move(links, norms, on=ahead)
        if isinstance(ahead, Declined):
            reason = f"back: {back.reason}; on: {ahead.reason}"
        elif isinstance(site, NormSite):
            far = f"its mean lies up to {mean_distance(site, reading):.3g} deviations from zero"
            reason = f"back: {back.reason}; on: {far}, and the result would lose accuracy"
    found = _in_halves(x, f, links, norm, ground, moments) or _partly(x, f, links, norm, ground, moments)
    return found or Declined(reason, norm)


def _in_halves(
    x: ir.Value, f: Spread, links: tuple[ir.Node, ...], norm: ir.Node, ground: Ground, moments: Moments | None
) -> Move | None:
    """Return how the scale goes back and the shift on, or the shift back and the scale on, where nothing stays."""
    last = links[-1]
    if last.outputs[0].is_graph_output():
        return None
    for first, second in f.split():
        back = plan_backward(x, first, norm, ground)
        ahead = back if isinstance(back, Declined) else plan_forward(last.outputs[0], second, last, ground)
        if isinstance(back, Declined) or isinstance(ahead, Declined):
            continue
        whole = once(_checked(back + ahead, links, norm), norm)
        half = ground.dtype(x) == ir.DataType.FLOAT16
        if isinstance(whole, Plan) and not half and is_accurate(moments, ahead.products):
            return _move(links, ground.norms, back=back, on=ahead)
    return None


def _partly(
    x: ir.Value,
    f: Spread,
    links: tuple[ir.Node, ...],
    norm: ir.Node,
    ground: Ground,
    moments: Moments | None,
    *,
    place: int = 0,
) -> Move | None:
    """Return the move that leaves the least to do, if that is less than now: fewer passes, or less arithmetic in as many."""
    now = Work.of((operator, Fraction(1)) for link in links for operator in costs((link.op_type,), ground.has_norms))
    last = links[-1]
    plans = [(plan_backward(x, f, links[0], ground, partly=True), True)]
    if not last.outputs[0].is_graph_output():
        plans.append((plan_forward(last.outputs[0], f, last, ground, partly=True, source=x.producer()), False))
    best: Move | None = None
    least = now
    for plan, is_back in plans:
        if isinstance(plan, Declined) or isinstance(_checked(plan, links, norm), Declined):
            continue
        moves = plan.linears or plan.copies or plan.constants or plan.gone or plan.through
        if not moves and not is_op(links[0], "BatchNormalization"):
            continue  # what is written as arithmetic stays so
        work = plan.work
        is_less = (work.passes, work.operations) < (least.passes, least.operations)
        if not is_less or work.nodes > now.nodes or not is_accurate(moments, plan.products):
            continue
        least = work
        best = _move(links, ground.norms, **{"back" if is_back else "on": plan}, place=place)
    return best


def _checked(plan: Plan | Declined, links: tuple[ir.Node, ...], norm: ir.Node) -> Plan | Declined:
    """Return the plan unless it brings more operators than it takes away, or may leave the range of float16."""
    if isinstance(plan, Declined):
        return plan
    if plan.adds > len(links) + len(plan.gone):
        return Declined(f"{plan.adds} MatMul without bias would need an Add each", norm)
    if not plan.linears and not plan.copies and not plan.constants and not plan.rests:
        return Declined("no linear operator absorbs it", norm)
    if plan.half and plan.strained:
        return Declined(f"the values of {name(plan.strained[0])} might leave the range of float16", norm)
    return plan


def _move(
    links: tuple[ir.Node, ...], norms: Norms, *, back: Plan | None = None, on: Plan | None = None, place: int = 0
) -> Move:
    back, on = back or NOTHING, on or NOTHING
    gone = (*links, *(node for node, _ in (*back.gone, *on.gone)))
    return Move(tuple(node for node in gone if node in norms), links, back, on, place)


@dataclass(frozen=True, slots=True)
class Moves:
    """What :func:`move_norms` did and did not do.

    plans: of each norm that vanished, where it went. left: what was written of norms that went in part.
    """

    rewrites: tuple[Rewrite, ...]
    plans: Mapping[ir.Node, str]
    left: Norms
    declined: tuple[Declined, ...]


def move_norms(
    graph: ir.Graph,
    norms: Norms,
    reading: Callable[[], Reading],
    editor: Editor,
    wanted: Callable[[str, ir.Node, tuple[ir.Node, ...]], str | None],
    *,
    duplicate: bool = False,
    has_norms: bool = True,
) -> Moves:
    """Move what moves, until nothing does.

    reading: of the graph as it is now. wanted: takes the kind of a move, the norm, and the nodes that it
    touches; returns the move's id, or None where it was not asked for. duplicate, has_norms: of :func:`move_affines`.
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
    left: dict[ir.Node, NormSite | Declined] = {}
    while True:
        staying = {node: outcome for node, outcome in {**norms, **left}.items() if node.graph is not None}
        outcomes = move_affines(graph, staying, reading(), duplicate=duplicate, has_norms=has_norms, leave=leave)
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
            plans.update(dict.fromkeys(move.norms, move.goal))
            note = move.note  # by the names that the file has: values that mean something else get another one
            carried = move.carry_out(editor)
            rewrites.append(Rewrite(identifier, kind, removed, carried.names, note))
            for node in carried.rests:
                site = batch_norm(node, reading())
                left.update({} if site is None else {node: site})
        if not moves:
            declined.extend(outcome for outcome in outcomes if isinstance(outcome, Declined))
            return Moves(tuple(rewrites), plans, left, tuple(declined))
