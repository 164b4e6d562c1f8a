"""What onnx infers of the types and shapes of a model, which stays as it is.

onnx infers on a serialised model. Here that is a skeleton: nodes, what is stated of values, and the small constants that
shapes are computed from; no names of nodes, no texts, no weights. Building it costs a quarter of what a copy of the graph
does, and of the result only types are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from normfuse.graph.reading import default_opset, subgraphs

logger = logging.getLogger(__name__)

_LARGEST_CONSTANT = 1000
"""Bytes of an initializer that may say a shape, and is handed over."""

_AUXILIARY = "auxiliary"
"""The name of nodes of the skeleton that the model does not have; others have none."""

Opaque = Callable[[ir.Node], bool]

_COMPUTES_SHAPES = 14
"""The first opset in which onnx follows the shape that a graph computes for a Reshape."""

_LIKE_IT = 11
"""The first opset that differs from 14 in no more than ``_OPERANDS`` and the outputs of BatchNormalization."""

_OPERANDS = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
"""What is an attribute before opset 13, and the second input from there on."""


class _Belief(NamedTuple):
    """What inference is to believe beyond its own rules.

    broadcasts: whether an Add broadcasts by itself. raised: whether the skeleton is of a newer opset than the model.
    """

    is_identity: Opaque
    broadcasts: bool
    raised: bool


class Inferred(NamedTuple):
    """What is inferred of ``value``; None where nothing is, or the file states it."""

    value: ir.Value
    type: ir.TypeProtocol | None
    shape: ir.Shape | None


def infer(model: ir.Model, is_identity: Opaque = lambda _: False) -> Iterator[Inferred]:
    """Yield what onnx infers of the results of nodes beyond what is stated, subgraphs included, functions not.

    is_identity: the nodes of which inference is to believe that their result is their first input. Only tensors are
    told of. Nothing is yielded where the model cannot be serialised, or inference fails. A shape may be that of several
    values: it is frozen. Models of opset 11 to 13 are inferred on as if they were of 14, which follows computed shapes.
    """
    opset = default_opset(model)
    # Functions import opsets of their own, which the one of their callers has to fit.
    is_raised = _LIKE_IT <= opset < _COMPUTES_SHAPES and not model.functions
    try:
        skeleton = onnx.ModelProto(ir_version=model.ir_version)
        for domain, version in model.opset_imports.items():
            is_default = domain in ("", "ai.onnx")
            skeleton.opset_import.add(domain=domain, version=_COMPUTES_SHAPES if is_raised and is_default else version)
        for function in model.functions.values():
            ir.serde.serialize_function_into(skeleton.functions.add(), function)
        belief = _Belief(is_identity, opset >= 7, is_raised)
        _write_graph(skeleton.graph, model.graph, belief, is_outermost=True)
        result = onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:  # onnx raises what it likes; without shapes less is known, and nothing is wrong
        logger.debug("no shapes are inferred: %s", error)
        return
    yield from _read_graph(model.graph, result.graph, {})


def _write_graph(proto: onnx.GraphProto, graph: ir.Graph, belief: _Belief, *, is_outermost: bool) -> None:
    proto.name = graph.name or "graph"
    for value in graph.inputs:
        _write_value(proto.input.add(), value)
    listed = set(graph.inputs)
    for value in graph.initializers.values():
        if value not in listed:
            # A subgraph has as many inputs as its node gives it; the main graph may have more.
            _write_value(proto.input.add() if is_outermost else proto.value_info.add(), value)
        tensor = value.const_value
        # Texts have no size in bytes, and no shape is made of them.
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes <= _LARGEST_CONSTANT:
            own = proto.initializer.add()
            ir.serde.serialize_tensor_into(own, tensor)
            own.name = value.name or ""
    nodes = proto.node
    for node in graph:
        model_of = _shaped_like(node) if belief.broadcasts else None
        if model_of is None:
            _write_node(nodes, node, belief)
        else:
            _write_shaped_like(nodes, node, model_of)
        for output in node.outputs:
            if (output.type is not None or output.shape is not None) and output.name and not output.is_graph_output():
                _write_value(proto.value_info.add(), output)
    for value in graph.outputs:
        _write_value(proto.output.add(), value)


def _write_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and (value.type is None or value.shape is None):
        dtype = tensor.dtype if value.dtype is None else value.dtype
        shape = ir.Shape(tensor.shape.numpy()) if value.shape is None else value.shape
        value = ir.Value(name=value.name, type=ir.TensorType(dtype), shape=shape)
    ir.serde.serialize_value_into(proto, value)


def _shaped_like(node: ir.Node) -> ir.Value | None:
    """Return the value whose shape a Reshape takes: ``Reshape(x, Shape(value))``; None for anything else."""
    if node.op_type != "Reshape" or len(node.inputs) != 2 or node.domain not in ("", "ai.onnx"):
        return None
    target = node.inputs[1]
    shape = None if target is None else target.producer()
    if shape is None or shape.op_type != "Shape" or shape.domain not in ("", "ai.onnx") or shape.attributes.data:
        return None
    return shape.inputs[0] if node.inputs[0] is not None else None


def _write_shaped_like(nodes: Any, node: ir.Node, model_of: ir.Value) -> None:
    """Write ``Reshape(x, Shape(v))`` as the sum of one element of x and v: of the type of x and the shape of v.

    Below opset 14 inference takes no shape from what is computed, not even the rank.
    """
    x, output = node.inputs[0], node.outputs[0].name or ""
    assert x is not None
    scalar, element = f"{output}#shape", f"{output}#element"
    constant = nodes.add(op_type="Constant", name=_AUXILIARY, output=[scalar])
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=[0])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    nodes.add(op_type="Reshape", name=_AUXILIARY, input=[x.name or "", scalar], output=[element])
    nodes.add(op_type="Add", input=[element, model_of.name or ""], output=[output])


def _write_node(nodes: Any, node: ir.Node, belief: _Belief) -> None:
    """Add ``node`` to ``nodes``, the field of a graph: in one call, since each takes longer than what it says."""
    outputs = [output.name or "" for output in node.outputs]
    is_raised = belief.raised and node.domain in ("", "ai.onnx")
    if belief.is_identity(node):
        nodes.add(op_type="Identity", input=[(node.inputs[0] and node.inputs[0].name) or ""], output=outputs)
        return
    inputs = ["" if value is None else value.name or "" for value in node.inputs]
    operand = _OPERANDS.get(node.op_type, "") if is_raised else ""
    if is_raised and node.op_type == "BatchNormalization":
        del outputs[1:]  # saved statistics have gone, and a norm of four outputs more is no operator
    if operand in node.attributes.data:
        inputs.append(f"{outputs[0]}#{operand}")
        constant = nodes.add(op_type="Constant", name=_AUXILIARY, output=inputs[-1:])
        integers = node.attributes.data[operand].as_ints()
        tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=[len(integers)], int64_data=integers)
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    proto = nodes.add(op_type=node.op_type, input=inputs, output=outputs)
    if node.domain:
        proto.domain = node.domain
    if node.overload:
        proto.overload = node.overload
    if not node.attributes.data:
        return
    for attribute in node.attributes.data.values():
        if attribute.name == operand:
            continue
        own = proto.attribute.add()
        if attribute.is_ref():
            ir.serde.serialize_reference_attribute_into(own, attribute)
        elif attribute.type is ir.AttributeType.GRAPH:
            own.name, own.type = attribute.name, onnx.AttributeProto.GRAPH
            _write_graph(own.g, attribute.as_graph(), belief, is_outermost=False)
        elif attribute.type is ir.AttributeType.GRAPHS:
            own.name, own.type = attribute.name, onnx.AttributeProto.GRAPHS
            for inner in attribute.as_graphs():
                _write_graph(own.graphs.add(), inner, belief, is_outermost=False)
        else:
            ir.serde.serialize_attribute_into(own, attribute)


Known = dict[bytes, tuple[ir.DataType | None, ir.Shape | None]]


def _read_graph(graph: ir.Graph, proto: onnx.GraphProto, known: Known) -> Iterator[Inferred]:
    """Read what ``proto`` says of the results of ``graph``. known: types that have been read already, and are shared."""
    types = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    nodes = [node for node in proto.node if node.name != _AUXILIARY]
    for index, node in enumerate(graph):
        for value in node.outputs:
            lacks_type, lacks_shape = value.type is None, value.shape is None
            told = types.get(value.name or "") if lacks_type or lacks_shape else None
            if told is None:
                continue
            key = told.SerializeToString()
            read = known.get(key)
            if read is None:
                read = known[key] = _read_type(told)
            dtype, shape = read
            # A type, unlike a frozen shape, may be changed in place: each value has its own.
            type_ = ir.TensorType(dtype) if lacks_type and dtype is not None else None
            if type_ is not None or (lacks_shape and shape is not None):
                yield Inferred(value, type_, shape if lacks_shape else None)
        if node.attributes.data and (inner := subgraphs(node)):
            twins = [own for attribute in nodes[index].attribute for own in _graphs(attribute)]
            for body, twin in zip(inner, twins, strict=True):
                yield from _read_graph(body, twin, known)


def _graphs(attribute: onnx.AttributeProto) -> tuple[onnx.GraphProto, ...]:
    return (attribute.g,) if attribute.HasField("g") else tuple(attribute.graphs)


def _read_type(proto: onnx.TypeProto) -> tuple[ir.DataType | None, ir.Shape | None]:
    """Return the type and shape of a tensor; nothing of what is none."""
    if not proto.HasField("tensor_type"):
        return None, None
    element = proto.tensor_type.elem_type
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    return ir.DataType(element) if element else None, None if shape is None else ir.Shape(shape, frozen=True)
