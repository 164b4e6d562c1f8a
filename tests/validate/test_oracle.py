"""The float64 oracle against torch in float64, NumPy written out, and onnx.reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.costs import Limits
from normfuse.validate.noise import Noise
from normfuse.validate.op_basic import erf
from normfuse.validate.oracle import Oracle
from tests.validate.nets import Array, info, model

torch = pytest.importorskip("torch")
F = torch.nn.functional

RNG = np.random.default_rng(0)
X3 = RNG.normal(size=(2, 6, 11)) + 3
X4 = RNG.normal(size=(2, 6, 9, 10)) + 3
X5 = RNG.normal(size=(2, 6, 5, 6, 4))
V6, W6, B6, M6 = (RNG.normal(size=6) for _ in range(4))
S6 = np.abs(V6) + 0.3


def run(
    op: str, arrays: list[Array | None], *, opset: int = 17, domain: str = "", outputs: int = 1, **attributes: Any
) -> list[Array]:
    """Evaluate one node in the oracle; all arrays are graph inputs."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(arrays)]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attributes)
    given_arrays = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given_arrays.items()
    ]
    proto = model(
        [node],
        infos,
        [onnx.ValueInfoProto(name=name) for name in results],
        {},
        opset=opset,
        domains=(domain,) if domain else (),
    )
    found = Oracle(ir.from_proto(proto)).run(given_arrays)
    return [found[name].data for name in results]


def close(actual: Array, expected: Any) -> None:
    expected = expected.numpy() if hasattr(expected, "numpy") else np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def t(array: Array) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))


CONVOLUTIONS = [
    # x, weight shape, ONNX attributes, torch arguments
    (X3, (4, 6, 3), {"pads": [1, 1]}, {"padding": 1}),
    (X3, (6, 1, 3), {"group": 6, "dilations": [2]}, {"groups": 6, "dilation": 2}),
    (X4, (4, 6, 3, 3), {"pads": [1, 2, 1, 2], "strides": [2, 1]}, {"padding": (1, 2), "stride": (2, 1)}),
    (X4, (8, 3, 3, 2), {"group": 2, "dilations": [2, 1]}, {"groups": 2, "dilation": (2, 1)}),
    (X4, (12, 1, 3, 3), {"group": 6}, {"groups": 6}),
    (X4, (4, 6, 1, 1), {"strides": [2, 2]}, {"stride": 2}),
    (X4, (4, 6, 3, 3), {"auto_pad": "SAME_UPPER"}, {"padding": "same"}),
    (X4, (4, 6, 3, 3), {"auto_pad": "VALID"}, {}),
    (X5, (4, 3, 2, 3, 2), {"group": 2, "pads": [1] * 6}, {"groups": 2, "padding": 1}),
]


@pytest.mark.parametrize(("x", "shape", "attributes", "arguments"), CONVOLUTIONS)
def test_conv(x: Array, shape: tuple[int, ...], attributes: dict[str, Any], arguments: dict[str, Any]) -> None:
    weight, bias = RNG.normal(size=shape), RNG.normal(size=shape[0])
    function = getattr(F, f"conv{x.ndim - 2}d")
    close(run("Conv", [x, weight, bias], **attributes)[0], function(t(x), t(weight), t(bias), **arguments))
    close(run("Conv", [x, weight], **attributes)[0], function(t(x), t(weight), **arguments))


@pytest.mark.parametrize(("mode", "start"), [("SAME_UPPER", 0), ("SAME_LOWER", 1)])
def test_conv_same_pads_the_odd_one_at_its_side(mode: str, start: int) -> None:
    weight = RNG.normal(size=(2, 6, 2, 2))
    padded = np.pad(X4, [(0, 0), (0, 0), (start, 1 - start), (start, 1 - start)])
    close(run("Conv", [X4, weight], auto_pad=mode)[0], F.conv2d(t(padded), t(weight)))


