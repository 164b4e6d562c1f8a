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
    return any(attribute.is_ref() for attribute in node.attributes.values())


def reads_output(node: ir.Node, index: int) -> bool:
    """Whether anything reads output ``index`` of ``node``, or the graph returns it."""
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.uses()) or output.is_graph_output()


def bodies(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    """Yield every graph of the model with the version of the default domain that holds in it.

    The main graph with its subgraphs first, then each function with its subgraphs.
    """
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    for graph in model.graphs():
        yield graph, opset
    for function in model.functions.values():
        own = function.opset_imports.get("", function.opset_imports.get("ai.onnx", opset))
        yield function.graph, own
        for graph in function.subgraphs():
            yield graph, own
