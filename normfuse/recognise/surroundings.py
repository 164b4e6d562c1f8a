"""What belongs to a norm beyond its operator: the residual sum before it, the activation after it.

Both are asked for, not found by themselves: whether they become part of a norm depends on the form that is written.
"""

from __future__ import annotations

from dataclasses import replace

from normfuse.graph.editing import removal_refusal
from normfuse.graph.reading import input_at, is_op
from normfuse.graph.site import NormSite, Reading
from normfuse.recognise.activations import follower_of
from normfuse.recognise.dims import same_shape
from normfuse.recognise.standard import is_constant
from normfuse.spec import Activation, Stored


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
    """Return ``site`` with the ReLU, leaky ReLU, SiLU (``y · σ(y)``) or GELU (with the error function) after it."""
    if site.spec.activation is not Activation.NONE:
        return site
    follower = follower_of(site.output, reading)
    if follower is None or any(node.graph is not site.root.graph for node in follower.nodes):
        return site
    grown = replace(
        site,
        spec=replace(site.spec, activation=follower.activation, slope=follower.slope),
        spelling="·".join([site.spelling, *(node.op_type for node in follower.nodes)]),
        root=follower.nodes[-1],
        interior=(*site.interior, *follower.nodes),
    )
    return site if removal_refusal(grown.interior, {grown.output, *grown.extra_outputs}) is not None else grown
