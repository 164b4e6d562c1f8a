"""Operators that the target opset does not have, in those that it has: short equivalents, exact also for NaN.

The rules write at the target opset; where it lacks an operator that they need, the message names that operator.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule


def need(context: Context, op_type: str, since: int) -> None:
    """Refuse where the target opset has no ``op_type``."""
    if context.opset < since:
        raise NoEquivalent(f"{op_type}, which it is made of, came with opset {since}")


def gelu(operation: Operation, context: Context) -> Result:
    """x/2 · (1 + erf(x / √2)), or its approximation x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    x = operation.x()
    if operation.text("approximate", "none") == "tanh":
        cube = context.op("Mul", context.op("Mul", x, x), x)
        inner = context.op("Add", x, context.op("Mul", cube, context.scalar("cubic", 0.044715, x)))
        bend = context.op("Tanh", context.op("Mul", inner, context.scalar("root", np.sqrt(2 / np.pi), x)))
    else:
        need(context, "Erf", 9)
        bend = context.op("Erf", context.op("Div", x, context.scalar("sqrt_two", np.sqrt(2.0), x)))
    half = context.op("Mul", x, context.scalar("half", 0.5, x))
    return (context.op("Mul", half, context.op("Add", bend, context.scalar("one", 1.0, x))),)


def hard_swish(operation: Operation, context: Context) -> Result:
    """x · max(0, min(1, x/6 + 1/2))."""
    x = operation.x()
    return (context.op("Mul", x, context.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),)


def mish(operation: Operation, context: Context) -> Result:
    """x · tanh(softplus(x))."""
    x = operation.x()
    return (context.op("Mul", x, context.op("Tanh", context.op("Softplus", x))),)


def swish(operation: Operation, context: Context) -> Result:
    """x · sigmoid(α · x)."""
    x, alpha = operation.x(), operation.number("alpha", 1.0)
    inner = x if alpha == 1 else context.op("Mul", x, context.scalar("alpha", alpha, x))
    return (context.op("Mul", x, context.op("Sigmoid", inner)),)


def celu(operation: Operation, context: Context) -> Result:
    """α · elu(x / α)."""
    x, alpha = operation.x(), operation.number("alpha", 1.0)
    if alpha == 1:
        return (context.op("Elu", x, alpha=1.0),)
    factor = context.scalar("alpha", alpha, x)
    return (context.op("Mul", context.op("Elu", context.op("Div", x, factor), alpha=1.0), factor),)


def cast_like(operation: Operation, context: Context) -> Result:
    """Cast to the type of the second operand."""
    like = operation.operand(1)
    dtype = context.node.outputs[0].dtype or context.type_of(like)
    return (context.op("Cast", operation.x(), dtype=dtype, to=int(dtype)),)


def or_equal(operation: Operation, context: Context) -> Result:
    """a ≥ b is a > b or a = b; below opset 11 floats have no Equal: not a < b, and neither is NaN."""
    a, b = operation.inputs[:2]
    assert a is not None
    assert b is not None
    dtype = context.type_of(a)
    is_float = dtype in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
    beyond, short = ("Greater", "Less") if operation.op_type == "GreaterOrEqual" else ("Less", "Greater")
    if not is_float:
        need(context, f"{beyond} of {dtype.name.lower()}", 9)
        return (context.boolean("Or", context.boolean(beyond, a, b), context.boolean("Equal", a, b)),)
    if context.opset >= 11:
        return (context.boolean("Or", context.boolean(beyond, a, b), context.boolean("Equal", a, b)),)
    ordered = context.boolean("And", is_number(a, context), is_number(b, context))
    return (context.boolean("And", context.boolean("Not", context.boolean(short, a, b)), ordered),)


def is_number(x: ir.Value, context: Context) -> ir.Value:
    """Write "x is not NaN": it is below one or above zero."""
    below = context.boolean("Less", x, context.scalar("one", 1.0, x))
    return context.boolean("Or", below, context.boolean("Greater", x, context.scalar("zero", 0.0, x)))


def equal_floats(operation: Operation, context: Context) -> Result:
    """11 to 7: Equal of floats is neither below nor above, and no NaN."""
    a, b = operation.inputs[:2]
    if context.type_of(a) not in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return operation
    assert a is not None
    assert b is not None
    apart = context.boolean("Or", context.boolean("Less", a, b), context.boolean("Greater", a, b))
    ordered = context.boolean("And", is_number(a, context), is_number(b, context))
    return (context.boolean("And", context.boolean("Not", apart), ordered),)


def sign(operation: Operation, context: Context) -> Result:
    """(x > 0) − (x < 0)."""
    x = operation.x()
    dtype, zero = context.type_of(x), context.scalar("zero", 0.0, x)
    parts = [
        context.op("Cast", context.boolean(side, x, zero), dtype=dtype, to=int(dtype)) for side in ("Greater", "Less")
    ]
    return (context.op("Sub", *parts),)


