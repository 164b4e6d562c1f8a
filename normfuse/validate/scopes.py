"""What the oracle asks of a graph before it runs it: scopes, randomness, and what depends on constants alone."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
CONTROL = frozenset({"If", "Loop", "Scan"})
_SHAPES = frozenset({"Shape", "Size"})
# Inputs that must keep their exact value when initializers are perturbed: exponents (a negative base would become NaN),
# sizes and factors that decide shapes.
_EXACT_INPUTS = {"Pow": (1,), "Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2), "QuantizeLinear": (1, 2)}


def normal_domain(domain: str) -> str:
    """Return "" for both spellings of the default domain."""
    return "" if domain == "ai.onnx" else domain


def label(node: ir.Node) -> str:
    """Return what to call ``node``: its name, else that of its first output."""
    return node.name or next((output.name for output in node.outputs if output.name), "")


def is_control(node: ir.Node) -> bool:
    """Return whether ``node`` runs a body: If, Loop or Scan."""
    return node.op_type in CONTROL and normal_domain(node.domain) == ""


def drawn_name(node: ir.Node) -> str:
    """Return what the draws of a random node go by: the name of its first result."""
    return next((output.name for output in node.outputs if output.name), "")


def drawn_names(graph: ir.Graph) -> frozenset[str]:
    """Return what the draws of all random nodes of ``graph`` go by, bodies of control flow included."""
    return frozenset(drawn_name(node) for node in graph.all_nodes() if is_random(node))


def unpaired(a: frozenset[str], b: frozenset[str]) -> str:
    """Return a draw of the first graph that the second cannot make alike, "" if none: one may draw less than the other."""
    return "" if a <= b or b <= a else min(a - b)


def random_operator(model: ir.Model) -> ir.Node | None:
    """Return the first node whose result differs from run to run, functions and subgraphs included."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if is_random(node):
                return node
    return None


def is_random(node: ir.Node) -> bool:
    """Return whether ``node`` draws random numbers: a Random operator, or Dropout in training mode."""
    if normal_domain(node.domain) != "":
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        flag = node.inputs[2].const_value
        return flag is None or bool(flag.numpy().any())
    return node.op_type in RANDOM


def captured_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the values of outer scopes that the subgraphs of ``node`` read."""
    return captured_by(
        attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH
    )


def captured_by(graphs: Iterable[ir.Graph]) -> tuple[ir.Value, ...]:
    """Return the values of outer scopes that ``graphs`` read."""
    found: dict[ir.Value, None] = {}
    for graph in graphs:
        own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
        read: list[ir.Value | None] = list(graph.outputs)
        for inner in graph.all_nodes():
            own.update(inner.outputs)
            read.extend(inner.inputs)
            for sub in (item.value for item in inner.attributes.values() if item.type == ir.AttributeType.GRAPH):
                own.update((*sub.inputs, *sub.initializers.values()))
                read.extend(sub.outputs)
        found.update((value, None) for value in read if value is not None and value not in own)
    return tuple(found)


def constant_values(graph: ir.Graph, nodes: Iterable[ir.Node]) -> tuple[frozenset[ir.Value], frozenset[ir.Value]]:
    """Return the values that depend on constants and shapes only, and the constants that must not be perturbed.

    What is computed from shapes ends in shapes: a perturbed Floor(16 · 2.0) would be another size.
    """
    nodes = tuple(nodes)
    overridable = set(graph.inputs)
    constant = {value for value in graph.initializers.values() if value not in overridable}
    shaped: set[ir.Value] = set()
    for node in nodes:
        if node.op_type in CONTROL or is_random(node):
            continue
        if node.op_type in _SHAPES or all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
            if node.op_type in _SHAPES or not shaped.isdisjoint(value for value in node.inputs if value):
                shaped.update(node.outputs)
    exact: set[ir.Value] = set()
    pending = [value for node in nodes if node.outputs[0] in shaped for value in node.inputs if value]
    pending += [
        value
        for node in graph.all_nodes()
        for index in _EXACT_INPUTS.get(node.op_type, ())
        if index < len(node.inputs) and (value := node.inputs[index]) is not None
    ]
    while pending:
        value = pending.pop()
        producer = value.producer()
        if value in exact or (value not in constant and producer is not None):
            continue
        exact.add(value)
        pending.extend(item for item in (producer.inputs if producer else ()) if item is not None)
    return frozenset(constant), frozenset(exact)
