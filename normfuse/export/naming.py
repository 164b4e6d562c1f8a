"""Names a reader can follow, in a graph that torch wrote: parameters, what is made of them, constants, outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx.defs
import onnx_ir as ir

# Where a node comes from in the module. The rest (stack traces, FX nodes) names files of the machine that exported.
_KEPT_METADATA = ("pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes")


def name_outputs(graph: ir.Graph, names: Sequence[str | None]) -> None:
    """Rename each output to its name in ``names``, unless that is None or taken.

    Does nothing where the counts differ: ``forward`` returned a None, which no graph has.
    """
    if len(names) != len(graph.outputs):
        return
    taken = {value.name for value in _values(graph)}
    for value, name in zip(graph.outputs, names, strict=True):
        if name is None or name in taken or value.is_graph_input() or value.is_initializer():
            continue
        taken.add(name)
        value.name = name


def name_derived_weights(graph: ir.Graph) -> None:
    """Name what is made of one parameter alone after it: ``fc.weight`` transposed is ``fc.weight.transpose``."""
    taken = {value.name for value in _values(graph)}
    for node in graph:
        if node.op_type not in ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast") or not node.inputs:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None or output.is_graph_output() or not (source.is_initializer() or "." in (source.name or "")):
            continue
        name = f"{source.name}.{node.op_type.lower()}"
        if name not in taken:
            taken.add(name)
            output.name = name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def name_constants(model: ir.Model) -> None:
    """Name a constant that torch only numbered after the node and slot that use it: ``node_Reshape_12.shape``."""
    graph = model.graph
    version = model.opset_imports.get("")
    if version is None:
        return
    taken = {value.name for value in _values(graph)}
    for value in tuple(graph.initializers.values()):
        uses = value.uses()
        if not (value.name or "").startswith("val_") or value.is_graph_output() or not uses:
            continue
        use = min(uses, key=lambda use: (use.node.name or "", use.idx))
        name = f"{use.node.name}.{_slot(use.node, use.idx, version)}"
        if name in taken:
            continue
        taken.add(name)
        value.name = name


def _slot(node: ir.Node, index: int, version: int) -> str:
    try:
        inputs = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
    except onnx.defs.SchemaError:
        return f"input_{index}"
    return inputs[index].name if index < len(inputs) else f"{inputs[-1].name}_{index}"


def trim_metadata(model: ir.Model) -> None:
    model.graph.metadata_props.clear()
    for value in _values(model.graph):
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        kept = {key: node.metadata_props[key] for key in _KEPT_METADATA if key in node.metadata_props}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
