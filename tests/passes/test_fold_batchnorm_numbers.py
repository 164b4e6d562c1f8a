"""What a folded weight is in its type: rounded once, in range; and statistics that are said to look wrong."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.folding import BN, assert_same, build, count, fuse, graph, normal, parameters, reasons


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
