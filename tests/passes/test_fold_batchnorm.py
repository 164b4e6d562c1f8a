"""Folding BatchNormalization into the operator before it: every kind, through what stands between, in every opset; or the
reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.folding import BN, Array, assert_same, build, count, fuse, graph, normal, parameters, reasons

LINEAR_2D = [
    ("plain", "Conv (x, W)", {"W": normal(4, 3, 3, 3)}),
    ("padded", "Conv <pads = [1,1,1,1]> (x, W)", {"W": normal(4, 3, 3, 3)}),
    ("strided", "Conv <strides = [2,2], pads = [0,1,2,0]> (x, W)", {"W": normal(4, 3, 3, 3)}),
    ("dilated", "Conv <dilations = [2,1]> (x, W)", {"W": normal(4, 3, 3, 3)}),
    ("auto_pad", 'Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, W)', {"W": normal(4, 3, 3, 3)}),
    ("bias", "Conv (x, W, B)", {"W": normal(4, 3, 3, 3), "B": normal(4, seed=2)}),
    ("empty bias", 'Conv (x, W, "")', {"W": normal(4, 3, 3, 3)}),
    ("transposed", "ConvTranspose (x, W)", {"W": normal(3, 4, 3, 3)}),
    ("transposed, bias", "ConvTranspose <output_padding=[1,1], strides=[2,2]> (x, W, B)",
     {"W": normal(3, 4, 3, 3), "B": normal(4, seed=2)}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "arrays"), [case[1:] for case in LINEAR_2D], ids=[case[0] for case in LINEAR_2D])
def test_folds_into_the_operator_before_it(body: str, arrays: dict[str, Array]) -> None:
    model = build(graph(f"c = {body}  y = {BN}"), {**arrays, **parameters(4)})
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == [body.split(maxsplit=1)[0]]
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-batchnorm"]
    assert [record.plan for record in report.norms] == [
        "fold into Conv → c" if "Tr" not in body else "fold into ConvTranspose → c"
    ]
    assert_same(model, fused)


RANKS = [
    ("1-D", "float[2,3,9]", (4, 3, 3), "Conv", 1),
    ("3-D", "float[1,3,5,6,4]", (4, 3, 3, 2, 1), "Conv", 1),
    ("grouped", "float[2,4,6,6]", (4, 2, 3, 3), "Conv", 2),
    ("depthwise", "float[2,4,6,6]", (4, 1, 3, 3), "Conv", 4),
    ("depthwise, two each", "float[2,2,6,6]", (4, 1, 3, 3), "Conv", 2),
    ("transposed 1-D", "float[2,3,9]", (3, 4, 3), "ConvTranspose", 1),
    ("transposed 3-D", "float[1,3,4,4,4]", (3, 4, 2, 2, 2), "ConvTranspose", 1),
    ("transposed grouped", "float[2,4,5,5]", (4, 2, 3, 3), "ConvTranspose", 2),
    ("transposed square", "float[2,2,5,5]", (2, 2, 3, 3), "ConvTranspose", 2),
    ("transposed depthwise", "float[2,4,5,5]", (4, 1, 3, 3), "ConvTranspose", 4),
    ("transposed three groups", "float[2,6,5,5]", (6, 3, 3, 3), "ConvTranspose", 2),
]


@pytest.mark.parametrize(("x", "shape", "op", "group"), [case[1:] for case in RANKS], ids=[case[0] for case in RANKS])
def test_folds_at_every_rank_and_group(x: str, shape: tuple[int, ...], op: str, group: int) -> None:
    channels = shape[0] if op == "Conv" else shape[1] * group
    dims = ",".join("abcdef"[: len(shape)])
    text = graph(f"c = {op} <group = {group}> (x, W, B)  y = {BN}", x, f"float[{dims}]")
    model = build(text, {"W": normal(*shape), "B": normal(channels, seed=3), **parameters(channels)})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == [op]
    assert_same(model, fused)


GEMM = [
    (f"alpha {alpha} beta {beta} transA {ta} transB {tb} C {c}", alpha, beta, ta, tb, c)
    for alpha, beta, ta, tb, c in [
        (1.0, 1.0, 0, 0, None), (1.0, 1.0, 0, 1, (4,)), (2.0, 0.5, 0, 0, (4,)), (2.0, 0.5, 1, 1, (4,)),
        (0.5, 2.0, 0, 1, (1,)), (2.0, 0.5, 0, 0, (3, 1)), (2.0, 0.5, 0, 0, (3, 4)), (1.0, 0.5, 0, 0, (1, 4)),
        (1.5, 0.0, 0, 0, (4,)), (1.0, 3.0, 0, 0, ()),
    ]
]  # fmt: skip


@pytest.mark.parametrize(
    ("alpha", "beta", "ta", "tb", "c"), [case[1:] for case in GEMM], ids=[case[0] for case in GEMM]
)
def test_folds_into_gemm(alpha: float, beta: float, ta: int, tb: int, c: tuple[int, ...] | None) -> None:
    arrays = {"W": normal(4, 5) if tb else normal(5, 4), **parameters(4)}
    if c is not None:
        arrays["C"] = np.asarray(normal(*c, seed=5))
    operands = "x, W" if c is None else "x, W, C"
    body = f"c = Gemm <alpha = {alpha}, beta = {beta}, transA = {ta}, transB = {tb}> ({operands})  y = {BN}"
    model = build(graph(body, "float[5,3]" if ta else "float[3,5]", "float[3,4]"), arrays)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Gemm"]
    assert_same(model, fused)


MATMUL = [
    ("matrix", "MatMul (x, W)", "float[3,5]", (5, 4), "float[3,4]", ["Gemm"]),
    ("from the left", "MatMul (W, x)", "float[2,5,6]", (4, 5), "float[2,4,6]", ["MatMul", "Add"]),
]


@pytest.mark.parametrize(
    ("body", "x", "w", "y", "left"), [case[1:] for case in MATMUL], ids=[case[0] for case in MATMUL]
)
def test_folds_into_matmul(body: str, x: str, w: tuple[int, int], y: str, left: list[str]) -> None:
    model = build(graph(f"c = {body}  y = {BN}", x, y), {"W": normal(*w), **parameters(4)})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == left
    assert_same(model, fused)


def test_folds_into_matmul_with_add() -> None:
    body = f"p = MatMul (x, W)  c = Add (B, p)  y = {BN}"
    model = build(graph(body, "float[3,5]", "float[3,4]"), {"W": normal(5, 4), "B": normal(4, seed=2), **parameters(4)})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Gemm"]
    assert_same(model, fused)


def test_leaves_a_linear_layer_over_the_last_of_three_axes() -> None:
    body = f"c = MatMul (x, W)  y = {BN}"
    model = build(graph(body, "float[2,4,6]", "float[2,4,4]"), {"W": normal(6, 4), **parameters(4)})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 1
    assert reasons(report) == ["its channels lie along axis 1, the linear operator's along axis 2 of 3"]


CHAINS = [
    ("Identity", "d = Identity (k)"),
    ("Dropout", "d = Dropout (k)"),
    ("Mul by channel", "d = Mul (k, P)"),
    ("Mul, constant first", "d = Mul (P, k)"),
    ("Add scalar", "d = Add (k, Q)"),
    ("Sub constant", "d = Sub (k, P)"),
    ("Sub from constant", "d = Sub (P, k)"),
    ("Div", "d = Div (k, P)"),
    ("second norm", "d = BatchNormalization <epsilon = 0.1> (k, s2, b2, m2, v2)"),
    ("several", "e = Mul (k, P)  f = Identity (e)  g = Add (f, Q)  d = Dropout (g)"),
]


@pytest.mark.parametrize("between", [case[1] for case in CHAINS], ids=[case[0] for case in CHAINS])
@pytest.mark.parametrize("behind", [False, True], ids=["between", "behind"])
def test_folds_through_what_is_affine_per_channel(between: str, behind: bool) -> None:
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    arrays = {"W": normal(4, 3, 3, 3), "P": normal(4, 1, 1, seed=4), "Q": normal(1, seed=6), **parameters(4), **second}
    norm = "BatchNormalization ({}, s, b, m, v)"
    if behind:
        body = f"c = Conv (x, W)  k = {norm.format('c')}  {between}  y = Relu (d)"
    else:
        body = f"k = Conv (x, W)  {between}  n = {norm.format('d')}  y = Relu (n)"
    model = build(graph(body), {name: array for name, array in arrays.items() if f"{name})" in body or f"{name}," in body or f"({name}" in body})  # fmt: skip
    fused, _ = fuse(model)
    assert {node.op_type for node in fused.graph} <= {"Conv", "Relu", *({"Identity", "Dropout"} if behind else set())}
    assert_same(model, fused)


@pytest.mark.parametrize(("shape", "folds"), [((1, 4, 1, 1), True), ((1, 4, 5, 5), False), ((4, 1, 1), True)], ids=str)
def test_an_addition_behind_a_grouped_convolution(shape: tuple[int, ...], folds: bool) -> None:
    """One number per channel goes into the bias; an image stays an Add, scaled by the norm that moves past it."""
    body = "k = Conv <group = 2> (x, W)  c = Add (k, P)  y = BatchNormalization (c, s, b, m, v)"
    arrays = {"W": normal(4, 2, 1, 1), "P": normal(*shape), **parameters(4)}
    model = build(graph(body, "float[2,4,5,5]"), arrays)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == (["Conv"] if folds else ["Conv", "Add"])
    assert_same(model, fused)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 7, 1), (1, 4, 7, 1), (2, 1, 1, 1), (4,), (1, 1, 1, 1, 1)], ids=str)
def test_a_constant_along_another_axis_stops_the_chain(shape: tuple[int, ...]) -> None:
    width = 8 if shape == (8,) else 4
    x = f"float[2,3,7,{width}]"
    out = "float[a,b,c,d,e]" if len(shape) == 5 else "float[a,b,c,d]"
    model = build(
        graph("k = Conv (x, W)  c = Mul (k, P)  y = BatchNormalization (c, s, b, m, v)", x, out),
        {"W": normal(4, 3, 1, 1), "P": normal(*shape), **parameters(1 if len(shape) == 5 else 4)},
    )
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 1
    assert not report.rewrites


DECLINED = [
    ("training mode", "c = Conv (x, W)  y, u, t = BatchNormalization <training_mode = 1> (c, s, b, m, v)", 17,
     "training mode: it normalises with the statistics of the batch (--assume-inference folds it with the running ones)"),
    ("training outputs", "c = Conv (x, W)  y, u, t, p, q = BatchNormalization (c, s, b, m, v)", 9,
     "training mode: it normalises with the statistics of the batch (--assume-inference folds it with the running ones)"),
    ("is_test 0", "c = Conv (x, W)  y, u, t, p, q = BatchNormalization (c, s, b, m, v)", 6,
     "training mode: it normalises with the statistics of the batch (--assume-inference folds it with the running ones)"),
    ("spatial 0", "c = Conv (x, W)  y = BatchNormalization <spatial = 0> (c, s, b, m, v)", 8,
     "spatial=0 keeps one statistic per element, not per channel"),
    ("computed scale", "one = ReduceMax <keepdims = 0, axes = [0,2,3]> (x)  c = Conv (x, W)  y = BatchNormalization (c, s, b, m, k)  k = Concat <axis = 0> (one, h)", 17,
     "its running variance is computed by Concat 'k'"),
    ("Relu between", f"k = Conv (x, W)  c = Relu (k)  y = {BN}", 17,
     "Relu 'Relu → c' passes no shift"),
    ("quantiser between", f"k = Conv (x, W)  q = QuantizeLinear (k, o, z)  c = DequantizeLinear (q, o, z)  y = {BN}", 17,
     "no affine map passes DequantizeLinear 'DequantizeLinear → c'"),
    ("computed term between", f"k = Conv (x, W)  e = ReduceMax <axes = [1,2,3]> (x)  c = Add (k, e)  y = {BN}", 17,
     "Add 'Add → c' broadcasts 'e' along axis 1, or may"),
    ("graph input", "y = BatchNormalization (x, s3, b3, m3, v3)", 17, "'x' is an input of the graph"),
    ("sign of what is rounded", f"w = Mul (R, R)  n = Sub (w, R)  g = Sign (n)  c = Conv (x, g)  y = {BN}", 17,
     "the weight 'g' of Conv 'Conv → c' is computed by Sign 'g'"),
    ("weight is computed", f"w = Relu (R)  c = Conv (x, w)  y = {BN}", 17,
     "the weight 'w' of Conv 'Conv → c' is computed by Relu 'w'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "opset", "reason"), [case[1:] for case in DECLINED], ids=[case[0] for case in DECLINED]
)
def test_declines_with_the_reason(body: str, opset: int, reason: str) -> None:
    third = {f"{name}3": array for name, array in parameters(3, seed=9).items()}
    arrays = {"W": normal(4, 3, 3, 3), "R": normal(4, 3, 3, 3), "h": np.asarray(normal(1) ** 2), "o": np.array(0.1, np.float32),
              "z": np.array(0, np.int8), **parameters(4), **third}  # fmt: skip
    model = build(graph(body, y="float[a,b,c,d]"), arrays, opset=opset)
    before = model.SerializeToString()
    fused, report = fuse(model)
    assert reasons(report) == [reason]
    assert not report.rewrites
    assert count(fused, "BatchNormalization") == 1
    assert model.SerializeToString() == before


SHARED = [
    ("used elsewhere", "(float[a,b,c,d] y, float[e,f,g,h] z)", "z = Relu (c)", "the result of Conv 'Conv → c' is also used by 'Relu → z'"),
    ("graph output", "(float[a,b,c,d] y, float[e,f,g,h] c)", "", "the result of Conv 'Conv → c' is also a graph output"),
    ("captured", "(float[a,b,c,d] y, float[e,f,g,h] z)",
     "z = If (t) <then_branch = u () => (float[i,j,k,l] p) { p = Relu (c) }, else_branch = w () => (float[i,j,k,l] q) { q = Neg (x) }>",
     "the result of Conv 'Conv → c' is also captured by a subgraph, at 'Relu → p'"),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "more", "reason"), [case[1:] for case in SHARED], ids=[case[0] for case in SHARED])
def test_declines_where_the_result_is_needed(outputs: str, more: str, reason: str) -> None:
    text = f"g (float[2,3,9,8] x, bool t) => {outputs} {{ c = Conv (x, W)  y = {BN}  {more} }}"
    fused, report = fuse(build(text, {"W": normal(3, 3, 1, 1), **parameters(3)}))
    assert reasons(report) == [reason]
    assert count(fused, "BatchNormalization") == 1


@pytest.mark.parametrize("opset", [1, 6, 7, 8, 9, 13, 14, 15, 17, 18, 21, 23, onnx.defs.onnx_opset_version()])
def test_every_opset(opset: int) -> None:
    """is_test and broadcast attributes below 7, spatial below 9, training by outputs below 14."""
    attributes = " <is_test = 1, consumed_inputs = [0,0,0,1,1]>" if opset < 6 else " <is_test = 1>" if opset < 7 else ""
    affine = "<broadcast = 1, axis = 1>" if opset < 7 else ""
    factor = normal(4, seed=4) if opset < 7 else normal(4, 1, 1, seed=4)
    body = f"c = Conv (x, W)  n = BatchNormalization{attributes} (c, s, b, m, v)  y = Mul {affine} (n, P)"
    arrays = {"W": normal(4, 3, 1, 1), "P": factor, **parameters(4)}
    model = build(graph(body), arrays, opset=opset, ir_version=3 if opset < 9 else 8, as_inputs=opset < 9)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    if opset >= 7:
        assert_same(model, fused)


def test_below_opset_7_an_operand_needs_broadcast_and_axis() -> None:
    """Without ``axis`` a vector lines up with the last axis, which is no channel axis."""
    body = "c = Conv (x, W)  n = Mul <broadcast = 1> (c, P)  y = BatchNormalization <is_test = 1> (n, s, b, m, v)"
    arrays = {"W": normal(4, 3, 1, 1), "P": normal(4), **parameters(4)}
    _, report = fuse(build(graph(body, "float[2,3,4,4]"), arrays, opset=6))
    assert not report.rewrites


def test_assume_inference_reads_running_statistics() -> None:
    body = "c = Conv (x, W)  y, p, q = BatchNormalization <training_mode = 1> (c, s, b, m, v)"
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    fused, report = fuse(build(graph(body), arrays), assume_inference=True)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert report.notes == ("read as inference, as asked (this changes results): y",)
    inference = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays)
    assert_same(inference, fused)


def test_skip_leaves_named_nodes_alone() -> None:
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), {"W": normal(4, 3, 1, 1), **parameters(4)})
    model.graph.node[1].name = "/stem/bn"
    fused, report = fuse(model, skip="stem")
    assert count(fused, "BatchNormalization") == 1
    assert reasons(report) == ["left alone as asked: its name matches --skip"]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.integers(1, 3),
    transposed=st.booleans(),
    group=st.sampled_from([1, 2, 3]),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
)
def test_any_convolution(
    seed: int, rank: int, transposed: bool, group: int, per_group: tuple[int, int], bias: bool
) -> None:
    """Property: whatever the rank, groups and channels, the fold fires and means the same."""
    random = np.random.default_rng(seed)
    inputs, outputs = per_group[0] * group, per_group[1] * group
    kernel = tuple(int(k) for k in random.integers(1, 4, rank))
    first = (inputs, per_group[1]) if transposed else (outputs, per_group[0])
    arrays = {"W": normal(*first, *kernel, seed=seed), **parameters(outputs, seed=seed)}
    if bias:
        arrays["B"] = normal(outputs, seed=seed + 1)
    op = "ConvTranspose" if transposed else "Conv"
    dims = ",".join("abc"[:rank])
    text = graph(
        f"c = {op} <group = {group}> (x, W{', B' if bias else ''})  y = {BN}",
        f"float[2,{inputs},{','.join(['5'] * rank)}]",
        f"float[2,{outputs},{dims}]",
    )
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == [op]
    assert_same(model, fused)
