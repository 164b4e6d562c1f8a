"""What belongs to a norm beyond its operator: the residual sum before it, the activation after it.

Both are asked for, not found by themselves: whether they become part of a norm depends on the form that is written.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from normfuse.graph.editing import removal_refusal
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import NormSite, Reading
from normfuse.recognise.dims import same_shape
from normfuse.recognise.reshaped import sole_user
from normfuse.recognise.standard import is_constant
from normfuse.spec import Activation, Stored

_ROUNDED = 2.0**-9
"""bfloat16 rounds by that much, relatively; float16 by less."""


def with_residual(site: NormSite, reading: Reading) -> NormSite:
    """Return ``site`` with the Add before it: the norm of ``x + residual``, both of the shape of the sum.

    A sum that something else reads too becomes an extra output.
    """
    x = site.operands.x
    add = x.producer()
    if add is None or not is_op(add, "Add") or site.operands.residual is not None or add.graph is not site.root.graph:
        return site
    if isinstance(site.spec.statistics, Stored) or "axis" in add.attributes or site.extra_outputs:
        return site
    one, other = input_at(add, 0), input_at(add, 1)
    if one is None or other is None or one is other or is_constant(one, reading) or is_constant(other, reading):
        return site
    if one.dtype is None or one.dtype != other.dtype or not same_shape(one, x) or not same_shape(other, x):
        return site
    inside = set(site.interior)
    is_read = x.is_graph_output() or any(user not in inside for user, _ in x.uses())
    grown = replace(
        site,
        operands=replace(site.operands, x=one, residual=other),
        spelling=f"Add·{site.spelling}",
        interior=(add, *site.interior),
        extra_outputs=(x,) if is_read else (),
    )
    return site if removal_refusal(grown.interior, {grown.output, *grown.extra_outputs}) is not None else grown


def with_activation(site: NormSite, reading: Reading) -> NormSite:
    """Return ``site`` with the ReLU, SiLU (``y · σ(y)``) or GELU (with the error function) after it."""
    if site.spec.activation is not Activation.NONE:
        return site
    followers = (
        (Activation.RELU, _relu(site)),
        (Activation.SILU, _silu(site)),
        (Activation.GELU, _gelu(site, reading)),
    )
    for activation, nodes in followers:
        if nodes is None or nodes[-1].graph is not site.root.graph:
            continue
        grown = replace(
            site,
            spec=replace(site.spec, activation=activation),
            spelling="·".join([site.spelling, *(node.op_type for node in nodes)]),
            root=nodes[-1],
            interior=(*site.interior, *nodes),
        )
        if removal_refusal(grown.interior, {grown.output, *grown.extra_outputs}) is None:
            return grown
    return site


def _relu(site: NormSite) -> tuple[ir.Node, ...] | None:
    node = sole_user(site.output)
    return (node,) if node is not None and is_op(node, "Relu") else None


def _silu(site: NormSite) -> tuple[ir.Node, ...] | None:
    y = site.output
    users = list(dict.fromkeys(user for user, _ in y.uses()))
    gate = next((user for user in users if is_op(user, "Sigmoid")), None)
    if gate is None or len(users) != 2 or y.is_graph_output():
        return None
    product = sole_user(gate.outputs[0])
    if product is None or not is_op(product, "Mul") or product not in users:
        return None
    return (gate, product) if set(product.inputs) == {y, gate.outputs[0]} else None


def _gelu(site: NormSite, reading: Reading) -> tuple[ir.Node, ...] | None:
    y = site.output
    only = sole_user(y)
    if only is not None and is_op(only, "Gelu") and not has_parameters(only):
        return (only,) if only.attributes.get_string("approximate", "none") == "none" else None
    users = list(dict.fromkeys(user for user, _ in y.uses()))
    if len(users) != 2 or y.is_graph_output():
        return None
    scaled = next((user for user in users if _is_near(1 / math.sqrt(2), _by_number(user, y, reading))), None)
    erf = None if scaled is None else sole_user(scaled.outputs[0])
    if scaled is None or erf is None or not is_op(erf, "Erf"):
        return None
    one = sole_user(erf.outputs[0])
    if one is None or not is_op(one, "Add") or _other_number(one, erf.outputs[0], reading) != 1.0:
        return None
    (rest,) = (user for user in users if user is not scaled)
    return _halved(y, scaled, erf, one, rest, reading)


def _halved(
    y: ir.Value, scaled: ir.Node, erf: ir.Node, one: ir.Node, rest: ir.Node, reading: Reading
) -> tuple[ir.Node, ...] | None:
    """Read ``(y · ½) · (1 + erf)`` or ``(y · (1 + erf)) · ½``."""
    if _by_number(rest, y, reading) == 0.5:
        last = sole_user(rest.outputs[0])
        if last is not None and is_op(last, "Mul") and set(last.inputs) == {rest.outputs[0], one.outputs[0]}:
            return (scaled, erf, one, rest, last)
        return None
    if not is_op(rest, "Mul") or set(rest.inputs) != {y, one.outputs[0]}:
        return None
    last = sole_user(rest.outputs[0])
    if last is None or _by_number(last, rest.outputs[0], reading) != 0.5:
        return None
    return (scaled, erf, one, rest, last)


def _is_near(wanted: float, number: float | None) -> bool:
    """Whether ``number`` is ``wanted`` up to the rounding of a half type."""
    return number is not None and abs(number - wanted) <= _ROUNDED * wanted


def _by_number(node: ir.Node, y: ir.Value, reading: Reading) -> float | None:
    """Return the number that ``node`` multiplies ``y`` with."""
    if is_op(node, "Mul"):
        return _other_number(node, y, reading)
    if is_op(node, "Div") and node.inputs[0] is y:
        divisor = _other_number(node, y, reading)
        return 1.0 / divisor if divisor else None
    return None


def _other_number(node: ir.Node, y: ir.Value, reading: Reading) -> float | None:
    others = [value for value in node.inputs if value is not y]
    if len(node.inputs) != 2 or len(others) != 1 or others[0] is None:
        return None
    array = reading.constants.array(others[0])
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim <= 1 else None
