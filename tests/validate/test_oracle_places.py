"""Operators that read and write at computed places: the oracle's own, against onnx's node cases and torch's float64."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from normfuse.validate.call import OracleFailed
from normfuse.validate.fallback import Fallback
from normfuse.validate.oracle import Oracle
from tests.validate.nets import Array, model
from tests.validate.test_oracle import X3, X4, X5, F, close, run, t

# How many of onnx's node cases there are at least; each onnx brings more.
OPERATORS = {
    "MaxPool": 15, "LpPool": 7, "GatherND": 3, "ScatterND": 5, "ScatterElements": 6, "Scatter": 0, "Col2Im": 5,
    "GridSample": 13, "DeformConv": 4, "RoiAlign": 2,
}  # fmt: skip
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Fallback, node: ir.Node, inputs: Any) -> list[Any]:
        raise AssertionError(f"{node.op_type} was left to onnx.reference")

    monkeypatch.setattr(Fallback, "run", refuse)


@cache
def _cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if case.model is not None and len(case.model.graph.node) == 1]


@pytest.mark.parametrize("op", OPERATORS)
def test_onnx_node_cases(op: str) -> None:
    count = 0
    for case in _cases():
        graph = case.model.graph
        node = graph.node[0]
        is_left = any(
            (a.name == "storage_order" and a.i) or (a.name == "mode" and a.s == b"max") for a in node.attribute
        )
        if node.op_type != op or node.domain or is_left:
            continue
        for inputs, outputs in case.data_sets:
            arrays = [item if isinstance(item, np.ndarray) else numpy_helper.to_array(item) for item in inputs]
            feeds = {
                info.name: array.astype(np.float64) if array.dtype.kind == "f" else array
                for info, array in zip(graph.input, arrays, strict=True)
            }
            found = Oracle(ir.from_proto(case.model)).run(feeds)
            for info, item in zip(graph.output, outputs, strict=True):
                expected = item if isinstance(item, np.ndarray) else numpy_helper.to_array(item)
                assert found[info.name].data.shape == expected.shape, case.name
                # Some expected values are written with four digits; the tests below are the exact ones.
                np.testing.assert_allclose(found[info.name].data, expected, rtol=1e-3, atol=1e-6, err_msg=case.name)
        count += 1
    assert count >= OPERATORS[op]


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("x", "mode", "opset"),
    [
        (X4, "bilinear", 16),
        (X4, "nearest", 16),
        (X4, "bicubic", 16),
        (X4, "linear", 20),
        (X4, "cubic", 20),
        (X5, "linear", 20),
        (X5, "nearest", 20),
    ],
)
def test_grid_sample(x: Array, mode: str, opset: int, padding: str, align: int) -> None:
    rank = x.ndim - 2
    grid = RNG.uniform(-2.7, 2.7, size=(2, *(4, 7, 3)[:rank], rank))
    names = {"linear": "bilinear", "cubic": "bicubic"}
    expected = F.grid_sample(t(x), t(grid), mode=names.get(mode, mode), padding_mode=padding, align_corners=bool(align))
    found = run("GridSample", [x, grid], opset=opset, mode=mode, padding_mode=padding, align_corners=align)
    close(found[0], expected)


def test_grid_sample_reads_nothing_where_it_has_no_share() -> None:
    x = np.array([[[[1.0, np.inf, 3.0]]]])
    exact = run("GridSample", [x, np.array([[[[-1.0, 0.0], [1.0, 0.0]]]])], opset=20, align_corners=1)[0]
    np.testing.assert_array_equal(exact, [[[[1.0, 3.0]]]])
    unknown = run("GridSample", [x, np.array([[[[np.nan, 0.0]]]])], opset=20)[0]
    assert np.isnan(unknown).all()


@pytest.mark.parametrize(
    ("x", "attributes", "arguments"),
    [
        (X3, {"kernel_shape": [3], "strides": [2]}, (3, 2)),
        (X4, {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1]}, ((3, 2), (2, 1), 1)),
        (X4, {"kernel_shape": [2, 2], "dilations": [2, 3]}, (2, 1, 0, (2, 3))),
        (X5, {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "ceil_mode": 1}, ((2, 3, 2), 2, 0, 1, True)),
    ],
)
def test_max_pool_with_indices(x: Array, attributes: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    x = np.round(x)  # so that a window holds its largest number more than once
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    expected, places = pool(t(x), *arguments, return_indices=True)
    y, indices = run("MaxPool", [x], outputs=2, **attributes)
    close(y, expected)
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    np.testing.assert_array_equal(indices, places.numpy() + planes * np.prod(x.shape[2:]))
    assert indices.dtype == np.int64


def test_max_pool_of_integers() -> None:
    x = RNG.integers(-128, 127, size=(2, 3, 7, 8)).astype(np.int8)
    y = run("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)[0]
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y, F.max_pool2d(t(x).float(), 3, 2, 1).numpy())


def test_max_pool_of_nothing_but_the_smallest_finds_its_place() -> None:
    x = np.full((1, 1, 2, 2), -np.inf)
    y, indices = run("MaxPool", [x], outputs=2, kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(indices, [[[[0, 0], [0, 0]]]])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pools(p: int) -> None:
    close(run("LpPool", [X4], p=p, kernel_shape=[3, 2], strides=[2, 1])[0], F.lp_pool2d(t(abs(X4)), p, (3, 2), (2, 1)))
    close(run("GlobalLpPool", [X4], p=p)[0], (abs(X4) ** p).sum((2, 3), keepdims=True) ** (1 / p))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    data, updates = X4[0, 0].copy(), RNG.normal(size=(5, 10))
    rows = np.array([[3], [-1], [0], [3], [7]] if reduction != "none" else [[3], [-1], [0], [2], [7]])
    expected = data.copy()
    functions: dict[str, Any] = {
        "none": lambda _, b: b,
        "add": np.add,
        "mul": np.multiply,
        "max": np.maximum,
        "min": np.minimum,
    }
    for row, update in zip(rows[:, 0], updates, strict=True):
        expected[row] = functions[reduction](expected[row], update)
    np.testing.assert_array_equal(run("ScatterND", [data, rows, updates], opset=18, reduction=reduction)[0], expected)
    indices = np.repeat(rows, 10, axis=1)
    found = run("ScatterElements", [data, indices, updates], opset=18, reduction=reduction)[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("ScatterND", [X3[0, 0], np.array([[0]]), np.ones(1)], {"reduction": "middle"}),
        ("GridSample", [X4, np.zeros((2, 3, 3, 2))], {"mode": "round"}),
        ("GridSample", [X4, np.zeros((2, 3, 3, 2))], {"padding_mode": "mirror"}),
    ],
)
def test_an_attribute_that_means_nothing_is_named(
    op: str, inputs: list[Array | None], attributes: dict[str, Any]
) -> None:
    with pytest.raises(OracleFailed, match=f"{next(iter(attributes.values()))}.* is not known"):
        run(op, inputs, opset=20, **attributes)


def test_scatter_elements_of_a_vector() -> None:
    data, updates = X3[0, 0].copy(), np.array([7.0, 8.0])
    found = run("ScatterElements", [data, np.array([1, -1]), updates], opset=18)[0]
    np.testing.assert_array_equal(found, [data[0], 7.0, *data[2:-1], 8.0])


def test_gather_nd_counts_from_the_end() -> None:
    indices = np.array([[-1, 2], [0, -3]])
    np.testing.assert_array_equal(run("GatherND", [X4, indices])[0], [X4[-1, 2], X4[0, -3]])
    np.testing.assert_array_equal(
        run("GatherND", [X4, indices[..., None]], batch_dims=1)[0], [X4[0, [-1, 2]], X4[1, [0, -3]]]
    )


def test_col2im_folds_blocks() -> None:
    columns = RNG.normal(size=(2, 4 * 6, 12))
    expected = F.fold(t(columns), (7, 5), (3, 2), dilation=(2, 1), padding=(1, 0), stride=(2, 1))
    shape, block = np.array([7, 5]), np.array([3, 2])
    attributes: dict[str, Any] = {"dilations": [2, 1], "pads": [1, 0, 1, 0], "strides": [2, 1]}
    close(run("Col2Im", [columns, shape, block], opset=18, **attributes)[0], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_deformed_by_whole_elements_is_a_convolution_of_what_was_moved(groups: int) -> None:
    weight, bias = RNG.normal(size=(4, 6 // groups, 3, 3)), RNG.normal(size=4)
    offset = np.zeros((2, 2 * 9 * 2, 9, 10))
    offset[:, : 9 * 2 : 2] = 1.0  # the first half of the channels is read one row further down
    offset[:, 9 * 2 + 1 :: 2] = -0.5  # and the second half between two columns
    moved = np.pad(X4, ((0, 0), (0, 0), (1, 2), (2, 1)))
    down, aside = moved[:, :3, 1:, 1:], (moved[:, 3:, :-1, 1:] + moved[:, 3:, :-1, :-1]) / 2
    expected = F.conv2d(t(np.concatenate([down[..., :12], aside[..., :12]], axis=1)), t(weight), t(bias), groups=groups)
    attributes: dict[str, Any] = {"pads": [1] * 4, "group": groups, "offset_group": 2}
    found = run("DeformConv", [X4, weight, offset, bias], opset=19, **attributes)[0]
    close(found[:, :, :, :10], expected[:, :, :9, :10])
    mask = np.broadcast_to(RNG.uniform(size=(2, 18, 1, 1)), (2, 18, 9, 10))
    halves = np.repeat(mask.reshape(2, 2, 9, 9, 10)[:, :, :, 0, 0], 3, axis=1).reshape(2, 6, 3, 3)
    per_sample = [
        run(
            "DeformConv",
            [X4[i : i + 1], _own_channels(weight, groups, halves[i]), offset[i : i + 1], bias],
            opset=19,
            **attributes,
        )[0]
        for i in range(2)
    ]
    close(run("DeformConv", [X4, weight, offset, bias, mask], opset=19, **attributes)[0], np.concatenate(per_sample))


def _own_channels(weight: Array, groups: int, factors: Array) -> Array:
    """Return the weight times the factors (C, *kernel) of the channels that each of its maps reads."""
    maps = np.split(weight, groups)
    return np.concatenate([part * own for part, own in zip(maps, np.split(factors, groups), strict=True)])


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(("opset", "mode"), [(10, None), (16, "half_pixel"), (16, "output_half_pixel")])
def test_roi_align(opset: int, mode: str | None, ratio: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    starts = RNG.uniform(-12, 24, size=(40, 2))
    regions = np.concatenate([starts, starts + RNG.uniform(0.01, 24, size=(40, 2))], axis=1)
    images = RNG.integers(0, 2, size=40)
    attributes: dict[str, Any] = {"output_height": 3, "output_width": 4, "sampling_ratio": ratio, "spatial_scale": 0.5}
    if mode is not None:
        attributes["coordinate_transformation_mode"] = mode
    node = helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], **attributes)
    feeds: dict[str, Array] = {"x": X4.astype(np.float32), "r": regions.astype(np.float32), "i": images}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (40, 6, 3, 4))
    proto = model([node], infos, [result], {}, opset=opset)
    proto.ir_version = 8
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)[0]
    wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    found = Oracle(ir.from_proto(proto)).run(wide)["y"].data
    assert np.count_nonzero(expected) > 100
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
