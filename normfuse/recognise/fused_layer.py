"""Layer norm computed by the kernel of a batch norm: S35, what Keras exports.

x (…, D) is seen as (1, M, D, 1), one channel per position; BatchNormalization with the mean and variance of the batch
then normalises each channel over its D entries, with scale 1 and bias 0, and γ and β follow behind the way back.
Source: keras LayerNormalization (fused) through FusedBatchNormV3 and tf2onnx.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from normfuse.graph.editing import removal_refusal
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import NormSite, Operands, Reading
from normfuse.recognise.dims import dims_of, is_dim
from normfuse.recognise.followers import with_following_affine
from normfuse.recognise.layout import Axes, size_of
from normfuse.recognise.parameters import Parameters
from normfuse.recognise.reader import Known, Reader
from normfuse.recognise.refined import is_filled, restores
from normfuse.recognise.reshaped import sole_user
from normfuse.recognise.standard import epsilon, trains, unreadable
from normfuse.recognise.terms import X
from normfuse.recognise.vocabulary import read
from normfuse.spec import NormSpec, Trailing

_BATCH: Axes = (-4, -2, -1)
_MOST_NODES = 24
"""Nodes that compute the statistics; Keras writes nine."""


def fused_layer_norm(node: ir.Node, reading: Reading) -> NormSite | None:
    """Read the layer norm around the BatchNormalization ``node``; None where it is none."""
    viewed = input_at(node, 0)
    there = None if viewed is None else viewed.producer()
    if viewed is None or there is None or not is_op(there, "Reshape"):
        return None
    if not is_op(node, "BatchNormalization") or unreadable(node, inputs=5) is not None or trains(node, reading.opset):
        return None
    scale, bias, mean, variance = node.inputs[1:5]
    back = sole_user(node.outputs[0])
    if back is None or not is_op(back, "Reshape"):
        return None
    x = input_at(there, 0)
    if x is None or has_parameters(there) or has_parameters(back) or not restores(x, back, reading):
        return None
    axes = _normalised(x, there, reading)
    if axes is None or not is_filled(scale, 1.0, reading) or not is_filled(bias, 0.0, reading):
        return None
    statistics = _of_batch(viewed, mean, variance, reading)
    if statistics is None:
        return None
    interior = (there, *statistics, node, back)
    if {user for user, _ in viewed.uses()} - set(interior) or viewed.is_graph_output():
        interior = interior[1:]
    spelling = "·".join(each.op_type for each in interior if each.op_type not in _SHAPES)
    site = NormSite(NormSpec(Trailing(axes), epsilon(node)), Operands(x), spelling, back, interior)
    if removal_refusal(interior, {site.output}) is not None:
        return None
    return with_following_affine(site, reading)


_SHAPES = ("Shape", "Gather", "ReduceProd", "Cast", "Squeeze")


def _normalised(x: ir.Value, there: ir.Node, reading: Reading) -> Axes | None:
    """Return the trailing axes of x that are the D of its view (1, M, D, 1)."""
    dims = dims_of(input_at(there, 1), reading)
    if not isinstance(dims, tuple) or len(dims) != 4 or dims[0] != 1 or dims[3] != 1:
        return None
    rank, length = reading.ranks.of(x), dims[2]
    if rank is None or rank < 2:
        return None
    if length not in (0, -1) and is_dim(length, x, rank - 1):
        return (-1,)
    for count in range(2, rank):
        sizes = [size_of(x, axis) for axis in range(-count, 0)]
        known = [size for size in sizes if size is not None]
        if len(known) == count and math.prod(known) == length:
            return tuple(range(-count, 0))
    return None


def _of_batch(
    viewed: ir.Value, mean: ir.Value | None, variance: ir.Value | None, reading: Reading
) -> tuple[ir.Node, ...] | None:
    """Return the nodes that compute the mean and the biased variance of each channel of ``viewed``; None for others."""
    nodes = _between(viewed, (mean, variance), reading)
    if nodes is None or mean is None or variance is None:
        return None
    reader = Reader(viewed, reading, Parameters(nodes, reading))
    for node in nodes:
        known = read(reader, node)
        if known is not None:
            reader.known[node.outputs[0]] = known
    terms = reader.terms
    average = terms.mean(X, _BATCH)
    deviation = None if average is None else terms.add(X, average, -1.0)
    square = None if deviation is None else terms.power(deviation, 2.0)
    spread = None if square is None else terms.mean(square, _BATCH)
    for value, term in ((mean, average), (variance, spread)):
        known = reader.known.get(value)
        if term is None or known != Known(term, _BATCH, viewed.dtype):
            return None
    return nodes


def _between(viewed: ir.Value, ends: tuple[ir.Value | None, ...], reading: Reading) -> tuple[ir.Node, ...] | None:
    """Return the nodes between ``viewed`` and ``ends``, each behind those that it reads."""
    found: dict[ir.Node, None] = {}
    pending = [end for end in ends if end is not None]
    while pending:
        value = pending.pop()
        node = None if value is viewed else value.producer()
        if node is None or reading.constants.tensor(value) is not None:
            continue
        if len(found) == _MOST_NODES and node not in found:
            return None
        found.pop(node, None)  # what reads it later comes behind it all the same
        found[node] = None
        pending += [operand for operand in node.inputs if operand is not None]
    return tuple(reversed(found))
