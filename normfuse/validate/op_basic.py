"""Element-wise operators, reductions and data movement in float64: what every graph uses, spared the fallback's set-up.

Each returns what ONNX's operator of any opset returns; a case that is not handled raises NotOurs and goes to
onnx.reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, Results
from normfuse.validate.rounding import Array, is_float, widen

_ERF_STEP = 1.0 / 64.0
_ERF_TERMS = 7
_ERF_END = 6.0  # erf(6) = 1 − 2e-17, which is 1 in float64.
_ERF_GRID = np.arange(0.0, _ERF_END + _ERF_STEP, _ERF_STEP)
_ERF_TABLE = np.array([math.erf(point) for point in _ERF_GRID])


def erf(x: Array) -> Array:
    """Return erf(x), absolute error below 1e-15.

    Taylor series around the nearest of a grid of step 1/64:
    erf(g + d) = erf(g) + 2/√π · exp(−g²) · Σ (−1)^(n−1) H_{n−1}(g) d^n / n!, H the Hermite polynomials.
    """
    magnitude = np.minimum(np.abs(x), _ERF_END)
    index = np.nan_to_num(magnitude / _ERF_STEP).round().astype(np.intp)
    grid = _ERF_GRID[index]
    distance = magnitude - grid
    before, hermite = np.zeros_like(grid), np.ones_like(grid)
    term, total = distance.copy(), distance.copy()
    for n in range(2, _ERF_TERMS + 1):
        before, hermite = hermite, 2.0 * grid * hermite - 2.0 * (n - 2) * before
        term = term * (-distance / n)
        total += hermite * term
    return np.asarray(np.copysign(_ERF_TABLE[index] + 2.0 / math.sqrt(math.pi) * np.exp(-grid * grid) * total, x))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(−x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def gelu(x: Array) -> Array:
    """Return x/2 · (1 + erf(x/√2))."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Array) -> Array:
    """Return the tanh form of GELU."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def activate(x: Array, name: str, alpha: float | None = None, beta: float | None = None) -> Array:
    """Return the activation ``name`` of x, with onnxruntime's activation_params where it has any."""
    if name == "Relu":
        return np.maximum(x, 0.0)
    if name == "LeakyRelu":
        return np.where(x >= 0, x, x * (0.01 if alpha is None else alpha))
    if name == "Clip":
        return np.clip(x, alpha, beta)
    if name == "HardSigmoid":
        return np.clip(x * (0.2 if alpha is None else alpha) + (0.5 if beta is None else beta), 0.0, 1.0)
    simple: dict[str, Callable[[Array], Array]] = {
        "": lambda v: v,
        "Sigmoid": sigmoid,
        "Tanh": np.tanh,
        "Silu": lambda v: v * sigmoid(v),
        "Gelu": gelu,
    }
    if name not in simple:
        raise ValueError(f"activation {name} is not known")
    return simple[name](x)


def _legacy(call: Call, a: Array, b: Array) -> Array:
    """Return ``b`` shaped for a: before opset 7, ``broadcast`` lines it up at ``axis`` of a."""
    if call.opset >= 7 or not call.int("broadcast", 0) or b.ndim == 0:
        return b
    axis = call.attributes.get("axis")
    first = a.ndim - b.ndim if axis is None else int(axis) % a.ndim
    return b.reshape(*b.shape, *(1,) * (a.ndim - first - b.ndim))


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    def operator(call: Call, a: Array, b: Array) -> Results:
        if call.op == "Div" and a.dtype.kind != "f":
            raise NotOurs  # integer division truncates in ONNX
        return (np.asarray(function(a, _legacy(call, a, b))),)

    return operator


def _power(call: Call, a: Array, b: Array) -> Results:
    if a.dtype.kind != "f":
        raise NotOurs
    exponent = _legacy(call, a, b)
    return (a * a if exponent.size == 1 and exponent.reshape(()) == 2 else np.asarray(np.power(a, exponent)),)


def _unary(function: Callable[[Array], Array]) -> Operator:
    def operator(call: Call, x: Array) -> Results:
        return (np.asarray(function(x)),)

    return operator


