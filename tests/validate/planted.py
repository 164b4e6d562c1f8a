"""Pairs of models: wrong in one realistic way, or different by rounding alone. Rows of tables; the tests go through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

import normfuse
from normfuse import Form, Target
from tests.validate.nets import Array, Block, blocks, folded, network

Pair = tuple[onnx.ModelProto, onnx.ModelProto]
TYPE = {"float": np.float32, "float16": np.float16}


def graph(text: str, opset: int = 17, **arrays: Any) -> onnx.ModelProto:
    """Return a model from ONNX text with ``arrays`` as initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return model


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32, scale: float = 1.0) -> Array:
    """Return seeded normal numbers."""
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(dtype)


def _block(**changes: Any) -> Any:
    def fault(block: Block) -> Block:
        return replace(block, **{name: change(block) for name, change in changes.items()})

    return fault


def _at(name: str, channel: int, *, factor: float = 1.0, shift: float = 0.0) -> Any:
    """One channel of one parameter scaled, or moved by a share of the channel's deviation."""

    def fault(block: Block) -> Block:
        array = getattr(block, name).copy()
        deviation = abs(block.scale[channel]) if name == "bias" else np.sqrt(block.var[channel])
        array[channel] = array[channel] * factor + shift * deviation
        return replace(block, **{name: array})

    return fault


FOLDS: dict[str, Any] = {
    "γ of one channel off by 0.1 %": _at("scale", 2, factor=1.001),
    "variance of one channel off by 0.1 %": _at("var", 3, factor=1.001),
    "β of one channel off by 0.1 % of its deviation": _at("bias", 1, shift=1e-3),
    "mean of one channel off by 0.1 % of its deviation": _at("mean", 4, shift=1e-3),
    "γ without its sign": _block(scale=lambda b: np.abs(b.scale)),
    "variance for deviation": _block(var=lambda b: b.var**2),
    "mean and β swapped": _block(mean=lambda b: b.bias, bias=lambda b: b.mean),
    "mean forgotten": _block(mean=lambda b: 0 * b.mean),
    "γ in reverse order": _block(scale=lambda b: b.scale[::-1]),
    "variance in reverse order": _block(var=lambda b: b.var[::-1]),
    "two maps of the weight swapped": _block(weight=lambda b: b.weight[[1, 0, *range(2, 8)]]),
    "kernel transposed": _block(weight=lambda b: b.weight.swapaxes(2, 3)),
}

C = "float[N,6,5,5]"
LN = """m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  two = Constant <value_float = {power}> ()  p = Pow (d, two)
    v = ReduceMean <axes = [-1]> (p)  e = Constant <value_float = {epsilon}> ()  {root}  n = Div (d, s)  ns = Mul (n, g)  y = Add (ns, b)"""
INSIDE, OUTSIDE = "ve = Add (v, e)  s = Sqrt (ve)", "sd = Sqrt (v)  s = Add (sd, e)"


def ln(power: float = 2.0, epsilon: float = 1e-5, root: str = INSIDE, bias: int = 8) -> onnx.ModelProto:
    text = f"g (float[N,5,8] x) => (float[N,5,8] y) {{ {LN.format(power=power, epsilon=epsilon, root=root)} }}"
    return graph(text, g=normal(8), b=normal(8, seed=bias))


def one(
    op: str, attributes: str, shape: str = "N,6,5,5", opset: int = 21, dtype: str = "float", **arrays: Array
) -> Any:
    """One operator on x with initializers as further inputs, in their order."""
    operands = ", ".join(["x", *arrays])
    text = f"g ({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ y = {op} {attributes} ({operands}) }}"
    return graph(text, opset, **{name: array.astype(TYPE[dtype]) for name, array in arrays.items()})


def body(text: str, inputs: str = f"{C} x", outputs: str = f"{C} y", opset: int = 17, **arrays: Any) -> Any:
    return graph(f"g ({inputs}) => ({outputs}) {{ {text} }}", opset, **arrays)


W, K, S6, B6 = normal(6, 6, 3, 3, scale=0.2), normal(6, 6, 1, 1, scale=0.4), normal(6, seed=1), normal(6, seed=2)
M6, V6 = normal(6, seed=3), np.abs(normal(6, seed=4)) + np.float32(0.5)
SQ, VEC = normal(6, 6, scale=0.4), normal(6, seed=5)
BN = "BatchNormalization (h, s, b, m, v)"
CONV = "Conv <pads = [1,1,1,1]> (x, w)"
STATS: dict[str, Any] = {"s": S6, "b": B6, "m": M6, "v": V6}
A6 = S6 / np.sqrt(V6 + 1e-5)
SHIFT = B6 - A6 * M6


def _col(array: Array, rank: int = 4) -> Array:
    return np.asarray(array.reshape(-1, *(1,) * (rank - 2))).astype(np.float32)


