"""Which part of a graph defines a value, and whether two graphs define it in the same words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.validate.oracle import Oracle
from normfuse.validate.scopes import captured_values, is_random, normal_domain

_LOOK_THROUGH = 8


@dataclass(frozen=True, slots=True)
class Cone:
    """The nodes that lie between ``frontier`` (names of shared values) and one value, in graph order."""

    nodes: tuple[ir.Node, ...]
    frontier: tuple[str, ...]


def cone_of(oracle: Oracle, name: str, shared: Collection[str]) -> Cone:
    """Return the cone of the value ``name`` back to ``shared`` values (itself excepted) and graph inputs."""
    nodes: dict[ir.Node, None] = {}
    frontier: dict[str, None] = {}
    start = oracle.values[name].producer()
    pending = [] if start is None else [start]
    while pending:
        node = pending.pop()
        if node in nodes:
            continue
        nodes[node] = None
        for value in (*node.inputs, *captured_values(node)):
            if value is None:
                continue
            producer = value.producer()
            if value.name in shared and value.name != name and (producer is not None or value.name in oracle.values):
                frontier[value.name or ""] = None
            elif producer is not None and producer in oracle.order:
                pending.append(producer)
    return Cone(tuple(sorted(nodes, key=oracle.order.__getitem__)), tuple(frontier))


def paired_cones(reference: Oracle, candidate: Oracle, name: str, shared: Collection[str]) -> tuple[Cone, Cone]:
    """Return the cones of ``name`` in both graphs, back to the same frontier where there is one.

    A value that only one side reads would be rounded on that side alone: it is looked through (at most eight times).
    """
    left = set(shared)
    inputs = {value.name for value in (*reference.graph.inputs, *candidate.graph.inputs)}
    for _ in range(_LOOK_THROUGH):
        cones = cone_of(reference, name, left), cone_of(candidate, name, left)
        one_sided = (set(cones[0].frontier) ^ set(cones[1].frontier)) - inputs
        if not one_sided:
            return cones
        left -= one_sided
    return cone_of(reference, name, left), cone_of(candidate, name, left)


def same_definition(reference: Oracle, candidate: Oracle, name: str, shared: Collection[str]) -> bool:
    """Return whether both graphs compute ``name`` by the same operators, attributes and constants from shared values.

    Random operators are the same when they are spelled the same.
    """
    pending = [(reference.values[name], candidate.values[name])]
    seen: set[tuple[ir.Value, ir.Value]] = set()
    first = True
    while pending:
        a, b = pending.pop()
        if (a, b) in seen:
            continue
        seen.add((a, b))
        if not first and (a.name in shared or b.name in shared):
            if a.name != b.name:
                return False
            continue
        first = False
        one, other = a.producer(), b.producer()
        if one is None or other is None:
            if one is not other or not _same_leaf(a, b):
                return False
            continue
        if a.index() != b.index() or not _same_node(reference, candidate, one, other):
            return False
        outer = zip(captured_values(one), captured_values(other), strict=True)
        for x, y in (*zip(one.inputs, other.inputs, strict=True), *outer):
            if (x is None) != (y is None):
                return False
            if x is not None and y is not None:
                pending.append((x, y))
    return True


def _same_leaf(a: ir.Value, b: ir.Value) -> bool:
    if a.const_value is None or b.const_value is None:
        return a.const_value is b.const_value and a.name == b.name
    return same_tensor(a.const_value, b.const_value)


def same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Return whether two tensors hold the same bits; the same object or the same place in the same file is not read."""
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if (
        isinstance(a, ir.ExternalTensor)
        and isinstance(b, ir.ExternalTensor)
        and a.path == b.path
        and a.offset == b.offset
    ):
        return True
    if a.dtype == ir.DataType.STRING:
        return bool(np.array_equal(a.numpy(), b.numpy()))
    return a.tobytes() == b.tobytes()


def same_node_and_constants(reference: Oracle, candidate: Oracle, a: ir.Node, b: ir.Node) -> bool:
    """Return whether two nodes are one operator, with the same attributes and constant inputs."""
    return _same_node(reference, candidate, a, b) and all(
        (x is None) == (y is None) and (x is None or y is None or _same_constant(x, y))
        for x, y in zip(a.inputs, b.inputs, strict=True)
    )


def _same_constant(a: ir.Value, b: ir.Value) -> bool:
    if a.const_value is None and b.const_value is None:
        return True
    return a.const_value is not None and b.const_value is not None and same_tensor(a.const_value, b.const_value)


def _same_node(reference: Oracle, candidate: Oracle, a: ir.Node, b: ir.Node) -> bool:
    if (a.op_type, normal_domain(a.domain), len(a.inputs), len(a.outputs)) != (
        b.op_type,
        normal_domain(b.domain),
        len(b.inputs),
        len(b.outputs),
    ):
        return False
    if [bool(value.name) for value in a.outputs] != [bool(value.name) for value in b.outputs]:
        return False
    if _since(reference, a) != _since(candidate, b) or set(a.attributes) != set(b.attributes):
        return False
    if len(captured_values(a)) != len(captured_values(b)):
        return False
    return is_random(a) == is_random(b) and all(
        _same_attribute(a.attributes[key], b.attributes[key]) for key in a.attributes
    )


def _since(oracle: Oracle, node: ir.Node) -> int:
    domain = normal_domain(node.domain)
    version = oracle.opsets.get(domain, 1)
    if domain == "" and onnx.defs.has(node.op_type, version, ""):
        return int(onnx.defs.get_schema(node.op_type, version, "").since_version)
    return version


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type:
        return False
    if a.type == ir.AttributeType.TENSOR:
        return same_tensor(a.as_tensor(), b.as_tensor())
    if a.type in (
        ir.AttributeType.GRAPH,
        ir.AttributeType.GRAPHS,
        ir.AttributeType.TENSORS,
        ir.AttributeType.SPARSE_TENSOR,
    ):
        return bytes(_serialized(a)) == bytes(_serialized(b))
    return bool(a.value == b.value)


def _serialized(attribute: ir.Attr) -> bytes:
    content: bytes = ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True)
    return content