TRANSPOSED = [
    (
        X3,
        (6, 4, 3),
        {"strides": [2], "pads": [1, 1], "output_padding": [1]},
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    (X4, (6, 2, 3, 3), {"group": 3, "strides": [2, 1]}, {"groups": 3, "stride": (2, 1)}),
    (X4, (6, 4, 3, 2), {"dilations": [2, 3]}, {"dilation": (2, 3)}),
    (X5, (6, 1, 2, 2, 2), {"group": 6, "strides": [2, 2, 2]}, {"groups": 6, "stride": 2}),
]


@pytest.mark.parametrize(("x", "shape", "attributes", "arguments"), TRANSPOSED)
def test_conv_transpose(
    x: Array, shape: tuple[int, ...], attributes: dict[str, Any], arguments: dict[str, Any]
) -> None:
    weight = RNG.normal(size=shape)
    bias = RNG.normal(size=shape[1] * attributes.get("group", 1))
    function = getattr(F, f"conv_transpose{x.ndim - 2}d")
    close(run("ConvTranspose", [x, weight, bias], **attributes)[0], function(t(x), t(weight), t(bias), **arguments))


def test_conv_transpose_with_a_wanted_size() -> None:
    weight = RNG.normal(size=(6, 2, 3, 3))
    found = run("ConvTranspose", [X4, weight], strides=[2, 2], output_shape=[18, 20])[0]
    close(found, F.conv_transpose2d(t(X4), t(weight), stride=2)[:, :, 1:, 1:])


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("NOTSET", 8, [2, 3, 10, 20, 30, 100, 200, 300]),
        ("SAME_UPPER", 8, [1, 2, 3, 10, 20, 30, 100, 200]),
        ("SAME_LOWER", 8, [2, 3, 10, 20, 30, 100, 200, 300]),
        ("NOTSET", 11, [1, 2, 3, 10, 20, 30, 100, 200, 300, 0, 0]),
    ],
)
def test_conv_transpose_with_a_wanted_size_crops_and_appends_as_onnx_says(
    mode: str, size: int, expected: list[int]
) -> None:
    """ONNX ConvTranspose: the odd element of the crop is the first, except for SAME_UPPER; what is missing is zero."""
    arrays: list[Array | None] = [np.array([[[1.0, 10.0, 100.0]]]), np.array([[[1.0, 2.0, 3.0]]])]
    found = run("ConvTranspose", arrays, strides=[3], output_shape=[size], auto_pad=mode)[0]
    assert found.ravel().tolist() == expected


def test_conv_states_what_does_not_fit() -> None:
    with pytest.raises(OracleFailed, match=r"X \(2, 6, 9, 10\) and W \(4, 5, 3, 3\) do not fit with group=1"):
        run("Conv", [X4, RNG.normal(size=(4, 5, 3, 3))])


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
@pytest.mark.parametrize("momentum", [None, 0.7])
def test_batch_normalization(opset: int, momentum: float | None) -> None:
    """onnx.reference takes batch statistics in 9 to 13 when momentum is set."""
    attributes: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    found = run("BatchNormalization", [X4, W6, B6, M6, S6], opset=opset, epsilon=1e-3, **attributes)[0]
    close(found, F.batch_norm(t(X4), t(M6), t(S6), t(W6), t(B6), eps=float(np.float32(1e-3))))


def test_batch_normalization_without_spatial() -> None:
    operands = [np.abs(RNG.normal(size=(6, 9, 10))) + 0.5 for _ in range(4)]
    scale, bias, mean, var = operands
    found = run("BatchNormalization", [X4, *operands], opset=7, spatial=0, epsilon=0.0)[0]
    close(found, (X4 - mean) / np.sqrt(var) * scale + bias)


@pytest.mark.parametrize(("opset", "outputs"), [(8, 5), (13, 5), (14, 3), (15, 3)])
def test_batch_normalization_in_training(opset: int, outputs: int) -> None:
    attributes: dict[str, Any] = {"training_mode": 1} if opset >= 14 else {}
    found = run("BatchNormalization", [X4, W6, B6, M6, S6], opset=opset, outputs=outputs, momentum=0.75, **attributes)
    eps = float(np.float32(1e-5))
    close(found[0], F.batch_norm(t(X4), None, None, t(W6), t(B6), training=True, eps=eps))
    close(found[1], M6 * 0.75 + X4.mean(axis=(0, 2, 3)) * 0.25)
    close(found[2], S6 * 0.75 + X4.var(axis=(0, 2, 3)) * 0.25)