def wrong_graphs() -> Iterator[tuple[str, Pair]]:
    """Yield pairs that differ in one realistic way."""
    s8, b8 = normal(8, seed=1), normal(8, seed=2)
    sb: dict[str, Any] = {"s": S6, "b": B6}
    for dtype in ("float", "float16"):
        for op, attributes, more, shape in (
            ("InstanceNormalization", "", sb, "N,6,5,5"),
            ("GroupNormalization", "num_groups = 2, ", sb, "N,6,5,5"),
            ("LayerNormalization", "axis = -1, ", {"s": s8, "b": b8}, "N,5,8"),
        ):
            pair = [one(op, f"<{attributes}epsilon = {e}>", shape, 21, dtype, **more) for e in ("1e-5", "1e-3")]
            yield f"{op} {dtype}: epsilon changed", (pair[0], pair[1])
    yield "RMSNormalization: epsilon changed", (
        one("RMSNormalization", "<epsilon = 1e-6>", "N,5,8", 23, s=s8), one("RMSNormalization", "<epsilon = 1e-5>", "N,5,8", 23, s=s8),
    )  # fmt: skip
    groups = [one("GroupNormalization", f"<num_groups = {n}>", **sb) for n in (1, 2, 3, 6)]
    yield "GroupNormalization: 2 groups for 3", (groups[2], groups[1])
    yield "GroupNormalization: one group for channels", (groups[3], groups[0])
    yield "GroupNormalization-18: scale tiled, not repeated", (
        one("GroupNormalization", "<num_groups = 2>", opset=18, s=S6[:2], b=B6[:2]),
        one("GroupNormalization", "<num_groups = 2>", s=np.tile(S6[:2], 3), b=np.tile(B6[:2], 3)),
    )  # fmt: skip
    layer = [
        one("LayerNormalization", f"<axis = {axis}>", "N,8,8", s=normal(*shape), b=normal(*shape, seed=3))
        for axis, shape in ((-1, (8,)), (-2, (8, 8)))
    ]
    yield "LayerNormalization: two axes for one", (layer[0], one("LayerNormalization", "<axis = -2>", "N,8,8", s=np.tile(normal(8), (8, 1)), b=np.tile(normal(8, seed=3), (8, 1))))  # fmt: skip
    yield "LayerNormalization: γ transposed", (layer[1], one("LayerNormalization", "<axis = -2>", "N,8,8", s=normal(8, 8).T, b=normal(8, 8, seed=3)))  # fmt: skip
    yield "LayerNormalization: weight in place of bias", (one("LayerNormalization", "", "N,5,8", s=s8, b=b8), one("LayerNormalization", "", "N,5,8", s=s8, b=s8))  # fmt: skip
    yield "LayerNormalization for RMSNormalization", (one("RMSNormalization", "", "N,5,8", 23, s=s8), one("LayerNormalization", "", "N,5,8", 23, s=s8))  # fmt: skip
    yield "InstanceNormalization for LayerNormalization", (groups[0], one("InstanceNormalization", "", **sb))
    yield "decomposed norm: exponent 3", (ln(), ln(power=3.0))
    yield "decomposed norm: exponent 4", (ln(power=4.0), ln())
    yield "decomposed norm: epsilon outside the root", (ln(root=OUTSIDE, epsilon=1e-3), ln(epsilon=1e-3))
    yield "decomposed norm: another bias", (ln(), ln(bias=9))
    keep = "m = ReduceMean <axes = [-1], keepdims = 0> (x)  y = Sub (x, m)"
    yield "keepdims = 0 read as 1", (body(keep, "float[6,6] x", "float[6,6] y"), body(keep.replace("keepdims = 0", "keepdims = 1"), "float[6,6] x", "float[6,6] y"))  # fmt: skip
    unbiased = "m = ReduceMean <axes = [2,3]> (x)  d = Sub (x, m)  q = Mul (d, d)  t = ReduceSum (q, a)  n = Constant <value_float = {n}> ()  v = Div (t, n)  s = Sqrt (v)  y = Div (d, s)"
    axes = np.array([2, 3])
    yield "unbiased variance for the biased one", (body(unbiased.format(n=24.0), a=axes), body(unbiased.format(n=25.0), a=axes))  # fmt: skip
    axis = [
        body(f"m = ReduceMean <axes = [{a}]> (x)  y = Sub (x, m)", "float[N,6,6] x", "float[N,6,6] y") for a in (1, 2)
    ]
    yield "norm over another axis of the same size", (axis[0], axis[1])
    yield "affine along another axis", (body("y = Mul (x, k)", "float[N,6,6,6] x", "float[N,6,6,6] y", k=VEC), body("y = Mul (x, k)", "float[N,6,6,6] x", "float[N,6,6,6] y", k=_col(VEC)))  # fmt: skip
    yield "affine that expands the shape", (body("y = Mul (x, k)", "float[2,5,1] x", "float[2,5,8] y", k=s8), body("y = Mul (x, k)", "float[2,5,1] x", "float[2,5,1] y", k=s8[:1]))  # fmt: skip
    bn = body(f"h = {CONV}  y = {BN}", w=W, **STATS)
    two = body(f"h = {CONV}  y = {BN}", outputs=f"{C} y, {C} h", w=W, **STATS)
    full = (W * A6[:, None, None, None]).astype(np.float32)
    yield "convolution folded although it is an output", (two, body(f"h = {CONV}  y = Add (h, z)", outputs=f"{C} y, {C} h", w=full, z=_col(SHIFT)))  # fmt: skip
    shared = f"h = {CONV}  n = {BN}  q = Conv <pads = [1,1,1,1]> (n, w)  y = Relu (q)"
    yield "shared weight edited in place", (body(shared, w=W, **STATS), body(f"h = {CONV}  n = Add (h, z)  q = Conv <pads = [1,1,1,1]> (n, w)  y = Relu (q)", w=full, z=_col(SHIFT)))  # fmt: skip
    train = body(f"h = {CONV}  y = BatchNormalization <training_mode = 1> (h, s, b, m, v)", w=W, **STATS)
    yield "training mode folded as inference", (train, bn)
    old = body(f"h = {CONV}  y, n1, n2, n3, n4 = {BN}", opset=8, w=W, **STATS)
    yield "training mode of opset 8 folded as inference", (old, body(f"h = {CONV}  y = {BN}", opset=8, w=W, **STATS))
    yield "bias of the convolution not scaled", (body(f"h = Conv <pads = [1,1,1,1]> (x, w, c)  y = {BN}", w=W, c=VEC, **STATS), body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=full, c=(VEC + SHIFT).astype(np.float32)))  # fmt: skip
    yield "mean ignored where there is no bias", (bn, body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=full, c=B6))
    before = body(
        "h = Identity (x)  n = BatchNormalization (h, s, b, m, v)  y = Conv <pads = [1,1,1,1]> (n, w)", w=W, **STATS
    )
    into = (W * A6[None, :, None, None]).astype(np.float32)
    yield "shift pushed into a padded convolution", (before, body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=into, c=(W.sum((2, 3)) @ SHIFT).astype(np.float32)))  # fmt: skip
    yield "norm before a convolution folded along its outputs", (before, body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=full, c=(W.sum((2, 3)) @ SHIFT).astype(np.float32)))  # fmt: skip
    transposed = body(f"h = ConvTranspose <pads = [1,1,1,1]> (x, w)  y = {BN}", w=W, **STATS)
    yield "transposed convolution folded along its inputs", (transposed, body("y = ConvTranspose <pads = [1,1,1,1]> (x, w, c)", w=full, c=SHIFT.astype(np.float32)))  # fmt: skip
    grouped = normal(6, 3, 3, 3, scale=0.3)
    yield "grouped transposed convolution folded by the wrong group", (
        body(f"h = ConvTranspose <pads = [1,1,1,1], group = 2> (x, w)  y = {BN}", w=grouped, **STATS),
        body("y = ConvTranspose <pads = [1,1,1,1], group = 2> (x, w, c)", w=(grouped * A6[:3][None, :, None, None]).astype(np.float32), c=SHIFT.astype(np.float32)),
    )  # fmt: skip
    pair2, out2 = "float[N,6] x", "float[N,6] y"
    for name, attribute in (
        ("alpha", "alpha = 2.0"),
        ("beta", "beta = 0.5"),
        ("transB", "transB = 1"),
        ("transA", "transA = 1"),
    ):
        ins, outs = (pair2, out2) if name != "transA" else ("float[6,6] x", "float[6,6] y")
        yield f"Gemm: {name} forgotten", (body(f"y = Gemm <{attribute}> (x, w, c)", ins, outs, w=SQ, c=VEC), body("y = Gemm (x, w, c)", ins, outs, w=SQ, c=VEC))  # fmt: skip
    rank3, out3 = "float[N,6,6] x", "float[N,6,6] y"
    yield "MatMul of rank 3 folded along the last axis", (body(f"h = MatMul (x, w)  y = {BN}", rank3, out3, w=SQ, **STATS), body("h = MatMul (x, w)  y = Add (h, z)", rank3, out3, w=(SQ * A6).astype(np.float32), z=SHIFT.astype(np.float32)))  # fmt: skip
    yield "weight transposed", (body("y = MatMul (x, w)", pair2, out2, w=SQ), body("y = MatMul (x, w)", pair2, out2, w=SQ.T.copy()))  # fmt: skip
    half: dict[str, Any] = {
        name: array.astype(np.float16)
        for name, array in (("w", normal(6, 6, 3, 3, scale=200.0)), ("s", S6), ("b", B6), ("m", M6))
    }
    scaled = half["w"].astype(float) * (half["s"].astype(float) / np.sqrt(2e-5))[:, None, None, None]
    with np.errstate(over="ignore"):
        infinite = scaled.astype(np.float16)
    yield "float16: folded weight overflows", (
        body(f"h = {CONV}  y = {BN}", "float16[N,6,5,5] x", "float16[N,6,5,5] y", **half, v=np.full(6, 1e-5, np.float16)),
        body(f"h = {CONV}  y = Add (h, z)", "float16[N,6,5,5] x", "float16[N,6,5,5] y", w=infinite, z=half["b"].reshape(6, 1, 1)),
    )  # fmt: skip
    squares = "m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)  ve = Add (v, e)  s = Sqrt (ve)  n = Div (d, s)  ns = Mul (n, g)  y = Add (ns, b)"
    yield "float16: squares overflow", (
        one("LayerNormalization", "", "N,5,8", 17, "float16", s=s8, b=b8),
        body(squares, "float16[N,5,8] x", "float16[N,5,8] y", e=np.float16(1e-5), g=s8.astype(np.float16), b=b8.astype(np.float16)),
    )  # fmt: skip
    yield "float16: epsilon rounds to zero", (
        one("LayerNormalization", "<epsilon = 1e-6>", "N,5,8", 17, "float16", s=s8, b=b8),
        one("LayerNormalization", "<epsilon = 0.0>", "N,5,8", 17, "float16", s=s8, b=b8),
    )  # fmt: skip
    one_, three = f"Conv (x, k)  n1 = {BN.replace('(h', '(c1')}", "Conv <pads = [1,1,1,1]> (x, w)"
    branches = f"c1 = {one_}  h = {three}  n3 = {BN}  a = Add (n1, n3)  y = Add (a, x)"
    placed = full.copy()
    placed[:, :, 0, 0] += (K * A6[:, None, None, None])[:, :, 0, 0]
    identity = np.eye(6, dtype=np.float32)
    centred = full.copy()
    centred[:, :, 1, 1] += (K * A6[:, None, None, None])[:, :, 0, 0]
    yield "branches merged: 1×1 kernel in the corner", (body(branches, w=W, k=K, **STATS), body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=placed + np.pad(identity[:, :, None, None], ((0, 0), (0, 0), (1, 1), (1, 1))), c=(2 * SHIFT).astype(np.float32)))  # fmt: skip
    yield "branches merged: identity forgotten", (body(branches, w=W, k=K, **STATS), body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=centred, c=(2 * SHIFT).astype(np.float32)))  # fmt: skip
    running = "r = Reshape (x, p)  h = BatchNormalization (r, s, b, m, v)  y = Reshape (h, q)"
    flat, back = np.array([1, 12, 5, 5]), np.array([2, 6, 5, 5])
    tiled: dict[str, Any] = {name: np.tile(array, 2) for name, array in STATS.items()}
    repeated: dict[str, Any] = {name: np.repeat(array, 2) for name, array in STATS.items()}
    fixed = ("float[2,6,5,5] x", "float[2,6,5,5] y")
    yield "running statistics repeated, not tiled", (body(running, *fixed, p=flat, q=back, **tiled), body(running, *fixed, p=flat, q=back, **repeated))  # fmt: skip
    yield "batch in a Reshape baked in", (
        body("r = Reshape (x, p)  h = Relu (r)  y = Reshape (h, q)", p=np.array([0, -1]), q=np.array([-1, 6, 5, 5])),
        body("r = Reshape (x, p)  h = Relu (r)  y = Reshape (h, q)", p=np.array([2, -1]), q=np.array([2, 6, 5, 5])),
    )  # fmt: skip
    outs = f"{C} a, {C} b2"
    yield "outputs swapped", (body("a = Relu (x)  b2 = Sigmoid (x)", outputs=outs), body("b2 = Relu (x)  a = Sigmoid (x)", outputs=outs))  # fmt: skip
    yield "inputs swapped", (body("y = Sub (x, z)", f"{C} x, {C} z"), body("y = Sub (z, x)", f"{C} x, {C} z"))
    for name, good, bad in (
        ("activation dropped", "y = Relu (x)", "y = Identity (x)"),
        ("SiLU without its factor", "g = Sigmoid (x)  y = Mul (x, g)", "y = Sigmoid (x)"),
        ("slope of LeakyRelu", "y = LeakyRelu <alpha = 0.01> (x)", "y = LeakyRelu <alpha = 0.02> (x)"),
        ("softmax along another axis", "y = Softmax <axis = 1> (x)", "y = Softmax <axis = 2> (x)"),
        ("residual dropped", "r = Relu (x)  y = Add (r, x)", "y = Relu (x)"),
        ("pooling counts its padding", "y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (x)", "y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (x)"),
        ("transposed the other way", "t = Transpose <perm = [0,2,3,1]> (x)  y = Transpose <perm = [0,3,1,2]> (t)", "t = Transpose <perm = [0,3,2,1]> (x)  y = Transpose <perm = [0,3,1,2]> (t)"),
        ("norm moved behind Relu", "n = Mul (x, k)  y = Relu (n)", "n = Relu (x)  y = Mul (n, k)"),
        ("norm moved behind MaxPool", "n = Mul (x, k)  y = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (n)", "n = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (x)  y = Mul (n, k)"),
        ("shift moved behind zero padding", "n = Add (x, k)  y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (n)", "n = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (x)  y = Add (n, k)"),
    ):  # fmt: skip
        arrays: dict[str, Any] = {"k": _col(VEC)} if "k)" in good else {}
        yield name, (body(good, **arrays), body(bad, **arrays))
    tanh = [body(f"y = Gelu {attribute} (x)", opset=20) for attribute in ("", '<approximate = "tanh">')]
    yield "tanh form of Gelu", (tanh[0], tanh[1])
    cat = [
        body(f"r = Relu (x)  y = Concat <axis = 1> ({order})", outputs="float[N,12,5,5] y")
        for order in ("r, x", "x, r")
    ]
    yield "concatenated in another order", (cat[0], cat[1])
    top = [body(f"y = ArgMax <axis = {axis}, keepdims = 0> (x)", "float[N,6,6] x", "int64[N,6] y") for axis in (1, 2)]
    yield "ArgMax along another axis", (top[0], top[1])
    quantised = np.random.default_rng(3).integers(-100, 100, (6, 6, 3, 3)).astype(np.int8)
    scales = (np.abs(VEC) * 0.01 + 0.01).astype(np.float32)
    quant = "d = DequantizeLinear <axis = {axis}> (w, z)  y = Conv <pads = [1,1,1,1]> (x, d)"
    yield "scales of a quantised weight along its inputs", (body(quant.format(axis=0), w=quantised, z=scales), body(quant.format(axis=1), w=quantised, z=scales))  # fmt: skip
    plane = normal(1, 6, 5, 5, seed=6)
    yield "term of every pixel folded as a bias", (body(f"h = {CONV}  y = Add (h, p)", w=W, p=plane), body("y = Conv <pads = [1,1,1,1]> (x, w, c)", w=W, c=plane[0, :, 0, 0]))  # fmt: skip
    pairs = [body("a = Conv (x, k, c)  b2 = Conv (x, k, d)", outputs=outs, k=K, c=VEC, d=other) for other in (B6, VEC)]
    yield "bias of another convolution of the same name", (pairs[0], pairs[1])
    level = "h = Conv <pads = [1,1,1,1]> (x, w)  a = BatchNormalization (h, s, b, m, v)  g = Conv <pads = [1,1,1,1]> (z, w)  b2 = BatchNormalization (g, t, b, m, v)"
    both = "a = Conv <pads = [1,1,1,1]> (x, w, c)  b2 = Conv <pads = [1,1,1,1]> (z, w, c)"
    yield "one fold for two norms behind a shared weight", (body(level, f"{C} x, {C} z", outs, w=W, t=VEC, **STATS), body(both, f"{C} x, {C} z", outs, w=full, c=SHIFT.astype(np.float32)))  # fmt: skip
    computed = "mk = ReduceMean <axes = [0,2,3]> (x)  m1 = Reshape (mk, f)  d = Sub (x, mk)  q = Mul (d, d)  vk = ReduceMean <axes = [0,2,3]> (q)  v1 = Reshape (vk, f)  y = BatchNormalization (x, s, b, m1, v1)"
    yield "computed statistics taken for stored ones", (body(computed, f=np.array([-1]), s=S6, b=B6), body("y = BatchNormalization (x, s, b, m, v)", **STATS))  # fmt: skip
    ends: dict[str, Any] = {"i": np.array([-1]), "e": np.array([-10]), "c": np.array([2]), "t": np.array([-1])}
    yield (
        "Slice taken for one that changes nothing",
        (body("r = Slice (x, i, e, c, t)  y = Relu (r)", **ends), body("y = Relu (x)")),
    )
    step = np.float32(0.02)
    yield "quantised weight rounded anew after a fold", (
        body(f"d = DequantizeLinear (w, z)  h = Conv <pads = [1,1,1,1]> (x, d)  y = {BN}", w=quantised, z=step, **STATS),
        body("d = DequantizeLinear (w, z)  y = Conv <pads = [1,1,1,1]> (x, d, c)", w=np.clip(np.rint(quantised * A6[:, None, None, None] / 3), -127, 127).astype(np.int8), z=np.float32(3 * step), c=SHIFT.astype(np.float32)),
    )  # fmt: skip
    loses = [body("r = Relu (x)  y = Identity (r)", f"float[{n},6,5,5] x", f"float[{n},6,5,5] y") for n in ("N", "2")]
    yield "dynamic axis lost", (loses[0], loses[1])


