"""Join what lays elements out anew twice in a row: Reshape behind Reshape, Transpose behind Transpose.

A norm often stands between two of them (a BatchNorm1d of a sequence is flattened before and shaped back behind), and is
gone. ``reshape(reshape(x, s), t) = reshape(x, t)``, ``transpose(transpose(x, p), q) = transpose(x, p∘q)``; where the result has
the shape of x, nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.graph.editing import Editor, Replacement, initializer
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Reading
from normfuse.passes.affine_plan import is_annotated
from normfuse.passes.linear import like
from normfuse.passes.sizes import Sizes

_SHAPERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """The first of two nodes goes, and what is left of both takes the place of the second.

    shape: of a Reshape, perm: of a Transpose; neither: the operand itself.
    """

    nodes: tuple[ir.Node, ir.Node]
    shape: tuple[int, ...] | None = None
    perm: tuple[int, ...] | None = None

    def carry_out(self, editor: Editor) -> tuple[ir.Node, ...]:
        """Write what is left; return the new nodes."""
        first, second = self.nodes
        x, output = first.inputs[0], second.outputs[0]
        assert x is not None
        removes = (second, first) if len(first.outputs[0].uses()) == 1 else (second,)
        if self.shape is None and self.perm is None:
            for user, place in tuple(output.uses()):
                user.replace_input_with(place, x)
            editor.apply(Replacement(removes, (), ()), at=second)
            return ()
        constants: tuple[ir.Value, ...] = ()
        if self.perm is not None:
            node = like(second, "Transpose", [x], {"perm": ir.AttrInt64s("perm", self.perm)})
        else:
            target = initializer(f"{output.name}_shape", np.asarray(self.shape, np.int64))
            node, constants = like(second, "Reshape", [x, target], {}), (target,)
        editor.apply(Replacement(removes, (node,), ((output, node.outputs[0]),), constants), at=second)
        return (node,)


def join_layouts(graph: Iterable[ir.Node], leave: Set[ir.Node], reading: Reading) -> list[Joint]:
    """Return the pairs of ``graph`` that join, ``leave`` aside; no node is in two of them. Changes nothing."""
    sizes, taken, found = Sizes(reading), set(leave), []
    for second in graph:
        if not is_op(second, "Transpose", *_SHAPERS):
            continue
        value = input_at(second, 0)
        first = None if value is None else value.producer()
        if first is None or first.graph is not second.graph or value is None:
            continue
        if not taken.isdisjoint((first, second)) or has_parameters(first) or has_parameters(second):
            continue
        values = (input_at(first, 0), value, second.outputs[0])
        if any(each is None or is_annotated(each) for each in values) or value.is_graph_output():
            continue
        joint = _joint(first, second, sizes, reading)
        if joint is None or not _gains(joint):
            continue
        taken.update(joint.nodes)
        found.append(joint)
    return found


def _gains(joint: Joint) -> bool:
    """Whether a node goes: the first, if nobody else reads it, or the second, if nothing of it is left."""
    first, second = joint.nodes
    if joint.shape is None and joint.perm is None and not second.outputs[0].is_graph_output():
        return True
    return len(first.outputs[0].uses()) == 1 and (joint.shape is not None or joint.perm is not None)


def _joint(first: ir.Node, second: ir.Node, sizes: Sizes, reading: Reading) -> Joint | None:
    if is_op(first, "Transpose") and is_op(second, "Transpose"):
        dims = sizes.of(input_at(first, 0))
        if dims is None:
            return None
        inner, outer = (node.attributes.get_ints("perm", tuple(range(len(dims)))[::-1]) for node in (first, second))
        if not sorted(inner) == sorted(outer) == list(range(len(dims))):
            return None
        perm = tuple(inner[axis] for axis in outer)
        return Joint((first, second), perm=None if perm == tuple(range(len(dims))) else perm)
    if not is_op(first, *_SHAPERS) or not is_op(second, *_SHAPERS):
        return None
    before, after = sizes.of(input_at(first, 0)), sizes.of(second.outputs[0])
    is_one = before is not None and before == after and _leaves_one(before)
    if is_one and not second.outputs[0].is_graph_output():
        return Joint((first, second))
    target = _target(second, sizes, reading) if reading.opset >= 5 else None
    return None if target is None else Joint((first, second), shape=target)


def _leaves_one(dims: tuple[int | None, ...]) -> bool:
    """Whether two shapes that both are ``dims``, of as many elements, are one: one size at most is not known."""
    return dims.count(None) <= 1 and 0 not in dims


def _target(node: ir.Node, sizes: Sizes, reading: Reading) -> tuple[int, ...] | None:
    """Return the shape that a Reshape would take in the place of ``node``, whatever the shape of its operand.

    The first size is left to the runtime where the others say it: files state sizes of one sample that a batch then breaks.
    """
    stated = reading.constants.integers(input_at(node, 1)) if is_op(node, "Reshape") else None
    if stated is not None and 0 not in stated:
        return stated
    after = sizes.of(node.outputs[0])
    if after is None or not _leaves_one(after):
        return None
    known = tuple(-1 if size is None else size for size in after)
    return known if -1 in known else (-1, *known[1:]) if known else known
