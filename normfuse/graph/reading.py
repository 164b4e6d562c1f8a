"""A small vocabulary for reading graphs: operators, attributes, opsets, and the graphs of a model."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def is_standard(node: ir.Node) -> bool:
    """Whether ``node`` is an operator of the default ONNX domain."""
    return node.domain in ("", "ai.onnx")


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether ``node`` is one of ``op_types`` of the default ONNX domain."""
    return node is not None and node.op_type in op_types and node.domain in ("", "ai.onnx")


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return input ``index``; None where it is missing, omitted or spelled as the empty name."""
    if index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return None if value is None or value.name == "" else value


def has_parameters(node: ir.Node) -> bool:
    """Whether an attribute of ``node`` refers to a parameter of the enclosing function."""
    attributes = node.attributes.data  # the plain dictionary: most nodes have none, and this is asked of every node
    return bool(attributes) and any(attribute.is_ref() for attribute in attributes.values())


def reads_output(node: ir.Node, index: int) -> bool:
    """Whether anything reads output ``index`` of ``node``, or the graph returns it."""
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.uses()) or output.is_graph_output()


def default_opset(model: ir.Model) -> int:
    """Return the version of the default domain that ``model`` imports, under either of its names; 1 if it names none."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def bodies(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    """Yield every graph of the model with the version of the default domain that holds in it.

    The main graph with its subgraphs first, then each function with its subgraphs. Functions of domain ai.normfuse are
    bodies of operators of ours: no graphs of the model's own.
    """
    opset = default_opset(model)
    for graph in with_subgraphs(model.graph):
        yield graph, opset
    for function in model.functions.values():
        if function.domain == "ai.normfuse":
            continue
        own = function.opset_imports.get("", function.opset_imports.get("ai.onnx", opset))
        for graph in with_subgraphs(function.graph):
            yield graph, own


def with_subgraphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield ``graph`` and every graph inside it, depth first in the order of nodes and attributes."""
    yield graph
    for node in graph:
        if node.attributes.data:  # most nodes have none; looking costs less than walking
            for inner in subgraphs(node):
                yield from with_subgraphs(inner)


def subgraphs(node: ir.Node) -> tuple[ir.Graph, ...]:
    """Return the graphs that ``node`` carries as attributes, in their order: bodies and branches."""
    found: tuple[ir.Graph, ...] = ()
    for attribute in node.attributes.data.values():  # .data: the plain dictionary, several times as fast to walk
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            found += (attribute.as_graph(),)
        elif attribute.type is ir.AttributeType.GRAPHS and not attribute.is_ref():
            found += tuple(attribute.as_graphs())
    return found