def test_instance_and_layer_and_group_and_rms_normalization() -> None:
    eps = float(np.float32(1e-5))
    close(run("InstanceNormalization", [X4, W6, B6])[0], F.instance_norm(t(X4), weight=t(W6), bias=t(B6), eps=eps))
    scale, bias = RNG.normal(size=(9, 10)), RNG.normal(size=(9, 10))
    found = run("LayerNormalization", [X4, scale, bias], axis=-2, outputs=3)
    close(found[0], F.layer_norm(t(X4), (9, 10), t(scale), t(bias), eps=eps))
    close(found[1], X4.mean(axis=(2, 3), keepdims=True))
    close(found[2], 1 / np.sqrt(X4.var(axis=(2, 3), keepdims=True) + eps))
    wide = F.group_norm(t(X4), 3, t(W6), t(B6), eps=eps)
    close(run("GroupNormalization", [X4, W6, B6], opset=21, num_groups=3)[0], wide)
    narrow = F.group_norm(t(X4), 3, t(np.repeat(W6[:3], 2)), t(np.repeat(B6[:3], 2)), eps=eps)
    close(run("GroupNormalization", [X4, W6[:3], B6[:3]], opset=18, num_groups=3)[0], narrow)
    row = RNG.normal(size=10)
    close(run("RMSNormalization", [X4, row], opset=23)[0], F.rms_norm(t(X4), (10,), t(row), eps=eps))
    close(
        run("MeanVarianceNormalization", [X4])[0],
        (X4 - X4.mean((0, 2, 3), keepdims=True)) / (X4.std((0, 2, 3), keepdims=True) + 1e-9),
    )


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_norms_keep_their_digits_at_a_large_mean(mean: float) -> None:
    x = RNG.normal(size=(2, 6, 30)) + mean
    expected = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + float(np.float32(1e-5)))
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("GroupNormalization", 21, {"num_groups": 6}),
        ("InstanceNormalization", 17, {}),
    ]
    for op, opset, more in cases:
        found = run(op, [x, np.ones(6), np.zeros(6)], opset=opset, **more)[0]
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_contrib_norms() -> None:
    ms: dict[str, Any] = {"domain": "com.microsoft"}
    x, skip, row, beta, bias = X3, RNG.normal(size=X3.shape), *(RNG.normal(size=11) for _ in range(3))
    eps = float(np.float32(1e-5))
    found = run("SkipLayerNormalization", [x, skip, row, beta, bias], outputs=4, epsilon=1e-5, **ms)
    close(found[0], F.layer_norm(t(x + skip + bias), (11,), t(row), t(beta), eps=eps))
    close(found[3], x + skip + bias)
    found = run("SkipSimplifiedLayerNormalization", [x, skip, row], epsilon=1e-5, **ms)
    close(found[0], F.rms_norm(t(x + skip), (11,), t(row), eps=eps))
    last = np.ascontiguousarray(np.moveaxis(X4, 1, -1))
    found = run("GroupNorm", [last, W6, B6], groups=2, activation=1, epsilon=1e-5, **ms)
    close(found[0], np.moveaxis(F.silu(F.group_norm(t(X4), 2, t(W6), t(B6), eps=eps)).numpy(), 1, -1))
    close(run("FusedConv", [X4, np.eye(6)[:, :, None, None]], activation="Relu", **ms)[0], F.relu(t(X4)))
    close(run("QuickGelu", [X4], alpha=1.0, **ms)[0], F.silu(t(X4)))
    close(run("FusedMatMul", [X3, X3], transB=1, alpha=0.5, **ms)[0], 0.5 * X3 @ X3.swapaxes(1, 2))


POOLS = [
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}, lambda x: F.max_pool2d(x, 3, 2, 1)),
    (
        "MaxPool",
        {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1},
        lambda x: F.max_pool2d(x, (3, 2), (2, 3), ceil_mode=True),
    ),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3]}, lambda x: F.max_pool2d(x, 2, 1, dilation=(2, 3))),
    (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1},
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    ("GlobalAveragePool", {}, lambda x: x.mean((2, 3), keepdim=True)),
    ("GlobalMaxPool", {}, lambda x: x.amax((2, 3), keepdim=True)),
    (
        "LRN",
        {"size": 3, "alpha": 0.5, "beta": 0.75, "bias": 2.0},
        lambda x: F.local_response_norm(x, 3, 0.5, 0.75, 2.0),
    ),
]


