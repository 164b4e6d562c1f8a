"""The value of a small expression of constants, in operators that :mod:`normfuse.graph.constants` does not compute.

Exporters compute axes and pads with Range, ScatterND or a Slice of negative step; an attribute needs the numbers. The
expression runs in onnx's reference evaluator, in the types of the graph; weights are never read.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from normfuse.graph.constants import Array, Constants
from normfuse.graph.reading import is_standard

_MOST_NODES = 200
_MOST_ELEMENTS = 4096
_UNREPEATABLE = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


def evaluate(value: ir.Value, constants: Constants, opset: int) -> Array | None:
    """Return ``value`` where it is computed from small constants only, by operators of ``opset``, else None."""
    leaves: dict[str, Array] = {}
    nodes: dict[ir.Node, None] = {}
    if not _collect(value, constants, leaves, nodes) or not nodes:
        return None
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "constant",
        [],
        [onnx.helper.make_value_info(str(value.name), onnx.TypeProto())],
        [ir.to_proto(ir.Tensor(array, name=name)) for name, array in leaves.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        (result,) = onnx.reference.ReferenceEvaluator(model).run(None, {})
    except Exception:  # the reference evaluator raises whatever its NumPy code does; then it is no constant
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None


def _collect(value: ir.Value, constants: Constants, leaves: dict[str, Array], nodes: dict[ir.Node, None]) -> bool:
    """Gather the nodes that compute ``value``, producers first; whether all of them start at small constants."""
    name = str(value.name)
    if name in leaves or value.producer() in nodes:
        return True
    if value.shape is not None and value.shape.is_static() and int(np.prod(value.shape.numpy())) > _MOST_ELEMENTS:
        return False
    tensor = constants.tensor(value)
    if tensor is not None and tensor.size > _MOST_ELEMENTS:
        return False
    array = constants.array(value)
    if array is not None:
        leaves[name] = np.asarray(array)
        return array.size <= _MOST_ELEMENTS
    node = value.producer()
    if node is None or not is_standard(node) or node.op_type in _UNREPEATABLE or len(nodes) > _MOST_NODES:
        return False
    if any(attribute.is_ref() or attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False
    for operand in node.inputs:
        if operand is not None and operand.name != "" and not _collect(operand, constants, leaves, nodes):
            return False
    if not node.inputs:
        return False
    nodes[node] = None
    return True
