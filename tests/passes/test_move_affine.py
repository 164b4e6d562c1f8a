"""Moving BatchNormalization: each rule fires and means the same, or declines with its reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.validate.oracle import Oracle
from tests.folding import Array, assert_same, build, count, fuse, normal, parameters, reasons
from tests.passes.random_graphs import move_all

BN = "BatchNormalization ({}, s, b, m, v)"


def rows(channels: int, kind: str = "any") -> dict[str, Array]:
    """Return s, b, m, v: any; positive; scale: no shift; positive scale: neither shift nor negative."""
    found = parameters(channels)
    if "positive" in kind:
        found["s"] = np.asarray(np.abs(found["s"].astype(np.float32)) + np.float32(0.1))
    if "scale" in kind:
        found["b"] = found["m"] = np.zeros(channels, np.float32)
    return found


def model(
    body: str,
    arrays: dict[str, Array],
    channels: int,
    kind: str,
    x: str = "2,3,8,6",
    y: str = "a,b,c,d",
    opset: int = 18,
) -> onnx.ModelProto:
    """Return a model from x to y. No value in between has a stated shape."""
    ours = {**arrays, **rows(channels, kind)}
    return build(f"g (float[{x}] x) => (float[{y}] y) {{ {body} }}", ours, opset=opset)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


W, V = normal(4, 3, 3, 3), normal(4, 3, 3, 3, seed=5)

BACKWARD: list[tuple[str, str, dict[str, Array], int, str, str]] = [
    ("Concat", "c = Conv (x, W) d = Conv (x, V) e = Concat <axis = 1> (c, d)", {"W": W, "V": normal(2, 3, 3, 3)}, 6, "any", "a,b,c,d"),
    ("Concat, other axis", "c = Conv (x, W) d = Conv (x, V) e = Concat <axis = 2> (c, d)", {"W": W, "V": V}, 4, "any", "a,b,c,d"),
    ("Concat of a constant", "c = Conv (x, W) e = Concat <axis = 1> (c, K)", {"W": W, "K": normal(2, 2, 6, 4)}, 6, "any", "a,b,c,d"),
    ("Add", "c = Conv (x, W) d = Conv (x, V) e = Add (c, d)", {"W": W, "V": V}, 4, "any", "a,b,c,d"),
    ("Sub", "c = Conv (x, W) d = Conv (x, V) e = Sub (c, d)", {"W": W, "V": V}, 4, "any", "a,b,c,d"),
    ("Add: the shift to the second", "c = Conv (x, W) r = Relu (c) d = Conv (x, V) e = Add (r, d)", {"W": W, "V": V}, 4, "positive", "a,b,c,d"),
    ("Sub: the shift to the second", "c = Conv (x, W) r = Relu (c) d = Conv (x, V) e = Sub (r, d)", {"W": W, "V": V}, 4, "positive", "a,b,c,d"),
    ("Add of a constant", "c = Conv (x, W) r = Relu (c) e = Add (K, r)", {"W": W, "K": normal(1, 4, 6, 4)}, 4, "positive", "a,b,c,d"),
    ("constants vanish", "c = Conv (x, W) h = Mul (c, K) i = Sub (K, h) j = Neg (i) e = Div (j, K)", {"W": W, "K": normal(4, 1, 1)}, 4, "any", "a,b,c,d"),
    ("Relu", "c = Conv (x, W) e = Relu (c)", {"W": W}, 4, "positive scale", "a,b,c,d"),
    ("LeakyRelu", "c = Conv (x, W) e = LeakyRelu (c)", {"W": W}, 4, "positive scale", "a,b,c,d"),
    ("PRelu", "c = Conv (x, W) e = PRelu (c, K)", {"W": W, "K": np.asarray(np.abs(normal(4, 1, 1)))}, 4, "scale", "a,b,c,d"),
    ("AveragePool", "c = Conv (x, W) e = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]> (c)", {"W": W}, 4, "any", "a,b,c,d"),
    ("AveragePool, counted", "c = Conv (x, W) e = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1], count_include_pad = 1> (c)", {"W": W}, 4, "scale", "a,b,c,d"),
    ("MaxPool", "c = Conv (x, W) e = MaxPool <kernel_shape = [2,2], pads = [1,1,1,1]> (c)", {"W": W}, 4, "positive", "a,b,c,d"),
    ("GlobalAveragePool", "c = Conv (x, W) e = GlobalAveragePool (c)", {"W": W}, 4, "any", "a,b,c,d"),
    ("GlobalMaxPool", "c = Conv (x, W) e = GlobalMaxPool (c)", {"W": W}, 4, "positive", "a,b,c,d"),
    ("ReduceMean", "c = Conv (x, W) e = ReduceMean <keepdims = 0> (c, A)", {"W": W, "A": ints(2, -1)}, 4, "any", "a,b"),
    ("ReduceMean of one axis", "c = Conv (x, W) e = ReduceMean <keepdims = 0> (c, A)", {"W": W, "A": ints(-1)}, 4, "any", "a,b,c"),
    ("Transpose", "c = Conv (x, W) h = Transpose <perm = [1,3,0,2]> (c) e = Transpose <perm = [2,0,3,1]> (h)", {"W": W}, 4, "any", "a,b,c,d"),
    ("Transpose, no inverse of itself", "c = MatMul (x, W) e = Transpose <perm = [0,3,1,2]> (c)", {"W": normal(6, 4)}, 4, "any", "a,b,c,d"),
    ("MatMul over three axes", "c = MatMul (x, W) h = Reshape (c, A) e = Identity (h)", {"W": normal(6, 4), "A": ints(-1, 4)}, 4, "any", "a,b"),
    ("MatMul with Add", "c = MatMul (x, W) k = Add (c, K) e = Reshape (k, A)", {"W": normal(6, 4), "K": normal(4), "A": ints(-1, 4)}, 4, "any", "a,b"),
    ("Flatten", "c = Conv (x, W) g = GlobalAveragePool (c) e = Flatten (g)", {"W": W}, 4, "any", "a,b"),
    ("Squeeze, Unsqueeze", "c = Conv (x, W) h = Unsqueeze (c, A) e = Squeeze (h, A)", {"W": W, "A": ints(1)}, 4, "any", "a,b,c,d"),
    ("channel shuffle", "c = Conv (x, W) h = Reshape (c, A) i = Transpose <perm = [0,2,1,3,4]> (h) e = Reshape (i, B)", {"W": normal(6, 3, 3, 3), "A": ints(2, 2, 3, 6, 4), "B": ints(2, 6, 6, 4)}, 6, "any", "a,b,c,d"),
    ("DepthToSpace", "c = Conv (x, W) e = DepthToSpace <blocksize = 2> (c)", {"W": normal(8, 3, 3, 3)}, 2, "any", "a,b,c,d"),
    ("DepthToSpace, CRD", 'c = Conv (x, W) e = DepthToSpace <blocksize = 2, mode = "CRD"> (c)', {"W": normal(8, 3, 3, 3)}, 2, "any", "a,b,c,d"),
    ("Split", "c = Conv (x, W) e, f = Split <axis = 1> (c, A) z = Sigmoid (f)", {"W": W, "A": ints(1, 3)}, 1, "any", "a,b,c,d"),
    ("Slice", "c = Conv (x, W) e = Slice (c, A, B, A, C)", {"W": W, "A": ints(1), "B": ints(9), "C": ints(2)}, 2, "any", "a,b,c,d"),
    ("Gather", "c = Conv (x, W) e = Gather <axis = 1> (c, A)", {"W": W, "A": ints(-1, 0)}, 2, "any", "a,b,c,d"),
    ("Resize", 'c = Conv (x, W) e = Resize <mode = "cubic"> (c, "", F)', {"W": W, "F": np.array([1, 1, 2, 2], np.float32)}, 4, "any", "a,b,c,d"),
    ("Pad, reflect", 'c = Conv (x, W) e = Pad <mode = "reflect"> (c, A)', {"W": W, "A": ints(0, 0, 1, 1, 0, 0, 2, 0)}, 4, "any", "a,b,c,d"),
    ("Pad, constant", "c = Conv (x, W) e = Pad (c, A)", {"W": W, "A": ints(0, 0, 1, 1, 0, 0, 2, 0)}, 4, "scale", "a,b,c,d"),
    ("Gemm", "g = Flatten (x) c = Gemm <alpha = 0.5, beta = 2.0> (g, W, K) e = Relu (c)", {"W": normal(144, 4), "K": normal(4)}, 4, "positive scale", "a,b"),
    ("ConvTranspose", "c = ConvTranspose <group = 3> (x, W) e = Relu (c)", {"W": normal(3, 2, 3, 3)}, 6, "positive scale", "a,b,c,d"),
]  # fmt: skip


AFTER = {
    "constants vanish": "Conv",
    "MatMul over three axes": "MatMul Add Reshape Identity",
    "MatMul with Add": "MatMul Add Reshape",
    "Transpose, no inverse of itself": "MatMul Add Transpose",
}
"""What is left of these bodies; the others stay operator by operator."""


@pytest.mark.parametrize(
    ("name", "body", "arrays", "channels", "kind", "y"), BACKWARD, ids=[case[0] for case in BACKWARD]
)
def test_moves_back(name: str, body: str, arrays: dict[str, Array], channels: int, kind: str, y: str) -> None:
    proto = model(f"{body} y = {BN.format('e')}", arrays, channels, kind, y=y)
    moved, (move,), _ = move_all(proto)
    assert move.is_backward
    assert operators(moved) == AFTER.get(name, operators(ir.from_proto(proto)).removesuffix(" BatchNormalization"))
    assert_same(proto, moved)
    assert_settled(moved)


def operators(graph: ir.Model) -> str:
    """Return the operators of the main graph in their order."""
    return " ".join(node.op_type for node in graph.graph)


def assert_settled(moved: ir.Model) -> None:
    """Assert that what was written is read back, and that no norm is found in it any more."""
    _, report = fuse(ir.to_proto(moved))
    assert not report.norms
    assert {rewrite.kind for rewrite in report.rewrites} <= {"merge-branches", "join-layouts"}


def test_branches_merge_behind_a_norm_that_moved() -> None:
    """The norm moves into both Convs, which then become one; nothing is left to do."""
    text = f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ c = Conv (x, W) d = Conv (x, V) e = Add (c, d) r = MaxPool <kernel_shape = [2,2]> (e) y = {BN.format('r')} }}"
    proto = build(text, {"W": W, "V": V, **rows(4, "positive")}, opset=18)
    fused, _ = fuse(proto)
    assert operators(fused) == "Conv MaxPool"
    assert_same(proto, fused)
    assert not fuse(ir.to_proto(fused))[1].rewrites


FORWARD: list[tuple[str, str, dict[str, Array], str, str]] = [
    ("two readers", "r = Conv (n, W) q = Conv (n, V) y = Concat <axis = 1> (r, q)", {"W": W, "V": V}, "any", "a,b,c,d"),
    ("padded, no shift", "y = Conv <pads = [1,1,1,1]> (n, W)", {"W": W}, "scale", "a,b,c,d"),
    ("Relu", "r = Relu (n) y = Conv <pads = [1,1,1,1]> (r, W)", {"W": W}, "positive scale", "a,b,c,d"),
    ("AveragePool", "r = AveragePool <kernel_shape = [2,2]> (n) y = Conv (r, W)", {"W": W}, "any", "a,b,c,d"),
    ("MaxPool", "r = MaxPool <kernel_shape = [2,2]> (n) y = Conv (r, W)", {"W": W}, "positive", "a,b,c,d"),
    ("Flatten, Gemm", "r = Flatten (n) y = Gemm <alpha = 0.5, beta = 2.0> (r, W, K)", {"W": normal(144, 4), "K": normal(4)}, "any", "a,b"),
    ("transposed Gemm", "r = Flatten (n) t = Transpose (r) y = Gemm <transA = 1, transB = 1, beta = 0.0> (t, W, K)", {"W": normal(4, 144), "K": normal(4)}, "any", "a,b"),
    ("MatMul", "r = Transpose <perm = [0,2,3,1]> (n) y = MatMul (r, W)", {"W": normal(3, 3)}, "any", "a,b,c,d"),
    ("MatMul from the left", "r = Transpose <perm = [0,2,1,3]> (n) y = MatMul (W, r)", {"W": normal(2, 3)}, "any", "a,b,c,d"),
    ("ConvTranspose, pointwise", "y = ConvTranspose (n, W, K)", {"W": normal(3, 2, 1, 1), "K": normal(2)}, "any", "a,b,c,d"),
    ("ConvTranspose, no shift", "y = ConvTranspose <group = 3, strides = [2,2]> (n, W)", {"W": normal(3, 2, 3, 3)}, "scale", "a,b,c,d"),
    ("Concat", "r = Concat <axis = 1> (n, x) y = Conv (r, W)", {"W": normal(4, 6, 3, 3)}, "any", "a,b,c,d"),
    ("Concat, second", "r = Concat <axis = 1> (x, n) y = Conv (r, W)", {"W": normal(4, 6, 3, 3)}, "any", "a,b,c,d"),
    ("Gather", "r = Gather <axis = 1> (n, A) y = Conv (r, W)", {"A": ints(2, 0), "W": normal(4, 2, 3, 3)}, "any", "a,b,c,d"),
    ("Slice", "r = Slice (n, A, B, A) y = Conv (r, W)", {"A": ints(1), "B": ints(3), "W": normal(4, 2, 3, 3)}, "any", "a,b,c,d"),
    ("Split", "p, q = Split <axis = 1> (n, A) y = Conv (p, W) z = Conv (q, V)", {"A": ints(1, 2), "W": normal(4, 1, 1, 1), "V": normal(2, 2, 1, 1)}, "any", "a,b,c,d"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "kind", "y"), [case[1:] for case in FORWARD], ids=[case[0] for case in FORWARD]
)
def test_moves_on(body: str, arrays: dict[str, Array], kind: str, y: str) -> None:
    found = rows(3, kind)
    found["m"] = np.asarray(found["m"].astype(np.float32) * np.float32(0.2))
    proto = build(
        f"g (float[2,3,8,6] x) => (float[{y}] y) {{ n = {BN.format('x')} {body} }}", {**arrays, **found}, opset=18
    )
    moved, (move,), _ = move_all(proto)
    assert not move.is_backward
    assert "BatchNormalization" not in operators(moved)
    assert len(moved.graph) <= len(proto.graph.node)
    assert_same(proto, moved)
    assert_settled(moved)


DECLINED: list[tuple[str, str, dict[str, Array], int, str, str]] = [
    ("Relu, shift", "c = Conv (x, W) e = Relu (c)", {"W": W}, 4, "positive", "Relu 'Relu → e' passes no shift"),
    ("Relu, sign", "c = Conv (x, W) e = Relu (c)", {"W": W}, 4, "scale", "Relu 'Relu → e' passes no scale that is not positive"),
    ("PRelu, slope", "c = Conv (x, W) e = PRelu (c, K)", {"W": W, "K": normal(4, 1, 1)}, 4, "scale", "PRelu 'PRelu → e' passes a negative scale only where its slope is positive"),
    ("Clip", "c = Conv (x, W) e = Clip (c)", {"W": W}, 4, "positive scale", "no affine map passes Clip 'Clip → e'"),
    ("Elu", "c = Conv (x, W) e = Elu (c)", {"W": W}, 4, "positive scale", "no affine map passes Elu 'Elu → e'"),
    ("a constant divided by it", "c = Conv (x, W) e = Div (K, c)", {"W": W, "K": normal(4, 1, 1)}, 4, "any", "no affine map passes Div 'Div → e'"),
    ("quantiser", "c = Conv (x, W) q = QuantizeLinear (c, o) e = DequantizeLinear (q, o)", {"W": W, "o": np.array(0.1, np.float32)}, 4, "positive scale", "no affine map passes DequantizeLinear 'DequantizeLinear → e'"),
    ("AveragePool", "c = Conv (x, W) e = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1], count_include_pad = 1> (c)", {"W": W}, 4, "any", "AveragePool 'AveragePool → e' counts its padding: at the border the shift would be missing"),
    ("MaxPool", "c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c)", {"W": W}, 4, "any", "MaxPool 'MaxPool → e' passes no scale that is not positive"),
    ("ReduceMean", "c = Conv (x, W) e = ReduceMean <keepdims = 0> (c, A)", {"W": W, "A": ints(1)}, 6, "any", "the factors do not lie along the output channels of Conv 'Conv → c'"),
    ("Gather", "c = Conv (x, W) e = Gather <axis = 1> (c, A)", {"W": W, "A": ints(1, 1)}, 2, "any", "Gather 'Gather → e' gathers one channel twice, with different factors"),
    ("Resize along channels", 'c = Conv (x, W) e = Resize (c, "", F)', {"W": W, "F": np.array([1, 2, 1, 1], np.float32)}, 8, "any", "Resize 'Resize → e' resizes axis 1, along which the factors vary"),
    ("Pad", "c = Conv (x, W) e = Pad (c, A)", {"W": W, "A": ints(0, 0, 1, 1, 0, 0, 2, 0)}, 4, "any", "Pad 'Pad → e' pads with 0, which the map would change"),
    ("Pad along channels", "c = Conv (x, W) e = Pad (c, A)", {"W": W, "A": ints(0, 1, 0, 0, 0, 0, 0, 0)}, 5, "scale", "Pad 'Pad → e' pads axis 1, along which the factors vary"),
    ("Add, broadcast", "c = Conv (x, W) d = Conv (x, V) e = Add (c, d)", {"W": W, "V": normal(1, 3, 3, 3)}, 4, "any", "Add 'Add → e' broadcasts 'd' along axis 1, or may"),
    ("Concat twice", "c = Conv (x, W) e = Concat <axis = 1> (c, c)", {"W": W}, 8, "any", "Concat 'Concat → e' reads 'c' twice, and needs two different maps of it"),
    ("Split, both", "c = Conv (x, W) p, q = Split <axis = 1> (c, A) e = Concat <axis = 1> (q, p)", {"W": W, "A": ints(1, 3)}, 4, "any", "Split 'Split → p' is reached on two ways"),
    ("used elsewhere", "c = Conv (x, W) z = Neg (c) h = Identity (c) e = Add (h, z)", {"W": W}, 4, "any", "the result of Conv 'Conv → c' is also used by 'Neg → z'"),
    ("residual", "c = Conv (x, W) e = Add (c, x)", {"W": normal(3, 3, 1, 1)}, 3, "any", "'x' is an input of the graph"),
    ("MatMul, another axis", "c = MatMul (x, W) e = Identity (c)", {"W": normal(6, 4)}, 3, "any", "the factors do not lie along the output channels of MatMul 'MatMul → c'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "channels", "kind", "reason"),
    [case[1:] for case in DECLINED],
    ids=[case[0] for case in DECLINED],
)
def test_declines(body: str, arrays: dict[str, Array], channels: int, kind: str, reason: str) -> None:
    proto = model(f"{body} y = {BN.format('e')}", arrays, channels, kind)
    moved, moves, reasons = move_all(proto)
    assert not moves
    assert reasons == [reason]
    assert len(moved.graph) == len(proto.graph.node)


def test_blocks_keep_what_varies_along_space() -> None:
    body = f"c = MatMul (x, M) d = DepthToSpace <blocksize = 2> (c) e = Transpose <perm = [0,3,1,2]> (d) y = {BN.format('e')}"
    proto = model(body, {"M": normal(6, 6)}, 12, "any", x="2,4,8,6")
    _, moves, why = move_all(proto)
    assert not moves
    assert why == ["DepthToSpace 'DepthToSpace → d' moves axes along which the factors vary"]


FORWARD_DECLINED = [
    ("padding", "y = Conv <pads = [1,1,1,1]> (n, W)", {"W": W}, "Conv 'Conv → y' pads its input: at the border the shift would be missing"),
    ("ConvTranspose", "y = ConvTranspose (n, W)", {"W": normal(3, 2, 2, 2)}, "ConvTranspose 'ConvTranspose → y' spreads its input: not every output sees the shift once"),
    ("scale into Add", "r = Add (n, x) y = Conv (r, W)", {"W": W}, "Add 'Add → r' adds something that is not scaled"),
    ("Shape and more", "r = Sigmoid (n) q = Conv (n, W) y = Conv (r, W)", {"W": W}, "no affine map passes Sigmoid 'Sigmoid → r'"),
    ("MatMul grows", "r = Transpose <perm = [0,2,3,1]> (n) y = MatMul (r, W)", {"W": normal(3, 9)}, "MatMul 'MatMul → y' would need an Add of more elements than the norm has"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "reason"), [case[1:] for case in FORWARD_DECLINED], ids=[case[0] for case in FORWARD_DECLINED]
)
def test_declines_forward(body: str, arrays: dict[str, Array], reason: str) -> None:
    proto = model(f"z = Sigmoid (x) n = {BN.format('z')} {body}", arrays, 3, "any")
    _, moves, reasons = move_all(proto)
    assert not moves
    assert reasons == [f"back: no affine map passes Sigmoid 'Sigmoid → z'; on: {reason}"]


def test_leaves_a_far_mean() -> None:
    proto = model(
        f"n = {BN.format('x')} r = AveragePool <kernel_shape = [2,2]> (n) y = Conv (r, W)", {"W": W}, 3, "any"
    )
    found = {tensor.name: index for index, tensor in enumerate(proto.graph.initializer)}
    far = onnx.numpy_helper.from_array(np.full(3, 100.0, np.float32), "m")
    proto.graph.initializer[found["m"]].CopyFrom(far)
    _, moves, reasons = move_all(proto)
    assert not moves
    assert "deviations from zero, and the result would lose accuracy" in reasons[0]


def test_values_that_change_their_meaning_change_their_name() -> None:
    proto = model(
        f"c = Conv (x, W) e = AveragePool <kernel_shape = [2,2]> (c) y = {BN.format('e')}", {"W": W}, 4, "any"
    )
    moved, _, _ = move_all(proto)
    assert [node.outputs[0].name for node in moved.graph] == ["c_moved", "y"]


def test_unknown_batch_and_size() -> None:
    """Nothing but the channels is known: the Reshape keeps the batch, and -1 takes the rest."""
    text = f"g (float[n,3,h,w] x) => (float[n,k] y) {{ c = Conv (x, W) q = GlobalAveragePool (c) e = Reshape (q, A) y = {BN.format('e')} }}"
    proto = build(text, {"W": W, "A": ints(0, -1), **rows(4)}, opset=18)
    moved, moves, _ = move_all(proto)
    assert len(moves) == 1
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 7, 5))}
    before, after = (Oracle(source).run(feeds)["y"].data for source in (ir.from_proto(proto), moved))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


COMPUTED = "z = Shape (c)  n = Gather (z, I0)  k = Gather (z, I1)  f = Div (k, I2)  half = Unsqueeze <axes = [0]> (f)  whole = Unsqueeze <axes = [0]> (k)  many = Unsqueeze <axes = [0]> (n)"
"""How torch's older exporter computes shapes where the batch is dynamic: the channels too, which are known."""

