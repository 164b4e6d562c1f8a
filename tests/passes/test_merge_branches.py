"""Merging parallel branches: each case fires, means the same, declines with its reason, and changes nothing twice."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import normfuse
from tests.folding import Array, assert_same, build, count, fuse, normal, parameters, reasons
from tests.passes.branch_graphs import random_branches

PAD = "pads = [1,1,1,1]"
W3, W1, B = normal(4, 4, 3, 3), normal(4, 4, 1, 1, seed=2), normal(4, seed=3)
STATISTICS = parameters(4, seed=5)
SECOND = {f"{name}2": array for name, array in parameters(4, seed=6).items()}
NORM = "BatchNormalization ({}, s, b, m, v)"
MERGED = "not merged with the branches beside it: "


def graph(body: str, x: str = "float[N,4,9,8]", y: str = "float[N,4,h,w]") -> str:
    """Return the text of a graph from x to y."""
    return f"g ({x} x) => ({y} y) {{ {body} }}"


def used(body: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return those of ``arrays`` that ``body`` names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in arrays.items() if name in words}


ARRAYS = {
    "W3": W3, "W1": W1, "B": B, "C": normal(4, 1, 1, seed=4), **STATISTICS, **SECOND,
    "W13": normal(4, 4, 1, 3, seed=7), "W31": normal(4, 4, 3, 1, seed=8), "W2": normal(4, 4, 2, 2, seed=9),
    "D3": normal(4, 1, 3, 3, seed=10), "D1": normal(4, 1, 1, 1, seed=11), "G3": normal(4, 2, 3, 3, seed=12),
    "G1": normal(4, 2, 1, 1, seed=16), "P": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "Q": np.array([1, 0, 1, 0]), "half": np.array(0.5, np.float32),
    "sides": np.array([2, 3]), "halves": np.full(4, 0.5, np.float32), "P2": np.array([0, 0, 2, 1, 0, 0, 2, 1]),
    "W5": normal(4, 4, 5, 5, seed=13), "V": normal(4, 4, 1, 1, seed=14), "D5": normal(4, 1, 5, 5, seed=15),
}  # fmt: skip

FIRES = [
    ("RepVGG", f"p = Conv <{PAD}> (x, W3, B)  a = {NORM.format('p')}  q = Conv (x, W1)  "
     f"c = BatchNormalization (q, s2, b2, m2, v2)  e = {NORM.format('x')}  f = Add (a, c)  y = Add (f, e)"),
    ("RepVGG, strided", f"a = Conv <{PAD}, strides = [2,2]> (x, W3)  c = Conv <strides = [2,2]> (x, W1)  y = Add (a, c)"),
    ("MobileOne, depthwise", f"a = Conv <{PAD}, group = 4> (x, D3)  c = Conv <group = 4> (x, D1, B)  "
     f"e = {NORM.format('x')}  f = Add (c, e)  y = Add (f, a)"),
    ("ACNet", f"a = Conv <{PAD}> (x, W3)  c = Conv <pads = [0,1,0,1]> (x, W13)  "
     "d = Conv <pads = [1,0,1,0]> (x, W31)  f = Add (a, c)  y = Add (f, d)"),
    ("Diverse Branch, pooling", f"a = Conv <{PAD}> (x, W3)  "
     f"k = AveragePool <kernel_shape = [3,3], {PAD}, count_include_pad = 1> (x)  c = {NORM.format('k')}  y = Add (a, c)"),
    ("Diverse Branch, in succession", f"a = Conv <{PAD}> (x, W3)  k = Conv (x, W1)  c = Conv <{PAD}> (k, W3, B)  y = Add (a, c)"),
    ("in succession, strided first", "k = Conv <strides = [2,2]> (x, W1)  c = Conv <pads = [1,1,1,1]> (k, W3)  "
     "a = Conv <pads = [2,2,2,2], strides = [2,2]> (x, W5)  y = Add (a, c)"),
    ("in succession, bias before no padding", "k = Conv (x, W1, B)  c = Conv (k, W3)  a = Conv (x, W3)  y = Add (a, c)"),
    ("in succession, point behind", f"k = Conv <{PAD}> (x, W3, B)  c = Conv (k, W1)  a = Conv <{PAD}> (x, W3)  y = Add (a, c)"),
    ("identity", f"a = Conv <{PAD}> (x, W3)  y = Add (x, a)"),
    ("identity twice", f"a = Conv <{PAD}> (x, W3)  f = Add (x, a)  y = Add (x, f)"),
    ("identity, grouped", f"a = Conv <{PAD}, group = 2> (x, G3)  y = Add (x, a)"),
    ("identity through Identity and Dropout", f"a = Conv <{PAD}> (x, W3)  e = Identity (x)  f = Dropout (e)  y = Add (f, a)"),
    ("scaled identity", f"a = Conv <{PAD}> (x, W3)  e = Mul (x, C)  y = Add (e, a)"),
    ("subtraction", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1, B)  f = Sub (x, a)  y = Sub (f, c)"),
    ("subtraction of a subtraction", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1, B)  f = Sub (c, a)  y = Sub (x, f)"),
    ("Sum", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1, B)  y = Sum (a, x, c)"),
    ("constant beside", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  f = Sub (C, a)  y = Add (c, f)"),
    ("asymmetric padding", "a = Conv <pads = [2,0,0,2]> (x, W3)  c = Conv (x, W1)  y = Add (a, c)"),
    ("even kernel", f"a = Conv <{PAD}> (x, W3)  c = Conv <pads = [0,1,1,0]> (x, W2)  y = Add (a, c)"),
    ("auto_pad", 'a = Conv <auto_pad = "SAME_UPPER"> (x, W2)  c = Conv <auto_pad = "SAME_LOWER"> (x, W3)  '
     'd = Conv <auto_pad = "VALID"> (x, W1)  f = Add (a, d)  y = Add (f, c)'),
    ("auto_pad, strided", 'a = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, W2)  '
     'c = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, W3)  y = Add (a, c)'),
    ("dilated", "a = Conv <dilations = [2,2], pads = [2,2,2,2]> (x, W3)  c = Conv (x, W1)  y = Add (a, c)"),
    ("dilated beside dense", "a = Conv <group = 4, pads = [2,2,2,2]> (x, D5)  "
     "c = Conv <group = 4, dilations = [2,2], pads = [2,2,2,2]> (x, D3)  y = Add (a, c)"),
    ("unpadded pooling at stride 2", "a = Conv <strides = [2,2]> (x, W2)  "
     "c = AveragePool <kernel_shape = [2,2], strides = [2,2]> (x)  y = Add (a, c)"),
    ("a Pad before a branch", f"a = Conv <{PAD}> (x, W3)  k = Pad (x, P)  c = Conv (k, W3, B)  y = Add (a, c)"),
    ("a Pad of two axes, and padding", "a = Conv <pads = [2,2,2,2]> (x, W5)  k = Pad (x, P)  c = Conv <pads = [1,1,1,1]> (k, W5, B)  y = Add (a, c)"),
    ("a Pad behind a pointwise branch", f"a = Conv <{PAD}> (x, W3)  k = Conv (x, W1)  q = Pad (k, P)  c = Conv (q, W3, B)  y = Add (a, c)"),
    ("a Pad with what a zero becomes", f"a = Conv <{PAD}> (x, W3)  k = Conv (x, W1, halves)  q = Pad (k, P, half)  c = Conv (q, W3)  y = Add (a, c)"),
    ("a Pad before a pooling", f"a = Conv <{PAD}> (x, W3)  k = Pad (x, P)  c = AveragePool <kernel_shape = [3,3]> (k)  y = Add (a, c)"),
    ("a Pad of a pointwise branch", "a = Conv <pads = [2,2,2,2]> (x, W3)  k = Conv (x, W1)  c = Pad (k, P)  y = Add (a, c)"),
    ("norm behind the sum", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  d = Add (a, c)  f = Add (d, x)  y = {NORM.format('f')}"),
    ("sum in a sum", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  d = Add (a, c)  e = {NORM.format('d')}  "
     f"f = Conv <{PAD}> (x, W3, B)  y = Add (f, e)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [case[1] for case in FIRES], ids=[case[0] for case in FIRES])
def test_becomes_one_conv(body: str) -> None:
    model = build(graph(body), used(body, ARRAYS))
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert "merge-branches" in {rewrite.kind for rewrite in report.rewrites}
    assert not report.declined
    assert all(record.plan.startswith("fold into Conv") for record in report.norms)
    assert_same(model, fused)
    again, nothing = normfuse.fuse(fused)
    assert not nothing.rewrites
    assert ir.to_proto(again).SerializeToString(deterministic=True) == ir.to_proto(fused).SerializeToString(
        deterministic=True
    )


RANKS = [
    ("1-D", "float[2,4,9]", (3,), "pads = [1,1]"),
    ("3-D", "float[1,4,5,6,4]", (3, 1, 2), "pads = [1,0,0,1,0,1]"),
]


@pytest.mark.parametrize(("x", "kernel", "pads"), [case[1:] for case in RANKS], ids=[case[0] for case in RANKS])
def test_at_other_ranks(x: str, kernel: tuple[int, ...], pads: str) -> None:
    body = f"a = Conv <{pads}> (x, W)  c = Conv (x, V)  e = {NORM.format('x')}  f = Add (a, c)  y = Add (f, e)"
    weights = {"W": normal(4, 4, *kernel), "V": normal(4, 4, *[1] * len(kernel), seed=2)}
    model = build(graph(body, x, f"float[{','.join('abcde'[: 2 + len(kernel)])}]"), {**weights, **STATISTICS})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


PARTLY = [
    ("a residual of another value", f"r = Relu (x)  a = Conv <{PAD}> (r, W3)  c = Conv (r, W1)  f = Add (a, x)  y = Add (f, c)",
     ["Relu", "Conv", "Add"]),
    ("subtracted residual", f"r = Relu (x)  a = Conv <{PAD}> (r, W3)  c = Conv (r, W1)  f = Sub (a, x)  y = Add (f, c)",
     ["Relu", "Conv", "Sub"]),
    ("two pairs of rows and columns", "a = Conv <pads = [0,1,0,1]> (x, W13)  c = Conv <pads = [1,0,1,0]> (x, W31)  "
     "d = Conv <pads = [0,1,0,1]> (x, W13)  e = Conv <pads = [1,0,1,0]> (x, W31)  f = Add (a, c)  g = Add (f, d)  y = Add (g, e)",
     ["Conv", "Conv", "Add"]),
    ("a value that broadcasts", f"p = ReduceMean <axes = [2,3]> (x)  a = Conv <{PAD}> (x, W3)  f = Add (p, a)  y = Add (x, f)",
     ["ReduceMean", "Conv", "Add"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "left"), [case[1:] for case in PARTLY], ids=[case[0] for case in PARTLY])
def test_merges_what_belongs_together_and_leaves_the_rest(body: str, left: list[str]) -> None:
    model = build(graph(body), used(body, ARRAYS))
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == left
    assert_same(model, fused)
    assert not normfuse.fuse(fused)[1].rewrites


LEFT = [
    ("a bias before padding", f"a = Conv <{PAD}> (x, W3)  k = Conv (x, W1, B)  c = Conv <{PAD}> (k, W3)  y = Add (a, c)",
     MERGED + "the padding lies between two convolutions, of which the first has a bias"),
    ("pooling that leaves padding out", f"a = Conv <{PAD}> (x, W3)  c = AveragePool <kernel_shape = [3,3], {PAD}> (x)  y = Add (a, c)",
     MERGED + "AveragePool 'AveragePool → c' does not count its padding"),
    ("pooling with a cut window", "a = Conv <strides = [2,2], pads = [0,0,1,0]> (x, W2)  "
     "c = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (x)  y = Add (a, c)",
     MERGED + "AveragePool 'AveragePool → c' has ceil_mode: its last window may be cut"),
    ("rows and columns", "a = Conv <pads = [0,1,0,1]> (x, W13)  c = Conv <pads = [1,0,1,0]> (x, W31)  y = Add (a, c)",
     MERGED + "one Conv would take 144 multiply-adds a position, apart they take 100"),
    ("dense beside depthwise", f"a = Conv <{PAD}, group = 4> (x, D3)  c = Conv (x, W1)  y = Add (a, c)",
     MERGED + "one Conv would take 144 multiply-adds a position, apart they take 56"),
    ("a far mean, beside a Conv of small weights", f"a = Conv <{PAD}> (x, small)  e = BatchNormalization (x, s, b, far, v)  y = Add (a, e)",
     MERGED + "its mean lies up to 40 deviations from zero: in a convolution, the result would lose accuracy"),
    ("kernels in succession", f"a = Conv <{PAD}> (x, W3)  k = Conv <{PAD}> (x, W3)  c = Conv <{PAD}> (k, W3)  y = Add (a, c)",
     MERGED + "two kernels larger than 1 follow each other"),
    ("a far mean before a convolution", f"a = Conv <{PAD}> (x, W3)  e = BatchNormalization (x, s, b, far, v)  c = Conv (e, W1)  y = Add (a, c)",
     MERGED + "its mean lies up to 40 deviations from zero: in a convolution, the result would lose accuracy"),
    ("a Pad with another value", f"a = Conv <{PAD}> (x, W3)  k = Conv (x, W1, B)  q = Pad (k, P, half)  c = Conv (q, W3)  y = Add (a, c)",
     MERGED + "the padding lies between two convolutions, of which the first has a bias"),
    ("a Pad with a value, and padding", "a = Conv <pads = [2,2,2,2]> (x, W5)  q = Pad (x, P, half)  c = Conv <pads = [1,1,1,1]> (q, W5)  y = Add (a, c)",
     MERGED + "the padding lies between two convolutions, of which the first has a bias"),
    ("kernels that lie apart on both axes", "a = Conv <pads = [0,0,2,2]> (x, W3)  c = Conv <pads = [1,1,1,1]> (x, W3)  y = Add (a, c)",
     MERGED + "one Conv would read what neither of them reads"),
    ("channels that no branch reads", f"k = Conv <{PAD}, group = 4> (x, D3)  a = Conv <group = 4, strides = [2,2]> (k, D1)  "
     "c = Conv <group = 2, strides = [2,2]> (x, G1)  y = Add (a, c)", MERGED + "one Conv would read what neither of them reads"),
    ("a Pad behind a kernel", f"a = Conv <pads = [2,2,2,2]> (x, W3)  q = Conv <{PAD}> (x, W3)  c = Pad (q, P)  y = Add (a, c)",
     MERGED + "a kernel larger than 1 and padding follow each other"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), [case[1:] for case in LEFT], ids=[case[0] for case in LEFT])
def test_is_left_alone_with_the_reason(body: str, reason: str) -> None:
    deviation = np.sqrt(np.asarray(STATISTICS["v"], np.float64) + 1e-5)
    more: dict[str, Array] = {
        "far": np.float32(40.0) * deviation.astype(np.float32),
        "small": 1e-3 * np.asarray(W3, np.float32),
    }
    model = build(graph(body), used(body, {**ARRAYS, **more}))
    fused, report = fuse(model)
    assert not report.rewrites
    assert reasons(report) == [reason]
    assert [node.op_type for node in fused.graph] == [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("distance", [40.0, 1e3, 1e5])
def test_a_far_mean_merges_where_the_conv_beside_it_rounds_as_much(distance: float) -> None:
    """In float32, on what the norm was trained on: no more than twice the error, for every channel."""
    body = f"a = Conv <{PAD}> (x, W3)  e = BatchNormalization (x, s, b, far, v)  y = Add (a, e)"
    deviation = np.sqrt(np.asarray(STATISTICS["v"], np.float64) + 1e-5)
    arrays: dict[str, Array] = {**ARRAYS, "far": (distance * deviation).astype(np.float32)}
    model = build(graph(body, "float[1,4,64,64]", "float[1,4,64,64]"), used(body, arrays))
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)
    spread = np.asarray(normal(1, 4, 64, 64, seed=20), np.float64)
    x = np.asarray(arrays["far"], np.float64)[:, None, None] + deviation[:, None, None] * spread
    rounded = x.astype(np.float32)
    truth = _in_float64(arrays, rounded)
    errors = [_error(_run(each, rounded), truth) for each in (model, ir.to_proto(fused))]
    assert (errors[1] <= 2.0 * errors[0]).all()


def _in_float64(arrays: dict[str, Array], x: Array) -> Array:
    """Return what the model of a far mean computes, in float64."""
    s, b, m, v, w, wide = (
        np.asarray(array, np.float64) for array in (*(arrays[n] for n in ("s", "b", "far", "v", "W3")), x)
    )
    padded = np.pad(wide, ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = wide.shape[2]
    conv = sum(
        np.einsum("mc,nchw->nmhw", w[:, :, i, j], padded[:, :, i : i + size, j : j + size])
        for i in range(3)
        for j in range(3)
    )
    scale = (s / np.sqrt(v + 1e-5))[:, None, None]
    return np.asarray(conv + scale * (wide - m[:, None, None]) + b[:, None, None])


def _run(model: onnx.ModelProto, x: Array) -> Array:
    onnxruntime = pytest.importorskip("onnxruntime", reason="float32 is measured as onnxruntime computes it")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def _error(result: Array, truth: Array) -> npt.NDArray[np.float64]:
    """Return the root mean square error of each channel."""
    difference = np.asarray(result, np.float64) - np.asarray(truth, np.float64)
    return np.asarray(np.sqrt((difference**2).mean(axis=(0, 2, 3))))


BORDER = """p = Pad (k, P)  t0 = Transpose <perm = [2,1,0,3]> (p)  u0 = ScatterND (t0, first, row)  u1 = ScatterND (u0, last_row, row)
    t1 = Transpose <perm = [2,1,0,3]> (u1)  t2 = Transpose <perm = [3,1,2,0]> (t1)  u2 = ScatterND (t2, first, column)
    u3 = ScatterND (u2, last_column, column)  q = Transpose <perm = [3,1,2,0]> (u3)"""


def bordered(x: str = "float[1,4,9,8]", change: float = 0.0, **replaced: Array) -> onnx.ModelProto:
    """Return Diverse Branch's padding with what its norm makes of a zero, as torch exports it: written side by side."""
    s, b, m, v = (np.asarray(STATISTICS[name], np.float32) for name in "sbmv")
    value = b - m * s / np.sqrt(v + np.float32(1e-5)) + np.float32(change)
    rows = {
        "row": np.broadcast_to(value[:, None, None], (1, 4, 1, 10)),
        "column": np.broadcast_to(value[:, None, None], (1, 4, 11, 1)),
    }
    at = {"first": np.array([[0]]), "last_row": np.array([[10]]), "last_column": np.array([[9]])}
    constants = {name: np.ascontiguousarray(array) for name, array in {**rows, **at, **replaced}.items()}
    body = f"a = Conv <{PAD}> (x, W3)  n = Conv (x, W1)  k = {NORM.format('n')}  {BORDER}  c = Conv (q, W3)  y = Add (a, c)"
    return build(graph(body, x, "float[a,b,c,d]"), {**used(body, ARRAYS), **constants})


