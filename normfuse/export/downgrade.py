"""Opset 18 to 17, which torch does not write and onnx's converter refuses for the commonest nodes (Split, Resize).

Only what version 18 changed needs work, and of that only what torch writes is done: a reduction's axes become an
attribute again; Split loses ``num_outputs``, Resize the attributes that have their old meaning, Pad an input that
says nothing.
Source: the ONNX operator changelog, versions 13 to 18.
"""

from __future__ import annotations

import onnx.defs
import onnx_ir as ir

from normfuse.errors import ExportError

_REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
# Attributes new in Resize-18 with the values that say what Resize-13 did.
_RESIZE_DEFAULTS = {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}


def to_opset_17(model: ir.Model) -> None:
    """Rewrite ``model`` from opset 18 to 17, in place.

    Raises ExportError, naming the node, where 17 has no equivalent; the model is then half converted and must not be
    used.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain != "" or onnx.defs.get_schema(node.op_type, 18).since_version < 18:
            continue
        if not _downgraded(node):
            raise ExportError(
                f"{node.op_type} at node '{node.name}' cannot be written at opset 17; opset 18 and later can"
            )
    model.graph.opset_imports[""] = 17


def _downgraded(node: ir.Node) -> bool:
    """Make ``node`` valid at opset 17; return False where that is impossible."""
    if node.op_type in _REDUCTIONS:
        return _reduction(node)
    if node.op_type == "Split":
        return _split(node)
    if node.op_type == "Resize":
        return _resize(node)
    if node.op_type == "Pad":
        return _pad(node)
    return node.op_type in ("ScatterElements", "ScatterND") and node.attributes.get_string("reduction", "none") in (
        "none",
        "add",
        "mul",
    )


def _reduction(node: ir.Node) -> bool:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    keeps_all = node.attributes.get_int("noop_with_empty_axes", 0)
    if axes is not None:
        tensor = ir.convenience.get_const_tensor(axes)
        if tensor is None or (tensor.size == 0 and keeps_all):
            return False
        if tensor.size:
            node.attributes.add(ir.AttrInt64s("axes", [int(axis) for axis in tensor.numpy()]))
    elif keeps_all:
        return False
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    return True


def _split(node: ir.Node) -> bool:
    if "num_outputs" not in node.attributes:
        return True
    x = node.inputs[0]
    size = x.shape[node.attributes.get_int("axis", 0)] if x is not None and x.shape is not None else None
    # Without sizes Split-13 wants equal parts; Split-18 lets the last one be smaller.
    if not isinstance(size, int) or size % len(node.outputs):
        return False
    node.attributes.pop("num_outputs")
    return True


def _resize(node: ir.Node) -> bool:
    if "axes" in node.attributes:
        return False
    for name, default in _RESIZE_DEFAULTS.items():
        attribute = node.attributes.pop(name, None)
        if attribute is not None and attribute.value != default:
            return False
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "half_pixel_symmetric"


def _pad(node: ir.Node) -> bool:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return False
    if node.attributes.get_string("mode", "constant") == "wrap":
        return False
    node.resize_inputs(min(len(node.inputs), 3))
    return True