COMPUTED_SIZES: list[tuple[str, str, int]] = [
    ("channel shuffle", "t = Concat <axis = 0> (many, V2, half, HW)  h = Reshape (c, t)  i = Transpose <perm = [0,2,1,3,4]> (h)  u = Concat <axis = 0> (many, whole, HW)  e = Reshape (i, u)", 6),
    ("first half", "e = Slice (c, V0, half, V1)", 3),
    ("second half", "h = Slice (c, half, whole, V1)  e = Identity (h)", 3),
    ("Resize to sizes", 'p = Slice (z, V0, V2)  t = Concat <axis = 0> (p, Twice)  e = Resize <mode = "linear"> (c, Nil, Nil, t)', 6),
    ("Slice along space at a place that is not known", "w = Shape (x)  o = Gather (w, I0)  q = Unsqueeze <axes = [0]> (o)  e = Slice (c, V0, q, V2)", 6),
]  # fmt: skip
_CONSTANTS = {
    "I0": np.array(0), "I1": np.array(1), "I2": np.array(2), "V0": ints(0), "V1": ints(1), "V2": ints(2),
    "HW": ints(6, 4), "Twice": ints(12, 8), "Nil": np.zeros(0, np.float32), "W": normal(6, 3, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "channels"), [case[1:] for case in COMPUTED_SIZES], ids=[case[0] for case in COMPUTED_SIZES]
)
def test_moves_through_sizes_that_the_graph_computes(body: str, channels: int) -> None:
    text = f"g (float[n,3,8,6] x) => (float[a,b,c,d] y) {{ c = Conv (x, W)  {COMPUTED}  {body}  y = {BN.format('e')} }}"
    proto = build(text, {**_CONSTANTS, **rows(channels)}, opset=11)
    moved, moves, _ = move_all(proto)
    assert len(moves) == 1
    assert "BatchNormalization" not in operators(moved)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 8, 6))}
    before, after = (Oracle(source).run(feeds)["y"].data for source in (ir.from_proto(proto), moved))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