@pytest.mark.parametrize(("op", "attributes", "expected"), POOLS)
def test_pools(op: str, attributes: dict[str, Any], expected: Any) -> None:
    close(run(op, [X4], opset=19, **attributes)[0], expected(t(X4)))


ELEMENTWISE = [
    ("Gelu", {}, F.gelu),
    ("Gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("Sigmoid", {}, torch.sigmoid),
    ("Softmax", {"axis": 1}, lambda x: torch.softmax(x, 1)),
    ("LogSoftmax", {}, lambda x: torch.log_softmax(x, -1)),
    ("LeakyRelu", {"alpha": 0.25}, lambda x: F.leaky_relu(x, 0.25)),
    ("HardSwish", {}, F.hardswish),
    ("Softplus", {}, F.softplus),
    ("Mish", {}, F.mish),
    ("ReduceL2", {}, lambda x: x.square().sum().sqrt().reshape(1, 1, 1, 1)),
    ("LpNormalization", {"axis": 1, "p": 2}, lambda x: F.normalize(x, dim=1)),
]


@pytest.mark.parametrize(("op", "attributes", "expected"), ELEMENTWISE)
def test_elementwise(op: str, attributes: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(
        run(op, [X4 - 3], opset=22, **attributes)[0], expected(t(X4 - 3)).numpy(), rtol=1e-7, atol=1e-14
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=20))
def test_erf(values: list[float]) -> None:
    np.testing.assert_allclose(erf(np.array(values)), [math.erf(value) for value in values], rtol=0, atol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    indices = RNG.integers(0, 6, (2, 5, 4))
    indices = np.minimum(indices, X3.shape[axis] - 1)
    (found,) = run("GatherElements", [X3, indices], axis=axis)
    close(found, torch.gather(t(X3), axis % 3, torch.from_numpy(indices)))


def test_gather_elements_repeats_an_axis_of_size_one() -> None:
    """As exporters write position embeddings and onnxruntime runs them; onnx.reference fails there."""
    indices = RNG.integers(0, 11, (2, 4))
    (found,) = run("GatherElements", [X3[:1, 0], indices], axis=1)
    close(found, X3[0, 0][indices])


def test_broadcast_attributes_before_opset_7() -> None:
    close(run("Add", [X4, W6], opset=6, broadcast=1, axis=1)[0], X4 + W6[:, None, None])
    close(run("Mul", [X4, X4[0, 0, 0]], opset=6, broadcast=1)[0], X4 * X4[0, 0, 0])


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT])
def test_casts_between_floats_keep_float64(dtype: int) -> None:
    close(run("Cast", [X3], to=dtype)[0], X3)


def test_cast_to_integer_truncates() -> None:
    assert run("Cast", [np.array([-1.7, 2.9])], to=TensorProto.INT64)[0].tolist() == [-1, 2]


def test_integer_division_stays_integer() -> None:
    assert run("Div", [np.array([7, -7]), np.array([2, 2])])[0].tolist() == [3, -3]


def parsed(text: str) -> Oracle:
    return Oracle(ir.from_proto(onnx.parser.parse_model(text)))


def test_control_flow_sees_outer_values() -> None:
    oracle = parsed("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[3] x, bool c, int64 n) => (float[3] a, float[3] b, float[k, 3] s) {
            k = Constant <value = float {2.0}> ()
            yes = Constant <value = bool {1}> ()
            a = If (c) <then_branch = t () => (float[3] p) { p = Mul(x, k) },
                        else_branch = e () => (float[3] q) { q = Neg(x) }>
            b, s = Loop (n, yes, x) <body = body (int64 i, bool g, float[3] v) => (bool h, float[3] w, float[3] z) {
                h = Identity(g)
                w = Mul(v, k)
                z = Add(w, x)
            }>
        }
    """)
    x = np.array([1.0, 2.0, 3.0])
    found = oracle.run({"x": x, "c": np.array(True), "n": np.array(3)})
    close(found["a"].data, 2 * x)
    close(found["b"].data, 8 * x)
    close(found["s"].data, np.stack([3 * x, 5 * x, 9 * x]))
    close(oracle.run({"x": x, "c": np.array(False), "n": np.array(1)})["a"].data, -x)


def test_scan() -> None:
    oracle = parsed("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[2] start, float[4, 2] x) => (float[2] last, float[4, 2] sums) {
            last, sums = Scan (start, x) <num_scan_inputs = 1, body = body (float[2] a, float[2] b) => (float[2] c,
            float[2] d) {
                c = Add(a, b)
                d = Identity(c)
            }>
        }
    """)
    x = RNG.normal(size=(4, 2))
    found = oracle.run({"start": np.zeros(2), "x": x})
    close(found["sums"].data, np.cumsum(x, axis=0))


