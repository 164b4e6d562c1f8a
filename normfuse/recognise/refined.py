"""Norms that an operator says only in part: what stands around it makes it another norm, or one with an affine.

``mean · Sub · RMSNormalization`` is a layer norm (S34), InstanceNormalization of (N, S, D) with a γ of shape (D) after
it too (S17), ``Reshape · LayerNormalization · Reshape`` an instance norm (S18), ``Reshape · BatchNormalization with
tiled statistics · Reshape`` the batch norm of its tile (S4), and ``Cast · operator · Cast`` the norm of a half type.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from normfuse.graph.channels import channels
from normfuse.graph.editing import removal_refusal
from normfuse.graph.reading import input_at, is_op, is_standard
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise.dims import Dim, dims_of, is_dim, same_shape
from normfuse.recognise.followers import with_following_affine
from normfuse.recognise.grouped import view_of, within_casts
from normfuse.recognise.parameters import Parameters, detached
from normfuse.recognise.reader import Reader
from normfuse.recognise.reshaped import sole_user
from normfuse.recognise.standard import epsilon, is_constant, spelling, trains, unreadable
from normfuse.recognise.terms import X
from normfuse.recognise.vocabulary import read
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerChannel, PerGroup, Stored, Trailing

_AT_LEAST_FLOAT = (ComputeType.INPUT, ComputeType.FLOAT)


def refined(site: NormSite, reading: Reading) -> NormSite:
    """Return the norm that ``site`` is part of; ``site`` itself where it is all of it."""
    for rule in (_centred_rms, _instance_as_layer, _layer_of_view):
        better = rule(site, reading)
        if better is not None and removal_refusal(better.interior, {better.output, *better.extra_outputs}) is None:
            return better
    return _of_half(site)


def _of_half(site: NormSite) -> NormSite:
    """Return the norm of a half type that runs in float32: ``Cast · operator · Cast``, as FP32LayerNorm is exported."""
    whole = within_casts(site)
    plain = not site.extra_outputs and site.operands.residual is None and all(map(is_standard, site.interior))
    if not plain or isinstance(site.spec.statistics, Stored) or site.spec.compute_type not in _AT_LEAST_FLOAT:
        return site
    if whole.root is site.root or whole.spec.compute_type is not ComputeType.FLOAT:
        return site
    if any(node.graph is not site.root.graph for node in whole.interior):
        return site
    return site if removal_refusal(whole.interior, {whole.output}) is not None else whole


def _centred_rms(site: NormSite, reading: Reading) -> NormSite | None:
    """Read an RMS norm of x − mean(x) over the same axes."""
    statistics, operands = site.spec.statistics, site.operands
    if site.spec.centred or not isinstance(statistics, Trailing) or operands.residual is not None or site.extra_outputs:
        return None
    subtraction = operands.x.producer()
    if subtraction is None or not is_op(subtraction, "Sub") or sole_user(operands.x) is not site.interior[0]:
        return None
    x, mean = subtraction.inputs[0], subtraction.inputs[1]
    reduction = None if mean is None else mean.producer()
    if x is None or reduction is None or reduction.graph is not subtraction.graph:
        return None
    reader = Reader(x, reading, Parameters((), reading))
    average = read(reader, reduction)
    if average is None or mean is None or average.term != reader.terms.mean(X, statistics.axes):
        return None
    reader.known[mean] = average
    deviation = read(reader, subtraction)
    if deviation is None or deviation.missing or deviation.clashes or sole_user(mean) is not subtraction:
        return None
    found = replace(
        site,
        spec=replace(site.spec, centred=True),
        operands=replace(operands, x=x),
        spelling=f"{reduction.op_type}·Sub·{site.spelling}",
        interior=(reduction, subtraction, *site.interior),
    )
    return with_following_affine(found, reading)


def _instance_as_layer(site: NormSite, reading: Reading) -> NormSite | None:
    """Read InstanceNormalization(ones, zeros) of (N, S, D) with a γ or β of shape (D) behind it."""
    x = site.operands.x
    if not isinstance(site.spec.statistics, PerChannel) or reading.ranks.of(x) != 3 or site.spec.channel_axis != 1:
        return None
    if not is_filled(site.operands.scale, 1.0, reading) or not is_filled(site.operands.bias, 0.0, reading):
        return None
    plain = replace(
        site,
        spec=replace(site.spec, statistics=Trailing((-1,)), affine=AffineLayout()),
        operands=Operands(x),
    )
    followed = with_following_affine(plain, reading)
    return None if followed is plain else followed


def _layer_of_view(site: NormSite, reading: Reading) -> NormSite | None:
    """Read LayerNormalization(ones) of (N, C, positions) between two Reshapes."""
    statistics, x = site.spec.statistics, site.operands.x
    if not site.spec.centred or site.extra_outputs or site.operands.residual is not None:
        return None
    if not isinstance(statistics, Trailing) or reading.ranks.of(x) != len(statistics.axes) + 2:
        return None
    scale, bias = site.operands.scale, site.operands.bias
    if (scale is not None and not is_filled(scale, 1.0, reading)) or (
        bias is not None and not is_filled(bias, 0.0, reading)
    ):
        return None
    view = view_of(x, site.output, statistics.axes, reading)
    if view is None or view.channel_axis != 1 or view.there[-1].graph is not site.root.graph:
        return None
    single = view.groups == channels(view.x)
    found = replace(
        site,
        spec=replace(
            site.spec, statistics=PerChannel() if single else PerGroup(view.groups), affine=AffineLayout(False, False)
        ),
        operands=Operands(view.x),
        spelling=f"Reshape·{site.spelling}·Reshape",
        root=view.back,
        interior=(*view.leaving(site.interior), *site.interior, view.back),
    )
    return with_following_affine(found, reading)


def is_filled(value: ir.Value | None, fill: float, reading: Reading) -> bool:
    """Whether every entry of ``value`` is ``fill``, its length aside."""
    if value is None:
        return False
    array = reading.constants.array(value)
    if array is None:
        node = value.producer()
        if not is_op(node, "ConstantOfShape") or node is None:
            return False
        attribute = node.attributes.get("value")
        array = np.zeros(1) if attribute is None else attribute.as_tensor().numpy()
    return bool((np.asarray(array, np.float64) == fill).all())


def tiled_batch_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Read ``Reshape to (1, N·C, *spatial) · BatchNormalization of N-fold statistics · Reshape``: S4.

    That is how torch exports InstanceNorm with running statistics; it does not depend on the batch. None where ``node``
    is no such BatchNormalization, or the repetition is not proven.
    """
    viewed = input_at(node, 0)
    there = None if viewed is None else viewed.producer()
    if viewed is None or there is None or not is_op(there, "Reshape"):
        return None
    if not is_op(node, "BatchNormalization") or unreadable(node, inputs=5) is not None or trains(node, reading.opset):
        return None
    back = sole_user(node.outputs[0])
    if back is None or not is_op(back, "Reshape"):
        return None
    x = input_at(there, 0)
    count = None if x is None else channels(x)
    if x is None or count is None or not _merges_batch(x, there, reading) or not restores(x, back, reading):
        return None
    rows = [_period(value, count, reading) for value in node.inputs[1:5]]
    if any(row is None for row in rows):
        return None
    goes = sole_user(viewed) is node
    interior = (*((there,) if goes else ()), node, back)
    if removal_refusal(interior, {back.outputs[0]}) is not None:
        return None
    spec = NormSpec(Stored(), epsilon(node), affine=AffineLayout(True, True, AffineAxes.CHANNEL))
    return NormSite(spec, Operands(x, *rows), f"Reshape·{spelling(node, reading)}·Reshape", back, interior)


