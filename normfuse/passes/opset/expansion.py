"""Operators that the target opset lacks and onnx defines by a function body: the body takes their place.

Attention, RotaryEmbedding, CenterCropPad and others are newer than most opsets and are, by definition, a graph of older
operators. That graph is of the opset of the model, so that every rule here applies to it like to the rest.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from normfuse.graph.editing import Replacement, describe
from normfuse.graph.reading import bodies, has_parameters, is_standard, reads_output, subgraphs
from normfuse.passes.opset.annotations import inferred
from normfuse.passes.opset.operation import operation_of
from normfuse.passes.opset.rules import LOWERING, MISSING
from normfuse.passes.opset.schema import Schema, schema_at, versions

_DOMAIN = "ai.normfuse.bodies"
"""For the time in which a body stands beside its node."""

_DEEPEST = 4
"""Bodies within bodies: that of SoftmaxCrossEntropyLoss holds a NegativeLogLikelihoodLoss."""

_KEPT = frozenset({"GroupNormalization", "LayerNormalization", "RMSNormalization", "MeanVarianceNormalization"})
"""Norms have emitters of their own, which are more accurate than their bodies."""


_ILL_FORMED = frozenset({"AffineGrid"})
"""Its body gives Range numbers with an axis, where Range takes none; onnxruntime refuses them."""


def expand(model: ir.Model, source: int, target: int) -> tuple[str, ...]:
    """Replace the operators that ``target`` lacks by their bodies, in place.

    source: the opset of the model, which stays; functions of another opset are left alone. Returns the names of the
    nodes that went. What has no body, or one of operators that mean something else at ``source``, stays; the conversion
    then refuses it.
    """
    gone: list[str] = []
    for _ in range(_DEEPEST):
        found = _expand_once(model, source, target)
        if not found:
            break
        gone.extend(found)
    return tuple(gone)


def _expand_once(model: ir.Model, source: int, target: int) -> list[str]:
    nodes = expandable(model, source, target)
    if not nodes:
        return []
    gone: list[str] = []
    with inferred(model) as annotations:
        for node in nodes:
            function = _body(node, source, f"{node.op_type}_{len(gone)}")
            if function is not None:
                gone.append(describe(node))
                model.functions[function.identifier()] = function
                annotations.take_back(_call(node, function, source))
    before = {node for graph, _ in bodies(model) for node in graph}
    common.InlinePass(criteria=lambda function: function.domain == _DOMAIN)(model)
    for graph, _ in bodies(model):
        for node in reversed(list(graph)):
            # A body computes what some of its calls do not need.
            if node not in before and not any(reads_output(node, index) for index in range(len(node.outputs))):
                graph.remove(node, safe=True)
    return gone


def expandable(model: ir.Model, source: int, target: int) -> tuple[ir.Node, ...]:
    """Return the nodes that ``target`` lacks or cannot say, and onnx has a body for, where the opset is ``source``."""
    if target >= source:
        return ()
    graphs = [graph for graph, opset in bodies(model) if opset == source]
    return tuple(node for graph in graphs for node in graph if _lacks(node, source, target))


def _lacks(node: ir.Node, source: int, target: int) -> bool:
    if not is_standard(node) or node.op_type in _KEPT | _ILL_FORMED or node.op_type in MISSING:
        return False
    schema, older = schema_at(node.op_type, source), schema_at(node.op_type, target)
    if schema is None or not _opsets(schema):
        return False
    if older is None:
        return True
    has_rule = any(node.op_type == name for name, _ in LOWERING)
    return schema.since_version > older.since_version and not has_rule and _says_more(node, schema, older)


def _says_more(node: ir.Node, schema: Schema, older: Schema) -> bool:
    """Whether ``node`` has an input or output that ``older`` lacks, or an attribute that says more than its absence."""
    if len(operation_of(node).inputs) > older.max_input or len(node.outputs) > older.max_output:
        return True
    for name, attribute in node.attributes.items():
        if name in older.attributes or name not in schema.attributes or attribute.is_ref():
            continue
        default = onnx.helper.get_attribute_value(schema.attributes[name].default_value)
        if attribute.value != (default.decode() if isinstance(default, bytes) else default):
            return True
    return False


def _opsets(schema: Schema) -> set[int]:
    """Return the opsets that onnx has a body for."""
    opsets: list[int] = schema.function_opset_versions  # type: ignore[attr-defined]  # not in the stub
    return {*opsets, *_dependent(schema)}


def _dependent(schema: Schema) -> list[int]:
    """Return those for which the body depends on the node, its types and missing inputs."""
    opsets: list[int] = schema.context_dependent_function_opset_versions  # type: ignore[attr-defined]  # not in the stub
    return opsets


def _body(node: ir.Node, source: int, name: str) -> ir.Function | None:
    """Return the body of ``node`` as a function; None where none is known to mean the same at ``source``."""
    schema = schema_at(node.op_type, source)
    if schema is None or has_parameters(node) or any(output.name == "" for output in node.outputs):
        return None
    if subgraphs(node):
        return None  # what SequenceMap's graph captures would be out of the body's reach
    version = max((opset for opset in _opsets(schema) if opset <= source), default=None)
    if version is None:
        return None
    written: bytes
    if version in _dependent(schema):
        types = [onnx.TypeProto() if value is None else ir.serde.serialize_value(value).type for value in node.inputs]
        if any(value is not None and value.type is None for value in node.inputs):
            return None
        written = schema.get_context_dependent_function_with_opset_version(  # type: ignore[attr-defined]
            version, ir.to_proto(node).SerializeToString(), [type_.SerializeToString() for type_ in types]
        )
    else:
        written = schema.get_function_with_opset_version(version)  # type: ignore[attr-defined]
    proto = onnx.FunctionProto.FromString(written)
    if len(proto.output) < len(node.outputs) or any(
        entry.domain not in ("", "ai.onnx") for entry in proto.opset_import
    ):
        return None
    del proto.output[len(node.outputs) :]
    proto.domain, proto.name = _DOMAIN, name
    for inner in proto.node:
        inner.name = f"{node.name or node.op_type}/{inner.op_type}"
    del proto.opset_import[:]
    proto.opset_import.add(domain="", version=source)
    function = ir.serde.deserialize_function(proto)
    means_the_same = all(
        _version(each.op_type, version) == _version(each.op_type, source) for each in function.all_nodes()
    )
    return function if means_the_same and all(is_standard(each) for each in function.all_nodes()) else None


def _version(op_type: str, opset: int) -> int:
    return max((version for version in versions(op_type) if version <= opset), default=0)


def _call(node: ir.Node, function: ir.Function, source: int) -> Replacement:
    """Let a call of ``function`` take the place of ``node``, with every attribute that the body may ask for."""
    graph, schema = node.graph, schema_at(node.op_type, source)
    assert isinstance(graph, ir.Graph)
    assert schema is not None
    attributes = dict(node.attributes)
    for name, attribute in schema.attributes.items():
        if name not in attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)
    call = ir.Node(
        function.domain, function.name, node.inputs, list(attributes.values()), num_outputs=len(node.outputs),
        name=node.name, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    for old, new in zip(node.outputs, call.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, call)
    ir.convenience.replace_all_uses_with(node.outputs, call.outputs, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return Replacement((node,), (call,), tuple(zip(node.outputs, call.outputs, strict=True)))