UNKNOWN_SIZES = [
    ("Slice", "e = Slice (c, V0, j, V1)", "Slice 'Slice → e' slices at computed places"),
    ("Slice along an unknown axis", "e = Slice (c, V0, V1, j)", "Slice 'Slice → e' slices at computed places"),
    ("Resize", "p = Slice (z, V0, V1)  t = Concat <axis = 0> (p, j, HW)  e = Resize (c, Nil, Nil, t)", "Resize 'Resize → e' resizes axis 1 to a size that is not known to be its own"),
    ("Reshape", "t = Concat <axis = 0> (many, j, V3, HW)  h = Reshape (c, t)  u = Concat <axis = 0> (many, whole, HW)  e = Reshape (h, u)", "Reshape 'Reshape → e' reshapes the channels together with axes whose sizes are not known"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason"), [case[1:] for case in UNKNOWN_SIZES], ids=[case[0] for case in UNKNOWN_SIZES]
)
def test_declines_what_sizes_leave_open(body: str, reason: str) -> None:
    """Sizes that the caller gives are not known."""
    text = f"g (float[n,3,8,6] x, int64[1] j) => (float[a,6,c,d] y) {{ c = Conv (x, W)  {COMPUTED}  {body}  y = {BN.format('e')} }}"
    _, moves, why = move_all(build(text, {**_CONSTANTS, "V3": ints(-1), **rows(6)}, opset=11))
    assert not moves
    assert why == [reason]


HALF: list[tuple[str, str, dict[str, Array], float, bool]] = [
    ("Add, small scale", "c = Conv (x, W) d = Conv (x, V) e = Add (c, d)", {"W": W, "V": V}, 0.9, True),
    ("Add", "c = Conv (x, W) d = Conv (x, V) e = Add (c, d)", {"W": W, "V": V}, 1.1, False),
    ("AveragePool, small scale", "c = Conv (x, W) e = AveragePool <kernel_shape = [2,2]> (c)", {"W": W}, 0.9, True),
    ("AveragePool", "c = Conv (x, W) e = AveragePool <kernel_shape = [2,2]> (c)", {"W": W}, 1.1, False),
    ("GlobalAveragePool", "c = Conv (x, W) e = GlobalAveragePool (c)", {"W": W}, 1.1, False),
    ("LeakyRelu", "c = Conv (x, W) e = LeakyRelu (c)", {"W": W}, 1.1, False),
    ("Resize, linear", 'c = Conv (x, W) e = Resize <mode = "linear"> (c, "", F)', {"W": W, "F": np.array([1, 1, 2, 2], np.float32)}, 1.1, False),
    ("Resize, nearest", 'c = Conv (x, W) e = Resize <mode = "nearest"> (c, "", F)', {"W": W, "F": np.array([1, 1, 2, 2], np.float32)}, 1.1, True),
    ("Relu", "c = Conv (x, W) e = Relu (c)", {"W": W}, 100.0, True),
    ("MaxPool", "c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c)", {"W": W}, 100.0, True),
    ("Cast to half", "k = Cast <to = 1> (x) c = Conv (k, F32) d = Cast <to = 10> (c) e = AveragePool <kernel_shape = [2,2]> (d)", {"F32": W}, 1.1, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "scale", "moves"), [case[1:] for case in HALF], ids=[case[0] for case in HALF]
)
def test_stays_in_the_range_of_float16(body: str, arrays: dict[str, Array], scale: float, moves: bool) -> None:
    """Where elements are combined, only a map that keeps all of float16 inside float16 may come before."""
    halves = {name: array.astype(np.float16) if name in "WV" else array for name, array in arrays.items()}
    norm = {"s": np.full(4, scale), "b": np.zeros(4), "m": np.zeros(4), "v": np.ones(4)}
    halves |= {name: array.astype(np.float16) for name, array in norm.items()}
    text = f"g (float16[2,3,8,6] x) => (float16[a,b,c,d] y) {{ {body} y = BatchNormalization <epsilon = 0.0> (e, s, b, m, v) }}"
    proto = build(text, halves, opset=18)
    proto = onnx.shape_inference.infer_shapes(proto)
    moved, found, why = move_all(proto)
    assert bool(found) == moves
    assert moves or "might leave the range of float16" in why[0]
    if moves:
        assert_same(proto, moved)


@pytest.mark.parametrize(("shift", "moves"), [(15.0, True), (17.0, False)])
def test_a_product_alone_stays_in_the_range_of_float16(shift: float, moves: bool) -> None:
    arrays = {"W": normal(6, 4), "s": np.full(4, 2.0), "b": np.full(4, shift), "m": np.zeros(4), "v": np.ones(4)}
    halves = {name: array.astype(np.float16) for name, array in arrays.items()} | {"A": ints(-1, 4)}
    text = "g (float16[2,3,8,6] x) => (float16[a,b] y) { c = MatMul (x, W) e = Reshape (c, A) y = BatchNormalization <epsilon = 0.0> (e, s, b, m, v) }"
    _, found, _ = move_all(build(text, halves, opset=18))
    assert bool(found) == moves


def test_a_scale_of_zero() -> None:
    """Back into a Conv it is zero weights; past Relu it does not go."""
    arrays = {**rows(4), "W": W}
    arrays["s"] = np.array([0, 1, -2, 0], np.float32)
    text = f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ c = Conv (x, W) e = AveragePool <kernel_shape = [2,2]> (c) y = {BN.format('e')} }}"
    proto = build(text, arrays, opset=18)
    moved, found, _ = move_all(proto)
    assert len(found) == 1
    assert_same(proto, moved)
    arrays["b"] = arrays["m"] = np.zeros(4, np.float32)
    arrays["s"] = np.array([0, 1, 2, 0], np.float32)
    proto = build(text.replace("AveragePool <kernel_shape = [2,2]>", "Relu"), arrays, opset=18)
    assert reasons(fuse(proto)[1]) == ["Relu 'Relu → e' passes no scale that is not positive"]


