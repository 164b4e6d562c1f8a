"""The operators of the native library: the same numbers as their bodies, and at least as near to the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from normfuse.spec import Activation
from tests.native.grid import (
    TYPES,
    UNIT,
    Array,
    Node,
    expected,
    feeds,
    magnitude,
    model,
    needs_library,
    session,
    variants,
)


@pytest.fixture(autouse=True)
def _library() -> None:
    needs_library()


class Outcome(NamedTuple):
    """A result of a node. rounded: how large what is rounded on the way is."""

    node: Node
    rounded: float
    truth: Array
    body: Array
    kernel: Array


def outcomes(nodes: list[Node], dtype: str, *, mean: float = 0.5, threads: int = 1) -> Iterator[Outcome]:
    """Yield every output: the truth, the body's and the kernel's."""
    content = model(nodes, dtype)
    values = feeds(content, dtype, mean=mean)
    by_body = iter(session(content, native=False).run(None, values))
    alone = model(nodes, dtype, functions=False)  # without the library's kernel this would not load
    by_kernel = iter(session(alone, native=True, threads=threads).run(None, values))
    for node in nodes:
        for truth in expected(node, dtype, values):
            yield Outcome(node, magnitude(node, dtype, values), truth, next(by_body), next(by_kernel))


def assert_no_worse(outcome: Outcome, dtype: str, *, cancels: bool = False) -> None:
    """Assert that the kernel's largest error is at most the body's, and one rounding of the largest result.

    cancels: so few results that scale and bias may cancel in the largest; then of what is rounded on the way to it.
    """
    node, rounded, truth, body, kernel = outcome
    assert kernel.shape == truth.shape
    rounding = 2 * UNIT[dtype] * (rounded if cancels else float(np.max(np.abs(truth))))
    by_body, by_kernel = (float(np.max(np.abs(result - truth))) for result in (body, kernel))
    assert by_kernel <= by_body + rounding, f"{node} in {dtype}: {by_kernel:.3g}, the body {by_body:.3g}"


CLASSES = {
    "rank 3, one position over two registers": ((3, 6, 33), 3, -1),
    "rank 4": ((2, 12, 5, 7), 4, -2),
    "rank 5, a group for each channel": ((2, 6, 3, 3, 5), 6, 2),
    "one group, one sample": ((1, 9, 4, 4), 1, 1),
    "one element": ((1, 1, 1), 1, -1),
    "a channel longer than a chunk": ((1, 3, 4099), 3, -1),
}
"""(N, C, ...), groups, axis: the shapes on which every operator runs."""

FEW = ("one element", "one group, one sample")
"""Of these, results so few that the largest may be small beside its terms."""


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", CLASSES)
def test_every_operator(shape: str, dtype: str, last: bool) -> None:
    sizes, groups, axis = CLASSES[shape]
    sizes = (sizes[0], *sizes[2:], sizes[1]) if last else sizes
    nodes = variants(sizes, groups, axis=axis, last=last)
    if dtype == "float64":  # onnxruntime has no Erf for it, so that the body of GELU does not load
        nodes = [node for node in nodes if node.activation is not Activation.GELU]
    for outcome in outcomes(nodes, dtype):
        assert_no_worse(outcome, dtype, cancels=shape in FEW)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_operator_without_positions(dtype: str) -> None:
    """(N, C): what has no channels, beside its body; a group norm, whose body needs positions, beside the truth."""
    nodes = [node for node in variants((5, 24), 4) if node.norm in ("LayerNorm", "RMSNorm")]
    if dtype == "float64":
        nodes = [node for node in nodes if node.activation is not Activation.GELU]
    for outcome in outcomes(nodes, dtype):
        assert_no_worse(outcome, dtype)
    for last in (False, True):
        groups = [node for node in variants((5, 24), 4, last=last) if node.norm == "GroupNorm"]
        content = model(groups, dtype, functions=False)
        values = feeds(content, dtype)
        truths = [truth for node in groups for truth in expected(node, dtype, values)]
        for result, truth in zip(session(content, native=True).run(None, values), truths, strict=True):
            assert np.max(np.abs(result - truth)) <= 16 * UNIT[dtype] * np.max(np.abs(truth))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_every_operator_on_no_samples(dtype: str, last: bool) -> None:
    nodes = variants((0, 5, 12) if last else (0, 12, 5), 4, last=last)
    content = model(nodes, dtype, functions=False)
    results = session(content, native=True).run(None, feeds(content, dtype))
    assert {result.shape for result in results} == {nodes[0].shape}


@pytest.mark.parametrize("last", [False, True])
def test_gelu_in_float64(last: bool) -> None:
    nodes = variants((2, 5, 7, 12) if last else (2, 12, 5, 7), 4, axis=-2, last=last)
    nodes = [node for node in nodes if node.activation is Activation.GELU]
    content = model(nodes, "float64", functions=False)
    values = feeds(content, "float64")
    truths = [truth for node in nodes for truth in expected(node, "float64", values)]
    for result, truth in zip(session(content, native=True).run(None, values), truths, strict=True):
        assert np.max(np.abs(result - truth)) <= 16 * UNIT["float64"] * np.max(np.abs(truth))


CHANNELS = [
    ((3, 8, 33), 2),
    ((2, 6, 1), 3),
    ((1, 320, 16, 16), 32),
    ((2, 7, 3, 3, 5), 7),
    ((2, 9, 4, 4), 1),
    ((1, 1, 1), 1),
    ((1, 64, 70, 70), 2),
    ((4, 3, 257), 3),
]
TRAILING = [
    ((5,), -1),
    ((3, 17), -1),
    ((2, 3, 768), -1),
    ((2, 3, 5, 19), 1),
    ((2, 1), -1),
    ((1, 40000), 0),
    ((300, 16), -1),
]


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes(dtype: str) -> None:
    nodes = [Node("GroupNorm", shape, groups) for shape, groups in CHANNELS]
    nodes += [Node("InstanceNorm", shape) for shape, _ in CHANNELS]
    nodes += [Node(norm, shape, axis=axis) for norm in ("LayerNorm", "RMSNorm") for shape, axis in TRAILING]
    for outcome in outcomes(nodes, dtype):
        assert_no_worse(outcome, dtype)


LAST = [
    ((2, 33, 8), 2),
    ((1, 9, 9, 320), 32),
    ((3, 2, 2, 2, 6), 6),
    ((2, 100, 514), 1),
    ((1, 150, 150, 6), 2),
    ((1, 7), 1),
]


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_with_the_channels_last(dtype: str) -> None:
    nodes = [Node("GroupNorm", shape, groups, last=True) for shape, groups in LAST if len(shape) > 2]
    nodes += [Node("InstanceNorm", shape, last=True) for shape, _ in LAST if len(shape) > 2]
    for outcome in outcomes(nodes, dtype):
        assert_no_worse(outcome, dtype)


@pytest.mark.parametrize("last", [False, True])
def test_a_mean_that_comes_late_costs_nothing(last: bool) -> None:
    """Zeros first, as of padding, then values around a large mean: no shift that was chosen from the beginning will do."""
    shape = (1, 130, 2, 24) if last else (1, 24, 130, 2)
    nodes = [Node("GroupNorm", shape, 4, last=last), Node("InstanceNorm", shape, last=last)]
    content = model(nodes, "float32", functions=False)
    values = feeds(content, "float32", mean=3e4)
    for name in values:
        if name.startswith("x"):
            positions = np.moveaxis(values[name], 1 if last else 2, 0)
            positions[:30] = 0
            positions[90:95] -= 1e4
    for node, result in zip(nodes, session(content, native=True).run(None, values), strict=True):
        (truth,) = expected(node, "float32", values)
        assert np.max(np.abs(result - truth)) <= 16 * UNIT["float32"] * np.max(np.abs(truth))


@pytest.mark.parametrize("mean", [1.0, 1e2, 1e3, 1e4])
def test_a_large_mean_costs_nothing(mean: float) -> None:
    """Where the body loses digits to the mean, the kernels keep all that the input has."""
    nodes = [Node("GroupNorm", (2, 32, 64, 64), 8), Node("InstanceNorm", (1, 8, 32, 32)), Node("LayerNorm", (16, 512))]
    nodes += [Node("GroupNorm", (1, 40, 40, 32), 8, last=True)]
    for _, _, truth, body, kernel in outcomes(nodes, "float32", mean=mean):
        error = float(np.max(np.abs(kernel - truth)))
        assert error <= 16 * UNIT["float32"] * float(np.max(np.abs(truth)))
        assert error <= float(np.max(np.abs(body - truth))) + 2 * UNIT["float32"] * float(np.max(np.abs(truth)))


@pytest.mark.parametrize(("scale", "bias"), [(False, False), (True, False), (False, True)])
def test_scale_and_bias_may_be_absent(scale: bool, bias: bool) -> None:
    nodes = [
        Node("GroupNorm", (2, 6, 5, 5), 3, scale=scale, bias=bias),
        Node("GroupNorm", (2, 5, 5, 6), 3, scale=scale, bias=bias, last=True),
        Node("InstanceNorm", (2, 6, 5), residual=True, scale=scale, bias=bias),
        Node("LayerNorm", (4, 33), scale=scale, bias=bias),
        Node("RMSNorm", (4, 33), scale=scale),
    ]
    content = model(nodes, "float32", functions=False)
    values = feeds(content, "float32")
    results = session(content, native=True).run(None, values)
    for node, result in zip(nodes, results, strict=True):
        (truth,) = expected(node, "float32", values)
        assert np.max(np.abs(result - truth)) <= 16 * UNIT["float32"] * np.max(np.abs(truth))


@pytest.mark.parametrize("dtype", TYPES)
def test_empty_tensors(dtype: str) -> None:
    nodes = [
        Node("GroupNorm", (0, 6, 5), 3),
        Node("GroupNorm", (0, 5, 6), 3, last=True),
        Node("InstanceNorm", (2, 6, 0)),
        Node("LayerNorm", (0, 8), residual=True, sum=True),
        Node("RMSNorm", (3, 0)),
    ]
    content = model(nodes, dtype, functions=False)
    results = session(content, native=True).run(None, feeds(content, dtype))
    assert [result.shape for result in results] == [(0, 6, 5), (0, 5, 6), (2, 6, 0), (0, 8), (0, 8), (3, 0)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_threads_share_what_is_large(dtype: str, last: bool) -> None:
    """One group, one row, one sample: several tasks, and the result of one thread."""
    shape = (1, 80, 80, 12) if last else (1, 12, 80, 80)
    nodes = [Node("GroupNorm", shape, 1, activation=Activation.SILU, residual=True, sum=True, last=last)]
    nodes += [] if last else [Node("LayerNorm", (1, 76801)), Node("RMSNorm", (1, 76801))]
    content = model(nodes, dtype, functions=False)
    values = feeds(content, dtype)
    one, two = (session(content, native=True, threads=threads).run(None, values) for threads in (1, 2))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)
    truths = [truth for node in nodes for truth in expected(node, dtype, values)]
    for result, truth in zip(two, truths, strict=True):
        assert np.max(np.abs(result - truth)) <= 16 * UNIT[dtype] * np.max(np.abs(truth))


def test_large_tensors_that_no_register_divides() -> None:
    """What does not fit the caches is written past them, line by line, from an aligned address on."""
    nodes = [
        Node("GroupNorm", (2, 8, 363, 363), 2),
        Node("InstanceNorm", (1, 3, 1000, 701), activation=Activation.SILU),
        Node("LayerNorm", (520, 4099)),
        Node("LayerNorm", (1, 2100001)),
    ]
    for outcome in outcomes(nodes, "float32"):
        assert_no_worse(outcome, "float32")


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_and_infinity_stay_in_their_group(special: float, dtype: str) -> None:
    nodes = [
        Node("GroupNorm", (2, 4, 9), 2),
        Node("GroupNorm", (2, 9, 4), 2, last=True),
        Node("LayerNorm", (8, 9)),
        Node("RMSNorm", (8, 9)),
    ]
    content = model(nodes, dtype)
    values = feeds(content, dtype)
    for name in values:
        if name.startswith("x"):
            values[name].flat[5] = special
    results = session(content, native=True).run(None, values)
    with np.errstate(invalid="ignore"):
        truths = [expected(node, dtype, values)[0] for node in nodes]
    for result, truth in zip(results, truths, strict=True):
        np.testing.assert_array_equal(np.isnan(result), np.isnan(truth))


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SILU, Activation.GELU])
def test_activations_far_from_zero(activation: Activation) -> None:
    """Large results of both signs, small ones, and NaN."""
    node = Node("LayerNorm", (1, 8), activation=activation)
    content = model([node], "float32", functions=False)
    values = feeds(content, "float32")
    values["bias_8"] = np.array([-1e30, -90.0, -12.0, -1e-6, 1e-6, 12.0, 90.0, np.nan], np.float32)
    values["scale_8"] = np.zeros(8, np.float32)
    (result,) = session(content, native=True).run(None, values)
    with np.errstate(over="ignore"):
        (truth,) = expected(node, "float32", values)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(truth))
    np.testing.assert_allclose(result[0, :7], truth[0, :7], rtol=32 * UNIT["float32"], atol=1e-7)


ERRORS = {
    "the channels must be divisible by num_groups; got C=30, num_groups=4, x of (2, 30, 8)": Node(
        "GroupNorm", (2, 30, 8), 4
    ),
    "axis 3 is not one of x, which has (2, 5)": Node("LayerNorm", (2, 5), axis=3),
    "x must have a batch axis and a channel axis; it has (6)": Node("InstanceNorm", (6,)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_the_node_and_the_shapes(message: str) -> None:
    node = ERRORS[message]
    plain = Node(
        node.norm, (2, 30, 8) if node.norm == "GroupNorm" else node.shape, node.groups, 0 if node.axis > 2 else -1
    )
    content = model([Node("LayerNorm", (2, 30, 8))], "float32", functions=False)
    del content.graph.input[:], content.graph.node[:], content.graph.output[:]
    from onnx import TensorProto, helper

    content.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, node.shape))
    content.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    content.graph.node.append(
        helper.make_node(node.norm, ["x"], ["y"], "the/norm", domain="ai.normfuse", **node.attributes)
    )
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        session(content, native=True).run(None, {"x": np.zeros(plain.shape, np.float32)})
    assert f"ai.normfuse {node.norm} 'the/norm': {message}" in str(caught.value)
