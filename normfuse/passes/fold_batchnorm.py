"""Fold inference BatchNormalization into the linear operator before it, or, where that is exact, after it.

``BN(Wx + b) = (a∘W)x + (a·b + shift)`` with ``a = γ/sqrt(σ² + ε)`` and ``shift = β − a·μ``. Between the two may stand
Identity, inference Dropout, further BatchNormalization, and Mul, Add, Sub, Div by constants of one number per channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import ChannelAffine
from normfuse.graph.editing import Replacement, describe, removal_refusal
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.cancellation import Moments, Products, energy_of, is_accurate, mean_distance
from normfuse.passes.linear import Linear, Rebuild, absorb, absorb_before, read_consumer, read_linear
from normfuse.recognise.affine_chain import Channels, Link, Norms, follow, is_linear, is_stored, norm_affine

LARGEST_SCALE = 1000.0
"""A norm that multiplies a channel by more has a variance near zero there: exact, but hardly what was trained."""


_ORDINARY_SCALE = 10.0
"""Up to here nobody looks: a variance of 0 under the usual ε of 1e-3 or 1e-5 gives 31 or 316."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A fold that is decided: ``removes`` go, ``rebuild`` makes what takes the place of ``output``.

    remark: what about the norms' statistics a user should look at, though the fold is right.
    """

    norms: tuple[ir.Node, ...]
    into: ir.Node
    removes: tuple[ir.Node, ...]
    output: ir.Value
    rebuild: Rebuild
    note: str = ""
    remark: str = ""

    def replacement(self) -> Replacement:
        """Return the change, ready for the editor."""
        rewritten = self.rebuild()
        return Replacement(self.removes, rewritten.nodes, ((self.output, rewritten.output),), rewritten.initializers)


def fold_backward(graph: Iterable[ir.Node], norms: Norms, reading: Reading) -> list[Fold | Declined]:
    """Decide for the linear operators of ``graph`` whether the norms behind them fold into them. Changes nothing."""
    return decide_backward(graph, norms, reading, read_linear, absorb)


Read = Callable[[ir.Node, Reading], Linear | Declined | None]
Absorb = Callable[[Linear, ChannelAffine, Reading], Rebuild | Declined]


def decide_backward(
    graph: Iterable[ir.Node], norms: Norms, reading: Reading, read: Read, absorb_into: Absorb
) -> list[Fold | Declined]:
    """The same for one kind of linear operators: how they are read (None: another kind), and absorb an affine map."""
    outcomes: list[Fold | Declined] = []
    for node in graph:
        if not is_linear(node) or not _may_precede_norm(node, norms):
            continue
        linear = read(node, reading)
        if isinstance(linear, Declined):
            outcomes.extend(Declined(linear.reason, norm) for norm in _norms_after(node, norms))
        elif linear is not None:
            outcomes.extend(_decide_backward(linear, norms, reading, absorb_into))
    return outcomes


def _may_precede_norm(node: ir.Node, norms: Norms) -> bool:
    """A cheap look ahead, so that weights are read only where a norm, or arithmetic that is one, may follow."""
    value = node.outputs[0]
    for _ in range(64):
        uses = value.uses()
        if len(uses) != 1:
            return False
        (reader, _), *_ = uses
        if _is_norm(reader, norms):
            return True
        if not is_op(reader, "Identity", "Dropout", "Mul", "Add", "Sub", "Div") or not reader.outputs:
            return False
        value = reader.outputs[0]
    return False


def _is_norm(node: ir.Node, norms: Norms) -> bool:
    return is_op(node, "BatchNormalization") or is_stored(norms.get(node))


def _decide_backward(linear: Linear, norms: Norms, reading: Reading, absorb_into: Absorb) -> Iterable[Fold | Declined]:
    node = linear.node
    links = follow(node.outputs[0], linear.channels, norms, reading)
    if not any(link.is_norm for link in links):
        # The norm in front is read once more for its own reason: other channels, computed parameters, training mode.
        found = (_why_not(norm, linear.channels, norms, reading, node, links) for norm in _norms_after(node, norms))
        return [outcome for outcome in found if outcome is not None]
    affine = compose(links, linear.channels.count)
    removes = (node, *(link.node for link in links))
    fold = _finish(linear, absorb_into(linear, affine, reading), links, removes, _remark(links, norms, reading))
    if isinstance(fold, Declined):
        return [Declined(fold.reason, link.node) for link in links if link.is_norm]
    return [fold]


def _norms_after(node: ir.Node, norms: Norms) -> list[ir.Node]:
    """Return the norm that :func:`_may_precede_norm` saw."""
    value = node.outputs[0]
    while True:
        (reader, _), *_ = value.uses()
        if _is_norm(reader, norms):
            return [reader]
        value = reader.outputs[0]


def _why_not(
    norm: ir.Node, channels: Channels, norms: Norms, reading: Reading, linear: ir.Node, links: tuple[Link, ...]
) -> Declined | None:
    """Say why ``norm``, somewhere behind ``linear`` and its ``links``, does not fold into it.

    None where it stands behind a sum or product of two computed values: motion knows which of them keeps it.
    """
    outcome = norm_affine(norm, channels, norms, reading)
    if isinstance(outcome, Declined):
        return outcome
    node = linear
    while node is not norm:
        if node.outputs[0].is_graph_output():
            return _obstacle(norm, f"the result of {node.op_type} '{describe(node)}' is also a graph output")
        (node, _), *_ = node.outputs[0].uses()
    (stop, _), *_ = (links[-1].node if links else linear).outputs[0].uses()
    if is_op(stop, "Add", "Sub", "Mul", "Div"):
        return None
    what = "something" if stop is norm else f"{stop.op_type} '{describe(stop)}'"
    return _obstacle(norm, f"{what} between it and {linear.op_type} '{describe(linear)}' is no per-channel constant")


def compose(links: Iterable[Link], channels: int) -> ChannelAffine:
    """Return the composition of a chain, first link first."""
    affines = [link.affine for link in links if link.affine is not None]
    return functools.reduce(ChannelAffine.then, affines) if affines else ChannelAffine.identity(channels)


def _finish(
    linear: Linear, rebuild: Rebuild | Declined, links: tuple[Link, ...], removes: tuple[ir.Node, ...], remark: str
) -> Fold | Declined:
    if isinstance(rebuild, Declined):
        return rebuild
    output = removes[-1].outputs[0]
    objection = removal_refusal(removes, {output})
    if objection is not None:
        return objection
    norms = tuple(link.node for link in links if link.is_norm)
    return Fold(norms, linear.node, removes, output, rebuild, _copies(linear), remark)


def _remark(links: Iterable[Link], norms: Norms, reading: Reading) -> str:
    remarks = []
    for link in links:
        if not link.is_norm or link.affine is None or link.affine.scale.size == 0:
            continue
        size = np.abs(link.affine.scale)
        peak, site = float(size.max()), norms[link.node]
        if peak <= _ORDINARY_SCALE or not isinstance(site, NormSite):
            continue
        if not any(np.any(reading.constants.array(value)) for value in (site.operands.mean, site.operands.var)):
            remarks.append(f"the running statistics of '{describe(link.node)}' are all zero: was it ever trained?")
        elif peak > LARGEST_SCALE:
            remarks.append(
                f"'{describe(link.node)}' multiplies channel {int(size.argmax())} by {peak:.3g}: its variance is near zero"
            )
    return "; ".join(remarks)


def _copies(linear: Linear) -> str:
    """Say which shared constants get a private copy."""
    values = [linear.node.inputs[linear.weight_at], *linear.node.inputs[2:3]]
    shared = [f"'{value.name}'" for value in values if value is not None and len(value.uses()) > 1]
    return f"{' and '.join(shared)} shared with other nodes: private copies are written" if shared else ""


def fold_forward(graph: ir.Graph, norms: Norms, reading: Reading) -> list[Fold | Declined]:
    """Decide for each norm that one linear operator alone reads whether it folds into that. Changes nothing."""
    outcomes: list[Fold | Declined] = []
    claimed: set[ir.Node] = set()
    for norm in graph:
        if norm not in norms or not is_op(norm, "BatchNormalization") or norm in claimed:
            continue
        outcome = _decide_forward(norm, norms, reading)
        if outcome is None:
            continue
        outcomes.append(outcome)
        if isinstance(outcome, Fold):
            claimed.update(outcome.removes)
    return outcomes


def _decide_forward(norm: ir.Node, norms: Norms, reading: Reading) -> Fold | Declined | None:
    """Return None where no linear operator alone reads the norm: it may still move there."""
    affine = norm_affine(norm, None, norms, reading)
    if affine is None:
        return _obstacle(norm, "it is not an inference BatchNormalization")
    if isinstance(affine, Declined):
        return affine
    x, rank = norm.inputs[0], reading.ranks.of(norm.inputs[0])
    if x is None or rank is None:
        return None
    channels = Channels(affine.scale.size, 1, rank)
    links = (Link(norm, affine, is_norm=True), *follow(norm.outputs[0], channels, norms, reading))
    last = links[-1].node.outputs[0]
    consumer = _only_reader(last)
    linear = None if consumer is None else read_consumer(consumer, last, reading)
    if linear is None or consumer is None:
        return None
    if isinstance(linear, Declined):
        return Declined(linear.reason, norm)
    if linear.channels.count != channels.count or linear.channels.rank != rank:
        return None
    site = norms[norm]
    f = compose(links, channels.count)
    if isinstance(site, NormSite):
        products = Products(linear.length, energy=energy_of(linear.weight, consumer))
        if not is_accurate(Moments.of(site, f, reading), (products,)):
            return Declined(
                f"its mean lies up to {mean_distance(site, reading):.3g} deviations from zero: folded into "
                f"{consumer.op_type} '{describe(consumer)}' behind it, the result would lose accuracy",
                norm,
            )
    rebuild = absorb_before(linear, f, norm, reading)
    removes = (*(link.node for link in links), consumer)
    fold = _finish(linear, rebuild, links, removes, _remark(links, norms, reading))
    return Declined(fold.reason, norm) if isinstance(fold, Declined) else fold


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (reader, _), *_ = uses
    return reader if reader.graph is value.graph else None


def _obstacle(norm: ir.Node, reason: str) -> Declined:
    return Declined(reason, norm)