TWO_READERS = f"""g (float[2,3,8,6] x) => (float[a,b,c,d] y, float[e,f,g,h] z) {{
    c = Conv (x, W) y = {BN.format("c")} z = Sigmoid (c) }}"""


def test_copies_a_shared_producer_only_when_asked() -> None:
    proto = build(TWO_READERS, {"W": W, **rows(4)}, opset=18)
    assert reasons(fuse(proto)[1]) == ["the result of Conv 'Conv → c' is also used by 'Sigmoid → z'"]
    fused, report = fuse(proto, duplicate_producers=True)
    assert operators(fused) == "Conv Conv Sigmoid"
    assert [rewrite.note for rewrite in report.rewrites] == ["in a copy of Conv 'Conv → c'"]
    assert_same(proto, fused)
    assert not fuse(ir.to_proto(fused), duplicate_producers=True)[1].rewrites


def test_copies_through_constants_and_sums() -> None:
    """The reader of the copy may itself vanish, or be written anew."""
    text = f"""g (float[2,3,8,6] x) => (float[a,b,c,d] y, float[e,f,g,h] z) {{
        c = Conv (x, W) k = Mul (c, K) u = Sigmoid (x) d = Conv (u, V) e = Add (k, d) r = AveragePool <kernel_shape = [2,2]> (e)
        y = {BN.format("r")} z = Sigmoid (c) }}"""
    proto = build(text, {"W": W, "V": V, "K": normal(4, 1, 1), **rows(4)}, opset=18)
    fused, _ = fuse(proto, duplicate_producers=True)
    assert operators(fused) == "Conv Conv Sigmoid Conv Add AveragePool Sigmoid"
    assert_same(proto, fused)


