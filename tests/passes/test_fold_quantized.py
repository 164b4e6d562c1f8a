"""Folding BatchNormalization into the scales of quantised weights: the integers stay, or the norm does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normfuse
from tests.folding import BN, Array, assert_same, build, count, fuse, normal, parameters, reasons

INT4, UINT4 = np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)


def integers(*shape: int, dtype: npt.DTypeLike = "int8", seed: int = 1, low: int = -7, high: int = 7) -> Array:
    """Return random integers of a type."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scales(*shape: int, dtype: str = "float32") -> Array:
    """Return positive scales."""
    return np.random.default_rng(4).uniform(0.01, 0.1, shape).astype(dtype)


def signed(*signs: float, seed: int = 0) -> dict[str, Array]:
    """Return the parameters of a norm whose channels have these signs."""
    found = parameters(len(signs), seed=seed)
    return {**found, "s": (np.abs(found["s"]) * np.asarray(signs)).astype("float32")}


POSITIVE = signed(1, 1, 1, 1)


def graph(body: str, x: str = "float[2,3,6,6]", y: str = "float[2,4,h,w]") -> str:
    """Return the text of a graph from x to y."""
    return f"g ({x} x) => ({y} y) {{ {body}  y = {BN} }}"


def stored(model: ir.Model, name: str) -> Array:
    """Return an initializer of a fused model."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


Q, S, Z = integers(4, 3, 3, 3), scales(4), integers(4, low=-3, high=3)
OPERATORS = [
    ("Conv, per channel", "w = DequantizeLinear <axis = 0> (Q, S)  c = Conv (x, w)", {"Q": Q, "S": S}, {}),
    ("Conv, zero points", "w = DequantizeLinear <axis = 0> (Q, S, Z)  c = Conv (x, w)", {"Q": Q, "S": S, "Z": Z}, {}),
    ("Conv, negative axis", "w = DequantizeLinear <axis = -4> (Q, S)  c = Conv (x, w)", {"Q": Q, "S": S}, {}),
    ("Conv, one scale", "w = DequantizeLinear (Q, S, Z)  c = Conv (x, w)",
     {"Q": Q, "S": scales(), "Z": np.asarray(2, np.int8)}, {}),
    ("Conv, bias", "w = DequantizeLinear <axis = 0> (Q, S)  c = Conv (x, w, B)", {"Q": Q, "S": S, "B": normal(4, seed=2)}, {}),
    ("Conv, int32 bias", "w = DequantizeLinear <axis = 0> (Q, S)  b1 = DequantizeLinear <axis = 0> (B, T)  c = Conv (x, w, b1)",
     {"Q": Q, "S": S, "B": integers(4, dtype="int32", low=-999, high=999), "T": scales(4)}, {}),
    ("grouped Conv", "w = DequantizeLinear <axis = 0> (Q, S)  c = Conv <group = 3> (x, w)",
     {"Q": integers(6, 1, 3, 3), "S": scales(6), **signed(*[1] * 6)}, {"y": "float[2,6,h,w]"}),
    ("ConvTranspose", "w = DequantizeLinear <axis = 1> (Q, S)  c = ConvTranspose (x, w)", {"Q": integers(3, 4, 3, 3), "S": S}, {}),
    ("Gemm", "w = DequantizeLinear <axis = 1> (Q, S)  c = Gemm <alpha = 0.5, beta = 2.0> (x, w, B)",
     {"Q": integers(5, 4), "S": S, "B": normal(4, seed=2)}, {"x": "float[3,5]", "y": "float[3,4]"}),
    ("Gemm, transposed", "w = DequantizeLinear <axis = 0> (Q, S)  c = Gemm <transB = 1> (x, w)",
     {"Q": integers(4, 5), "S": S}, {"x": "float[3,5]", "y": "float[3,4]"}),
    ("MatMul", "w = DequantizeLinear <axis = 1> (Q, S)  c = MatMul (x, w)",
     {"Q": integers(5, 4), "S": S}, {"x": "float[3,5]", "y": "float[3,4]"}),
    ("MatMul from the left", "w = DequantizeLinear <axis = 0> (Q, S)  c = MatMul (w, x)",
     {"Q": integers(4, 5), "S": S}, {"x": "float[2,5,6]", "y": "float[2,4,6]"}),
    ("uint8", "w = DequantizeLinear <axis = 0> (Q, S, Z)  c = Conv (x, w)",
     {"Q": integers(4, 3, 3, 3, dtype="uint8", low=0, high=255), "S": S, "Z": np.full(4, 128, np.uint8)}, {}),
    ("int4", "w = DequantizeLinear <axis = 0> (Q, S)  c = Conv (x, w)", {"Q": integers(4, 3, 3, 3, dtype=INT4), "S": S}, {}),
    ("uint4", "w = DequantizeLinear <axis = 0> (Q, S, Z)  c = Conv (x, w)",
     {"Q": integers(4, 3, 3, 3, dtype=UINT4, low=0, high=15), "S": S, "Z": np.full(4, 8, UINT4)}, {}),
    ("blocks", "w = DequantizeLinear <axis = 0, block_size = 3> (Q, S, Z)  c = MatMul (x, w)",
     {"Q": integers(6, 4, dtype=INT4), "S": scales(2, 4), "Z": integers(2, 4, dtype=INT4, low=-2, high=2)},
     {"x": "float[3,6]", "y": "float[3,4]"}),
    ("float16", "w = DequantizeLinear <axis = 0> (Q, S)  c = Conv (x, w)", {"Q": Q, "S": scales(4, dtype="float16"),
     **{name: array.astype("float16") for name, array in POSITIVE.items()}}, {"x": "float16[2,3,6,6]", "y": "float16[2,4,h,w]"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "types"), [case[1:] for case in OPERATORS], ids=[case[0] for case in OPERATORS]
)
def test_folds_into_the_scales(body: str, arrays: dict[str, Array], types: dict[str, str]) -> None:
    model = build(graph(body, **types), {**POSITIVE, **arrays}, opset=21, ir_version=10)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert count(fused, "DequantizeLinear") == 1
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-batchnorm"]
    assert report.norms[0].plan.startswith("fold into ")
    np.testing.assert_array_equal(stored(fused, "Q"), arrays["Q"])
    assert_same(model, fused)
    assert not normfuse.fuse(fused)[1].rewrites


def conv(norm: dict[str, Array], q: Array = Q, **more: Array) -> normfuse.Source:
    """Return a Conv with a weight of one scale per channel behind ``norm``."""
    zero = ", Z" if "Z" in more else ""
    body = f"w = DequantizeLinear <axis = 0> (Q, S{zero})  c = Conv (x, w)"
    return build(graph(body), {"Q": q, "S": S, **norm, **more}, opset=21, ir_version=10)


def test_scales_take_the_factor_exactly() -> None:
    norm = signed(1, 1, 1, 1)
    fused, _ = fuse(conv(norm))
    factor = norm["s"].astype(np.float64) / np.sqrt(norm["v"].astype(np.float64) + np.float64(np.float32(1e-5)))
    np.testing.assert_array_equal(stored(fused, "S_folded"), (S.astype(np.float64) * factor).astype(np.float32))


def test_a_negative_factor_negates_the_integers_of_its_channel() -> None:
    model = conv(signed(1, -1, 1, -1))
    fused, _ = fuse(model)
    expected = np.asarray(Q, np.int8) * np.array([1, -1, 1, -1], np.int8)[:, None, None, None]
    np.testing.assert_array_equal(stored(fused, "Q_folded"), expected)
    assert np.all(stored(fused, "S_folded").astype(np.float64) > 0.0)
    assert_same(model, fused)


def test_a_factor_of_zero_leaves_the_scale_and_sets_the_zero_point() -> None:
    model = conv(signed(1, 0, 1, 1), Z=Z)
    fused, _ = fuse(model)
    result = stored(fused, "Q_folded")
    assert (result[1] == Z[1]).all()
    np.testing.assert_array_equal(result[[0, 2, 3]], Q[[0, 2, 3]])
    assert stored(fused, "S_folded")[1] == S[1]
    assert_same(model, fused)


VIEWS = [
    ("Linear of torch", "k = DequantizeLinear <axis = 0> (Q, S)  w = Transpose (k)  c = MatMul (x, w)",
     {"Q": integers(4, 5), "S": S}, {"x": "float[3,5]", "y": "float[3,4]"}),
    ("pointwise Conv", "k = DequantizeLinear <axis = 0> (Q, S, Z)  w = Unsqueeze (k, A)  c = Conv (x, w)",
     {"Q": integers(4, 3), "S": S, "Z": Z, "A": np.array([2, 3])}, {}),
    ("one scale", "k = DequantizeLinear (Q, S)  t = Transpose <perm = [3,2,0,1]> (k)  w = Identity (t)  c = Conv (x, w)",
     {"Q": integers(3, 3, 3, 4), "S": scales()}, {}),
    ("Reshape", "k = DequantizeLinear <axis = 0> (Q, S)  w = Reshape (k, R)  c = Conv (x, w)",
     {"Q": integers(4, 27), "S": S, "R": np.array([0, 3, 3, -1])}, {}),
    ("blocks", "k = DequantizeLinear <axis = 1, block_size = 3> (Q, S)  w = Transpose (k)  c = MatMul (x, w)",
     {"Q": integers(4, 6, dtype=INT4), "S": scales(4, 2)}, {"x": "float[3,6]", "y": "float[3,4]"}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "arrays", "types"), [case[1:] for case in VIEWS], ids=[case[0] for case in VIEWS])
@pytest.mark.parametrize("sign", [1, -1])
def test_folds_through_what_lays_the_weight_out_anew(
    body: str, arrays: dict[str, Array], types: dict[str, str], sign: int
) -> None:
    if sign < 0 and "Z" in arrays:
        arrays = {**arrays, "Z": np.zeros_like(arrays["Z"])}
    model = build(graph(body, **types), {**signed(1, sign, 1, 1), **arrays}, opset=21, ir_version=10)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert count(fused, "DequantizeLinear") == 1
    assert not report.declined
    assert_same(model, fused)
    assert not normfuse.fuse(fused)[1].rewrites


@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (1, -1, 0, -1)])
@pytest.mark.parametrize("form", ["per channel", "one scale", "zero point"])
def test_a_weight_that_is_quantised_in_the_graph_keeps_its_quantiser(signs: tuple[int, ...], form: str) -> None:
    """Its integers are what the runtime rounds them to, with the other sign where the factor is negative."""
    head = {"per channel": "<axis = 0> (W, S, Z)", "one scale": "(W, S, Z)", "zero point": "<axis = 0> (W, S, Z)"}[form]
    back = head.replace("W", "q")
    weight = np.clip(np.asarray(normal(4, 3, 3, 3), np.float32), -2, 2)
    shape = () if form == "one scale" else (4,)
    steps = np.asarray(scales(*shape), np.float32) + np.float32(0.02)
    arrays: dict[str, Array] = {"W": weight, "S": np.asarray(steps), "Z": np.zeros(shape, np.int8)}
    if form == "zero point":
        arrays["Z"], signs = np.array([3, 0, 7, 0], np.int8), (*signs[:2], abs(signs[2]), signs[3])
    model = build(
        graph(f"q = QuantizeLinear {head}  w = DequantizeLinear {back}  c = Conv (x, w)"), {**signed(*signs), **arrays}
    )
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert not report.declined
    if min(signs) > 0:
        np.testing.assert_array_equal(stored(fused, "W"), weight)
    else:
        factor = np.sign(signs).astype(np.float32)[:, None, None, None]
        np.testing.assert_array_equal(stored(fused, "W_folded"), weight * factor)
    assert_same(model, fused)
    assert not normfuse.fuse(fused)[1].rewrites


def test_a_weight_that_others_read_through_a_view_is_copied() -> None:
    body = f"k = DequantizeLinear <axis = 0> (Q, S)  w = Transpose (k)  c = MatMul (x, w)  y = {BN}  z = MatMul (x, w)"
    model = build(
        f"g (float[3,5] x) => (float[3,4] y, float[3,4] z) {{ {body} }}",
        {"Q": integers(4, 5), "S": S, **signed(1, -1, 1, 1)},
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert count(fused, "DequantizeLinear") == 2
    assert len({node.name for node in fused.graph}) == len(fused.graph)
    assert_same(model, fused)


LOWEST = Q.copy()
LOWEST[1, 0, 0, 0] = -128
DECLINES = [
    ("lowest integer", conv(signed(1, -1, 1, 1), LOWEST),
     "the scale is negative in channel 1, and its weight holds -128, whose negative int8 does not have"),
    ("zero point", conv(signed(1, 1, -1, 1), Z=np.array([0, 0, 3, 0], np.int8)),
     "the scale is negative in channel 2, and the zero point of its weight is not 0"),
    ("unsigned", conv(signed(-1, 1, 1, 1), np.abs(Q).astype(np.uint8)),
     "the scale is negative in channel 0, and uint8 has no negative numbers"),
    ("scale beyond its type", conv({**signed(1, 1, 1, 1), "s": np.full(4, 1e-37, np.float32)}),
     "a scale of its weight becomes "),
    ("scale along the inputs", build(graph("w = DequantizeLinear <axis = 1> (Q, S)  c = Conv (x, w)"),
     {"Q": Q, "S": scales(3), **POSITIVE}), "the scales of its weight lie along axis 1, not along its output channels"),
    ("blocks along the outputs", build(graph("w = DequantizeLinear <axis = 1, block_size = 2> (Q, S)  c = MatMul (x, w)",
     "float[3,6]", "float[3,4]"), {"Q": integers(6, 4), "S": scales(6, 2), **POSITIVE}, opset=21, ir_version=10),
     "the scales of its weight hold for blocks along its output channels"),
    ("one scale below opset 13", build(graph("w = DequantizeLinear (Q, S)  c = Conv (x, w)"),
     {"Q": Q, "S": scales(), **POSITIVE}, opset=12, ir_version=7),
     "below opset 13 a DequantizeLinear has one scale for all channels"),
    ("grouped ConvTranspose", build(graph("w = DequantizeLinear <axis = 1> (Q, S)  c = ConvTranspose <group = 2> (x, w)",
     "float[2,4,6,6]"), {"Q": integers(4, 2, 3, 3), "S": scales(2), **POSITIVE}),
     "ConvTranspose 'ConvTranspose → c' is grouped: its output channels lie along no axis of its weight"),
    ("computed scale", build("g (float[2,3,6,6] x, float[4] t) => (float[2,4,4,4] y) { "
     f"w = DequantizeLinear <axis = 0> (Q, t)  c = Conv (x, w)  y = {BN} }}", {"Q": Q, **POSITIVE}),
     "'t' of DequantizeLinear 'DequantizeLinear → w' is an input of the graph"),
    ("quantised from an input", build("g (float[2,3,6,6] x, float[4,3,3,3] k) => (float[2,4,4,4] y) { "
     f"q = QuantizeLinear (k, S)  w = DequantizeLinear (q, S)  c = Conv (x, w)  y = {BN} }}", {"S": scales(), **POSITIVE}),
     "'k' of QuantizeLinear 'QuantizeLinear → q' is an input of the graph"),
    ("quantised asymmetrically", build(graph("q = QuantizeLinear (W, S)  w = DequantizeLinear (q, S)  c = Conv (x, w)"),
     {"W": normal(4, 3, 3, 3), "S": np.asarray(0.05, np.float32), **signed(1, -1, 1, 1)}),
     "the scale is negative in channel 1, and uint8 has no negative numbers"),
    ("quantised, and cut", build(graph("q = QuantizeLinear (W, S, Z)  w = DequantizeLinear (q, S, Z)  c = Conv (x, w)"),
     {"W": normal(4, 3, 3, 3), "S": np.asarray(0.01, np.float32), "Z": np.asarray(0, np.int8), **signed(1, -1, 1, 1)}),
     "the scale is negative in channel 1, and its weight is cut where it is quantised: int8 is not symmetric"),
    ("quantised with another zero point", build(graph(
     "q = QuantizeLinear (W, S, Z)  w = DequantizeLinear (q, S, T)  c = Conv (x, w)"), {"W": normal(4, 3, 3, 3),
     "S": np.asarray(0.05, np.float32), "Z": np.asarray(0, np.int8), "T": np.asarray(1, np.int8), **signed(1, 0, 1, 1)}),
     "the scale is zero in channel 1, and its weight is quantised with another zero point"),
    ("channels that a Reshape splits", build(graph(
     "k = DequantizeLinear (Q, S)  w = Reshape (k, R)  c = Conv (x, w)"), {"Q": integers(2, 6, 3, 3), "S": scales(),
     "R": np.array([4, 3, 3, 3]), **POSITIVE}), "its output channels lie along no axis of the integers"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), [case[1:] for case in DECLINES], ids=[case[0] for case in DECLINES])
def test_is_left_alone_with_the_reason(model: normfuse.Source, reason: str) -> None:
    fused, report = fuse(model)
    assert not report.rewrites
    assert count(fused, "BatchNormalization") == 1
    assert [entry.reason[: len(reason)] for entry in report.declined] == [reason]


def test_shared_scales_and_weights_get_copies() -> None:
    body = f"w = DequantizeLinear <axis = 0> (Q, S)  c = Conv (x, w)  y = {BN}  k = Conv (x, w)  z = Relu (k)"
    text = f"g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) {{ {body} }}"
    model = build(text, {"Q": Q, "S": S, **signed(1, -1, 1, 1)})
    model.graph.node[0].name = "dequantize"
    fused, report = fuse(model)
    assert report.rewrites[0].note == "'w' shared with other nodes: private copies are written"
    assert {"Q", "S", "Q_folded", "S_folded"} <= set(fused.graph.initializers)
    assert len({node.name for node in fused.graph if node.name}) == sum(bool(node.name) for node in fused.graph)
    assert_same(model, fused)


def test_a_quantiser_behind_the_norm_may_flip_by_one_quantum_only() -> None:
    """Between quantised values, as quantisers write them: x and y pass QuantizeLinear and DequantizeLinear."""
    text = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {{
        a = QuantizeLinear (x, T, zp)  d = DequantizeLinear (a, T, zp)  w = DequantizeLinear <axis = 0> (Q, S)
        c = Conv (d, w)  n = {BN}  e = QuantizeLinear (n, T, zp)  y = DequantizeLinear (e, T, zp) }}"""
    arrays = {"Q": Q, "S": S, "T": np.asarray(0.05, np.float32), "zp": np.asarray(3, np.int8), **signed(1, -1, 1, 0)}
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)


