"""Forward: "v is read before f instead of behind it", asked of everything that reads a value.

Every reader absorbs f (a linear operator), vanishes into it (an affine node), or passes it on to those that read its
own outputs by its rule. One that can do none of these ends the whole plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, is_op, is_standard
from normfuse.graph.site import Declined
from normfuse.passes.affine_own import own_map
from normfuse.passes.affine_plan import (
    DEEPEST,
    MOST_VISITS,
    Ground,
    Plan,
    half_strained,
    is_annotated,
    least,
    name,
    once,
    split_strained,
)
from normfuse.passes.affine_rules import RULES
from normfuse.passes.cancellation import Products, energy_of
from normfuse.passes.linear_inputs import absorb_input
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import is_linear

_GROWS = frozenset({"Concat", "Resize", "Upsample", "Pad", "Gather", "Add", "Sub"})
"""Operators whose output may have more elements than one input."""


_IN_PLACE = frozenset({"Identity", "Dropout", "Cast", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Resize"})
"""Operators behind which the channels lie where they lay."""


@dataclass(frozen=True, slots=True)
class _Way:
    """What the map has passed: how many elements it is of, as a share of the norm's, if known; averages over so many
    elements; only operators that leave the channels in place; how many."""

    share: Fraction | None = Fraction(1)
    averaged: float = 1.0
    in_place: bool = True
    depth: int = 0

    def past(self, node: ir.Node, averages: float = 1.0) -> _Way:
        """Return the way with one more operator."""
        in_place = self.in_place and node.op_type in _IN_PLACE
        return _Way(self.share, self.averaged * averages, in_place, self.depth + 1)


def plan_forward(
    value: ir.Value, f: Spread, at: ir.Node, ground: Ground, *, partly: bool = False, source: ir.Node | None = None
) -> Plan | Declined:
    """Return how everything that reads ``value``, the result of ``at``, can read what was before f.

    partly: where the least work is left. source: what makes the value that was before f.
    """
    try:
        return once(_Forward(ground, partly, source).unmake(value, f, at, _Way()), at)
    except _Stop as stop:
        return stop.declined


class _Stop(Exception):
    """Ends a plan at its first obstacle."""

    def __init__(self, declined: Declined) -> None:
        super().__init__(declined.reason)
        self.declined = declined


class _Forward:
    """One plan in the making: it counts the values that it looks at."""

    def __init__(self, ground: Ground, partly: bool, source: ir.Node | None) -> None:
        self._ground, self._partly, self._source = ground, partly, source
        self._visits = 0

    def unmake(self, value: ir.Value, f: Spread, at: ir.Node, way: _Way) -> Plan:
        """Plan every reader of ``value``, or, where a part may stay, that which leaves the least to do."""
        if not self._partly:
            return self._readers(value, f, at, way)
        found = self._tried(value, f, at, way)
        if isinstance(found, Plan) and not found.rests:
            return found
        plan = least(found, *self._staying(value, f, at, way))
        if isinstance(plan, Declined):
            raise _Stop(plan)
        return plan

    def _tried(self, value: ir.Value, f: Spread, at: ir.Node, way: _Way) -> Plan | Declined:
        try:
            return self._readers(value, f, at, way)
        except _Stop as stop:
            return stop.declined

    def _staying(self, value: ir.Value, f: Spread, at: ir.Node, way: _Way) -> Iterator[Plan | Declined]:
        """Yield the plans that leave all of f here, its shift before the scale, or its scale before the shift."""
        if is_annotated(value):
            return
        source = self._source if way.depth == 0 else at
        for part, further in ((f, None), *f.split()):
            rest = self._ground.rest(value, source, part, None, way.share, is_whole=further is None)
            if rest is None:
                continue
            strained = split_strained(rest, f, at)
            here = Plan(rests=(rest,), strained=strained, half=bool(strained))
            ahead = Plan() if further is None else self._tried(value, further, at, way)
            yield ahead if isinstance(ahead, Declined) else here + ahead

    def _readers(self, value: ir.Value, f: Spread, at: ir.Node, way: _Way) -> Plan:
        """Plan every reader of ``value``."""
        what = f"the result of {name(at)}"
        if value.is_graph_output():
            raise _Stop(Declined(f"{what} is a graph output", at))
        if is_annotated(value):
            raise _Stop(Declined(f"{what} has quantization parameters in the file", at))
        readers = list(dict.fromkeys(user for user, _ in value.uses() if not is_op(user, "Shape", "Size")))
        if not readers:
            raise _Stop(Declined(f"nothing reads {what}", at))
        plan = Plan()
        for reader in readers:
            self._visits += 1
            if self._visits > MOST_VISITS or way.depth > DEEPEST:
                raise _Stop(Declined("more operators lie on its way than are looked at", at))
            if reader.graph is not at.graph:
                raise _Stop(Declined(f"{what} is captured by a subgraph, at '{describe(reader)}'", at))
            if reader in self._ground.claimed:
                raise _Stop(Declined(f"{name(reader)} is part of another norm or change", reader))
            plan += self._through(reader, value, f, way)
        return plan

    def _through(self, node: ir.Node, value: ir.Value, f: Spread, way: _Way) -> Plan:
        places = [index for index, operand in enumerate(node.inputs) if operand is value]
        if len(places) != 1:
            raise _Stop(Declined(f"{name(node)} reads '{value.name}' twice", node))
        (index,) = places
        if is_linear(node):
            return self._into_linear(node, index, f, way)
        own = own_map(node, self._ground)
        if isinstance(own, tuple):
            at, g = own
            if at != index or g.rank != f.rank:
                raise _Stop(Declined(f"{name(node)} reads '{value.name}' as a parameter", node))
            composed = g.after(f)
            if composed.is_identity:
                raise _Stop(Declined(f"{name(node)} undoes it", node))
            return Plan(gone=((node, index),)) + self._further(node, ((0, composed),), way.past(node), value)
        if is_op(node, "Add", "Sub"):
            return self._through_sum(node, index, f, way)
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is None or has_parameters(node):
            raise _Stop(own if isinstance(own, Declined) else Declined(f"no affine map passes {name(node)}", node))
        if index != 0 and node.op_type != "Concat":
            raise _Stop(Declined(f"{name(node)} reads '{value.name}' as a parameter", node))
        passed = rule(node, index, f, self._ground.context, backward=False)
        if isinstance(passed, str):
            raise _Stop(Declined(f"{name(node)} {passed}", node))
        here = Plan(
            constants=tuple((node, place, array) for place, array in passed.constants),
            through=(node,),
            strained=(node,) if passed.combines else (),
        )
        return here + self._further(node, passed.maps, way.past(node, passed.averages), value)

    def _into_linear(self, node: ir.Node, index: int, f: Spread, way: _Way) -> Plan:
        found = absorb_input(node, index, f, self._ground.reading)
        if isinstance(found, Declined):
            raise _Stop(found)
        if found.adds and (way.share is None or way.share > 1 or found.channels > max(f.scale.size, f.shift.size)):
            raise _Stop(Declined(f"{name(node)} would need an Add of more elements than the norm has", node))
        linear = found.linear
        energy = energy_of(linear.weight, node) if way.in_place and linear.weight_at == 1 else None
        products = () if f.is_linear else (Products(linear.length, way.averaged, energy),)
        return Plan(linears=((node, found.rebuild),), adds=found.adds, products=products) + half_strained(
            node, found.dtype, found.adds, found.moved
        )

    def _through_sum(self, node: ir.Node, index: int, f: Spread, way: _Way) -> Plan:
        """Add, Sub: a shift passes, a scale would have to be taken from the other operand."""
        if has_parameters(node) or self._ground.reading.opset < 7:
            raise _Stop(Declined(f"no affine map passes {name(node)}", node))
        if not (f.scale == 1.0).all():
            raise _Stop(Declined(f"{name(node)} adds something that is not scaled", node))
        rank = self._ground.rank(node.outputs[0])
        if rank is None or rank < f.rank:
            raise _Stop(Declined(f"the rank of {name(node)} is not known", node))
        sign = -1.0 if node.op_type == "Sub" and index == 1 else 1.0
        shift = (sign * f.shift).reshape((1,) * (rank - f.rank) + f.shift.shape)
        moved = Spread(np.ones((1,) * rank), shift)
        return Plan(through=(node,), strained=(node,)) + self._further(
            node, ((0, moved),), way.past(node), node.inputs[index]
        )

    def _further(self, node: ir.Node, maps: Iterable[tuple[int, Spread]], way: _Way, value: ir.Value | None) -> Plan:
        """Plan the readers of what ``node`` makes of ``value``."""
        plan = Plan()
        for index, f in maps:
            output = node.outputs[index]
            if f.is_identity or (not output.uses() and not output.is_graph_output()):
                continue
            share = self._ground.share(node, value, output, way.share, grows=_grows(node))
            plan += Plan(moved=(output,)) + self.unmake(output, f, node, replace(way, share=share))
        return plan


def _grows(node: ir.Node) -> bool:
    """Whether the output of ``node`` may have more elements than one input: a pool may, by padding past its window."""
    if node.op_type not in ("MaxPool", "AveragePool"):
        return node.op_type in _GROWS
    kernel, pads = node.attributes.get_ints("kernel_shape", ()), node.attributes.get_ints("pads", ())
    dilations = node.attributes.get_ints("dilations", ()) or (1,) * len(kernel)
    around = [before + after for before, after in zip(pads, pads[len(kernel) :], strict=False)]
    return any(more > (size - 1) * step for more, size, step in zip(around, kernel, dilations, strict=False))
