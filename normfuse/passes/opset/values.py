"""Rules about values and types: constants, casts, shapes, powers, extrema of integers, quantization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.passes.opset.missing import filled
from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_FLOAT8 = tuple(dtype for dtype in ir.DataType if dtype.name.startswith("FLOAT8"))
_SPELLED = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def constant_12_down(operation: Operation, context: Context) -> Result:
    """A number or a list becomes a tensor."""
    for name, dtype in _SPELLED.items():
        if name in operation.attributes:
            tensor = ir.tensor(np.asarray(operation.attribute(name), dtype))
            attributes = {"value": ir.AttrTensor("value", tensor)}
            return Operation("Constant", (), attributes, operation.outputs)
    if "value" not in operation.attributes:
        raise NoEquivalent("version 11 knows constants of numbers only")
    return operation


def constant_9_down(operation: Operation, context: Context) -> Result:
    """Constant-1 is of floats; other numbers become an initializer, in a function a Cast of floats that hold them."""
    tensor = operation.attribute("value")
    if tensor is None or tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return operation
    array = np.asarray(tensor.numpy())
    if not context.in_function:
        return (context.constant("constant", array, tensor.dtype),)
    wide = array.astype(np.float64)
    if array.dtype.kind not in "iub" or not np.array_equal(wide.astype(array.dtype), array):
        raise NoEquivalent("its value is not a float64")
    floats = ir.node("Constant", [], attributes={"value": ir.tensor(wide)})
    context.add(floats)
    floats.outputs[0].dtype = ir.DataType.DOUBLE
    return (context.op("Cast", floats.outputs[0], dtype=tensor.dtype, to=int(tensor.dtype)),)


def cast_6_up(operation: Operation, context: Context) -> Result:
    """The type was spelled as a word."""
    to = operation.attribute("to")
    if not isinstance(to, str):
        return operation
    return operation.having(to=int(ir.DataType[to.upper()]))


def cast_19_down(operation: Operation, context: Context) -> Result:
    """Saturation is of float8 only."""
    if context.node.outputs[0].dtype in _FLOAT8:
        return operation
    return operation.without("saturate")


def cast_24_down(operation: Operation, context: Context) -> Result:
    """Rounding up is of float8e8m0 only."""
    if context.node.outputs[0].dtype in _FLOAT8:
        return operation
    return operation.without("round_mode")


def shape_15_down(operation: Operation, context: Context) -> Result:
    """A part of a shape is a Slice of all of it."""
    start, end = operation.integer("start", 0), operation.attribute("end")
    whole = context.shape(operation.x())
    if start == 0 and end is None:
        return (whole,)
    return (context.sliced(whole, start, np.iinfo(np.int64).max if end is None else int(end)),)


def reshape_14_down(operation: Operation, context: Context) -> Result:
    """With ``allowzero`` a zero is an empty axis, else a copy: the same wherever no axis is empty."""
    if not operation.integer("allowzero", 0):
        return operation.without("allowzero")
    shape = operation.operand(1)
    array = context.array(shape)
    if array is None:
        context.caveats.append("its shape is computed: with allowzero an empty axis is kept, without it is copied")
    elif 0 in array.reshape(-1):
        raise NoEquivalent("allowzero makes an empty tensor")
    return operation.without("allowzero")


def pow_12_down(operation: Operation, context: Context) -> Result:
    """Base and exponent were of one float type."""
    base, exponent = operation.inputs[:2]
    assert base is not None
    assert exponent is not None
    dtype = context.type_of(base)
    if dtype not in _FLOATS:
        raise NoEquivalent(f"version 7 does not raise {dtype.name.lower()} to a power")
    if context.type_of(exponent) == dtype:
        return operation
    power = context.array(exponent)
    if power is None:
        return operation.reading(base, context.op("Cast", exponent, dtype=dtype, to=int(dtype)))
    with np.errstate(over="ignore"):
        rounded = power.astype(dtype.numpy())
    if not np.array_equal(rounded.astype(np.float64), power.astype(np.float64)):
        raise NoEquivalent(f"its exponent is not exact in {dtype.name.lower()}")
    return operation.reading(base, context.constant(f"{exponent.name}_as_base", power, dtype))


def extremum_12_down(operation: Operation, context: Context) -> Result:
    """Max and Min of integers, unknown before version 12: Where the one is beyond the other."""
    first, *others = (value for value in operation.inputs if value is not None)
    dtype = context.type_of(first)
    if dtype in _FLOATS or context.opset < 9 or dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return operation
    side = "Greater" if operation.op_type == "Max" else "Less"
    result = first
    for other in others:
        result = context.op("Where", context.boolean(side, result, other), result, other, dtype=dtype)
    return (result,)


def extremum_8_down(operation: Operation, context: Context) -> Result:
    """Max, Min, Sum and Mean did not broadcast before version 8: pairs of Add do, and so does Mul by ones."""
    values = [value for value in operation.inputs if value is not None]
    first = values[0]
    dims = [context.dims(value) for value in values]
    if len(values) == 1 or (dims[0] is not None and None not in dims[0] and all(own == dims[0] for own in dims)):
        return operation
    if operation.op_type in ("Sum", "Mean"):
        total = first
        for value in values[1:]:
            total = context.op("Add", total, value)
        if operation.op_type == "Mean":
            total = context.op("Div", total, context.scalar("count", len(values), first))
        return (total,)
    largest = next((value for value in values if all(_fits(other, value, context) for other in values)), None)
    if largest is None:
        raise NoEquivalent("version 6 does not broadcast")
    ones = filled(context.shape(largest), np.ones(1), context.type_of(first), context)
    return operation.reading(*(value if value is largest else context.op("Mul", value, ones) for value in values))


def _fits(value: ir.Value, into: ir.Value, context: Context) -> bool:
    """Whether broadcasting ``value`` with ``into`` gives the shape of ``into``."""
    own, other = context.dims(value), context.dims(into)
    if value is into:
        return True
    if own is None or other is None or len(own) > len(other):
        return False
    return all(a == 1 or (a is not None and a == b) for a, b in zip(reversed(own), reversed(other), strict=False))


def mod_28_down(operation: Operation, context: Context) -> Result:
    """Version 13 knows of floats only the remainder of C, with the sign of the dividend; that of Python follows from it.

    With r of the former, r + y where the signs of r and y differ; a zero takes the sign of y.
    """
    x, y = operation.inputs[:2]
    assert x is not None
    assert y is not None
    if operation.integer("fmod", 0) or context.type_of(x) not in _FLOATS:
        return operation
    zero = context.scalar("zero", 0.0, x)
    rest = context.op("Mod", x, y, fmod=1)
    below, above = context.boolean("Less", rest, zero), context.boolean("Greater", rest, zero)
    negative = context.boolean("Less", y, zero)
    differs = context.boolean(
        "Or",
        context.boolean("And", below, context.boolean("Greater", y, zero)),
        context.boolean("And", above, negative),
    )
    moved = context.op("Where", differs, context.op("Add", rest, y), rest, dtype=x.dtype)
    signed = context.op("Where", negative, context.scalar("negative_zero", -0.0, x), zero, dtype=x.dtype)
    is_no_zero = context.boolean("Or", context.boolean("Or", below, above), context.boolean("IsNaN", rest))
    return (context.op("Where", is_no_zero, moved, signed, dtype=x.dtype),)


def clip_12_down(operation: Operation, context: Context) -> Result:
    """Bounds of integers, unknown before version 12: Where x is beyond them."""
    x = operation.x()
    dtype = context.type_of(x)
    if dtype in _FLOATS or context.opset < 9 or dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return operation
    bounds = [(side, operation.operand(index)) for side, index in (("Less", 1), ("Greater", 2))]
    for side, bound in bounds:
        if bound is not None:
            x = context.op("Where", context.boolean(side, x, bound), bound, x, dtype=dtype)
    return (x,)


def gemm_11_down(operation: Operation, context: Context) -> Result:
    """The addend was not optional: zero."""
    a, b, c = (operation.operand(index) for index in range(3))
    assert a is not None
    return operation if c is not None else operation.reading(a, b, context.vector("zero", [0], a))


def quantize_21_down(operation: Operation, context: Context) -> Result:
    """The result type comes from the zero point alone."""
    wanted = ir.DataType(operation.integer("output_dtype", 0))
    operation = operation.without("output_dtype")
    zero = operation.operand(2)
    if wanted == ir.DataType.UNDEFINED or zero is not None:
        return operation
    scale = operation.operand(1)
    assert scale is not None
    dims = context.dims(scale)
    if dims is None or None in dims:
        raise NoEquivalent("its output_dtype needs a zero point, and the sizes of its scale are unknown")
    shape = [dim or 0 for dim in dims]
    return operation.reading(operation.x(), scale, context.constant("zero_point", np.zeros(shape), wanted))


def dequantize_23_down(operation: Operation, context: Context) -> Result:
    """The result is of the type of the scale."""
    wanted = ir.DataType(operation.integer("output_dtype", 0))
    if wanted not in (ir.DataType.UNDEFINED, context.type_of(operation.operand(1))):
        raise NoEquivalent("its output_dtype is not the type of its scale")
    return operation.without("output_dtype")


def if_11_down(operation: Operation, context: Context) -> Result:
    """Both branches had to give results of the same shape."""
    branches = [operation.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for one, other in zip(*(branch.outputs for branch in branches), strict=True):
        first, second = context.dims(one), context.dims(other)
        if first is None or second is None:
            continue
        same = len(first) == len(second) and all(a == b or None in (a, b) for a, b in zip(first, second, strict=True))
        if not same:
            raise NoEquivalent("its branches give different shapes")
    return operation


def scan_9(operation: Operation, context: Context) -> Result:
    """Scan-8 runs over a batch of sequences of given lengths, Scan-9 over one."""
    raise NoEquivalent("version 9 took away its batch axis")


RAISING: dict[tuple[str, int], Rule] = {("Cast", 6): cast_6_up, ("Scan", 9): scan_9}
LOWERING: dict[tuple[str, int], Rule] = {
    **{(name, 8): extremum_8_down for name in ("Max", "Min", "Sum", "Mean")},
    **{(name, 12): extremum_12_down for name in ("Max", "Min")},
    **{(name, 19): cast_19_down for name in ("Cast", "CastLike", "QuantizeLinear")},
    **{(name, 24): cast_24_down for name in ("Cast", "CastLike")},
    ("Clip", 12): clip_12_down,
    ("Constant", 9): constant_9_down,
    ("Constant", 12): constant_12_down,
    ("DequantizeLinear", 23): dequantize_23_down,
    ("If", 11): if_11_down,
    ("Gemm", 11): gemm_11_down,
    ("Mod", 28): mod_28_down,
    ("Pow", 12): pow_12_down,
    ("QuantizeLinear", 21): quantize_21_down,
    ("Reshape", 14): reshape_14_down,
    ("Scan", 9): scan_9,
    ("Shape", 15): shape_15_down,
}
