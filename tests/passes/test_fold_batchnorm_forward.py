"""Folding BatchNormalization into the operator behind it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.folding import assert_same, build, count, fuse, graph, normal, parameters, reasons

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
