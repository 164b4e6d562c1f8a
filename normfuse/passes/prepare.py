"""Make a model readable for the passes: nothing here changes what it computes, and each step says what it did."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from normfuse.errors import ModelIOError
from normfuse.graph.reading import bodies, default_opset, is_op, reads_output
from normfuse.recognise.standard import trains


def check_opset(model: ir.Model) -> None:
    """Raise ModelIOError where the model is newer than the operators that this installation knows."""
    newest = onnx.defs.onnx_opset_version()
    opset = default_opset(model)
    if opset < 1:
        raise ModelIOError(f"the model is of opset {opset}: versions begin with 1")
    if opset > newest:
        raise ModelIOError(f"the model is of opset {opset}; the installed onnx knows opsets up to {newest}")


def freeze_inputs(model: ir.Model) -> tuple[str, ...]:
    """Take initializers out of the graph's inputs, so that no caller can override them. Returns notes."""
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if not listed:
        return ()
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    notes = [f"{len(listed)} initializers left the inputs of the graph: callers can no longer override them"]
    if model.ir_version < 4:
        notes.append(f"IR version {model.ir_version} → 4: below it every initializer must be an input")
        model.ir_version = 4
    return tuple(notes)


def assume_inference(model: ir.Model) -> tuple[str, ...]:
    """Make inference of every training-mode BatchNormalization whose batch statistics nobody reads. Returns notes.

    This changes what the model computes: running statistics take the place of those of the batch.
    """
    changed: list[str] = []
    for graph, opset in bodies(model):
        for node in list(graph):
            if not is_op(node, "BatchNormalization") or not trains(node, opset):
                continue
            if any(reads_output(node, index) for index in range(1, len(node.outputs))):
                continue
            _make_inference(graph, node, opset)
            changed.append(node.name or str(node.outputs[0].name))
    if not changed:
        return ()
    return (f"read as inference, as asked (this changes results): {', '.join(changed)}",)


def _make_inference(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "training_mode"}
    if opset < 7:
        attributes["is_test"] = ir.AttrInt64("is_test", 1)
    new = ir.Node(
        node.domain, node.op_type, node.inputs, attributes, num_outputs=1, name=node.name, doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props), version=node.version,
    )  # fmt: skip
    old = node.outputs[0]
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = old.name, old.type, old.shape
    graph.insert_before(node, new)
    old.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
