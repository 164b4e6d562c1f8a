"""Rules for operators that compute: activations, pooling, means, resizing, padding, casts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.reading import input_at, reads_output
from normfuse.passes.affine_passing import Context, Outcome, Passed
from normfuse.passes.spread import Dims, Spread


def unchanged(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Identity, and Dropout at inference."""
    if node.op_type == "Dropout":
        if reads_output(node, 1):
            return "returns a mask that is read"
        training = input_at(node, 2)
        attribute = context.reading.opset < 7 and not node.attributes.get_int("is_test", 0)
        if attribute or (training is not None and context.reading.constants.scalar(training) != 0.0):
            return "is in training mode"
    return Passed(((0, f),))


_PRECISION = {ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT16: 11, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53}


def cast(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Cast: only to a place whose arithmetic is not narrower, in precision or in range."""
    value = input_at(node, 0)
    before = None if value is None else value.dtype
    after = cast_to(node)
    here, there = (after, before) if backward else (before, after)
    if here not in _PRECISION or there not in _PRECISION:
        return "casts from a type that is not known or no floating-point type"
    narrow_range = there == ir.DataType.FLOAT16 and here != there
    if _PRECISION[there] < _PRECISION[here] or narrow_range:
        return f"casts, and {there.name.lower()} is narrower than {here.name.lower()}"
    return Passed(((0, f),))


def cast_to(node: ir.Node) -> ir.DataType | None:
    """Return the type that a Cast casts to."""
    attribute = node.attributes.get("to")
    if attribute is None or attribute.type != ir.AttributeType.INT:
        return None  # opset 5 and below spelled the type as a string
    return ir.DataType(attribute.as_int())


def rectifier(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Relu, LeakyRelu: s·relu(x) = relu(s·x) for s > 0, and no shift."""
    if not f.is_linear:
        return "passes no shift"
    if not f.is_positive:
        return "passes no scale that is not positive"
    return Passed(((0, f),), combines=node.op_type == "LeakyRelu")


def prelu(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """PRelu(x, p) = x for x ≥ 0, p·x below. s > 0 as Relu. s < 0, p > 0: s·PRelu(x, p) = PRelu(s·p·x, 1/p).

    Asked forward it is the same pair: PRelu(s·x, p) = s·p·PRelu(x, 1/p).
    """
    slope = context.reading.constants.array(input_at(node, 1))
    if not f.is_linear:
        return "passes no shift"
    if not (f.scale != 0.0).all():
        return "passes no scale of zero"
    if f.is_positive:
        return Passed(((0, f),), combines=True)
    if slope is None or context.reading.opset < 7 or slope.ndim > f.rank:
        return "passes a negative scale only where its slope is constant"
    wide = np.asarray(slope, np.float64).reshape((1,) * (f.rank - slope.ndim) + slope.shape)
    if not (wide > 0.0).all():
        return "passes a negative scale only where its slope is positive"
    negative = f.scale < 0.0
    with np.errstate(all="ignore"):
        turned = np.where(negative, 1.0 / wide, wide).astype(slope.dtype)
    scale = np.where(negative, f.scale * wide, f.scale)
    if not np.isfinite(turned.astype(np.float64)).all() or not turned.all() or not np.isfinite(scale).all():
        return "has a slope whose inverse its type cannot hold"
    dims = context.sizes.of(input_at(node, 0))
    if dims is None or any(size > 1 and size != dims[axis] for axis, size in enumerate(scale.shape)):
        return "has an input whose sizes are not known"
    moved = Spread.of(scale, np.zeros((1,) * f.rank))
    return Passed(((0, moved),), ((1, turned),), combines=True)


def _along_space(f: Spread) -> str | None:
    along = [axis for axis in f.varies if axis >= 2]
    return f"pools along axis {min(along)}, along which the factors vary" if along else None


def average_pool(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """AveragePool: the scale always; the shift where every window averages real values only.

    A window that begins less than its own length before the first element meets at least one; a dilated one may not.
    """
    objection = _along_space(f)
    if objection is not None:
        return objection
    kernel = node.attributes.get_ints("kernel_shape", ())
    passed = Passed(((0, f),), shrinks=True, combines=backward, averages=float(math.prod(kernel)))
    if f.is_linear:
        return passed
    attributes = node.attributes
    pads = attributes.get_ints("pads", ())
    padded = any(pads) or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    if padded and attributes.get_int("count_include_pad", 0) != 0:
        return "counts its padding: at the border the shift would be missing"
    if attributes.get_int("ceil_mode", 0) != 0:
        return "may average over less than its window (ceil_mode): the shift does not pass"
    dilated = any(step != 1 for step in attributes.get_ints("dilations", ()))
    if padded and (dilated or any(pad >= size for pad, size in zip(pads, (*kernel, *kernel), strict=False))):
        return "may average over padding alone: the shift does not pass"
    return passed


def global_average(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """GlobalAveragePool: the map of the mean is the mean of the map."""
    objection = _along_space(f)
    averages = _elements(context.sizes.of(input_at(node, 0)), range(2, f.rank))
    return objection or Passed(((0, f),), shrinks=True, combines=backward, averages=averages)


def _elements(dims: Dims | None, axes: Iterable[int]) -> float:
    """Return how many elements lie along ``axes``; infinity where that is not known."""
    sizes = [None if dims is None else dims[axis] for axis in axes]
    return math.prod(math.inf if size is None else float(size) for size in sizes)


def maximum(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """MaxPool, GlobalMaxPool: for scale > 0 the largest stays the largest; padding counts as −∞."""
    objection = _along_space(f)
    if objection is not None:
        return objection
    if reads_output(node, 1):
        return "also returns the indices of its maxima"
    if not f.is_positive:
        return "passes no scale that is not positive"
    return Passed(((0, f),), shrinks=True)


def mean(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """ReduceMean: along axes on which nothing varies the map of the mean is the mean of the map."""
    dims = context.sizes.of(input_at(node, 0))
    axes = None if dims is None else _reduced(node, len(dims), context)
    if axes is None:
        return "reduces axes that are not known"
    keep = node.attributes.get_int("keepdims", 1)
    if backward and not keep:
        f = Spread(np.expand_dims(f.scale, axes), np.expand_dims(f.shift, axes))
    along = sorted(f.varies & set(axes))
    if along:
        return f"reduces axis {along[0]}, along which the factors vary"
    if not backward and not keep:
        f = Spread(f.scale.squeeze(axes), f.shift.squeeze(axes))
    return Passed(((0, f),), shrinks=True, combines=backward, averages=_elements(dims, axes))


def _reduced(node: ir.Node, rank: int, context: Context) -> tuple[int, ...] | None:
    value = input_at(node, 1)
    if value is not None:
        axes = context.reading.constants.integers(value)
    elif "axes" in node.attributes:
        axes = tuple(node.attributes["axes"].as_ints())
    else:
        axes = ()
    if axes is None:
        return None
    if not axes:
        return () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    if any(not -rank <= axis < rank for axis in axes):
        return None  # ill-formed; runtimes differ in what they make of it
    return tuple(sorted(axis % rank for axis in axes))


def resize(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Resize, Upsample: weights that sum to one, not along an axis on which the factors vary.

    Nearest and linear weights lie in [0, 1]; cubic ones do not.
    """
    mode = node.attributes.get_string("mode", "nearest")
    passed = Passed(((0, f),), shrinks=True, combines=mode != "nearest" and (backward or mode == "cubic"))
    if node.op_type == "Resize" and context.reading.opset >= 11:
        if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            return "may fill in an extrapolation value"
        scales, sizes = input_at(node, 2), input_at(node, 3)
    else:
        scales, sizes = input_at(node, 1), None
    axes = node.attributes.get_ints("axes", tuple(range(f.rank)))
    places = {axis % f.rank: place for place, axis in enumerate(axes)}
    for axis in sorted(f.varies & places.keys()):
        objection = _resized(node, axis, places[axis], len(axes), scales, sizes, context)
        if objection is not None:
            return objection
    return passed


def _resized(
    node: ir.Node,
    axis: int,
    place: int,
    count: int,
    scales: ir.Value | None,
    sizes: ir.Value | None,
    context: Context,
) -> str | None:
    """Say why ``axis`` may change its size; None where it does not."""
    constants = context.reading.constants
    array = constants.array(scales)
    factors = None if array is None else [float(factor) for factor in array.reshape(-1)]
    if node.op_type == "Upsample" and "scales" in node.attributes:  # opset 7 and 8
        factors = list(node.attributes["scales"].as_floats())
    if factors:
        known = len(factors) == count and factors[place] == 1.0
        return None if known else f"resizes axis {axis}, along which the factors vary"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keeps the aspect ratio: its sizes are not known"
    target, dims = context.sizes.integers(sizes), context.sizes.of(input_at(node, 0))
    own = None if dims is None else dims[axis]
    if target is not None and len(target) == count and own is not None and own == target[place]:
        return None
    return f"resizes axis {axis} to a size that is not known to be its own"


def _zero(x: ir.Value | None) -> Array | None:
    """Return what a Pad fills in where it is not said: zero, of the type of ``x``."""
    dtype = None if x is None else x.dtype
    return np.zeros((), dtype.numpy()) if dtype in _PRECISION and dtype is not None else None


def pad(node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
    """Pad: copies of values pass. A constant v passes where it stays one value: a·v + b back, (v − b)/a on."""
    constants = context.reading.constants
    if context.reading.opset >= 11:
        pads = constants.integers(input_at(node, 1))
        value = input_at(node, 2)
        fill = 0.0 if value is None else constants.scalar(value)
        chosen = input_at(node, 3)
        axes = tuple(range(f.rank)) if chosen is None else constants.integers(chosen)
    else:
        pads, value = tuple(node.attributes.get_ints("pads", ())), None
        fill, axes = node.attributes.get_float("value", 0.0), tuple(range(f.rank))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return "pads by amounts that are not known"
    half = len(axes)
    padded = {axis % f.rank for index, axis in enumerate(axes) if pads[index] or pads[index + half]}
    passed = Passed(((0, f),), shrinks=True)
    if not padded:
        return passed
    along = sorted(padded & f.varies)
    if along:
        return f"pads axis {along[0]}, along which the factors vary"
    if node.attributes.get_string("mode", "constant") != "constant":
        return passed
    if fill is None or not np.isfinite(fill):
        return "pads with a value that is not known"
    if (f.scale * fill + f.shift == fill).all():
        return passed
    array = constants.array(value) if value is not None or context.reading.opset < 11 else _zero(input_at(node, 0))
    if array is None or not (backward or f.scale.all()):
        return f"pads with {fill:g}, which the map would change"
    image = f.scale * fill + f.shift if backward else (fill - f.shift) / f.scale
    with np.errstate(over="ignore"):
        changed = np.full_like(array, image.reshape(-1)[0])
    if not (image == image.reshape(-1)[0]).all() or not np.isfinite(changed.astype(np.float64)).all():
        return f"pads with {fill:g}, which the map would change"
    return Passed(((0, f),), ((2, changed),), shrinks=True)