def wrong_pairs() -> Iterator[tuple[str, Pair]]:
    """Yield every wrong pair: faults in a fold at the first and the last of three blocks, then the graphs."""
    parameters = blocks()
    for name, fault in FOLDS.items():
        for place in (0, 2):
            planted = tuple(fault(block) if index == place else block for index, block in enumerate(parameters))
            yield f"fold of block {place}: {name}", (network(parameters), folded(planted))
    tight = tuple(replace(block, var=block.var * 1e-4) for block in parameters)
    yield "fold with another epsilon", (network(tight, epsilon=1e-5), folded(tight, epsilon=1e-6))
    yield "fold without epsilon", (network(tight, epsilon=1e-3), folded(tight, epsilon=0.0))
    yield from wrong_graphs()


def rounding_pairs() -> Iterator[tuple[str, Pair]]:
    """Yield pairs that compute the same, in another order or with other roundings."""
    for count in (1, 3, 12):
        for dtype in ("float32", "float16"):
            parameters = blocks(count, dtype=dtype)
            yield (
                f"{count} blocks of {dtype} folded in float64",
                (network(parameters, dtype), folded(parameters, dtype)),
            )
            yield f"{count} blocks of {dtype} folded in float32", (network(parameters, dtype), folded_in_float32(parameters, dtype))  # fmt: skip
    texts = {
        "sums re-associated": ("a = Add (x, k)  b = Mul (x, k)  c = Add (a, b)  y = Add (c, x)", "a = Add (x, k)  b = Mul (x, k)  c = Add (b, x)  y = Add (a, c)"),
        "sum of three": ("a = Add (x, k)  y = Add (a, x)", "y = Sum (k, x, x)"),
        "quotient as a product": ("y = Div (x, k)", "r = Reciprocal (k)  y = Mul (x, r)"),
        "mean in two steps": ("m = ReduceMean <axes = [2,3]> (x)  y = Sub (x, m)", "h = ReduceMean <axes = [3]> (x)  m = ReduceMean <axes = [2]> (h)  y = Sub (x, m)"),
        "square as a power": ("q = Mul (x, x)  y = Add (q, k)", "two = Constant <value_float = 2.0> ()  q = Pow (x, two)  y = Add (q, k)"),
        "factor pulled out of a sum": ("a = Mul (x, k)  b = Mul (a, k)  y = Add (a, b)", "i = Add (one, k)  a = Mul (x, k)  y = Mul (a, i)"),
        "sigmoid from exp": ("s = Sigmoid (x)  y = Mul (x, s)", "n = Neg (x)  e = Exp (n)  d = Add (e, one)  y = Div (x, d)"),
        "affine as a 1×1 convolution": ("m = Mul (x, k)  y = Add (m, k)", "y = Conv <group = 6> (x, dw, kb)"),
        "hard swish from its parts": ("y = HardSwish (x)", "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul (x, h)"),
        "global pool as a mean": ("m = GlobalAveragePool (x)  y = Sub (x, m)", "m = ReduceMean <axes = [2,3]> (x)  y = Sub (x, m)"),
        "pool as a convolution": ("y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (x)", "y = Conv <group = 6, pads = [1,1,1,1]> (x, ninth)"),
        "padding apart": ("y = Conv <pads = [1,1,1,1]> (x, w)", "p = Pad (x, around)  y = Conv (p, w)"),
        "pointwise convolution as a product": ("y = Conv (x, pw)", "t = Transpose <perm = [0,2,3,1]> (x)  h = MatMul (t, pm)  y = Transpose <perm = [0,3,1,2]> (h)"),
        "logarithm of a softmax": ("y = LogSoftmax <axis = 1> (x)", "m = ReduceMax <axes = [1]> (x)  d = Sub (x, m)  e = Exp (d)  s = ReduceSum (e, ax)  l = Log (s)  y = Sub (d, l)"),
        "negative slope from two parts": ("y = LeakyRelu <alpha = 0.25> (x)", "r = Relu (x)  n = Neg (x)  p = Relu (n)  q = Mul (p, quarter)  y = Sub (r, q)"),
        "affine as a norm": ("m = Mul (x, k)  y = Add (m, k)", "y = BatchNormalization <epsilon = 0.0> (x, kb, kb, zero, ones)"),
    }  # fmt: skip
    k = _col(np.abs(VEC))  # infinity times k plus infinity times k² has a sign only so
    extra: dict[str, Any] = {"k": k, "one": np.ones(1, np.float32), "dw": np.abs(VEC).reshape(6, 1, 1, 1), "kb": np.abs(VEC), "zero": np.zeros(6, np.float32), "ones": np.ones(6, np.float32)}  # fmt: skip
    extra |= {"ninth": np.full((6, 1, 3, 3), 1 / 9, np.float32), "w": W, "around": np.array([0, 0, 1, 1] * 2), "pw": K, "pm": K[:, :, 0, 0].T.copy(), "ax": np.array([1]), "quarter": np.float32(0.25)}  # fmt: skip
    for name, pair in texts.items():
        models = [
            body(text, **{key: array for key, array in extra.items() if f"{key})" in text or f"{key}," in text})
            for text in pair
        ]
        yield name, (models[0], models[1])
    yield "matrix product in two halves", (
        body("y = MatMul (x, w)", "float[N,64] x", "float[N,6] y", w=normal(64, 6)),
        body("a, b = Split <axis = 1, num_outputs = 2> (x)  p = MatMul (a, w1)  q = MatMul (b, w2)  y = Add (p, q)", "float[N,64] x", "float[N,6] y", opset=18, w1=normal(64, 6)[:32], w2=normal(64, 6)[32:]),
    )  # fmt: skip
    yield "Gemm as MatMul and Add", (body("y = Gemm <transB = 1> (x, w, c)", "float[N,6] x", "float[N,6] y", w=SQ, c=VEC), body("h = MatMul (x, w)  y = Add (h, c)", "float[N,6] x", "float[N,6] y", w=SQ.T.copy(), c=VEC))  # fmt: skip
    sb: dict[str, Any] = {"s": S6, "b": B6}
    for dtype in ("float", "float16"):
        instance = one("InstanceNormalization", "", dtype=dtype, **sb)
        yield f"{dtype}: InstanceNormalization as groups of one", (instance, one("GroupNormalization", "<num_groups = 6>", dtype=dtype, **sb))  # fmt: skip
        yield f"{dtype}: groups of one as InstanceNormalization", (one("GroupNormalization", "<num_groups = 6>", dtype=dtype, **sb), instance)  # fmt: skip
        reshaped = f"g ({dtype}[N,6,5,5] x) => ({dtype}[N,6,5,5] y) {{ t = Shape (x)  r = Reshape (x, p)  n = InstanceNormalization (r, i, z)  o = Reshape (n, t)  m = Mul (o, s)  y = Add (m, b) }}"
        kind = TYPE[dtype]
        yield f"{dtype}: GroupNormalization as its body", (
            one("GroupNormalization", "<num_groups = 2>", dtype=dtype, **sb),
            graph(reshaped, 21, p=np.array([0, 2, -1]), i=np.ones(2, kind), z=np.zeros(2, kind), s=_col(S6).astype(kind), b=_col(B6).astype(kind)),
        )  # fmt: skip
    s8, b8 = normal(8), normal(8, seed=8)
    yield "LayerNormalization as its body", (one("LayerNormalization", "", "N,5,8", 17, s=s8, b=b8), ln())
    yield "body of LayerNormalization as the operator", (ln(), one("LayerNormalization", "", "N,5,8", 17, s=s8, b=b8))
    rms = "q = Mul (x, x)  v = ReduceMean (q, a)  ve = Add (v, e)  s = Sqrt (ve)  r = Reciprocal (s)  n = Mul (x, r)  y = Mul (n, g)"
    yield "RMSNormalization as its body", (
        one("RMSNormalization", "", "N,5,8", 23, s=s8),
        body(rms, "float[N,5,8] x", "float[N,5,8] y", 23, a=np.array([-1]), e=np.float32(1e-5), g=s8),
    )  # fmt: skip
    model = mixed_network()
    for form in Form:
        yield (
            f"a network with norms of every kind in the form {form.value}",
            (
                model,
                ir.to_proto(normfuse.fuse(model, Target(form))[0]),
            ),
        )


