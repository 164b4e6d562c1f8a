"""Backward: "be f(v) instead of v", asked of a value.

Its producer absorbs f (a linear operator), vanishes into it (an affine node), or passes the request on to its own
inputs by its rule. A request that meets another reader, a graph output or an operator without a rule fails, and with it
the whole plan, or this part of it, where a rest may stay.

A scale of zero goes to linear operators, as zero weights: ``0·v + b`` is b for every v that is finite, and that is what the
operator gives then. Every operator of the table makes finite values of finite ones, so v is infinite or NaN only where the
model's input is, or where a result left the range of its type, and there the original gives NaN. Operators that make
infinities of finite values (Log, Div by what may be zero) have no rule. A rest with a zero in its scale is never a
BatchNormalization, since it has no mean then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, is_op, is_standard
from normfuse.graph.site import Declined
from normfuse.passes.affine_own import own_map
from normfuse.passes.affine_passing import Passed
from normfuse.passes.affine_plan import (
    DEEPEST,
    MOST_CONSTANT,
    MOST_VISITS,
    Ground,
    Plan,
    half_strained,
    is_annotated,
    least,
    leaves_half,
    name,
    once,
    split_strained,
)
from normfuse.passes.affine_rules import RULES
from normfuse.passes.affine_rules_values import cast_to
from normfuse.passes.linear import absorb, read_linear
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import is_linear


def plan_backward(
    value: ir.Value, f: Spread, reader: ir.Node, ground: Ground, *, partly: bool = False
) -> Plan | Declined:
    """Return how ``value``, as ``reader`` reads it, becomes ``f(value)``. partly: where the least work is left."""
    return once(_Backward(ground, partly).make(value, f, reader, _Way()), reader)


@dataclass(frozen=True, slots=True)
class _Way:
    """What the map has passed: how many elements it is of, as a share of the norm's, if known; how many operators."""

    share: Fraction | None = Fraction(1)
    depth: int = 0