def test_functions_are_inlined_and_the_model_is_not_changed() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17, "ai.normfuse" : 1]>
        net (float[3] x) => (float[3] y) { y = ai.normfuse.Twice <by = 3.0> (x) }
        <domain: "ai.normfuse", opset_import: ["" : 17]>
        Twice <by> (x) => (y) { k = Constant <value_float : float = @by> ()  y = Mul(x, k) }
    """
    given_model = ir.from_proto(onnx.parser.parse_model(text))
    close(Oracle(given_model).run({"x": np.ones(3)})["y"].data, np.full(3, 3.0))
    assert [node.op_type for node in given_model.graph] == ["Twice"]


def test_refusal() -> None:
    with pytest.raises(OracleCannotRun, match="no implementation"):
        run("Mystery", [X3], domain="somebody")


@pytest.mark.parametrize(
    ("op", "arrays", "attributes", "mean", "deviation"),
    [
        ("RandomNormalLike", [np.zeros((100, 100))], {"mean": 3.0, "scale": 2.0}, 3.0, 2.0),
        ("RandomUniform", [], {"shape": [100, 100], "low": -1.0, "high": 3.0}, 1.0, 4 / math.sqrt(12)),
        ("Bernoulli", [np.full((100, 100), 0.2)], {}, 0.2, 0.4),
        ("Dropout", [np.ones((100, 100)), np.array(0.2), np.array(True)], {}, 1.0, 0.5),
    ],
)
def test_draws_are_of_their_distribution_and_the_same_in_every_run(
    op: str, arrays: list[Array | None], attributes: dict[str, Any], mean: float, deviation: float
) -> None:
    first, second = (run(op, arrays, opset=15, **attributes)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert abs(first.mean() - mean) < 5 * deviation / 100
    assert abs(first.std() - deviation) < 0.05 * deviation


def test_multinomial_draws_by_its_logits() -> None:
    logits = np.log(np.array([[0.5, 0.5, 1e-9], [1e-9, 1e-9, 1.0]]))
    found = run("Multinomial", [logits], sample_size=1000, dtype=7)[0]
    assert found.shape == (2, 1000)
    assert abs(np.mean(found[0] == 0) - 0.5) < 0.08
    assert (found[1] == 2).all()


def test_loop_whose_trips_differ_in_shape_fails_in_words() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64 n) => (float[a,b] y)
        <bool yes = {1}> { y = Loop (n, yes) <body = b (int64 i, bool c) => (bool k, float[m] s) {
            k = Identity (c)  one = Constant <value = int64[1] {1}> ()  p = Reshape (i, one)  s = ConstantOfShape (p) }> }"""
    with pytest.raises(
        OracleFailed, match="Loop at node 'y' failed in float64: all input arrays must have the same shape"
    ):
        Oracle(ir.from_proto(onnx.parser.parse_model(text))).run({"n": np.array(3)})


@pytest.mark.parametrize("limits", [Limits(macs=10), Limits(live_bytes=100)])
def test_limits(limits: Limits) -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    proto = model(nodes, [info("x", "float32", [8, 8])], [info("y", "float32", [8, 8])], {})
    with pytest.raises(OracleCannotRun, match="too large"):
        Oracle(ir.from_proto(proto), limits).run({"x": np.ones((8, 8))})