def test_a_border_of_what_the_norm_makes_of_zero_is_padding_with_zeros_before_it() -> None:
    model = bordered()
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert not report.declined
    assert_same(model, fused)


@pytest.mark.parametrize(("model", "reason"), [
    (bordered(change=1e-3), "the padding lies between two convolutions, of which the first has a bias"),
    (bordered(last_row=np.array([[9]])), None),  # it overwrites the inside, and leaves a side of zeros
    (bordered(row=normal(1, 4, 1, 10)), None),  # no one value a channel
    (bordered("float[N,4,9,8]"), None),  # the border fits one size of the batch only
], ids=["another value", "inside", "varies", "dynamic"])  # fmt: skip
def test_another_border_stays(model: onnx.ModelProto, reason: str | None) -> None:
    fused, report = fuse(model)
    assert count(fused, "ScatterND") == 4
    assert reasons(report) == ([] if reason is None else [MERGED + reason])


@pytest.mark.parametrize("opset", [2, 10, 18])
def test_a_pad_is_read_in_every_opset(opset: int) -> None:
    pad = "k = Pad <pads = [0,0,1,0,0,0,1,0]> (x)" if opset < 11 else "k = Pad (x, R, , A)"
    body = f"a = Conv <{PAD}> (x, W3)  {pad}  c = Conv <pads = [0,1,0,1]> (k, W3)  y = Add (a, c)"
    arrays = {"W3": W3, "R": np.array([1, 1]), "A": np.array([-2])}
    model = build(graph(body), used(body, arrays), opset=opset)
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    if opset >= 7:
        assert_same(model, fused)


