"""Recognisers: from any spelling of a norm to a NormSite, or to the reason why it is left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import onnx_ir as ir

from normfuse.graph.reading import is_standard
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.recognise.channel_maps import find_channel_maps
from normfuse.recognise.contrib import (
    known_by_name,
    microsoft_group_norm,
    simplified_layer_norm,
    skip_layer_norm,
    skip_simplified_layer_norm,
)
from normfuse.recognise.custom import custom_norm
from normfuse.recognise.fused_layer import fused_layer_norm
from normfuse.recognise.mean_variance import mean_variance_norm
from normfuse.recognise.primitive import find_decomposed
from normfuse.recognise.refined import refined, tiled_batch_norm
from normfuse.recognise.reshaped import reshaped_group_norm
from normfuse.recognise.standard import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

Recogniser = Callable[[ir.Node, Reading], NormSite | Declined | None]

RECOGNISERS: Mapping[str, tuple[Recogniser, ...]] = {
    # The longest spelling first: a reshaped GroupNorm holds an InstanceNormalization.
    "InstanceNormalization": (reshaped_group_norm, instance_norm),
    "BatchNormalization": (tiled_batch_norm, fused_layer_norm, batch_norm),
    "MeanVarianceNormalization": (mean_variance_norm,),
    "GroupNormalization": (group_norm,),
    "LayerNormalization": (layer_norm,),
    "RMSNormalization": (rms_norm,),
    "SimplifiedLayerNormalization": (simplified_layer_norm,),
}
"""By the operator of the default domain at which a norm stands: those that may know it, in the order of asking."""

FOREIGN: tuple[Recogniser, ...] = (
    simplified_layer_norm,
    skip_layer_norm,
    skip_simplified_layer_norm,
    microsoft_group_norm,
    custom_norm,
    known_by_name,
)
"""Those that are asked about an operator of any other domain."""


def find_norms(graph: Iterable[ir.Node], reading: Reading) -> tuple[NormSite | Declined, ...]:
    """Return the norms among the nodes of one graph, in order; its subgraphs are graphs of their own.

    Each node belongs to one site at most. First come operators, then what is written in primitive operators, then
    per-channel arithmetic on constants. A reshaped GroupNorm stands at its InstanceNormalization, which comes before a
    BatchNormalization that is its affine.
    """
    nodes = tuple(graph)
    found: list[NormSite | Declined] = []
    claimed: set[ir.Node] = set()
    for node in nodes:
        if (node.op_type not in RECOGNISERS and is_standard(node)) or node in claimed:
            continue
        if node.inputs and reading.constants.array(node.inputs[0]) is not None:
            continue  # the norm of a weight is a constant, no layer
        result = recognise(node, reading)
        if isinstance(result, NormSite):
            better = refined(result, reading)
            result = result if claimed.intersection(better.interior) else better
            claimed.update(result.interior)
        if result is not None:
            found.append(result)
    found.extend(find_decomposed(nodes, reading, claimed))
    found.extend(find_channel_maps(nodes, reading, nodes_of(found)))
    order = {node: index for index, node in enumerate(nodes)}
    return tuple(sorted(found, key=lambda each: order[place_of(each)]))


def recognise(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Return what the first recogniser says that knows ``node``."""
    for recogniser in RECOGNISERS.get(node.op_type, ()) if is_standard(node) else FOREIGN:
        result = recogniser(node, reading)
        if result is not None:
            return result
    return None


def place_of(outcome: NormSite | Declined) -> ir.Node:
    """Return the node that stands for ``outcome`` in reports."""
    return outcome.root if isinstance(outcome, NormSite) else outcome.at


def nodes_of(outcomes: Collection[NormSite | Declined]) -> frozenset[ir.Node]:
    """Return the nodes that ``outcomes`` are about."""
    nodes = {place_of(outcome) for outcome in outcomes}
    for outcome in outcomes:
        nodes.update(outcome.interior)
    return frozenset(nodes)
