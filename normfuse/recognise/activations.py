"""Activations as they are written behind a value: ReLU, leaky ReLU, SiLU, GELU, as one operator or as several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Reading
from normfuse.recognise.reshaped import sole_user
from normfuse.spec import Activation

_ROUNDED = 2.0**-9
"""bfloat16 rounds by that much, relatively; float16 by less."""


@dataclass(frozen=True, slots=True)
class Follower:
    """An activation and its nodes, of which the last has the result. slope: of a leaky ReLU, below zero."""

    activation: Activation
    nodes: tuple[ir.Node, ...]
    slope: float = 0.0


def follower_of(y: ir.Value, reading: Reading) -> Follower | None:
    """Return the activation that reads ``y``, where nothing else does."""
    if y.is_graph_output():
        return None
    for read in _READERS:
        follower = read(y, reading)
        if follower is not None:
            return follower
    return None


def _relu(y: ir.Value, _: Reading) -> Follower | None:
    node = sole_user(y)
    return Follower(Activation.RELU, (node,)) if node is not None and is_op(node, "Relu") else None


def _leaky_relu(y: ir.Value, reading: Reading) -> Follower | None:
    """Read LeakyRelu, or PRelu with one slope for all channels."""
    node = sole_user(y)
    if node is None or has_parameters(node):
        return None
    slope: float | None = None
    if is_op(node, "LeakyRelu"):
        slope = node.attributes.get_float("alpha", 0.01)
    elif is_op(node, "PRelu") and node.inputs[0] is y:
        slope = _other_number(node, y, reading)
    return None if slope is None or not math.isfinite(slope) else Follower(Activation.LEAKY_RELU, (node,), slope)


def _greater_of_two(y: ir.Value, reading: Reading) -> Follower | None:
    """Read ``max(y, a · y)``, which is a leaky ReLU for slopes a between 0 and 1."""
    users = _users(y)
    scaled = next((user for user in users if _by_number(user, y, reading) is not None), None)
    greater = None if scaled is None else sole_user(scaled.outputs[0])
    if scaled is None or greater is None or len(users) != 2 or greater not in users or not is_op(greater, "Max"):
        return None
    slope = _by_number(scaled, y, reading)
    if slope is None or not 0.0 < slope < 1.0 or not _reads(greater, y, scaled.outputs[0]):
        return None
    return Follower(Activation.LEAKY_RELU, (scaled, greater), slope)


def _chosen(y: ir.Value, reading: Reading) -> Follower | None:
    """Read ``where(y > 0, y, a · y)``, with any comparison that says so: at 0 both are 0."""
    users = _users(y)
    choice = next((user for user in users if is_op(user, "Where")), None)
    if choice is None or len(users) != 3 or len(choice.inputs) != 3:
        return None
    compared = None if choice.inputs[0] is None else choice.inputs[0].producer()
    scaled = next((user for user in users if _by_number(user, y, reading) is not None), None)
    if compared is None or scaled is None or {compared, scaled, choice} != set(users):
        return None
    if sole_user(compared.outputs[0]) is not choice or sole_user(scaled.outputs[0]) is not choice:
        return None
    above = _is_above_zero(compared, y, reading)
    branches = (y, scaled.outputs[0]) if above else (scaled.outputs[0], y)
    slope = _by_number(scaled, y, reading)
    if above is None or slope is None or choice.inputs[1] is not branches[0] or choice.inputs[2] is not branches[1]:
        return None
    return Follower(Activation.LEAKY_RELU, (compared, scaled, choice), slope)


def _is_above_zero(node: ir.Node, y: ir.Value, reading: Reading) -> bool | None:
    """Whether ``node`` says that y is above zero, or below (False); zero itself may count as either."""
    if not is_op(node, "Greater", "GreaterOrEqual", "Less", "LessOrEqual") or _other_number(node, y, reading) != 0.0:
        return None
    return node.op_type.startswith("Greater") is (node.inputs[0] is y)


def _silu(y: ir.Value, _: Reading) -> Follower | None:
    users = _users(y)
    gate = next((user for user in users if is_op(user, "Sigmoid")), None)
    if gate is None or len(users) != 2:
        return None
    product = sole_user(gate.outputs[0])
    if product is None or not is_op(product, "Mul") or product not in users:
        return None
    return Follower(Activation.SILU, (gate, product)) if _reads(product, y, gate.outputs[0]) else None


def _gelu(y: ir.Value, reading: Reading) -> Follower | None:
    only = sole_user(y)
    if only is not None and is_op(only, "Gelu") and not has_parameters(only):
        is_exact = only.attributes.get_string("approximate", "none") == "none"
        return Follower(Activation.GELU, (only,)) if is_exact else None
    users = _users(y)
    if len(users) != 2:
        return None
    scaled = next((user for user in users if _is_near(1 / math.sqrt(2), _by_number(user, y, reading))), None)
    erf = None if scaled is None else sole_user(scaled.outputs[0])
    if scaled is None or erf is None or not is_op(erf, "Erf"):
        return None
    one = sole_user(erf.outputs[0])
    if one is None or not is_op(one, "Add") or _other_number(one, erf.outputs[0], reading) != 1.0:
        return None
    (rest,) = (user for user in users if user is not scaled)
    nodes = _halved(y, scaled, erf, one, rest, reading)
    return None if nodes is None else Follower(Activation.GELU, nodes)


def _halved(
    y: ir.Value, scaled: ir.Node, erf: ir.Node, one: ir.Node, rest: ir.Node, reading: Reading
) -> tuple[ir.Node, ...] | None:
    """Read ``(y · ½) · (1 + erf)`` or ``(y · (1 + erf)) · ½``."""
    if _by_number(rest, y, reading) == 0.5:
        last = sole_user(rest.outputs[0])
        if last is not None and is_op(last, "Mul") and _reads(last, rest.outputs[0], one.outputs[0]):
            return (scaled, erf, one, rest, last)
        return None
    if not is_op(rest, "Mul") or not _reads(rest, y, one.outputs[0]):
        return None
    last = sole_user(rest.outputs[0])
    if last is None or _by_number(last, rest.outputs[0], reading) != 0.5:
        return None
    return (scaled, erf, one, rest, last)


_READERS: tuple[Callable[[ir.Value, Reading], Follower | None], ...] = (
    _relu,
    _leaky_relu,
    _greater_of_two,
    _chosen,
    _silu,
    _gelu,
)


def _users(y: ir.Value) -> list[ir.Node]:
    return list(dict.fromkeys(user for user, _ in y.uses()))


def _reads(node: ir.Node, one: ir.Value, other: ir.Value) -> bool:
    """Whether ``node`` reads these two values, in any order, and nothing else."""
    return len(node.inputs) == 2 and set(node.inputs) == {one, other}


def _is_near(wanted: float, number: float | None) -> bool:
    """Whether ``number`` is ``wanted`` up to the rounding of a half type."""
    return number is not None and abs(number - wanted) <= _ROUNDED * wanted


def _by_number(node: ir.Node, y: ir.Value, reading: Reading) -> float | None:
    """Return the number that ``node`` multiplies ``y`` with."""
    if is_op(node, "Mul"):
        return _other_number(node, y, reading)
    if is_op(node, "Div") and input_at(node, 0) is y:
        divisor = _other_number(node, y, reading)
        return 1.0 / divisor if divisor else None
    return None


def _other_number(node: ir.Node, y: ir.Value, reading: Reading) -> float | None:
    others = [value for value in node.inputs if value is not y]
    if len(node.inputs) != 2 or len(others) != 1 or others[0] is None:
        return None
    array = reading.constants.array(others[0])
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim <= 1 else None