class _Backward:
    """One plan in the making: it counts the values that it looks at."""

    def __init__(self, ground: Ground, partly: bool) -> None:
        self._ground, self._partly = ground, partly
        self._visits = 0

    def make(self, value: ir.Value, f: Spread, reader: ir.Node, way: _Way) -> Plan | Declined:
        """Plan ``f(value)`` for ``reader``; where a part may stay, as that leaves the least to do."""
        if f.is_identity:
            return Plan()
        found = self._reach(value, f, reader, way)
        if not self._partly or (isinstance(found, Plan) and not found.rests):
            return found
        return least(found, *self._staying(value, f, reader, way))

    def _staying(self, value: ir.Value, f: Spread, reader: ir.Node, way: _Way) -> Iterator[Plan | Declined]:
        """Yield the plans that leave all of f here, its shift behind the scale, or its scale behind the shift."""

        for deeper, part in ((None, f), *f.split()):
            rest = self._ground.rest(value, value.producer(), part, reader, way.share, is_whole=deeper is None)
            if rest is None:
                continue
            strained = split_strained(rest, f, reader)
            here = Plan(rests=(rest,), strained=strained, half=bool(strained))
            below = Plan() if deeper is None else self._reach(value, deeper, reader, way)
            yield below if isinstance(below, Declined) else below + here

    def _reach(self, value: ir.Value, f: Spread, reader: ir.Node, way: _Way) -> Plan | Declined:
        """Plan what makes ``value`` for ``reader``."""
        ground = self._ground
        if value in ground.blocked:
            return ground.blocked[value]
        self._visits += 1
        if self._visits > MOST_VISITS or way.depth > DEEPEST:
            return Declined("more operators lie on its way than are looked at", reader)
        node = self._producer(value, reader)
        if isinstance(node, Declined):
            producer = value.producer()
            if ground.duplicate and producer is not None and is_linear(producer) and producer.graph is reader.graph:
                return self._into_copy(value, producer, f, reader, way)
            return node
        if node in ground.claimed:
            return Declined(f"{name(node)} is part of another norm or change", node)
        here = Plan(moved=(value,))
        if is_linear(node):
            found = self._into_linear(node, f, way)
            return found if isinstance(found, Declined) else here + found
        own = own_map(node, ground)
        if isinstance(own, tuple):
            index, g = own
            operand = node.inputs[index]
            composed = f.after(g) if g.rank == f.rank else None
            if operand is not None and composed is not None and not composed.is_identity:
                deeper = self.make(operand, composed, node, _Way(way.share, way.depth + 1))
                if isinstance(deeper, Plan):
                    return here + Plan(gone=((node, index),)) + deeper
                if not is_op(node, "Add", "Sub"):
                    return deeper
        if is_op(node, "Add", "Sub"):
            found = self._into_sum(node, f, way)
            return found if isinstance(found, Declined) else here + found
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is None or has_parameters(node):
            declined = own if isinstance(own, Declined) else Declined(f"no affine map passes {name(node)}", node)
            ground.blocked[value] = declined
            return declined
        output = next(index for index, item in enumerate(node.outputs) if item is value)
        passed = rule(node, output, f, ground.context, backward=True)
        if isinstance(passed, str):
            return Declined(f"{name(node)} {passed}", node)
        below = self._operands(node, value, passed, way)
        half = is_op(node, "Cast") and cast_to(node) == ir.DataType.FLOAT16
        return below if isinstance(below, Declined) else here + Plan(through=(node,), half=half) + below

    def _operands(self, node: ir.Node, output: ir.Value, passed: Passed, way: _Way) -> Plan | Declined:
        """Plan every input of a node; one that it reads twice needs one and the same map."""
        strained = passed.combines and any(leaves_half(f) for _, f in passed.maps)
        plan = Plan(
            constants=tuple((node, index, array) for index, array in passed.constants),
            strained=(node,) if strained else (),
        )
        maps: dict[ir.Value, Spread] = {}
        for index, f in passed.maps:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                return Declined(f"{name(node)} lacks an input", node)
            constant = self._ground.reading.constants.array(value)
            if constant is not None:
                changed = _constant(node, index, value, constant, f)
                if isinstance(changed, Declined):
                    return changed
                plan += changed
                continue
            if value in maps:
                if not maps[value].equals(f):
                    return Declined(
                        f"{name(node)} reads '{value.name}' twice, and needs two different maps of it", node
                    )
                continue
            maps[value] = f
        for value, f in maps.items():
            reads = sum(operand is value for operand in node.inputs)
            asked = sum(index < len(node.inputs) and node.inputs[index] is value for index, _ in passed.maps)
            if not f.is_identity and asked != reads:
                return Declined(f"{name(node)} reads '{value.name}' for something else as well", node)
            share = self._ground.share(node, output, value, way.share, grows=passed.shrinks)
            found = self.make(value, f, node, _Way(share, way.depth + 1))
            if isinstance(found, Declined):
                return found
            plan += found
        return plan

    def _producer(self, value: ir.Value, reader: ir.Node) -> ir.Node | Declined:
        """Return the node that makes ``value`` for ``reader`` alone."""
        node = value.producer()
        if node is None:
            return Declined(f"'{value.name}' is an input of the graph", reader)
        if node.graph is not reader.graph:
            return Declined(f"'{value.name}' comes from an outer graph, from {name(node)}", node)
        what = f"the result of {name(node)}"
        if value.is_graph_output():
            return Declined(f"{what} is also a graph output", node)
        if is_annotated(value):
            return Declined(f"{what} has quantization parameters in the file", node)
        for user, _ in value.uses():
            if user is reader or is_op(user, "Shape", "Size"):
                continue
            how = "used by" if user.graph is node.graph else "captured by a subgraph, at"
            return Declined(f"{what} is also {how} '{describe(user)}'", node)
        return node

    def _into_linear(self, node: ir.Node, f: Spread, way: _Way) -> Plan | Declined:
        linear = read_linear(node, self._ground.reading)
        if isinstance(linear, Declined):
            return linear
        channels = linear.channels
        affine = f.along_axis(channels.axis, channels.count) if f.rank == channels.rank else None
        if affine is None:
            return Declined(f"the factors do not lie along the output channels of {name(node)}", node)
        rebuild = absorb(linear, affine, self._ground.reading)
        if isinstance(rebuild, Declined):
            return rebuild
        becomes_gemm = channels.rank == 2 and linear.weight_at == 1
        adds = int(linear.bias_at is None and bool(affine.shift.any()) and not becomes_gemm)
        if adds and (way.share is None or way.share > 1):
            return Declined(f"{name(node)} would need an Add of more elements than the norm has", node)
        return Plan(linears=((node, rebuild),), adds=adds) + half_strained(
            node, linear.weight.dtype, adds, affine.shift
        )

    def _into_copy(self, value: ir.Value, node: ir.Node, f: Spread, reader: ir.Node, way: _Way) -> Plan | Declined:
        """Let a copy of the linear operator absorb; the others go on reading the original."""
        if node in self._ground.claimed:
            return Declined(f"{name(node)} is part of another norm or change", node)
        found = self._into_linear(node, f, way)
        if isinstance(found, Declined):
            return found
        ((_, rebuild),) = found.linears
        return Plan(copies=((reader, value, node, rebuild),), adds=found.adds, half=found.half, strained=found.strained)

    def _into_sum(self, node: ir.Node, f: Spread, way: _Way) -> Plan | Declined:
        """Add, Sub: the scale goes to both operands, the shift to one of them, where each has all its channels."""
        if has_parameters(node) or self._ground.reading.opset < 7 or len(node.inputs) != 2:
            return Declined(f"no affine map passes {name(node)}", node)
        sign = -1.0 if node.op_type == "Sub" else 1.0
        scale = f.only_scale()
        sides = (f, Spread(f.scale, sign * f.shift))
        outcomes: list[Plan | Declined] = []
        for chosen in (0,) if f.is_linear else (0, 1):
            maps: list[tuple[int, Spread]] = []
            objection: Declined | None = None
            for index in (0, 1):
                fitted = self._fitted(node, index, sides[index] if index == chosen else scale)
                if isinstance(fitted, Declined):
                    objection = fitted
                    break
                maps.append((index, fitted))
            passed = Passed(tuple(maps), combines=True)
            found = objection or self._operands(node, node.outputs[0], passed, way)
            outcomes.append(found if isinstance(found, Declined) else Plan(through=(node,)) + found)
            if isinstance(found, Plan) and not found.rests:
                break
        return least(*outcomes)

    def _fitted(self, node: ir.Node, index: int, f: Spread) -> Spread | Declined:
        """Return ``f`` as a map of one operand: of its rank, where it has the size of the sum along what varies."""
        value = node.inputs[index]
        if value is not None and self._ground.reading.constants.array(value) is not None:
            return f
        dims = self._ground.context.sizes.of(value)
        operand = "" if value is None else value.name
        if dims is None:
            return Declined(f"the rank of '{operand}', an operand of {name(node)}, is not known", node)
        grown = f.rank - len(dims)
        for axis in sorted(f.varies):
            if axis < grown or dims[axis - grown] != f.size(axis):
                return Declined(f"{name(node)} broadcasts '{operand}' along axis {axis}, or may", node)
        return Spread(f.scale.reshape(f.scale.shape[grown:]), f.shift.reshape(f.shift.shape[grown:]))


def _constant(node: ir.Node, index: int, value: ir.Value, array: Array, f: Spread) -> Plan | Declined:
    """Return the constant operand ``f(K)``, rounded once to its own type."""
    if f.is_identity:
        return Plan()
    what = f"the constant '{value.name}' of {name(node)}"
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        return Declined(f"{what} is {array.dtype.name}", node)
    with np.errstate(all="ignore"):
        image = f.scale * np.asarray(array, np.float64) + f.shift
        rounded = np.asarray(image.astype(array.dtype))
    if image.size > MOST_CONSTANT:
        return Declined(f"{what} is large", node)
    if not np.isfinite(rounded.astype(np.float64)).all():
        return Declined(f"{what} overflows {array.dtype.name}", node)
    return Plan(constants=((node, index, rounded),), half=array.dtype == np.float16)
