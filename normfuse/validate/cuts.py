"""Both graphs cut where they decide or draw: what goes into the cut is a result, what comes out of it is given.

In front of a quantiser, a comparison or a TopK the error is that of rounding; behind it one tie that falls otherwise is an
error of any size. So the node is taken out of both graphs: its inputs become results, to be judged by budget, and its
results become inputs, fed with what the oracle decided. Random operators are cut in the same way (their draws are
given), and Dropout in training mode becomes a product with a given factor.

A node is cut where both graphs have it at the top level: the same operator, attributes and constants, and results of
the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normfuse.validate.cones import same_node_and_constants
from normfuse.validate.decisions import DISCONTINUOUS, decided
from normfuse.validate.draws import kept
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family, Feed
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import is_float, round_to
from normfuse.validate.scopes import drawn_name, is_random

_FACTOR = "{}, what is kept"
_INTO = "input {} of {} '{}'"
# A run keeps what goes into every cut, in float64 and once per perturbed run; past this many bytes nothing is cut.
_MOST_BYTES = 2 * 2**30
_RUNS = 6


@dataclass(frozen=True, slots=True)
class Cut:
    """Two graphs that are cut at the same ``nodes`` (of the first oracle, in its order)."""

    models: tuple[ir.Model, ir.Model]
    nodes: tuple[ir.Node, ...]

    def family(self, family: Family, runs: Sequence[dict[str, Held]]) -> Family:
        """Return ``family`` with the decisions and draws of the reference: ``runs`` hold :func:`needs`, one a feed."""
        feeds = tuple({**feed, **self._fed(run)} for feed, run in zip(family.feeds, runs, strict=True))
        return replace(family, name=f"{family.name}, cut", feeds=feeds, known={})

    def _fed(self, run: dict[str, Held]) -> Feed:
        feed: Feed = {}
        for node in self.nodes:
            for value in decided(node):
                name = value.name or ""
                held = run[name]
                feed[name] = round_to(held.data, held.dtype) if is_float(held.dtype) else held.data
            if node.op_type == "Dropout":
                name = drawn_name(node)
                ratio = node.inputs[1] if len(node.inputs) > 1 else None
                share = None if ratio is None or ratio.name is None else run[ratio.name].data
                factor = kept(name, np.shape(run[name].data), share)
                feed = {key: array for key, array in feed.items() if key not in _names(node)}
                feed[_FACTOR.format(name)] = round_to(factor, run[name].dtype)
        return feed


def needs(nodes: Iterable[ir.Node]) -> list[str]:
    """Return the values that a run of the reference must capture to make the inputs of a cut at ``nodes``."""
    found = [value.name or "" for node in nodes for value in decided(node)]
    ratios = [node.inputs[1] for node in nodes if node.op_type == "Dropout" and len(node.inputs) > 1]
    return [*found, *(value.name for value in ratios if value is not None and value.name)]


def is_affordable(runs: Sequence[dict[str, Held]], nodes: Sequence[ir.Node]) -> bool:
    """Return whether what goes into a cut at ``nodes`` can be kept for every run: it is as large as what comes out."""
    sizes = [np.size(run[name].data) for run in runs for name in needs(nodes) if name in run]
    return 8 * _RUNS * sum(sizes) <= _MOST_BYTES


def cut(subjects: tuple[ir.Model, ir.Model], oracles: tuple[Oracle, Oracle], at: Sequence[ir.Node]) -> Cut | None:
    """Return both models cut at the nodes ``at`` of the first oracle; None where one of them has no counterpart.

    subjects: the models themselves; the oracles hold them with their functions inlined. The first oracle must have run:
    the types of the values are those that it found. Nothing is changed.
    """
    theirs = {drawn_name(node): node for node in oracles[1].nodes}
    clones = subjects[0].clone(), subjects[1].clone()
    tops = [{drawn_name(node): node for node in clone.graph} for clone in clones]
    for node in at:
        name = drawn_name(node)
        other = theirs.get(name)
        if other is None or not same_node_and_constants(*oracles, node, other):
            return None
        # A node of a function is not at the top level of what a runtime runs.
        if any(name not in top or top[name].op_type != node.op_type for top in tops):
            return None
        if any(oracles[0].type_of(value) is None for value in decided(node)):
            return None
    for clone, top in zip(clones, tops, strict=True):
        for node in at:
            mine = top[drawn_name(node)]
            _return_inputs(clone.graph, mine, node, oracles[0])
            replaced = _multiply if node.op_type == "Dropout" else _give
            replaced(clone.graph, mine, oracles[0], node)
        RemoveUnusedNodesPass()(clone)
    return Cut(clones, tuple(at)) if clones[0].graph.outputs else None


def _names(node: ir.Node) -> tuple[str, ...]:
    return tuple(value.name for value in node.outputs if value.name)


def _return_inputs(graph: ir.Graph, node: ir.Node, original: ir.Node, oracle: Oracle) -> None:
    """Make results of the floats that ``node`` decides by; ``original`` is the same node in the oracle's graph."""
    if is_random(original) and original.op_type not in DISCONTINUOUS:
        return
    for index, (value, source) in enumerate(zip(node.inputs, original.inputs, strict=True)):
        if value is None or source is None or value.producer() is None or oracle.is_constant(source):
            continue
        dtype = oracle.type_of(source)
        if dtype is None or not is_float(dtype):
            continue
        into = ir.Value(name=_INTO.format(index, node.op_type, drawn_name(original)), type=ir.TensorType(dtype))
        graph.append(ir.Node("", "Identity", [value], outputs=[into]))
        graph.outputs.append(into)


def _give(graph: ir.Graph, node: ir.Node, oracle: Oracle, original: ir.Node) -> None:
    """Make inputs of the decisions of ``node``. What returned one of them returns it no more."""
    for value, source in zip(decided(node), decided(original), strict=True):
        given = _input(value.name or "", oracle.type_of(source))
        value.name = f"{value.name}, uncut"
        graph.outputs[:] = [output for output in graph.outputs if output is not value]
        ir.convenience.replace_all_uses_with(value, given)
        graph.inputs.append(given)


def _multiply(graph: ir.Graph, node: ir.Node, oracle: Oracle, original: ir.Node) -> None:
    """Make Dropout in training mode a product with what is kept, which becomes an input."""
    name = drawn_name(original)
    factor = _input(_FACTOR.format(name), oracle.type_of(original.outputs[0]))
    graph.inputs.append(factor)
    product = ir.Node("", "Mul", [node.inputs[0], factor])
    mask = ir.Node("", "Cast", [factor], [ir.AttrInt64("to", ir.DataType.BOOL)])
    for value, new in zip(node.outputs, (product, mask), strict=False):
        if not value.name:
            continue
        new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = value.name, value.type, value.shape
        value.name = f"{value.name}, uncut"
        graph.insert_before(node, new)
        ir.convenience.replace_all_uses_with(value, new.outputs[0], replace_graph_outputs=True)


def _input(name: str, dtype: ir.DataType | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype or ir.DataType.FLOAT))
