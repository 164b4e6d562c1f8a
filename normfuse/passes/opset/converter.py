"""The last resort: onnx's own converter, on one node without weights, believed only where the numbers agree.

It drops attributes and functions without a word, so it never sees a model: one node, typed inputs, the
checker after it, and both spellings evaluated on random inputs.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx.version_converter
import onnx_ir as ir

from normfuse.passes.opset.operation import Context

_MOST_ELEMENTS = 1 << 16
_UNKNOWN_SIZE = 4


def converted(context: Context) -> tuple[ir.Value, ...] | None:
    """Return the node's outputs written at the target opset as onnx's converter does; None where it cannot, or may err."""
    node = context.node
    if any(attribute.is_ref() or attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return None
    original = _model_of(context)
    if original is None:
        return None
    try:
        result = onnx.version_converter.convert_version(original, context.opset)
        onnx.checker.check_model(result, full_check=True)
        if not _agree(original, result):
            return None
    except Exception:  # the converter and the reference evaluator raise whatever their code meets: no conversion then
        return None
    return _written(result, context)


def _model_of(context: Context) -> onnx.ModelProto | None:
    node = context.node
    inputs, initializers = [], []
    for value in {value.name: value for value in node.inputs if value is not None and value.name}.values():
        dims, array = context.dims(value), None
        if value.dtype is None or dims is None:
            return None
        if int(np.prod([dim or _UNKNOWN_SIZE for dim in dims])) > _MOST_ELEMENTS:
            return None
        array = context.array(value)
        if value.dtype == ir.DataType.STRING:
            return None
        if array is not None and array.size <= _UNKNOWN_SIZE * 8:
            initializers.append(ir.to_proto(ir.Tensor(array, name=value.name)))
        else:
            inputs.append(onnx.helper.make_tensor_value_info(str(value.name), int(value.dtype), dims))
    outputs = [onnx.ValueInfoProto(name=str(value.name)) for value in node.outputs if value.name]
    for info, value in zip(outputs, (value for value in node.outputs if value.name), strict=True):
        if value.dtype is None:
            return None
        info.type.tensor_type.elem_type = int(value.dtype)
    graph = onnx.helper.make_graph([ir.to_proto(node)], "node", inputs, outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", context.source)], ir_version=10)


def _agree(original: onnx.ModelProto, result: onnx.ModelProto) -> bool:
    random = np.random.default_rng(0)
    feeds = {}
    for value in original.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or _UNKNOWN_SIZE for dim in tensor.shape.dim]
        dtype = ir.DataType(tensor.elem_type).numpy()
        feeds[value.name] = np.asarray(random.normal(0, 3, shape)).astype(dtype)
    runs = [onnx.reference.ReferenceEvaluator(model).run(None, feeds) for model in (original, result)]
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*runs, strict=True))


def _written(result: onnx.ModelProto, context: Context) -> tuple[ir.Value, ...]:
    model = ir.from_proto(result)
    values: dict[str, ir.Value] = {str(value.name): value for value in context.node.inputs if value is not None}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name not in values and tensor is not None:
            values[name] = context.constant(name, tensor.numpy(), tensor.dtype)
    for node in model.graph:
        inputs = [None if value is None or not value.name else values[str(value.name)] for value in node.inputs]
        copy = ir.Node("", node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        context.add(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            values[str(old.name)] = new
    return tuple(values[str(output.name)] for output in context.node.outputs if output.name)
