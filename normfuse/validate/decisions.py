"""Where a result jumps when a float moves a little: operators that choose, count or quantise.

An error before such a node is judged by budget, what comes after it with the oracle's decision given (:mod:`cuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from normfuse.validate.rounding import is_float
from normfuse.validate.scopes import is_control, normal_domain

DISCONTINUOUS = frozenset(
    [
        "ArgMax",
        "ArgMin",
        "Bernoulli",
        "Ceil",
        "DynamicQuantizeLinear",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "Less",
        "LessOrEqual",
        "Mod",
        "Multinomial",
        "NonMaxSuppression",
        "NonZero",
        "QuantizeLinear",
        "Round",
        "Shrink",
        "Sign",
        "ThresholdedRelu",
        "TopK",
        "Unique",
    ]
)
# These take floats to the nearest of a grid; near a tie the neighbour is as good.
_QUANTISERS = frozenset({"Cast", "Ceil", "DynamicQuantizeLinear", "Floor", "QuantizeLinear", "Round"})
_MOVES = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_CASTS = frozenset({"Cast", "CastLike"})
# It chooses where its maximum lies, and only its second result says so.
_TELLS_WHERE = "MaxPool"

TypeOf = Callable[[ir.Value], ir.DataType | None]


def decides(node: ir.Node, computed: Callable[[ir.Value], bool], type_of: TypeOf) -> bool:
    """Return whether the result of ``node`` may jump when a float that it reads moves by a rounding.

    computed: whether a value depends on the inputs. Comparisons of integers do not jump; a value of unknown type counts
    as a float. Bodies of control flow are looked into.
    """
    if is_control(node):
        return any(decides(inner, lambda value: True, type_of) for inner in _inner(node))
    if normal_domain(node.domain) != "":
        return False
    if node.op_type == _TELLS_WHERE:
        return len(node.outputs) > 1 and bool(node.outputs[1].name) and _reads_float(node, computed, type_of)
    if node.op_type in _CASTS:
        target = type_of(node.outputs[0])
        return target is not None and not is_float(target) and _reads_float(node, computed, type_of)
    return node.op_type in DISCONTINUOUS and _reads_float(node, computed, type_of)


def decided(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the results of a node that decides which hold its decision."""
    found = node.outputs[1:2] if node.op_type == _TELLS_WHERE else node.outputs
    return tuple(value for value in found if value.name)


def is_quantised(value: ir.Value) -> bool:
    """Return whether ``value`` holds multiples of a quantum: where its input lies near a tie, it may be off by one."""
    producer = value.producer()
    while producer is not None and producer.op_type in _MOVES and producer.inputs and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type in _QUANTISERS


def _inner(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                if not is_control(inner):
                    yield inner


def _reads_float(node: ir.Node, computed: Callable[[ir.Value], bool], type_of: TypeOf) -> bool:
    return any(value is not None and computed(value) and _may_be_float(type_of(value)) for value in node.inputs)


def _may_be_float(dtype: ir.DataType | None) -> bool:
    return dtype is None or is_float(dtype)