def test_noise_is_of_the_size_of_rounding_and_repeatable() -> None:
    """A chain of two products in float16: relative u per rounding, so a few u in all."""
    tensors = {"w": RNG.normal(size=(64, 64)).astype(np.float16) / np.float16(8)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    proto = model(nodes, [info("x", "float16", [32, 64])], [info("y", "float16", [32, 64])], tensors)
    oracle = Oracle(ir.from_proto(proto))
    x = RNG.normal(size=(32, 64)).astype(np.float16)
    truth, one, again, two = (
        oracle.run({"x": x}, noise=noise)["y"].data for noise in (None, Noise(0), Noise(0), Noise(1))
    )
    share = np.sqrt(np.mean((one - truth) ** 2) / np.mean(truth**2)) / 2**-11
    assert 0.3 < share < 3
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_exponents_are_not_perturbed() -> None:
    tensors = {"two": np.array(2.0, dtype="f")}
    proto = model(
        [helper.make_node("Pow", ["x", "two"], ["y"])],
        [info("x", "float32", [64])],
        [info("y", "float32", [64])],
        tensors,
    )
    found = Oracle(ir.from_proto(proto)).run({"x": -np.ones(64)}, noise=Noise(0))["y"].data
    assert np.isfinite(found).all()


def test_what_is_computed_from_shapes_is_not_perturbed() -> None:
    """Floor(H · 2.0) must stay the size that it is."""
    oracle = parsed("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 1, h, w] x) => (float[n] y) {
            two = Constant <value = float {2.0}> ()
            shape = Shape(x)
            sizes = Cast <to = 1> (shape)
            doubled = Mul(sizes, two)
            whole = Floor(doubled)
            y = Cast <to = 1> (whole)
        }
    """)
    for seed in range(4):
        found = oracle.run({"x": np.zeros((1, 1, 8, 6), "f")}, noise=Noise(seed, 10.0))["y"].data
        assert found.tolist() == [2, 2, 16, 12]
    assert oracle.jumps() == ()


def test_results_without_a_name_keep_their_place() -> None:
    """Attention with its first and its fourth result; onnx.reference gives the two, and nothing in between."""
    text = """<ir_version: 11, opset_import: ["": 23]> g (float[1,2,3,4] q) => (float[1,2,3,4] y, float[1,2,3,3] p)
        { y, , , p = Attention <qk_matmul_output_mode = 3> (q, q, q) }"""
    x = RNG.normal(size=(1, 2, 3, 4))
    found = Oracle(ir.from_proto(onnx.parser.parse_model(text))).run({"q": x})
    close(found["p"].data @ x, found["y"].data)


def test_equal_weights_of_two_models_are_held_once_and_let_go() -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    infos = [info(name, "float32", [2, 3]) for name in "xy"]
    weights = {"W": np.ones((3, 3), "f"), "b": np.zeros(3, "f")}
    first = Oracle(ir.from_proto(model(nodes, infos[:1], infos[1:], weights)))
    negative = {**weights, "b": -np.zeros(3, "f")}
    other = Oracle(ir.from_proto(model(nodes, infos[:1], infos[1:], negative)), beside=first)
    feed = {"x": np.ones((2, 3), "f")}
    results = [oracle.run(feed)["y"].data for oracle in (first, other)]
    assert [result.tolist() for result in results] == [[[3.0] * 3] * 2] * 2

    def held(oracle: Oracle, name: str) -> Any:
        value = oracle.graph.initializers[name]
        return oracle.evaluate({}, [value])[value].data

    assert held(first, "W") is held(other, "W")
    assert held(first, "b") is not held(other, "b")  # bit by bit: -0 is not 0
    before = held(first, "W"), first.run(feed, noise=Noise(0))["y"].data
    weight = first.graph.initializers["W"]
    shaken = first.evaluate({}, [weight], noise=Noise(0))[weight].data
    assert first.evaluate({}, [weight], noise=Noise(0))[weight].data is shaken
    first.release()
    assert held(first, "W") is not before[0]
    again = first.evaluate({}, [weight], noise=Noise(0))[weight].data
    assert again is not shaken
    np.testing.assert_array_equal(again, shaken)
    np.testing.assert_array_equal(first.run(feed, noise=Noise(0))["y"].data, before[1])
