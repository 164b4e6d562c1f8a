"""Folding BatchNormalization: each case fires, means the same, or declines with its reason."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.folding import BN, Array, assert_same, build, count, fuse, normal, parameters, reasons


def graph(body: str, x: str = "float[2,3,9,8]", y: str = "float[2,4,h,w]") -> str:
    """Return the text of a graph from x to y."""
    return f"g ({x} x) => ({y} y) {{ {body} }}"


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


CONSTANTS = [
    ("Constant", "W1 = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,12}> ()", "W1"),
    ("Identity", "W1 = Identity (W)", "W1"),
    ("five Identities", "a=Identity(W) e=Identity(a) f=Identity(e) g=Identity(f) W1=Identity(g)", "W1"),
    ("Cast", "a = Cast <to = 11> (W)  W1 = Cast <to = 1> (a)", "W1"),
    ("Transpose", "a = Transpose <perm = [1,0,2,3]> (W)  W1 = Transpose <perm = [1,0,2,3]> (a)", "W1"),
    ("Reshape", "h = Constant <value = int64[4] {4,3,1,1}> ()  W1 = Reshape (W, h)", "W1"),
]


@pytest.mark.parametrize(("made", "weight"), [case[1:] for case in CONSTANTS], ids=[case[0] for case in CONSTANTS])
def test_reads_constants_through_operators(made: str, weight: str) -> None:
    model = build(graph(f"{made} c = Conv (x, {weight})  y = {BN}"), {"W": normal(4, 3, 1, 1), **parameters(4)})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_parameters_from_nodes() -> None:
    """ConstantOfShape, Expand and CastLike, as exporters write BatchNorm without affine."""
    body = """one = Constant <value = float[1] {1.0}> ()  four = Constant <value = int64[1] {4}> ()
              s1 = Expand (one, four)  z = ConstantOfShape (four)  b1 = CastLike (z, x)
              c = Conv (x, W)  y = BatchNormalization (c, s1, b1, m, v)"""
    arrays = {name: array for name, array in parameters(4).items() if name in "mv"}
    model = build(graph(body), {"W": normal(4, 3, 1, 1), **arrays})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_shared_weights_get_private_copies() -> None:
    """One weight and one bias, three uses: two norms with other statistics, one without."""
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    text = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z, float[2,4,4,4] t) {
        c = Conv (x, W, B)  y = BatchNormalization (c, s, b, m, v)
        d = Conv (x, W, B)  z = BatchNormalization (d, s2, b2, m2, v2)
        t = Conv (x, W, B) }"""
    model = build(text, {"W": normal(4, 3, 3, 3), "B": normal(4, seed=2), **parameters(4), **second})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)
    assert report.size.after > report.size.before
    assert any("grew by" in note for note in report.notes)
    assert "'W' and 'B' shared with other nodes: private copies are written" in report.rewrites[0].note


def test_one_block_applied_twice() -> None:
    """The same convolution and the same norm behind each other: every tensor has two readers."""
    text = """g (float[2,4,6,6] x) => (float[2,4,6,6] y) {
        c = Conv (x, W)  k = BatchNormalization (c, s, b, m, v)
        d = Conv (k, W)  y = BatchNormalization (d, s, b, m, v) }"""
    model = build(text, {"W": normal(4, 4, 1, 1), **parameters(4)})
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Conv"]
    assert len(report.rewrites) == 2
    assert_same(model, fused)


def test_one_bias_for_two_operators() -> None:
    text = """g (float[2,3,6,6] x) => (float[2,4,6,6] y, float[2,4,6,6] z) {
        c = Conv (x, W, B)  y = BatchNormalization (c, s, b, m, v)
        d = Conv (x, V, B)  z = BatchNormalization (d, s, b, m, v) }"""
    arrays = {"W": normal(4, 3, 1, 1), "V": normal(4, 3, 1, 1, seed=8), "B": normal(4, seed=2), **parameters(4)}
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert len(fused.graph.initializers) == 4
    assert_same(model, fused)


