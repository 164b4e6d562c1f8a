"""Batch norms that are written as arithmetic on constants, as one map: FrozenBatchNorm, (x − mean) / std."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.affine import ChannelAffine
from normfuse.graph.site import NormSite
from normfuse.passes.affine_plan import Ground
from normfuse.passes.cancellation import Moments
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import Channels, Link, is_stored, read_link


@dataclass(frozen=True, slots=True)
class WrittenNorm:
    """A batch norm that is written as arithmetic: its nodes, the input of the first that is its x, and its map."""

    links: tuple[ir.Node, ...]
    place: int
    f: Spread
    moments: Moments


def written_norm(node: ir.Node, ground: Ground) -> WrittenNorm | None:
    """Return the norm whose last node is ``node``, where the nodes are free."""
    site = ground.norms.get(node)
    if not isinstance(site, NormSite) or not is_stored(site) or len(site.interior) < 2:
        return None
    value: ir.Value | None = site.operands.x
    rank, scale = ground.rank(value), ground.reading.constants.array(site.operands.scale)
    if value is None or rank is None or scale is None:
        return None
    axis = 1 if site.spec.channel_axis == 1 else rank - 1
    channels = Channels(scale.size, axis, rank)
    affines: list[ChannelAffine] = []
    for link_node in site.interior:
        link = None if value is None else read_link(link_node, value, channels, {}, ground.reading)
        if not isinstance(link, Link) or link_node in ground.claimed:
            return None
        affines += [] if link.affine is None else [link.affine]
        value = link_node.outputs[0]
    first = site.interior[0]
    place = next((index for index, operand in enumerate(first.inputs) if operand is site.operands.x), 0)
    f = Spread.along(functools.reduce(ChannelAffine.then, affines), axis, rank)
    moments = Moments.of_steps(affines)
    return None if moments is None or value is not node.outputs[0] else WrittenNorm(site.interior, place, f, moments)