def _variadic(function: Callable[[Array, Array], Array]) -> Operator:
    def operator(call: Call, *arrays: Array) -> Results:
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return (np.asarray(result),)

    return operator


def _activation(call: Call, x: Array) -> Results:
    alpha, beta = call.attributes.get("alpha"), call.attributes.get("beta")
    return (activate(x, call.op, alpha, beta),)


def _hard_swish(call: Call, x: Array) -> Results:
    """x · clip(x/6 + 1/2, 0, 1); onnx.reference rounds the 1/6 to float32."""
    return (x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),)


def _gelu(call: Call, x: Array, bias: Array | None = None) -> Results:
    total = x if bias is None else x + bias
    approximate = call.op == "FastGelu" or call.text("approximate", "none") == "tanh"
    return (gelu_tanh(total) if approximate else gelu(total),)


def _quick_gelu(call: Call, x: Array) -> Results:
    return (x * sigmoid(call.float("alpha", 1.702) * x),)


def _clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Results:
    if call.opset < 11:
        return (np.clip(x, call.float("min", -math.inf), call.float("max", math.inf)),)
    x = x if low is None else np.maximum(x, low)
    return (x if high is None else np.minimum(x, high),)


def _softmax(call: Call, x: Array) -> Results:
    """Along one axis from opset 13; before, over all axes from ``axis`` on."""
    first = call.int("axis", -1 if call.opset >= 13 else 1) % max(x.ndim, 1)
    axes = (first,) if call.opset >= 13 else tuple(range(first, x.ndim))
    top = x.max(axis=axes, keepdims=True)
    shifted = x - np.where(np.isfinite(top), top, 0.0)
    total = np.exp(shifted).sum(axis=axes, keepdims=True)
    return (shifted - np.log(total) if call.op == "LogSoftmax" else np.exp(shifted) / total,)


def _reduce(function: Callable[..., Any]) -> Operator:
    def operator(call: Call, x: Array, axes: Array | None = None) -> Results:
        if x.dtype.kind != "f":
            raise NotOurs
        chosen = call.ints("axes", ()) if axes is None else tuple(int(axis) for axis in axes.reshape(-1))
        if not chosen and axes is not None and call.int("noop_with_empty_axes", 0):
            raise NotOurs
        if not chosen and call.int("noop_with_empty_axes", 0):
            raise NotOurs
        keep = bool(call.int("keepdims", 1))
        return (np.asarray(function(x, axis=chosen or None, keepdims=keep)),)

    return operator


def _reshape(call: Call, x: Array, shape: Array | None = None) -> Results:
    wanted = list(call.ints("shape", ())) if shape is None else [int(size) for size in shape]
    if not call.int("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return (x.reshape(wanted),)


def _transpose(call: Call, x: Array) -> Results:
    return (x.transpose(call.ints("perm", tuple(reversed(range(x.ndim))))),)


def _concat(call: Call, *arrays: Array) -> Results:
    return (np.concatenate(arrays, axis=call.int("axis", 1)),)


def _flatten(call: Call, x: Array) -> Results:
    axis = call.int("axis", 1)
    return (x.reshape(math.prod(x.shape[: axis % x.ndim if axis < 0 else axis]), -1),)


def _shape(call: Call, x: Array) -> Results:
    sizes = np.array(x.shape, dtype=np.int64)
    return (sizes[call.attributes.get("start") : call.attributes.get("end")],)


def _gather_elements(call: Call, x: Array, indices: Array) -> Results:
    """y[i, j, …] = x[i, …, indices[i, j, …], …]; along the other axes y is as large as ``indices``, x at least as large."""
    axis = call.int("axis", 0) % x.ndim
    where: list[Array] = list(np.indices(indices.shape, sparse=True))
    where[axis] = indices
    # An axis of size 1 in x is repeated, as onnxruntime does.
    shape = tuple(max(a, b) if i != axis else a for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)))
    return (np.broadcast_to(x, shape)[tuple(where)],)


