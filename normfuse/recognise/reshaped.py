"""GroupNorm written as ``Reshape · InstanceNormalization · Reshape [· Mul · Add]``, as exporters do below opset 21.

x (N, C, *spatial) is seen as (N, G, rest): because a Reshape keeps the order of the elements, row (n, g) of the view is
the C/G consecutive channels of group g of sample n, provided that N stays N and G divides C. InstanceNormalization
normalises the rows, the second Reshape goes back to the shape of x, and an affine per channel may follow.

Sources: torch.onnx ``group_norm``, Paddle2ONNX group_norm.cc.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.graph.editing import initializer
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise.grouping import groups_of, not_restored
from normfuse.recognise.standard import epsilon, is_constant, unreadable
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerGroup

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def reshaped_group_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Read the norm around the InstanceNormalization ``node``.

    None where ``node`` does not stand between two Reshapes: then it is an InstanceNorm. Declined where it does, but the
    first Reshape is not proven to group channels, or the second not to restore the shape of x.
    """
    if not is_op(node, "InstanceNormalization") or unreadable(node, inputs=3) is not None:
        return None
    normed = node.inputs[0]
    there = None if normed is None else normed.producer()
    back = sole_user(node.outputs[0])
    if there is None or back is None or not is_op(there, "Reshape") or not is_op(back, "Reshape"):
        return None
    x = input_at(there, 0)
    if x is None or input_at(back, 0) is not node.outputs[0] or has_parameters(there) or has_parameters(back):
        return None
    scale, bias = node.inputs[1:3]
    has_unit_affine = _is_filled(scale, 1.0, reading) and _is_filled(bias, 0.0, reading)
    groups = groups_of(x, there, reading)
    obstacle = groups if isinstance(groups, str) else not_restored(x, back, groups, reading)
    if isinstance(groups, str) or obstacle is not None:
        # With an affine of its own it is an InstanceNorm of something reshaped, whatever the Reshapes do.
        return Declined(str(obstacle), node) if has_unit_affine else None
    # A Reshape that something else reads too stays: the norm does not need it to go.
    goes = sole_user(there.outputs[0]) is node
    chain = _Chain((there, node, back), back, Operands(x), AffineLayout())
    if has_unit_affine:
        chain = _follow_affine(chain, reading)
    else:
        # Scale and bias of the InstanceNormalization lie along the groups; a Mul and Add after it stay where they are.
        chain = replace(chain, operands=Operands(x, scale, bias), affine=AffineLayout(True, True, AffineAxes.GROUP))
    spec = NormSpec(PerGroup(groups), epsilon(node), affine=chain.affine)
    spelling = "·".join(part.op_type for part in chain.nodes if part.op_type != "CastLike")
    interior = chain.nodes if goes else chain.nodes[1:]
    return _within_casts(NormSite(spec, chain.operands, spelling, chain.last, interior), there, back)


