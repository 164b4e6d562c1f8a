"""The primitive form: elementary operators only, in every opset's own spelling, exact at large means."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import normfuse
from normfuse import io
from normfuse.emit import emit
from normfuse.emit.target import Form, Target
from normfuse.graph.editing import Editor, Replacement
from normfuse.graph.site import NormSite
from normfuse.recognise import find_norms
from normfuse.reference import evaluate
from tests.emit.test_standard import emitted
from tests.folding import BN, assert_same, build, fuse, parameters
from tests.graphs import model_of, node_types, reading_of, run


def layer(opset: int, x: str = "float[N,6,5]") -> str:
    return f"""<ir_version: 8, opset_import: ["": {opset}]> g ({x} x, float[5] s, float[5] b) => ({x} y)
        {{ y = LayerNormalization <epsilon = 0.5> (x, s, b) }}"""


CORE = ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"]


@pytest.mark.parametrize(("opset", "inputs"), [(17, 1), (18, 2), (23, 2)])
def test_layer_norm(opset: int, inputs: int) -> None:
    model, _ = emitted(layer(opset), Form.PRIMITIVE)
    assert node_types(model) == [*CORE, "Mul", "Add"]
    mean = next(node for node in model.graph if node.op_type == "ReduceMean")
    assert len(mean.inputs) == inputs  # axes: an attribute below 18, an input from then on


def test_rms_norm_subtracts_nothing() -> None:
    text = """<ir_version: 8, opset_import: ["": 23]> g (float[N,6,5] x, float[5] s) => (float[N,6,5] y)
        { y = RMSNormalization (x, s) }"""
    model, _ = emitted(text, Form.PRIMITIVE)
    assert node_types(model) == ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]


def test_half_types_are_widened_once_and_rounded_once() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float16[N,4,6,5] x, float16[4] s, float16[4] b) =>
        (float16[N,4,6,5] y) { y = InstanceNormalization (x, s, b) }"""
    model, _ = emitted(text, Form.PRIMITIVE)
    types = node_types(model)
    assert types[0] == types[-1] == "Cast"
    assert {value.dtype for node in model.graph for value in node.outputs} <= {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
    }
    means = [node for node in model.graph if node.op_type == "ReduceMean"]
    assert all(node.outputs[0].dtype == ir.DataType.FLOAT for node in means)


def test_batch_norm_of_constants_is_one_multiplication_and_addition() -> None:
    text = """<ir_version: 8, opset_import: ["": 9]> g (float[N,2,6,5] x) => (float[N,2,6,5] y)
        <float[2] s = {2, 3}, float[2] b = {1, 1}, float[2] m = {1, 2}, float[2] v = {3.5, 15.5}>
        { y = BatchNormalization <epsilon = 0.5> (x, s, b, m, v) }"""
    model, _ = emitted(text, Form.PRIMITIVE)
    assert node_types(model) == ["Mul", "Add"]
    arrays = [
        value.const_value.numpy().reshape(-1).tolist()
        for value in model.graph.initializers.values()
        if value.const_value
    ]
    assert arrays == [[1.0, 0.75], [0.0, -0.5]]


def test_batch_norm_of_inputs_computes_the_formula() -> None:
    text = """<ir_version: 8, opset_import: ["": 15]> g (float[N,2,6,5] x, float[2] s, float[2] m, float[2] v) =>
        (float[N,2,6,5] y) { y = BatchNormalization <epsilon = 0.5> (x, s, m, m, v) }"""
    model, _ = emitted(text, Form.PRIMITIVE)
    assert "BatchNormalization" not in node_types(model)
    feeds = {
        "x": np.ones((1, 2, 6, 5)),
        "s": np.array([2.0, 3.0]),
        "m": np.array([1.0, 2.0]),
        "v": np.array([3.5, 0.5]),
    }
    (y,) = run(model, {name: array.astype(np.float32) for name, array in feeds.items()})
    np.testing.assert_array_equal(y[0, :, 0, 0], [1.0, -1.0])