def _gather(call: Call, x: Array, indices: Array) -> Results:
    axis = call.int("axis", 0)
    if indices.size and not -x.shape[axis] <= int(indices.min()) <= int(indices.max()) < x.shape[axis]:
        raise ValueError(f"index out of range for axis {axis} of {x.shape}")
    return (np.take(x, indices, axis=axis),)


def _expand(call: Call, x: Array, shape: Array) -> Results:
    return (np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(size) for size in shape))),)


def _cast(call: Call, x: Array) -> Results:
    target = (
        ir.DataType(call.int("to", 0))
        if not isinstance(call.attributes.get("to"), str)
        else ir.DataType[call.text("to", "")]
    )
    if is_float(target):
        if x.dtype.kind not in "fiub":
            raise NotOurs
        return (x.astype(np.float64),)
    if x.dtype.kind not in "fiub" or target not in _INTEGERS:
        raise NotOurs
    with np.errstate(invalid="ignore"):
        return (x.astype(_INTEGERS[target]),)


_INTEGERS = {
    kind: kind.numpy()
    for kind in (
        ir.DataType.BOOL,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    )
}


def _cast_like(call: Call, x: Array, like: Array) -> Results:
    return (x.astype(like.dtype),)


def _constant(call: Call) -> Results:
    for name, value in call.attributes.items():
        if name == "value":
            return (widen(value.numpy()),)
        if name in ("value_float", "value_floats"):
            return (np.asarray(value, dtype=np.float64),)
        if name in ("value_int", "value_ints"):
            return (np.asarray(value, dtype=np.int64),)
    raise NotOurs


def _constant_of_shape(call: Call, shape: Array) -> Results:
    value = call.attributes.get("value")
    fill = np.zeros(1) if value is None else widen(value.numpy())
    return (np.full(tuple(int(size) for size in shape), fill.reshape(-1)[0], dtype=fill.dtype),)


def _dropout(call: Call, x: Array, ratio: Array | None = None, training: Array | None = None) -> Results:
    return (x, np.ones(x.shape, dtype=bool))[: len(call.outputs)]


def _where(call: Call, condition: Array, a: Array, b: Array) -> Results:
    return (np.where(condition, a, b),)


def _fake_quantized(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Results:
    """DequantizeLinear per tensor or per axis: (x − zero) · scale."""
    if call.int("block_size", 0):
        raise NotOurs
    if scale.ndim == 1 and scale.size > 1:
        axis = call.int("axis", 1) % x.ndim
        shape = tuple(-1 if i == axis else 1 for i in range(x.ndim))
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    if x.dtype.kind == "f":
        raise NotOurs
    wide = x.astype(np.float64) - (0.0 if zero is None else zero.astype(np.float64))
    return (wide * (scale if scale.ndim > 1 or scale.size > 1 else scale.reshape(())),)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Exp": np.exp,
    "Log": np.log,
    "Erf": erf,
    "Identity": np.asarray,
}
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSumSquare": lambda x, **how: np.sum(x * x, **how),
    "ReduceL1": lambda x, **how: np.sum(np.abs(x), **how),
    "ReduceL2": lambda x, **how: np.sqrt(np.sum(x * x, **how)),
}

OPERATORS: dict[OperatorKey, Operator] = {
    **{
        ("", name): _binary(function)
        for name, function in {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}.items()
    },
    **{("", name): _unary(function) for name, function in _UNARY.items()},
    **{("", name): _reduce(function) for name, function in _REDUCTIONS.items()},
    **{("", name): _activation for name in ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")},
    **{
        ("", name): _variadic(function)
        for name, function in {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}.items()
    },
    ("", "Pow"): _power,
    ("", "Clip"): _clip,
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _softmax,
    ("", "HardSwish"): _hard_swish,
    ("", "Gelu"): _gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "FastGelu"): _gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("", "Reshape"): _reshape,
    ("", "Transpose"): _transpose,
    ("", "Concat"): _concat,
    ("", "Flatten"): _flatten,
    ("", "Shape"): _shape,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "Expand"): _expand,
    ("", "Where"): _where,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast_like,
    ("", "Constant"): _constant,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Dropout"): _dropout,
    ("", "DequantizeLinear"): _fake_quantized,
}
