"""The ``primitive`` form: a norm in elementary operators, for runtimes that know no norm.

``d = x − mean(x); y = d / sqrt(mean(d²) + ε) · γ + β``: the variance in a second pass, because E[x²] − E[x]² cancels at
large means (onnxruntime's GroupNormalization-21 gives NaN at mean/std 1e4). Half types are widened to float32 first and
rounded once at the end. Shapes come from the graph: nothing here fixes a batch size. A batch of zero is a stated limit
of the statistics of groups, since a Reshape cannot infer an axis of an empty tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import ChannelAffine, FoldError
from normfuse.emit.writing import Draft, channel_count, copied, output_type, role, unwritable, wide_type
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import AffineAxes, Batch, PerChannel, PerGroup, Stored, Trailing


@dataclass(frozen=True, slots=True)
class View:
    """How x is looked at for its statistics: reshaped to ``shape`` (None: as it is), averaged over ``axes``."""

    shape: tuple[int, ...] | None
    axes: tuple[int, ...]


def emit_primitive(
    site: NormSite, reading: Reading, opset: int, *, squares_by_power: bool = False
) -> Replacement | Declined:
    """Write ``site`` in operators of ``opset``, 7 or newer. Declines where a rank or channel count is not known.

    squares_by_power: square with Pow, which onnxruntime fuses; Mul is exact and fast everywhere.
    """
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    rank = reading.ranks.of(site.operands.x)
    if isinstance(site.spec.statistics, Stored):
        return _emit_stored(site, reading, opset, rank)
    view = _view(site, rank, opset)
    if isinstance(view, str):
        return Declined(view, site.root)
    obstacle = _affine_obstacle(site, rank)
    if obstacle is not None:
        return Declined(obstacle, site.root)
    return _emit_statistics(site, Draft(opset, reading.constants), view, rank, squares_by_power=squares_by_power)


def _view(site: NormSite, rank: int | None, opset: int) -> View | str:
    """Return the view in which the statistics of ``site`` are means over axes; else what is not known."""
    statistics, last = site.spec.statistics, site.spec.channel_axis == -1
    unknown = f"the rank of '{site.operands.x.name}' is unknown (run shape inference)"
    if isinstance(statistics, Trailing):
        if opset >= 11:
            return View(None, statistics.axes)
        # Negative axes are part of ReduceMean from version 11 on.
        return unknown if rank is None else View(None, tuple(axis + rank for axis in statistics.axes))
    if isinstance(statistics, PerGroup):
        if any(role(site, output) != "sum" for output in site.extra_outputs):
            # Saved statistics have the shape of x with 1 along the normalised axes: a view would give them its own.
            if statistics.groups != 1 or rank is None:
                return "its mean or deviation is read, and is none of groups"
            return View(None, tuple(range(1, rank)))
        if not last:
            return View((0, statistics.groups, -1), (2,))
        channels = channel_count(site)
        if channels is None or channels % statistics.groups:
            return f"the channels of '{site.operands.x.name}' are not known to make {statistics.groups} groups"
        return View((0, -1, statistics.groups, channels // statistics.groups), (1, 3))
    if isinstance(statistics, PerChannel):
        if rank is None:
            return unknown if last else View((0, 0, -1), (2,))
        if rank < 3:
            return f"'{site.operands.x.name}' has rank {rank}: no positions to average over"
        return View(None, tuple(range(1, rank - 1)) if last else tuple(range(2, rank)))
    if isinstance(statistics, Batch) and rank is not None:
        return View(None, tuple(axis for axis in range(rank) if axis != site.spec.channel_axis % rank))
    return unknown


def _affine_obstacle(site: NormSite, rank: int | None) -> str | None:
    affine = site.spec.affine
    if rank is not None or not (affine.scale or affine.bias) or affine.axes is not AffineAxes.CHANNEL:
        return None
    if site.spec.channel_axis == -1 or isinstance(site.spec.statistics, PerChannel) or channel_count(site) is not None:
        return None
    return f"neither the rank nor the channels of '{site.operands.x.name}' are known (run shape inference)"


def _emit_statistics(
    site: NormSite, draft: Draft, view: View, rank: int | None, *, squares_by_power: bool
) -> Replacement | Declined:
    spec, wide = site.spec, wide_type(site)
    x = total(site, draft, wide)
    extras = {output: role(site, output) for output in site.extra_outputs}
    if "mean" in extras.values() and not spec.centred:
        return draft.discard("its output of means is read, and an RMS norm has none", site)
    viewed = x if view.shape is None else draft.op("Reshape", x, draft.integers("grouped", view.shape))
    deviation, mean = viewed, viewed
    if spec.centred:
        mean = draft.mean(viewed, view.axes)
        deviation = draft.op("Sub", viewed, mean)
    if squares_by_power:
        square = draft.op("Pow", deviation, draft.constant("two", 2.0, wide))
    else:
        square = draft.op("Mul", deviation, deviation)
    variance = draft.mean(square, view.axes)
    root = draft.op("Sqrt", draft.op("Add", variance, draft.constant("epsilon", spec.epsilon, wide)))
    y = draft.op("Div", deviation, root)
    y = _affine(site, draft, y, x, view, rank)
    result = _rounded(site, draft, draft.activated(y, spec.activation, spec.slope))
    rewires = [(site.output, result)]
    for output, what in extras.items():
        value = {"sum": x, "mean": mean}.get(what)
        if value is None:
            value = draft.op("Reciprocal", root)
        stated = output.dtype or (result.dtype if what == "sum" else ir.DataType.FLOAT)
        rewires.append((output, value if stated is None else draft.cast(value, stated)))
    return draft.replacement(site, rewires)


def total(site: NormSite, draft: Draft, dtype: ir.DataType) -> ir.Value:
    """Write x, with the residual and its bias added, in ``dtype``."""
    x = draft.cast(site.operands.x, dtype)
    for addend in (site.operands.residual, site.operands.residual_bias):
        if addend is not None:
            x = draft.op("Add", x, draft.cast(addend, dtype), dtype=dtype)
            x.shape = copied(site.operands.x.shape)
    return x


def _affine(site: NormSite, draft: Draft, y: ir.Value, x: ir.Value, view: View, rank: int | None) -> ir.Value:
    """Write ``y · γ + β`` in the type of y, and the way back from the view to the shape of x."""
    affine = site.spec.affine
    if view.shape is None:
        return with_affine(site, draft, y, _parameter_shape(site, rank))
    if affine.axes is AffineAxes.GROUP:
        # The view has the groups on an axis of their own: after N, or before the last where channels are last.
        return draft.back(with_affine(site, draft, y, (-1, 1)), x)
    shape = _parameter_shape(site, rank)
    if (affine.scale or affine.bias) and shape is None:
        # Without the rank, channels are seen as (N, C, rest).
        channels = 0 if isinstance(site.spec.statistics, PerChannel) else channel_count(site)
        assert channels is not None
        y = draft.op("Reshape", y, draft.integers("channels", (0, channels, -1)))
        return draft.back(with_affine(site, draft, y, (-1, 1)), x)
    return with_affine(site, draft, draft.back(y, x), shape)


def _parameter_shape(site: NormSite, rank: int | None) -> tuple[int, ...] | None:
    """Return the shape in which γ and β broadcast against x; None where they do as they are, or it is not known."""
    if site.spec.affine.axes is AffineAxes.NORMALISED:
        return None
    if site.spec.channel_axis == -1:
        return (-1,)
    return None if rank is None else (-1, *(1,) * (rank - 2))


def with_affine(site: NormSite, draft: Draft, y: ir.Value, shape: tuple[int, ...] | None) -> ir.Value:
    """Write ``y · γ + β``, each as far as it is there and changes anything, in the type of y; parameters in ``shape``."""
    dtype = y.dtype
    assert dtype is not None
    for op_type, parameter, neutral in (("Mul", site.operands.scale, 1.0), ("Add", site.operands.bias, 0.0)):
        array = draft.array(parameter)
        if parameter is None or (array is not None and bool((array == neutral).all())):
            continue
        value = draft.cast(parameter, dtype)
        y = draft.op(op_type, y, value if shape is None else draft.reshaped(value, shape))
    return y


def _rounded(site: NormSite, draft: Draft, y: ir.Value) -> ir.Value:
    dtype = output_type(site)
    return y if dtype is None or y.dtype == dtype else draft.op("Cast", y, dtype=dtype, to=int(dtype))


def _emit_stored(site: NormSite, reading: Reading, opset: int, rank: int | None) -> Replacement | Declined:
    """Write ``a · x + b`` per channel where the four parameters are constant, else the formula on them."""
    operands, wide = site.operands, wide_type(site)
    draft = Draft(opset, reading.constants)
    parameters = tuple(draft.array(value) for value in (operands.scale, operands.bias, operands.mean, operands.var))
    affine = None
    if all(array is not None for array in parameters):
        scale, bias, mean, var = (array for array in parameters if array is not None)
        try:
            affine = ChannelAffine.from_batchnorm(scale, bias, mean, var, site.spec.epsilon)
        except FoldError as error:
            return Declined(str(error), site.root)
        overflow = _overflow(affine, wide)
        if overflow is not None:
            return Declined(overflow, site.root)
    shape = _parameter_shape(site, 3 if rank is None else rank)
    assert shape is not None
    x = draft.cast(operands.x, wide)
    # Without the rank, channels are seen as (N, C, rest).
    flattens = rank is None and site.spec.channel_axis == 1
    y = draft.op("Reshape", x, draft.integers("channels", (0, 0, -1))) if flattens else x
    if affine is not None:
        y = draft.op("Mul", y, draft.constant("scale", affine.scale.reshape(shape), wide))
        y = draft.op("Add", y, draft.constant("shift", affine.shift.reshape(shape), wide))
    else:
        assert operands.mean is not None
        assert operands.var is not None
        y = draft.op("Sub", y, draft.reshaped(draft.cast(operands.mean, wide), shape))
        epsilon = draft.constant("epsilon", site.spec.epsilon, wide)
        root = draft.op("Sqrt", draft.op("Add", draft.reshaped(draft.cast(operands.var, wide), shape), epsilon))
        y = with_affine(site, draft, draft.op("Div", y, root), shape)
    if flattens:
        y = draft.back(y, x)
    result = _rounded(site, draft, draft.activated(y, site.spec.activation, site.spec.slope))
    return draft.replacement(site, [(site.output, result)])


def _overflow(affine: ChannelAffine, dtype: ir.DataType) -> str | None:
    for name, row in (("scale", affine.scale), ("shift", affine.shift)):
        with np.errstate(over="ignore", under="ignore"):
            lost = ~np.isfinite(row.astype(dtype.numpy()))
        if lost.any():
            return f"its {name} overflows {dtype.name.lower()} in channel {int(np.flatnonzero(lost)[0])}"
    return None