@pytest.mark.parametrize(
    ("v", "reason"),
    [
        ("{1, -1}", "variance + epsilon is -0.5 in channel 1; it must be positive"),
        ("{1, 1e-45}", None),
    ],
)
def test_batch_norm_that_cannot_be_written(v: str, reason: str | None) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 15]> g (float[N,2] x) => (float[N,2] y)
        <float[2] s = {{2, 3}}, float[2] v = {v}> {{ y = BatchNormalization <epsilon = 0.5> (x, s, s, s, v) }}"""
    _, declined = emitted(text, Form.PRIMITIVE)
    assert [entry.reason for entry in declined] == ([] if reason is None else [reason])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            """<ir_version: 3, opset_import: ["": 6]> g (float[N,4,6] x, float[4] s) => (float[N,4,6] y)
            { y = InstanceNormalization (x, s, s) }""",
            "opset 6 is older than 7, the oldest that is written",
        ),
        (
            """<ir_version: 8, opset_import: ["": 10]> g (float[N,4,6] x, float[6] s) => (y)
            { z = other.Thing (x) y = LayerNormalization (z, s) }""",
            "the rank of 'z' is unknown (run shape inference)",
        ),
        (
            """<ir_version: 8, opset_import: ["": 18]> g (float[N,4] x, float[4] s) => (float[N,4] y)
            { y = InstanceNormalization (x, s, s) }""",
            "'x' has rank 2: no positions to average over",
        ),
        (
            """<ir_version: 8, opset_import: ["": 18]> g (float[N,4,6] x, s, b) => (y)
            { z = other.Thing (x) y = LayerNormalization (z, s, b) }""",
            "the type of 'z' is unknown (run shape inference)",
        ),
    ],
)
def test_declines(text: str, reason: str) -> None:
    model = ir.from_onnx_text(text)
    before = ir.to_proto(model).SerializeToString()
    reading = reading_of(model)
    (site,) = find_norms(model.graph, reading)
    assert isinstance(site, NormSite)
    result = emit(site, Form.PRIMITIVE, reading, reading.opset)
    assert getattr(result, "reason", None) == reason
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("opset", [12, 21])
def test_a_large_mean_does_not_cancel(opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,8,8] x, float[4] s, float[4] b) =>
        (float[N,4,8,8] y) {{ y = InstanceNormalization (x, s, b) }}"""
    rng = np.random.default_rng(0)
    # Integers around 2^16 with their mean: sums of 64 of them are exact in float32, E[x²] would not be.
    x = (65536 + rng.integers(-3, 4, (2, 4, 8, 8))).astype(np.float32)
    feeds = {"x": x, "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    original = model_of(text)
    (site,) = find_norms(original.graph, reading_of(original))
    assert isinstance(site, NormSite)
    model, _ = emitted(text, Form.PRIMITIVE)
    (y,) = run(model, feeds)
    expected = evaluate(site.spec, {"x": x, "scale": feeds["s"], "bias": feeds["b"]})
    # The mean rounds to half a unit of 2^16, 2^-8; it moves a deviation of size two by that.
    assert np.abs(y - expected).max() < 2.0**-7


def test_unknown_rank_is_seen_as_three_axes() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[N,4,6,5] x, float[4] s, float[4] b) => (float[N,4,6,5] y)
        { y = InstanceNormalization (x, s, b) }"""
    model = model_of(text)
    reading = reading_of(model)
    (site,) = find_norms(model.graph, reading)
    assert isinstance(site, NormSite)
    site.operands.x.shape = None
    replacement = emit(site, Form.PRIMITIVE, reading, 18)
    assert isinstance(replacement, Replacement)
    Editor(model).apply(replacement, site.root)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    s, b = rng.standard_normal((2, 4)).astype(np.float32)
    model.graph.inputs[0].shape = ir.Shape(["N", 4, 6, 5])
    (y,) = run(model, {"x": x, "s": s, "b": b})
    expected = evaluate(site.spec, {"x": x, "scale": s, "bias": b})
    # Ten roundings and a mean of 30, amplified by |x|/σ < 8, of values below 8.
    assert np.abs(y - expected).max() < 2**8 * 8 * np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_ones_and_zeros_are_not_written(dtype: str) -> None:
    """As an export of GroupNorm(affine=False) has them: read again they would be arithmetic that changes nothing."""
    code = {"float": 1, "bfloat16": 16}[dtype]
    text = f"""<ir_version: 10, opset_import: ["": 18]> g ({dtype}[N,4,H,W] x) => ({dtype}[N,4,H,W] y)
        <int64[3] to = {{0, 4, -1}}, float[4] ones = {{1, 1, 1, 1}}, float[4] zeros = {{0, 0, 0, 0}},
         float[4,1,1] w = {{1, 1, 1, 1}}, float[4,1,1] b = {{0, 0, 0, 0}}> {{
          one = Cast <to = {code}> (ones) nil = Cast <to = {code}> (zeros)
          scale = Cast <to = {code}> (w) bias = Cast <to = {code}> (b)
          g = Reshape (x, to) n = InstanceNormalization (g, one, nil) s = Shape (x) r = Reshape (n, s)
          a = Mul (r, scale) y = Add (a, bias) }}"""
    target = Target(Form.PRIMITIVE, opset=17)
    once, _ = normfuse.fuse(ir.to_proto(model_of(text)), target)
    # The square alone is a Mul, and epsilon alone is added.
    assert (node_types(once).count("Mul"), node_types(once).count("Add")) == (1, 1)
    twice, report = normfuse.fuse(io.to_proto(once), target)
    assert not report.rewrites
    assert node_types(twice) == node_types(once)


@pytest.mark.parametrize("opset", [11, 17])
def test_a_batch_norm_of_an_input_whose_type_is_not_stated_needs_no_cast(opset: int) -> None:
    text = f"g (float[2,3,4,5] x) => (float[2,3,4,5] y) {{ c = Relu (x)  n = {BN}  y = Sigmoid (n) }}"
    model = build(text, parameters(3), opset=opset)
    fused, _ = fuse(model, target=Target(Form.PRIMITIVE))
    assert node_types(fused) == ["Relu", "Mul", "Add", "Sigmoid"]
    assert_same(model, fused)