def test_inside_a_branch() -> None:
    text = f"""g (float[2,3,8,6] x, bool t) => (float[a,b,c,d] y) {{ y = If (t) <
        then_branch = u () => (float[e,f,g,h] p) {{ c = Conv (x, W) r = MaxPool <kernel_shape = [2,2]> (c) p = {BN.format("r")} }},
        else_branch = w () => (float[i,j,k,l] q) {{ d = Conv (x, V) q = MaxPool <kernel_shape = [2,2]> (d) }}> }}"""
    proto = build(text, {"W": W, "V": V, **rows(4, "positive")}, opset=18)
    fused, report = fuse(proto)
    assert count(fused, "BatchNormalization") == 0
    assert [rewrite.note for rewrite in report.rewrites] == ["back through MaxPool 'MaxPool → r'"]
    assert_same(proto, fused)


def test_leaves_what_a_branch_reads() -> None:
    text = f"""g (float[2,3,8,6] x, bool t) => (float[a,b,c,d] y, float[e,f,g,h] z) {{
        c = Conv (x, W) r = MaxPool <kernel_shape = [2,2]> (c) y = {BN.format("r")}
        z = If (t) <then_branch = u () => (float[i,j,k,l] p) {{ p = Relu (c) }},
                    else_branch = w () => (float[i2,j2,k2,l2] h) {{ h = Neg (c) }}> }}"""
    proto = build(text, {"W": W, **rows(4, "positive")}, opset=18)
    assert reasons(fuse(proto)[1]) == ["the result of Conv 'Conv → c' is also captured by a subgraph, at 'Relu → p'"]