STRANGERS = [
    ("a residual around an activation", f"a = Conv <{PAD}> (x, W3)  r = Relu (a)  c = Conv <{PAD}> (r, W3)  y = Add (x, c)"),
    ("branches of two values", f"r = Relu (x)  a = Conv <{PAD}> (r, W3)  c = Conv (x, W1)  y = Add (a, c)"),
    ("no Conv", f"c = AveragePool <kernel_shape = [3,3], {PAD}, count_include_pad = 1> (x)  y = Sub (c, x)"),
    ("a product", f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  y = Mul (a, c)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [case[1] for case in STRANGERS], ids=[case[0] for case in STRANGERS])
def test_what_is_no_branch_is_not_mentioned(body: str) -> None:
    _, report = fuse(build(graph(body), used(body, ARRAYS)))
    assert not report.rewrites
    assert not report.declined


def test_a_branch_that_something_else_reads_stays() -> None:
    body = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  y = Add (a, c)  z = Relu (a)"
    model = build(f"g (float[2,4,9,8] x) => (float[2,4,9,8] y, float[2,4,9,8] z) {{ {body} }}", used(body, ARRAYS))
    fused, report = fuse(model)
    assert not report.rewrites
    assert not report.declined
    assert count(fused, "Conv") == 2


def test_one_channel_that_broadcasts_is_no_identity() -> None:
    body = f"a = Conv <{PAD}> (x, W)  y = Add (a, x)"
    _, report = fuse(build(graph(body, "float[2,1,9,8]"), {"W": normal(4, 1, 3, 3)}))
    assert reasons(report) == [MERGED + "they map 1 to 4 and 4 to 4 channels"]


def test_outputs_that_differ_in_size_for_some_inputs() -> None:
    """2×2 and 1×1 at stride 2: the same positions where the sizes are even, not where one is odd."""
    body = "a = Conv <strides = [2,2]> (x, W2)  c = Conv <strides = [2,2]> (x, W1)  y = Add (a, c)"
    arrays = used(body, ARRAYS)
    even, _ = fuse(build(graph(body, "float[N,4,8,6]"), arrays))
    assert [node.op_type for node in even.graph] == ["Conv"]
    _, unknown = fuse(build(graph(body, "float[N,4,H,6]"), arrays))
    assert reasons(unknown) == [MERGED + "their outputs differ in size for some sizes of the input"]
    _, one = fuse(build(graph(body, "float[N,4,3,3]"), arrays))
    assert reasons(one) == [MERGED + "their outputs differ in size: 1 and 2 positions"]


def test_padding_that_depends_on_an_unknown_size() -> None:
    body = 'a = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, W2)  c = Conv <strides = [2,2]> (x, W1)  y = Add (a, c)'
    _, report = fuse(build(graph(body, "float[N,4,H,W]"), used(body, ARRAYS)))
    assert reasons(report) == [MERGED + "the padding of Conv 'Conv → a' depends on the size of its input"]


def test_a_weight_that_is_computed() -> None:
    body = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, k)  y = Add (a, c)"
    text = f"g (float[2,4,9,8] x, float[4,4,1,1] k) => (float[2,4,9,8] y) {{ {body} }}"
    _, report = fuse(build(text, {"W3": W3}))
    assert reasons(report) == [MERGED + "the weight 'k' of Conv 'Conv → c' is an input of the graph"]
    both = build(text.replace("(x, W3)", "(x, k)").replace(f"<{PAD}>", ""), {})
    assert reasons(fuse(both)[1]) == [
        MERGED + f"the weight 'k' of Conv 'Conv → {name}' is an input of the graph" for name in "ac"
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_summed_in_float64_and_rounded_once(dtype: str) -> None:
    element = np.dtype(getattr(ml_dtypes, dtype, dtype))
    onnx_type = "float" if dtype == "float32" else {"float64": "double"}.get(dtype, dtype)
    body = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  f = Add (a, c)  y = Add (f, x)"
    arrays = {"W3": W3.astype(element), "W1": W1.astype(element)}
    model = build(graph(body, f"{onnx_type}[2,4,5,5]", f"{onnx_type}[2,4,5,5]"), arrays, opset=22)
    fused, _ = fuse(model)
    (conv,) = fused.graph
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    exact = arrays["W3"].astype(np.float64)
    exact[:, :, 1:2, 1:2] += arrays["W1"].astype(np.float64)
    exact[range(4), range(4), 1, 1] += 1.0
    np.testing.assert_array_equal(weight.const_value.numpy(), exact.astype(element))
    assert_same(model, fused)


def test_a_sum_beyond_float16_is_left_alone() -> None:
    body = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  y = Add (a, c)"
    large = np.full((4, 4, 1, 1), 40000.0, np.float16)
    model = build(
        graph(body, "float16[2,4,5,5]", "float16[2,4,5,5]"),
        {"W3": np.repeat(np.repeat(large, 3, 2), 3, 3), "W1": large},
    )
    _, report = fuse(model)
    assert not report.rewrites
    assert reasons(report) == [
        "its branches are not merged: the folded weight overflows float16 in channel 0: largest weight 8e+04 times scale 1"
    ]


def test_the_report_says_what_was_merged_and_a_part_can_be_replayed() -> None:
    body = f"""p = Conv <{PAD}> (x, W3)  e = {NORM.format("x")}  t = Add (p, e)  r = Relu (t)
               q = Conv <{PAD}> (r, W3)  k = Conv (r, W1)  u = Add (q, k)  y = Relu (u)"""
    model = build(graph(body), used(body, ARRAYS))
    _, report = fuse(model)
    assert [(rewrite.id, rewrite.kind, rewrite.note) for rewrite in report.rewrites] == [
        ("merge-branches:t", "merge-branches", "2 branches of 'x' as one Conv"),
        ("merge-branches:u", "merge-branches", "2 branches of 'r' as one Conv"),
    ]
    assert [record.plan for record in report.norms] == ["fold into Conv → p"]
    assert "2 merges of branches" in report.table()
    assert [record.plan for record in normfuse.inspect(model).norms] == ["fold into Conv → p"]
    part, replay = fuse(model, only=["merge-branches:u"])
    assert [rewrite.id for rewrite in replay.rewrites] == ["merge-branches:u"]
    assert count(part, "BatchNormalization") == 1
    assert count(part, "Conv") == 2


def test_an_activation_behind_makes_something_finite_of_no_infinity() -> None:
    """∞ − ∞ between branches is NaN and −∞ in one kernel: the verification judges what is finite on both sides there."""
    body = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  f = Sub (c, a)  e = {NORM.format('x')}  g = Add (f, e)  y = Relu (g)"
    model = build(graph(body, "float[2,4,9,8]"), used(body, ARRAYS))
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Relu"]
    assert_same(model, fused)


def test_nodes_that_match_skip_stay() -> None:
    model = build(graph(f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  y = Add (a, c)"), {"W3": W3, "W1": W1})
    model.graph.node[1].name = "mine"
    fused, report = fuse(model, skip="mine")
    assert count(fused, "Conv") == 2
    assert not report.rewrites


def test_merges_inside_a_branch_of_an_if() -> None:
    inner = f"a = Conv <{PAD}> (x, W3)  c = Conv (x, W1)  z = Add (a, c)"
    text = f"""g (float[2,4,9,8] x, bool k) => (float[2,4,9,8] y) {{
        y = If (k) <then_branch = t () => (float[2,4,9,8] z) {{ {inner} }},
                    else_branch = e () => (float[2,4,9,8] w) {{ w = Relu (x) }}> }}"""
    model = build(text, {"W3": W3, "W1": W1})
    fused, report = fuse(model)
    assert [rewrite.id for rewrite in report.rewrites] == ["merge-branches:z"]
    assert count(fused, "Conv") == 1
    assert_same(model, fused)


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_random_sums_mean_the_same(seed: int) -> None:
    model = random_branches(seed)
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        assume(False)  # branches of different sizes
    fused, report = fuse(model)
    if report.rewrites:
        assert_same(model, fused)
    assert not normfuse.fuse(fused)[1].rewrites