def test_names_that_are_numbers() -> None:
    """Old exporters number every tensor; a new name is one that no tensor has."""
    arrays = dict(zip("12345", [normal(4, 3, 1, 1), *parameters(4).values()], strict=True))
    model = build("g (float[2,3,6,6] x) => (float[2,4,6,6] y) { y = Relu (x) }", {})
    del model.graph.node[:]
    model.graph.input[0].name, model.graph.output[0].name = "0", "7"
    model.graph.node.append(onnx.helper.make_node("Conv", ["0", "1"], ["6"]))
    model.graph.node.append(onnx.helper.make_node("BatchNormalization", ["6", "2", "3", "4", "5"], ["7"]))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_new_names_clash_with_nothing() -> None:
    """Two bias-free convolutions of one input, tensors named like the ones a fold would write."""
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    text = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) {
        c = Conv (x, W)  W_folded_1 = BatchNormalization (c, s, b, m, v)  y = Relu (W_folded_1)
        d = Conv (x, W)  n = BatchNormalization (d, s2, b2, m2, v2)  z = Add (n, W_folded) }"""
    arrays = {"W": normal(4, 3, 3, 3), "W_folded": normal(4, 4), **parameters(4), **second}
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    names = [value.name for value in fused.graph.initializers.values()]
    names += [output.name for node in fused.graph for output in node.outputs]
    assert len(names) == len(set(names))
    assert_same(model, fused)


def test_output_name_and_node_name_stay() -> None:
    text = (
        "g (float[2,3,6,6] x) => (float[2,4,4,4] prob) { c = Conv (x, W)  prob = BatchNormalization (c, s, b, m, v) }"
    )
    model = build(text, {"W": normal(4, 3, 3, 3), **parameters(4)})
    model.graph.node[0].name, model.graph.node[1].name = "/conv", "/bn"
    model.graph.node[0].metadata_props.add(key="scope", value="block")
    fused, report = fuse(model)
    (node,) = fused.graph
    assert (node.name, node.outputs[0].name, node.metadata_props) == ("/conv", "prob", {"scope": "block"})
    assert report.norms[0].plan == "fold into /conv"
    assert report.rewrites[0].id == "fold-batchnorm:prob"


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
     "Add 'Add → c' between it and Conv 'Conv → k' is no per-channel constant"),
    ("graph input", "y = BatchNormalization (x, s3, b3, m3, v3)", 17, "'x' is an input of the graph"),
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


def test_folds_inside_branches_with_weights_of_the_outer_graph() -> None:
    text = """g (float[2,3,6,6] x, bool t) => (float[2,4,4,4] y) { y = If (t) <
        then_branch = u () => (float[2,4,4,4] p) { c = Conv (x, W)  p = BatchNormalization (c, s, b, m, v) },
        else_branch = w () => (float[2,4,4,4] q) { d = Conv (x, W)  e = BatchNormalization (d, s, b, m, v)  q = Neg (e) }> }"""
    model = build(text, {"W": normal(4, 3, 3, 3), **parameters(4)})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-batchnorm", "fold-batchnorm", "move-affine"]
    assert_same(model, fused)


def function_model(parameters_inside: bool) -> onnx.ModelProto:
    """Return a model whose Conv-BatchNormalization stands in a function, called twice."""
    constants = "".join(
        f"{name} = Constant <value = float[4] {{{','.join(f'{x:.4f}' for x in array)}}}> ()\n"
        for name, array in parameters(4).items()
    )
    weight = "W = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,-12}> ()"
    inside = f"{constants} {weight}" if parameters_inside else ""
    call = "x" if parameters_inside else "x, W, s, b, m, v"
    body = f"""<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
        g (float[2,3,6,6] x) => (float[2,4,6,6] y) {{ h = my.block ({call})  k = my.block ({call})  y = Mul (h, k) }}
        <domain: "my", opset_import: ["" : 17]> block ({call}) => (r) {{ {inside} c = Conv (x, W)  r = {BN} }}"""
    model = onnx.parser.parse_model(body)
    if not parameters_inside:
        for name, array in {"W": normal(4, 3, 1, 1), **parameters(4)}.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def test_folds_inside_a_function_that_has_its_own_constants() -> None:
    model = function_model(parameters_inside=True)
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["block", "block", "Mul"]
    assert count(fused, "BatchNormalization") == 0
    assert report.notes == ()
    assert_same(model, fused)


def test_inlines_a_function_whose_constants_come_from_the_caller() -> None:
    model = function_model(parameters_inside=False)
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Conv", "Mul"]
    assert report.notes[0] == "inlined functions whose norms take their parameters from the caller: my::block"
    assert_same(model, fused)


def test_initializers_that_callers_may_override() -> None:
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays, as_inputs=True)
    _, report = fuse(model)
    assert not report.rewrites
    assert "--freeze-inputs" in reasons(report)[0]
    frozen, report = fuse(model, freeze_inputs=True)
    assert [value.name for value in frozen.graph.inputs] == ["x"]
    assert count(frozen, "BatchNormalization") == 0
    assert_same(model, frozen)


def test_below_ir_4_listed_initializers_are_constants() -> None:
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays, opset=8, ir_version=3, as_inputs=True)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert fused.ir_version == 4
    assert [value.name for value in fused.graph.inputs] == ["x"]
    assert set(fused.graph.initializers) == {"W_folded", "Conv.bias"}
    assert any("IR version 3 → 4" in note for note in report.notes)
    assert_same(model, fused)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("statistics", ["same", "float32"])
def test_types(dtype: str, statistics: str) -> None:
    """The weight keeps its type whatever the type of the statistics (mixed ones are legal from opset 15 on)."""
    numpy_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    rows = {name: row.astype(numpy_type) if statistics == "same" else row for name, row in parameters(4).items()}
    onnx_type = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    text = graph(f"c = Conv (x, W)  y = {BN}", f"{onnx_type}[2,3,6,6]", f"{onnx_type}[2,4,6,6]")
    model = build(text, {"W": normal(4, 3, 1, 1).astype(numpy_type), **rows}, opset=22, ir_version=10)
    fused, _ = fuse(model)
    (node,) = fused.graph
    assert node.op_type == "Conv"
    assert {value.dtype for value in node.inputs[1:] if value is not None} == {
        ir.DataType.from_numpy(np.dtype(numpy_type))
    }
    assert_same(model, fused)


def test_float16_weights_are_rounded_once() -> None:
    """Within half a unit in the last place of the exact product, in every channel."""
    arrays = {"W": normal(64, 32, 3, 3, dtype="float16"), **parameters(64, "float16")}
    model = build(graph(f"c = Conv (x, W)  y = {BN}", "float16[1,32,9,9]", "float16[1,64,7,7]"), arrays)
    fused, _ = fuse(model)
    rows = {name: row.astype(np.float64) for name, row in parameters(64, "float16").items()}
    exact = arrays["W"].astype(np.float64) * (rows["s"] / np.sqrt(rows["v"] + float(np.float32(1e-5)))).reshape(
        -1, 1, 1, 1
    )
    tensor = fused.graph.initializers["W_folded"].const_value
    assert tensor is not None
    spacing = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
    assert np.max(np.abs(tensor.numpy().astype(np.float64) - exact) / spacing) <= 0.5000001


def test_statistics_of_training_that_are_read() -> None:
    """Opset 9: the second output is the updated mean, and something uses it."""
    text = """g (float[2,3,6,6] x) => (float[2,4,6,6] y, float[4] z) {
        c = Conv (x, W)  y, p, q, r, t = BatchNormalization (c, s, b, m, v)  z = Relu (p) }"""
    model = build(text, {"W": normal(4, 3, 1, 1), **parameters(4)}, opset=9)
    fused, report = fuse(model, assume_inference=True)
    assert count(fused, "BatchNormalization") == 1
    assert reasons(report) == ["its statistics, which training mode updates, are read"]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_a_variance_that_epsilon_does_not_lift_above_zero(epsilon: float) -> None:
    """Channel 3 of a trained network whose variance came out as −1e-5; channel 1 has γ = 0, channel 0 γ = −1."""
    rows = parameters(4)
    rows["s"], rows["v"] = np.array([-1, 0, 1, 2], np.float32), np.array([0, 1e-30, 1, -1e-5], np.float32)
    body = f"c = Conv (x, W)  y = BatchNormalization <epsilon = {epsilon}> (c, s, b, m, v)"
    fused, report = fuse(build(graph(body), {"W": normal(4, 3, 1, 1), **rows}))
    assert count(fused, "BatchNormalization") == 1
    (reason,) = reasons(report)
    assert reason.startswith("variance + epsilon is ")
    assert reason.endswith(" in channel 3; it must be positive")


SUSPICIOUS = [
    ({"m": 0.0, "v": 0.0, "s": 1.0}, "the running statistics of 'BatchNormalization → y' are all zero: was it ever trained?"),
    ({"v": [1.0, 1e-9, 1.0, 1.0], "s": 40.0}, "'BatchNormalization → y' multiplies channel 1 by 1.26e+04: its variance is near zero"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "note"), SUSPICIOUS, ids=["all zero", "near zero"])
def test_suspicious_statistics_are_folded_and_said(change: dict[str, object], note: str) -> None:
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    for name, value in change.items():
        arrays[name] = np.broadcast_to(np.asarray(value, np.float32), 4).copy()
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert report.notes == (note,)
    assert_same(model, fused)


RANGE = [
    ("weight overflows", {"W": np.full((4, 3, 1, 1), 400.0), "v": 1e-6, "s": 1.0, "m": 0.0}, "the folded weight overflows float16 in channel 0"),
    ("weight is flushed", {"W": np.full((4, 3, 1, 1), 1e-3), "v": 1.0, "s": 1e-3, "m": 1.0}, "the folded weight is flushed in float16, channel 0"),
    ("bias overflows", {"W": np.full((4, 3, 1, 1), 0.01), "v": 1e-6, "s": 1.0, "m": 300.0}, "the folded bias overflows float16 in channel 0"),
    ("variance is negative", {"v": -1e-3}, "variance + epsilon is -0.00099"),
    ("variance is NaN", {"v": np.nan}, "its variance is nan in channel 0"),
    ("mean is infinite", {"m": np.inf}, "its mean is inf in channel 0"),
    ("weight is NaN", {"W": np.full((4, 3, 1, 1), np.nan)}, "its weight is not finite in channel 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in RANGE], ids=[case[0] for case in RANGE])
def test_declines_what_the_type_cannot_hold(change: dict[str, object], reason: str) -> None:
    arrays = {"W": normal(4, 3, 1, 1, dtype="float16"), **parameters(4, "float16"), "b": np.full(4, 0.1, "float16")}
    for name, value in change.items():
        arrays[name] = np.broadcast_to(np.asarray(value, "float16"), arrays[name].shape).copy()
    text = graph(f"c = Conv (x, W)  y = {BN}", "float16[1,3,4,4]", "float16[1,4,4,4]")
    fused, report = fuse(build(text, arrays))
    assert reasons(report)[0].startswith(reason)
    assert count(fused, "BatchNormalization") == 1


def test_tiny_and_zero_scales_of_float32_fold() -> None:
    """Dead channels of trained networks: γ of 0, of 1e-40, variance of 0 with a positive epsilon."""
    rows = parameters(4)
    rows["s"] = np.array([-1, 0, 1e-40, 2], np.float32)
    rows["v"] = np.array([0, 1e-30, 1, 3], np.float32)
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), {"W": normal(4, 3, 1, 1), **rows})
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)


FORWARD = [
    ("no padding", "Conv (n, W)", (4, 3, 3, 3), True),
    ("bias", "Conv (n, W, B)", (4, 3, 3, 3), True),
    ("grouped", "Conv <group = 3> (n, W)", (6, 1, 3, 3), True),
    ("VALID", 'Conv <auto_pad = "VALID"> (n, W)', (4, 3, 2, 2), True),
    ("padding", "Conv <pads = [1,1,1,1]> (n, W)", (4, 3, 3, 3), False),
    ("SAME_UPPER", 'Conv <auto_pad = "SAME_UPPER"> (n, W)', (4, 3, 3, 3), False),
]


@pytest.mark.parametrize(("body", "shape", "folds"), [case[1:] for case in FORWARD], ids=[case[0] for case in FORWARD])
def test_folds_into_the_operator_behind_it(body: str, shape: tuple[int, ...], folds: bool) -> None:
    arrays = {"W": normal(*shape), **parameters(3)}
    if ", B)" in body:
        arrays["B"] = normal(shape[0], seed=7)
    text = graph(f"r = Relu (x)  n = BatchNormalization (r, s, b, m, v)  y = {body}", y="float[a,b,c,d]")
    model = build(text, arrays)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == (0 if folds else 1)
    if folds:
        assert_same(model, fused)
    else:
        assert reasons(report) == ["Conv 'Conv → y' pads its input: at the border the shift would be missing"]


def test_two_forward_folds_in_a_row() -> None:
    """The second reads what the first wrote, not the value that was there when both were decided."""
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    text = """g (float[2,3,6,6] x) => (float[2,4,6,6] y, float[2,4,6,6] c) {
        n = BatchNormalization (x, s, b, m, v)  c = Conv (n, W)
        k = BatchNormalization (c, s2, b2, m2, v2)  y = Conv (k, V) }"""
    model = build(text, {"W": normal(4, 3, 1, 1), "V": normal(4, 4, 1, 1), **parameters(3), **second})
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Conv"]
    assert len(report.rewrites) == 2
    assert_same(model, fused)


def test_folds_forward_into_gemm() -> None:
    body = "n = BatchNormalization (x, s, b, m, v)  y = Gemm <transB = 1, beta = 0.5> (n, W, C)"
    arrays = {"W": normal(4, 5), "C": normal(4, seed=3), **parameters(5)}
    model = build(graph(body, "float[3,5]", "float[3,4]"), arrays)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Gemm"]
    assert_same(model, fused)


def test_leaves_a_far_mean_before_a_convolution() -> None:
    rows = {**parameters(3), "m": np.full(3, 100.0, np.float32), "v": np.ones(3, np.float32)}
    text = graph("n = BatchNormalization (x, s, b, m, v)  y = Conv (n, W)")
    fused, report = fuse(build(text, {"W": normal(4, 3, 1, 1), **rows}))
    assert count(fused, "BatchNormalization") == 1
    assert reasons(report)[0].startswith("its mean lies up to 100 deviations from zero: folded into Conv 'Conv → y'")


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


def test_folds_inside_loop_bodies() -> None:
    text = """g (float[2,3,6,6] x) => (float[2,3,6,6] y, float[4,2,3,6,6] scan) {
        n = Constant <value_int = 4> ()  t = Constant <value = bool {1}> ()
        y, scan = Loop (n, t, x) <body = b (int64 i, bool go, float[2,3,6,6] state)
            => (bool on, float[2,3,6,6] next, float[2,3,6,6] out) {
            on = Identity (go)  c = Conv (state, W)  k = BatchNormalization (c, s, b, m, v)
            next = Tanh (k)  out = Neg (next) }> }"""
    model = build(text, {"W": normal(3, 3, 1, 1), **parameters(3)})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:k"]
    assert_same(model, fused)


def test_folds_inside_scan_bodies() -> None:
    text = """g (float[2,3,6,6] x, float[5,2,3,6,6] steps) => (float[2,3,6,6] y, float[5,2,3,6,6] all) {
        y, all = Scan <num_scan_inputs = 1, body = b (float[2,3,6,6] state, float[2,3,6,6] step)
            => (float[2,3,6,6] next, float[2,3,6,6] out) {
            c = Conv (step, W)  k = BatchNormalization (c, s, b, m, v)  a = Add (k, state)
            next = Tanh (a)  out = Identity (next) }> (x, steps) }"""
    model = build(text, {"W": normal(3, 3, 1, 1), **parameters(3)})
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)