def test_leaves_training_mode_and_what_is_skipped() -> None:
    body = "c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c) y, q, u = BatchNormalization <training_mode = 1> (e, s, b, m, v)"
    _, report = fuse(model(body, {"W": W}, 4, "positive"))
    assert not report.rewrites
    named = model(
        f"c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c) y = {BN.format('e')}", {"W": W}, 4, "positive"
    )
    named.graph.node[0].name = "stem"
    _, report = fuse(named, skip="stem")
    assert not report.rewrites
    assert reasons(report) == ["its move was not selected"]


def test_a_part_can_be_replayed() -> None:
    text = f"""g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{
        c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c) n = {BN.format("e")}
        r = Sigmoid (n) h = Conv (r, U) i = AveragePool <kernel_shape = [2,2]> (h) y = {BN.format("i")} }}"""
    proto = build(text, {"W": W, "U": normal(4, 4, 1, 1), **rows(4, "positive")}, opset=18)
    _, report = fuse(proto)
    assert [rewrite.id for rewrite in report.rewrites] == ["move-batchnorm:n", "move-batchnorm:y"]
    assert [record.plan for record in report.norms] == ["fold into Conv → c", "fold into Conv → h"]
    for identifier in ("move-batchnorm:n", "move-batchnorm:y"):
        fused, _ = fuse(proto, only=[identifier])
        assert count(fused, "BatchNormalization") == 1
        assert_same(proto, fused)