TIER_1: dict[str, tuple[str, ...]] = {
    "training mode folded as inference": ("training mode folded as inference", "training mode of opset 8 folded as inference"),
    "reused convolution, one use with a norm": ("shared weight edited in place",),
    "output of the convolution has other readers": ("convolution folded although it is an output",),
    "keepdims = 0 ignored": ("keepdims = 0 read as 1",),
    "exponent not looked at": ("decomposed norm: exponent 3", "decomposed norm: exponent 4"),
    "scale and bias that change the shape": ("affine that expands the shape",),
    "norm over an axis that is not the last": ("norm over another axis of the same size",),
    "weight written into the bias": ("LayerNormalization: weight in place of bias",),
    "factor folded along the wrong axis": ("affine along another axis",),
    "full-size operand added to a convolution": ("term of every pixel folded as a bias",),
    "alpha and beta of Gemm forgotten": ("Gemm: alpha forgotten", "Gemm: beta forgotten"),
    "bias overwritten by one of the same name": ("bias of another convolution of the same name",),
    "channel axis is not the axis of the linear": ("MatMul of rank 3 folded along the last axis",),
    "layout of ConvTranspose": ("transposed convolution folded along its inputs", "grouped transposed convolution folded by the wrong group"),
    "norm before a padded convolution": ("shift pushed into a padded convolution",),
    "float16: folded weights overflow": ("float16: folded weight overflows",),
    "float16: squares overflow in a decomposed norm": ("float16: squares overflow",),
    "float16: epsilon becomes 0": ("float16: epsilon rounds to zero",),
    "GroupNormalization of opset 18 and 21": ("GroupNormalization-18: scale tiled, not repeated",),
    "InstanceNorm with running statistics": ("running statistics repeated, not tiled",),
    "statistics of the batch, exported as inputs": ("computed statistics taken for stored ones",),
    "a no-op that is none": ("Slice taken for one that changes nothing",),
    "Transpose absorbed into Gemm": ("Gemm: transA forgotten", "Gemm: transB forgotten"),
    "weights shared over pyramid levels": ("one fold for two norms behind a shared weight",),
    "merge of branches": ("branches merged: 1×1 kernel in the corner", "branches merged: identity forgotten"),
    "slips of the bias formula": ("bias of the convolution not scaled", "mean ignored where there is no bias"),
    "tiny variance, negative γ": ("fold without epsilon", "fold of block 0: γ without its sign"),
    "another epsilon": ("fold with another epsilon", "RMSNormalization: epsilon changed"),
    "fold into quantised weights": ("quantised weight rounded anew after a fold", "scales of a quantised weight along its inputs"),
}  # fmt: skip
"""The silent faults that users of such tools report, each with the pairs of it."""

