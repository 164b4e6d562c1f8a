"""Batch norms written as arithmetic before a linear operator, with none behind which they stand: they go on whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Verdict
from normfuse.affine import ChannelAffine
from normfuse.passes.cancellation import Moments
from tests.folding import Array, assert_same, build, fuse, normal, reasons
from tests.passes.test_move_affine import operators

C = 6
ROWS: dict[str, Array] = {
    "s": np.random.default_rng(1).uniform(0.5, 1.5, C).astype(np.float32) * np.array([1, -1, 1, 1, -1, 1], np.float32),
    "t": normal(C),
    "m": normal(C, seed=3),
    "g": np.random.default_rng(2).uniform(0.5, 1.5, C).astype(np.float32),
}
WRITTEN = {
    "FrozenBatchNorm": "a = Mul (x, s)  h = Add (a, t)",
    "centred, divided": "a = Sub (x, m)  h = Div (a, s)",
    "centred, scaled": "a = Sub (x, m)  h = Mul (s, a)",
    "all four": "a = Sub (x, m)  b = Div (a, s)  e = Mul (b, g)  i = Identity (e)  h = Add (t, i)",
    "reversed": "a = Sub (m, x)  h = Mul (a, g)",
}
# What reads h, the shape of x, the weights, where the channels lie, and what is left.
LINEAR: dict[str, tuple[str, str, dict[str, Array], int, str]] = {
    "Gemm": ("y = Gemm <transB = 1> (h, W, c)", "4,6", {"W": normal(5, 6), "c": normal(5)}, 1, "Gemm"),
    "MatMul of matrices": ("y = MatMul (h, W)", "4,6", {"W": normal(6, 5)}, 1, "Gemm"),
    "MatMul": ("y = MatMul (h, W)", "2,4,6", {"W": normal(6, 5)}, 2, "MatMul Add"),
    "MatMul and its bias": ("z = MatMul (h, W)  y = Add (z, c)", "2,4,6", {"W": normal(6, 5), "c": normal(5)}, 2, "MatMul Add"),
    "Conv": ("y = Conv (h, W, c)", "2,6,5,5", {"W": normal(5, 6, 3, 3), "c": normal(5)}, 1, "Conv"),
    "patches": ("y = Conv <strides = [2,2]> (h, W)", "2,6,6,6", {"W": normal(5, 6, 2, 2)}, 1, "Conv"),
    "groups": ("y = Conv <group = 3> (h, W)", "2,6,5,5", {"W": normal(9, 2, 3, 3)}, 1, "Conv"),
    "two of them": ("p = Conv (h, W)  q = Conv (h, V)  y = Concat <axis = 1> (p, q)", "2,6,5,5",
                    {"W": normal(5, 6, 1, 1), "V": normal(4, 6, 1, 1)}, 1, "Conv Conv Concat"),
    "behind a transpose": ("k = Transpose <perm = [0,2,3,1]> (h)  y = MatMul (k, W)", "2,6,5,5", {"W": normal(6, 5)}, 1,
                           "Transpose MatMul Add"),
}  # fmt: skip


def along(axis: int, rank: int, names: str) -> dict[str, Array]:
    """Return the parameters ``names`` with their entries along ``axis``."""
    shape = (C,) + (1,) * (rank - 1 - axis)
    return {name: ROWS[name].reshape(shape) for name in names if name in ROWS}


def used(body: str) -> str:
    """Return the parameters that ``body`` reads."""
    return "".join(name for name in ROWS if f"({name}," in body or f" {name})" in body)


def model(body: str, tail: str, dims: str, weights: dict[str, Array], axis: int, before: str) -> onnx.ModelProto:
    """Return a model whose x, through ``before``, is read by ``body``, whose h is read by ``tail``."""
    rank = dims.count(",") + 1
    if before:
        body = f"w = {before} (x)  {body.replace('(x,', '(w,').replace(', x)', ', w)')}"
    arrays = {**along(axis, rank, used(body)), **weights}
    return build(f"g (float[{dims}] x) => (float[{','.join('abcd'[:rank])}] y) {{ {body}  {tail} }}", arrays)


@pytest.mark.parametrize("before", ["", "Tanh"])
@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("written", WRITTEN)
def test_goes_into_what_reads_it(written: str, linear: str, before: str) -> None:
    """Of an input, and of a value that no linear operator makes."""
    body, (tail, dims, weights, axis, after) = WRITTEN[written], LINEAR[linear]
    proto = model(body, tail, dims, weights, axis, before)
    fused, report = fuse(proto)
    assert operators(fused) == f"{before} {after}".strip()
    (rewrite,) = (item for item in report.rewrites if item.kind == "move-batchnorm")
    assert rewrite.nodes
    assert_same(proto, fused)
    assert not fuse(ir.to_proto(fused))[1].rewrites


@pytest.mark.parametrize("written", WRITTEN)
def test_padding_keeps_the_shift(written: str) -> None:
    """At the border the shift would be missing. Of an input the scale goes; elsewhere an Add would cost what is there."""
    tail, weights = "y = Conv <pads = [1,1,1,1]> (h, W)", {"W": normal(5, 6, 3, 3)}
    proto = model(WRITTEN[written], tail, "2,6,5,5", weights, 1, "")
    fused, _ = fuse(proto)
    assert operators(fused) == "Add Conv"
    assert_same(proto, fused)
    proto = model(WRITTEN[written], tail, "2,6,5,5", weights, 1, "Tanh")
    fused, report = fuse(proto)
    assert_same(proto, fused)
    if written in ("FrozenBatchNorm", "all four"):
        assert operators(fused).startswith(f"Tanh {' '.join(node.op_type for node in proto.graph.node[1:-1][:2])}")
        (reason,) = reasons(report)
        assert reason.endswith("pads its input: at the border the shift would be missing")
    else:
        assert operators(fused) == "Tanh Sub Conv"  # what ends in a factor leaves that to the Conv


@pytest.mark.parametrize("body", ["h = Add (x, t)", "h = Sub (x, m)"])
def test_a_term_alone_stays(body: str) -> None:
    """It says nothing of a deviation: 1 is far from zero where the values are 1.000 ± 0.001."""
    proto = model(body, "y = Gemm (h, W)", "4,6", {"W": normal(6, 5)}, 1, "")
    assert operators(fuse(proto)[0]) == f"{body.split()[2]} Gemm"


@pytest.mark.parametrize(
    ("body", "after", "distance"),
    [
        ("a = Mul (x, s)  h = Add (a, t)", "Mul Add Gemm", "5e+03"),
        ("a = Sub (x, m)  b = Div (a, s)  h = Add (b, t)", "Sub Div Add Gemm", "94.8"),
        ("a = Sub (x, m)  h = Div (a, s)", "Sub Gemm", ""),
    ],
)
def test_a_mean_far_from_zero_stays(body: str, after: str, distance: str) -> None:
    """Subtracted behind the products it would cost digits. A factor at the end goes alone."""
    arrays: dict[str, Array]
    arrays = {"t": np.full(6, -5e3, np.float32), "m": np.full(6, 1e5, np.float32)}
    if "Sub" in body:
        arrays["t"] = normal(6)
    arrays["s"] = np.float32(1e3) + np.arange(6, dtype=np.float32)
    proto = build(
        f"g (float[4,6] x) => (float[4,5] y) {{ {body}  y = Gemm (h, W) }}",
        {**{name: arrays[name] for name in used(body)}, "W": normal(6, 5)},
    )
    fused, report = fuse(proto)
    assert operators(fused) == after
    far = f"its mean lies up to {distance} deviations from zero, and the result would lose accuracy"
    assert reasons(report) == ([f"back: 'x' is an input of the graph; on: {far}"] if distance else [])


def test_a_result_that_something_else_reads_stays() -> None:
    tail = "y = Gemm (h, W)  z = Sigmoid (h)  u = Concat <axis = 1> (y, z)"
    proto = model(WRITTEN["FrozenBatchNorm"], tail, "4,6", {"W": normal(6, 5)}, 1, "")
    proto.graph.output[0].name = "u"
    fused, report = fuse(proto)
    assert operators(fused) == "Mul Add Gemm Sigmoid Concat"
    assert "Sigmoid" in reasons(report)[0]


def test_one_that_a_linear_operator_stands_before_goes_back() -> None:
    proto = build(
        "g (float[4,6] x) => (float[4,5] y) { c = Gemm (x, V) a = Mul (c, s) r = Relu (a) b = Mul (r, g) h = Add (b, t) "
        "y = Gemm (h, W) }",
        {**{name: np.abs(ROWS[name]) for name in "sg"}, "t": ROWS["t"], "V": normal(6, 6), "W": normal(6, 5)},
    )
    fused, _ = fuse(proto)
    assert operators(fused) == "Gemm Relu Gemm"
    assert_same(proto, fused)


def test_a_preprocessed_image_before_patches() -> None:
    """(x − mean) / std of ImageNet before the patches of a vision transformer, on onnxruntime, fed with images."""
    pytest.importorskip("onnxruntime")
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32).reshape(2, 3, 1, 1)
    proto = build(
        "g (float[N,3,32,32] x) => (float[N,8,a,b] y) { c = Sub (x, m) h = Div (c, d) y = Conv <strides = [16,16]> (h, W, b) }",
        {"m": mean, "d": std, "W": normal(8, 3, 16, 16), "b": normal(8)},
    )
    fused, _ = fuse(proto)
    assert operators(fused) == "Conv"
    images = [{"x": np.random.default_rng(seed).random((2, 3, 32, 32), np.float32)} for seed in range(4)]
    report = normfuse.validate(proto, fused, inputs=images)
    assert [leg.verdict for leg in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT], report.table()
    assert_same(proto, fused)


def test_float16_where_nothing_overflows() -> None:
    arrays = {name: row.astype(np.float16) for name, row in along(1, 2, "st").items()}
    proto = build(
        "g (float16[4,6] x) => (float16[4,5] y) { a = Mul (x, s)  h = Add (a, t)  y = Gemm (h, W, c) }",
        {**arrays, "W": normal(6, 5, dtype="float16"), "c": normal(5, dtype="float16")},
    )
    fused, _ = fuse(proto)
    assert operators(fused) == "Gemm"
    assert_same(proto, fused)


def test_moments_of_what_is_written() -> None:
    ones, zeros = np.ones(2), np.zeros(2)
    centre, divide = ChannelAffine(ones, np.array([-4.0, 0.0])), ChannelAffine(np.array([0.5, 2.0]), zeros)
    last = ChannelAffine(np.array([3.0, 1.0]), np.array([0.0, 1.0]))
    found = Moments.of_steps([centre, divide, last])
    assert found is not None
    np.testing.assert_allclose((found.mean, found.deviation, found.result), [[6.0, 0.0], [3.0, 1.0], [0.0, 1.0]])
    assert found.distance == pytest.approx(2.0)
    frozen = Moments.of_steps([divide, ChannelAffine(ones, np.array([3.0, -1.0]))])
    assert frozen is not None
    np.testing.assert_allclose((frozen.mean, frozen.deviation, frozen.result), [[-3.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert Moments.of_steps([ChannelAffine(ones, ones)]) is None
    assert Moments.of_steps([ChannelAffine(np.array([0.0, 1.0]), ones)]) is None