def is_nan(operation: Operation, context: Context) -> Result:
    """Not below one nor above zero."""
    return (context.boolean("Not", is_number(operation.x(), context)),)


def where_of_integers(operation: Operation, context: Context) -> Result:
    """c · a + (1 − c) · b, exact for integers: they have no infinity and no NaN."""
    condition, a, b = operation.inputs[:3]
    assert condition is not None
    assert a is not None
    assert b is not None
    dtype = context.type_of(a)
    if dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        raise NoEquivalent("a sum of products would not keep infinities and NaN")
    chosen = context.op("Cast", condition, dtype=dtype, to=int(dtype))
    rest = context.op("Sub", context.scalar("one", 1, a), chosen)
    return (context.op("Add", context.op("Mul", chosen, a), context.op("Mul", rest, b)),)


def constant_of_shape(operation: Operation, context: Context) -> Result:
    """Tile a tensor of one element."""
    attribute = operation.attribute("value")
    fill = np.zeros(1, np.float32) if attribute is None else np.asarray(attribute.numpy())
    dtype = ir.DataType.FLOAT if attribute is None else attribute.dtype
    return (filled(operation.x(), fill, dtype, context),)


def filled(shape: ir.Value, fill: np.typing.NDArray[np.generic], dtype: ir.DataType, context: Context) -> ir.Value:
    """Write a tensor of ``shape``, known or not, that is ``fill`` throughout."""
    dims = context.dims(shape)
    rank = None if dims is None or len(dims) != 1 else dims[0]
    if rank is None:
        raise NoEquivalent(f"the length of '{shape.name}' is unknown")
    cell = context.constant("fill", fill.reshape((1,) * rank), dtype)
    return cell if rank == 0 else context.op("Tile", cell, shape, dtype=dtype)


def expand(operation: Operation, context: Context) -> Result:
    """Multiply by ones of the shape, which keeps every value; NumPy broadcasting came with opset 7."""
    x, shape = operation.inputs[:2]
    assert x is not None
    assert shape is not None
    dtype = context.type_of(x)
    if dtype == ir.DataType.BOOL:
        return (context.boolean("And", x, filled(shape, np.ones(1), dtype, context)),)
    return (context.op("Mul", x, filled(shape, np.ones(1), dtype, context)),)


def einsum(operation: Operation, context: Context) -> Result:
    """Transpose, where the equation only orders the axes of one operand anew."""
    equation = operation.text("equation", "").replace(" ", "")
    before, arrow, after = equation.partition("->")
    letters = "".join(sorted(set(before)))
    after = after if arrow else letters
    if len(operation.inputs) != 1 or not before.isalpha() or len(letters) != len(before) or sorted(after) != [*letters]:
        raise NoEquivalent("")
    return (context.transposed(operation.x(), tuple(before.index(letter) for letter in after)),)


def mean_variance_normalization(operation: Operation, context: Context) -> Result:
    """(x − E[x]) / (sqrt(E[(x − E[x])²]) + 1e-9), E over axes 0, 2, 3 by default."""
    x = operation.x()
    axes = operation.integers("axes") or (0, 2, 3)
    if min(axes) < 0:
        axes = tuple(axis % context.rank_of(x) for axis in axes)
    deviation = context.op("Sub", x, context.mean(x, axes))
    root = context.op("Sqrt", context.mean(context.op("Mul", deviation, deviation), axes))
    return (context.op("Div", deviation, context.op("Add", root, context.scalar("epsilon", 1e-9, x))),)


def scatter_up(operation: Operation, context: Context) -> Result:
    """Scatter became ScatterElements with version 11."""
    return operation.named("ScatterElements")


def scatter_elements(operation: Operation, context: Context) -> Result:
    """ScatterElements without negative indices and reduction is Scatter."""
    x, indices = operation.inputs[:2]
    need(context, "Scatter", 9)
    assert x is not None
    assert indices is not None
    if int(np.min(context.known(indices, "indices"), initial=0)) < 0:
        raise NoEquivalent("Scatter takes no negative indices")
    axis = operation.integer("axis", 0)
    return operation.named("Scatter").having(axis=axis + context.rank_of(x) if axis < 0 else axis)


MISSING: dict[str, Rule] = {
    "CastLike": cast_like,
    "Celu": celu,
    "ConstantOfShape": constant_of_shape,
    "Einsum": einsum,
    "Expand": expand,
    "Gelu": gelu,
    "GreaterOrEqual": or_equal,
    "HardSwish": hard_swish,
    "IsNaN": is_nan,
    "LessOrEqual": or_equal,
    "MeanVarianceNormalization": mean_variance_normalization,
    "Mish": mish,
    "ScatterElements": scatter_elements,
    "Sign": sign,
    "Swish": swish,
    "Where": where_of_integers,
}
"""What each operator is written as below its first version."""

RAISING: dict[tuple[str, int], Rule] = {("Scatter", 11): scatter_up}
LOWERING: dict[tuple[str, int], Rule] = {("Equal", 11): equal_floats}