def _merges_batch(x: ir.Value, there: ir.Node, reading: Reading) -> bool:
    """Whether ``there`` views x (N, C, *spatial) as (1, N·C, *spatial)."""
    rank = reading.ranks.of(x)
    dims = dims_of(input_at(there, 1), reading)
    if rank is None or not isinstance(dims, tuple) or len(dims) != rank or dims[0] != 1 or rank < 3:
        return False
    # The elements keep their order, so the last axes fix what the one before them is.
    return all(_is_axis(size, x, axis) for axis, size in enumerate(dims) if axis >= 2)


def _is_axis(size: int | Dim | None, x: ir.Value, axis: int) -> bool:
    return size not in (0, -1) and is_dim(size, x, axis)


def restores(x: ir.Value, back: ir.Node, reading: Reading) -> bool:
    """Whether the Reshape ``back`` gives its operand the shape of x."""
    if same_shape(back.outputs[0], x):
        return True
    dims = dims_of(input_at(back, 1), reading)
    if not isinstance(dims, tuple) or len(dims) != reading.ranks.of(x):
        return False
    unproven = [axis for axis, size in enumerate(dims) if not _is_axis(size, x, axis)]
    return not unproven or (len(unproven) == 1 and dims[unproven[0]] == -1)


def _period(value: ir.Value | None, count: int, reading: Reading) -> ir.Value | None:
    """Return the ``count`` entries that ``value`` repeats."""
    if value is None:
        return None
    node = value.producer()
    if is_op(node, "Tile") and node is not None:
        source = input_at(node, 0)
        shape = None if source is None or source.shape is None else list(source.shape)
        tensor = reading.constants.tensor(source)
        shape = list(tensor.shape.numpy()) if tensor is not None else shape
        if source is not None and shape == [count] and (is_constant(source, reading) or source.is_initializer()):
            return source
    array = reading.constants.array(value)
    if array is None or array.ndim != 1 or array.size % count or array.size == 0:
        return None
    period = array[:count]
    if not (array.reshape(-1, count) == period).all():
        return None
    return value if array.size == count else detached(str(value.name), period, array)