# What is no pair of graphs: kernels of one provider (residual norms and InstanceNormalization in float16 on GPUs), a variance
# as a difference of squares (exact in float64: test_planted runs it on a runtime), and a mismatch of 4e-6 that is none:
ROUNDING_REPORTED_AS_A_FAULT = "12 blocks of float32 folded in float32"


def folded_in_float32(parameters: tuple[Block, ...], dtype: str) -> onnx.ModelProto:
    """Return the folded network, its weights computed in float32 from start to end."""
    model = folded(parameters, dtype)
    for index, block in enumerate(parameters):
        scale, bias, mean, var = (
            array.astype(np.float32) for array in (block.scale, block.bias, block.mean, block.var)
        )
        factor = scale / np.sqrt(var + np.float32(1e-5))
        values = {
            f"weight{index}_folded": block.weight.astype(np.float32) * factor[:, None, None, None],
            f"bias{index}_folded": bias - factor * mean,
        }
        for tensor in model.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(dtype), tensor.name))
    return model


def mutations(model: onnx.ModelProto, count: int, seed: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield ``count`` copies of ``model``, each with one channel of one tensor scaled by 1.01 or one attribute changed."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        mutant = onnx.ModelProto.FromString(model.SerializeToString())
        tensors = [
            item
            for item in mutant.graph.initializer
            if item.data_type == onnx.TensorProto.FLOAT and np.prod(item.dims) > 1
        ]
        attributes = [
            (node, attribute)
            for node in mutant.graph.node
            for attribute in node.attribute
            if attribute.name in ("epsilon", "num_groups", "alpha", "dilations")
        ]
        if attributes and random.random() < 0.4:
            node, attribute = attributes[random.integers(len(attributes))]
            _change(attribute)
            yield f"{attribute.name} of {node.op_type} '{node.name or node.output[0]}'", mutant
            continue
        tensor = tensors[random.integers(len(tensors))]
        array = numpy_helper.to_array(tensor).copy()
        axis = int(np.argmax([size > 1 for size in array.shape]))
        channel = int(random.integers(array.shape[axis]))
        where = (slice(None),) * axis + (channel,)
        part = array[where]
        array[where] = part * np.float32(1.01) if part.any() else np.float32(0.01)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        yield f"channel {channel} of '{tensor.name}'", mutant


def _change(attribute: onnx.AttributeProto) -> None:
    if attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f *= 10.0
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = 1 if attribute.i > 1 else 2
    else:
        attribute.ints[0] += 1


def mixed_network() -> onnx.ModelProto:
    """A small network with every kind of norm, to be fused and then mutated."""
    text = f"""g (float[N,6,8,8] x) => (float[N,6,64] y) {{
        h = Conv <pads = [1,1,1,1]> (x, w)  n = {BN}  r = Relu (n)
        g1 = GroupNormalization <num_groups = 2> (r, s, b)  e = Sigmoid (g1)  si = Mul (g1, e)
        h2 = Conv <pads = [1,1,1,1]> (si, w2)  i = InstanceNormalization (h2, s, b)  a = Add (i, x)
        f = Reshape (a, shape)  y = LayerNormalization (f, ls, lb) }}"""
    arrays = {
        "w": W,
        "w2": normal(6, 6, 3, 3, seed=9, scale=0.2),
        "shape": np.array([0, 6, 64]),
        "ls": normal(64),
        "lb": normal(64, seed=1),
    }
    model = graph(text, 21, **STATS, **arrays)
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    return model