def test_a_quantiser_before_the_norm_stops_it() -> None:
    text = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {{
        w = DequantizeLinear <axis = 0> (Q, S)  k = Conv (x, w)
        e = QuantizeLinear (k, T)  c = DequantizeLinear (e, T)  y = {BN} }}"""
    _, report = fuse(build(text, {"Q": Q, "S": S, "T": np.asarray(0.05, np.float32), **POSITIVE}))
    assert reasons(report) == ["no affine map passes DequantizeLinear 'DequantizeLinear → c'"]


@given(
    st.lists(st.sampled_from([1.0, 2.5, -1.0, 0.0]), min_size=4, max_size=4),
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
    st.sampled_from(["Conv", "Gemm"]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_random_weights_mean_the_same(signs: list[float], dtype: str, per_tensor: bool, op: str, seed: int) -> None:
    """Whatever the signs, types and zero points: equivalent, or left alone; the scales that result are positive."""
    random = np.random.default_rng(seed)
    shape = (4, 3, 3, 3) if op == "Conv" else (4, 5)
    info = np.iinfo(dtype)
    q = random.integers(info.min, info.max + 1, shape).astype(dtype)
    arrays = {"Q": q, "S": scales() if per_tensor else S}
    zero = random.integers(0, 5, () if per_tensor else (4,)) * random.integers(0, 2)
    arrays["Z"] = np.asarray(zero).astype(dtype)
    head = "w = DequantizeLinear <axis = 0> (Q, S, Z)"
    if op == "Conv":
        text = graph(f"{head}  c = Conv (x, w)")
    else:
        text = graph(f"{head}  c = Gemm <transB = 1> (x, w)", "float[3,5]", "float[3,4]")
    model = build(text, {**arrays, **signed(*signs, seed=seed)})
    fused, report = fuse(model)
    if report.rewrites:
        assert_same(model, fused)
        assert np.all(stored(fused, "S_folded").astype(np.float64) > 0.0)
    else:
        assert min(signs) < 0