def test_a_value_with_quantization_parameters_keeps_its_meaning() -> None:
    proto = model(
        f"c = Conv (x, W) e = MaxPool <kernel_shape = [2,2]> (c) y = {BN.format('e')}", {"W": W}, 4, "positive"
    )
    annotation = proto.graph.quantization_annotation.add(tensor_name="c")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    assert reasons(fuse(proto)[1]) == ["the result of Conv 'Conv → c' has quantization parameters in the file"]


def test_a_resize_by_a_computed_region_is_a_parameter() -> None:
    body = f"""n = {BN.format("x")} f = Flatten <axis = 0> (n) k = Reshape (f, M) q = Slice (k, A, B)
        r = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, q, F) y = Conv (r, W)"""
    arrays = {"W": W, "M": ints(-1), "A": ints(0), "B": ints(8), "F": np.array([1, 1, 2, 2], np.float32)}
    _, found, why = move_all(model(body, arrays, 3, "any"))
    assert not found
    assert why == ["back: 'x' is an input of the graph; on: Resize 'Resize → r' reads 'q' as a parameter"]


ARITHMETIC: list[tuple[str, str, dict[str, Array], str]] = [
    ("beside a Conv", "c = Conv (x, W) d = Mul (c, K) y = Add (d, J)", {}, "Conv"),
    ("behind a Conv, each of them", "c = Conv (x, W) d = Neg (c) e = Div (d, K) y = Sub (J, e)", {}, "Conv"),
    ("through Relu", "c = Conv (x, W) r = Relu (c) y = Mul (P, r)", {}, "Conv Relu"),
    ("through AveragePool", "c = Conv (x, W) r = AveragePool <kernel_shape = [2,2]> (c) d = Mul (r, K) y = Add (d, J)", {}, "Conv AveragePool"),
    ("of three axes: into the Add", "c = MatMul (x, M) d = Add (c, B) y = Mul (d, S)", {}, "MatMul Add"),
    ("a bias stays", "c = MatMul (x, M) y = Add (c, B)", {}, "MatMul Add"),
    ("on, a factor", "d = Mul (x, S) y = Conv <pads = [1,1,1,1]> (d, W)", {}, "Conv"),
    ("on, a term: how far its mean is from zero is not known", "d = Add (x, S) y = Conv (d, W)", {}, "Add Conv"),
    ("along another axis", "c = Conv (x, W) y = Mul (c, B)", {}, "Conv Mul"),
    ("of another shape", "c = Conv (x, W) y = Mul (c, L)", {}, "Conv Mul"),
    ("the half of a gelu", "u = Div (x, S) e = Erf (u) o = Add (e, S) m = Mul (x, o) h = Mul (m, H) y = Conv (h, W)", {}, "Div Erf Add Mul Mul Conv"),
    ("a factor of zero on", "d = Mul (x, Z) y = Conv (d, W)", {}, "Conv"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "more", "after"), [case[1:] for case in ARITHMETIC], ids=[case[0] for case in ARITHMETIC]
)
def test_factors_and_terms(body: str, more: dict[str, Array], after: str) -> None:
    constants = {
        "W": W, "K": normal(4, 1, 1), "J": normal(1, 4, 1, 1, seed=3), "P": np.asarray(np.abs(normal(4, 1, 1))),
        "M": normal(6, 4), "B": normal(4), "S": np.float32(0.3), "L": normal(2, 4, 1, 1), "H": np.float32(0.5),
        "Z": np.zeros((3, 1, 1), np.float32),
    }  # fmt: skip
    used = {name: np.asarray(array) for name, array in constants.items() if f" {name})" in body or f"({name}," in body}
    proto = build(f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ {body} }}", {**used, **more}, opset=18)
    fused, report = fuse(proto)
    assert operators(fused) == after
    assert {rewrite.kind for rewrite in report.rewrites} <= {"move-affine", "move-batchnorm", "fold-batchnorm"}
    assert_same(proto, fused)
    assert not fuse(ir.to_proto(fused))[1].rewrites


def test_a_factor_of_another_norm_stays() -> None:
    """The scale of a LayerNorm is folded only where that is asked for, however it is written."""
    text = """g (float[2,5,6] x) => (float[a,b,c] y) {
        m = ReduceMean (x, A) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, A) w = Add (v, E) r = Sqrt (w)
        n = Div (d, r) s = Mul (n, G) y = MatMul (s, M) }"""
    arrays = {"A": ints(-1), "E": np.asarray(np.float32(1e-5)), "G": normal(6), "M": normal(6, 4)}
    _, report = fuse(build(text, arrays, opset=18))
    assert not [rewrite for rewrite in report.rewrites if rewrite.kind == "move-affine"]