def sole_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads ``value``; None where more do, a subgraph does, or the graph returns it."""
    users = {user for user, _ in value.uses()}
    if len(users) != 1 or value.is_graph_output():
        return None
    (user,) = users
    producer = value.producer()
    return user if producer is None or user.graph is producer.graph else None


def _is_filled(value: ir.Value | None, fill: float, reading: Reading) -> bool:
    array = reading.constants.array(value)
    return array is not None and bool((np.asarray(array, np.float64) == fill).all())


@dataclass(frozen=True, slots=True)
class _Chain:
    """What has been read so far: its nodes in order, the last of them, and what they compute."""

    nodes: tuple[ir.Node, ...]
    last: ir.Node
    operands: Operands
    affine: AffineLayout

    def with_nodes(self, *nodes: ir.Node) -> _Chain:
        return replace(self, nodes=(*self.nodes, *nodes), last=nodes[-1])


def _follow_affine(chain: _Chain, reading: Reading) -> _Chain:
    """Take in the affine per channel that follows: Mul, Add or Sub of constants, or a BatchNormalization(0, 1)."""
    user, casts = _reader(chain, reading)
    if user is not None and is_op(user, "BatchNormalization") and _is_affine_only(user, chain, reading):
        return replace(
            chain.with_nodes(*casts, user),
            operands=replace(chain.operands, scale=user.inputs[1], bias=user.inputs[2]),
            affine=AffineLayout(True, True),
        )
    if user is not None and is_op(user, "Mul"):
        scale = _per_channel(user, chain, casts, reading)
        if scale is not None:
            chain = replace(
                chain.with_nodes(*casts, user),
                operands=replace(chain.operands, scale=scale),
                affine=replace(chain.affine, scale=True),
            )
            user, casts = _reader(chain, reading)
    if user is not None and is_op(user, "Add", "Sub"):
        bias = _per_channel(user, chain, casts, reading)
        if bias is not None and user.op_type == "Sub":
            bias = _negative(bias, reading) if user.inputs[0] is chain.last.outputs[0] else None
        if bias is not None:
            chain = replace(
                chain.with_nodes(*casts, user),
                operands=replace(chain.operands, bias=bias),
                affine=replace(chain.affine, bias=True),
            )
    return chain


def _reader(chain: _Chain, reading: Reading) -> tuple[ir.Node | None, tuple[ir.Node, ...]]:
    """Return the only node that reads the values of the result so far, and the CastLikes that read only its type.

    torch.onnx writes ``Mul(y, CastLike(scale, y))``.
    """
    result = chain.last.outputs[0]
    users = dict.fromkeys(user for user, _ in result.uses())
    casts = tuple(
        user
        for user in users
        if is_op(user, "CastLike")
        and user.inputs[0] is not result
        and reading.constants.array(user.inputs[0]) is not None
    )
    others = [user for user in users if user not in casts]
    if len(others) != 1 or result.is_graph_output() or others[0].graph is not chain.last.graph:
        return None, ()
    return others[0], casts


def _per_channel(node: ir.Node, chain: _Chain, casts: tuple[ir.Node, ...], reading: Reading) -> ir.Value | None:
    """Return the other operand of ``node`` where it is a parameter that broadcasts along axis 1 of x exactly.

    For rank r: (C, 1, …) of r − 1 axes or (1, C, 1, …) of r; the operand keeps its shape, whose order is that of (C).
    A parameter is a constant or an initializer: what the network computes (AdaIN, FiLM) is no part of the norm.
    """
    result = chain.last.outputs[0]
    others = [value for value in node.inputs if value is not None and value is not result]
    if len(others) != 1:
        return None
    (other,) = others
    if other.producer() in casts:
        # It goes with the norm, whose type it takes; its value stays.
        other = _cast_like_norm(other, chain, reading)
    elif not is_constant(other, reading) and not other.is_initializer():
        return None
    x = chain.operands.x
    rank = reading.ranks.of(x)
    channels = None if x.shape is None else x.shape[1]
    shape = _shape_of(other, reading)
    if rank is None or shape is None or not isinstance(channels, int):
        return None
    per_channel = (channels, *(1,) * (rank - 2))
    return other if shape in (per_channel, (1, *per_channel)) else None


def _shape_of(value: ir.Value, reading: Reading) -> tuple[int, ...] | None:
    if value.graph is None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    tensor = reading.constants.tensor(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    array = reading.constants.array(value)
    if array is not None:
        return array.shape
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def _cast_like_norm(value: ir.Value, chain: _Chain, reading: Reading) -> ir.Value:
    """Return the constant behind a CastLike, in the type of the norm: that of the InstanceNormalization's scale."""
    cast = value.producer()
    (norm,) = (node for node in chain.nodes if node.op_type == "InstanceNormalization")
    ones = reading.constants.array(norm.inputs[1])
    assert cast is not None
    array = reading.constants.array(cast.inputs[0])
    assert ones is not None
    assert array is not None
    with np.errstate(over="ignore", under="ignore"):
        return initializer(str(value.name), ir.tensor(array.astype(ones.dtype)))


def _negative(value: ir.Value, reading: Reading) -> ir.Value | None:
    array = reading.constants.array(value)
    if array is None and value.const_value is not None and value.graph is None:
        array = value.const_value.numpy()
    return None if array is None else initializer(f"{value.name}_negative", ir.tensor(np.negative(array)))


def _is_affine_only(node: ir.Node, chain: _Chain, reading: Reading) -> bool:
    """Whether a BatchNormalization has mean 0 and, in float32, variance + ε = 1: then it is scale and bias alone."""
    if unreadable(node, inputs=5) is not None or node.inputs[0] is not chain.last.outputs[0]:
        return False
    if (
        node.attributes.get_int("training_mode", 0)
        or len(node.outputs) > 1
        or (reading.opset < 9 and "spatial" in node.attributes)
    ):
        return False
    scale, bias, mean, var = node.inputs[1:5]
    if not all(
        value is not None and (is_constant(value, reading) or value.is_initializer()) for value in (scale, bias)
    ):
        return False
    variance = reading.constants.array(var)
    if variance is None or not _is_filled(mean, 0.0, reading):
        return False
    total = np.asarray(variance, np.float64).astype(np.float32) + np.float32(epsilon(node))
    return bool((total == np.float32(1.0)).all())


def _within_casts(site: NormSite, there: ir.Node, back: ir.Node) -> NormSite:
    """Take in a Cast up before the norm and the Cast back after it: statistics in float32 for a half type.

    What the Cast makes may be read by the norm alone, and by the Shape of its way back.
    """
    x, output = site.operands.x, site.output
    up, down = x.producer(), sole_user(output)
    if up is None or down is None or not is_op(up, "Cast") or not is_op(down, "Cast") or x.is_graph_output():
        return site
    source = up.inputs[0]
    if source is None or source.dtype not in _HALVES or x.dtype != ir.DataType.FLOAT:
        return site
    if down.attributes.get_int("to", 0) != source.dtype:
        return site
    others = [user for user, _ in x.uses() if user is not there]
    if not all(is_op(user, "Shape") and sole_user(user.outputs[0]) is back for user in others):
        return site
    return replace(
        site,
        spec=replace(site.spec, compute_type=ComputeType.FLOAT),
        operands=replace(site.operands, x=source),
        spelling=f"Cast·{site.spelling}·Cast",
        root=down,
        interior=(up, *others, *site.interior, down),
    )
