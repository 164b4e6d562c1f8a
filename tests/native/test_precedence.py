"""Which of the two runs, the kernel or the function in the file. The function here returns its input, so that one sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from normfuse.emit.functions import DOMAIN
from normfuse.runtime.library import find_library
from tests.native.grid import Array, needs_library

X = np.array([[1.0, 2.0, 3.0, 6.0]], np.float32)
NORMALISED = (X - X.mean()) / np.sqrt(X.var() + np.float32(1e-5))


@pytest.fixture(autouse=True)
def _library() -> None:
    needs_library()


def node(name: str = "x", result: str = "y") -> onnx.NodeProto:
    return helper.make_node("LayerNorm", [name], [result], domain=DOMAIN)


def body(version: int = 20) -> onnx.FunctionProto:
    """Return the function that shows that it ran: the identity."""
    return helper.make_function(
        DOMAIN, "LayerNorm", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", version)],
    )  # fmt: skip


def model(
    nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto], *, domain: int = 1, dtype: int = TensorProto.FLOAT,
    initializers: tuple[onnx.TensorProto, ...] = (),
) -> onnx.ModelProto:  # fmt: skip
    values = [helper.make_tensor_value_info(name, dtype, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "precedence", values[:1], values[1:], list(initializers))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, domain), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def run(content: onnx.ModelProto, *, registered: int = 1, x: Array = X, options: Any = None) -> Array:
    """Return y from a session with which the library was registered so many times."""
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for _ in range(registered):
        options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def in_branch() -> onnx.ModelProto:
    """A node in both branches of an If."""
    branches = [
        helper.make_graph([node(result=f"{name}_y")], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [1, 4])])
        for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return model([choose], [body()], initializers=(yes,))


def in_function() -> onnx.ModelProto:
    """A node in another function of the model."""
    outer = helper.make_function(
        "local", "Outer", ["x"], ["y"], [node()], [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    )
    return model([helper.make_node("Outer", ["x"], ["y"], domain="local")], [outer, body()])


def test_without_the_library_the_function_runs() -> None:
    np.testing.assert_array_equal(run(model([node()], [body()]), registered=0), X)


@pytest.mark.parametrize("registered", [1, 2])
def test_with_the_library_the_kernel_runs(registered: int) -> None:
    np.testing.assert_allclose(run(model([node()], [body()]), registered=registered), NORMALISED, rtol=1e-6)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("content", [in_branch(), in_function()], ids=["branch", "function"])
def test_within_branches_and_functions(content: onnx.ModelProto, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    np.testing.assert_allclose(run(content, options=options), NORMALISED, rtol=1e-6)
    np.testing.assert_array_equal(run(content, registered=0), X)


def test_a_later_version_of_the_domain_has_the_kernels_of_this_one() -> None:
    """So onnxruntime does it, whatever the operator says of its last version: what changes needs a new name."""
    np.testing.assert_allclose(run(model([node()], [body()], domain=2)), NORMALISED, rtol=1e-6)


def test_without_a_function_the_kernel_runs_alone() -> None:
    np.testing.assert_allclose(run(model([node()], [])), NORMALISED, rtol=1e-6)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        run(model([node()], []), registered=0)


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_every_type_has_its_kernel(dtype: int) -> None:
    x = X.astype(helper.tensor_dtype_to_np_dtype(dtype))
    y = run(model([node()], [body()], dtype=dtype), x=x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, NORMALISED, rtol=2e-3)


def test_shapes_are_inferred() -> None:
    """Symbolic axes included; without it every result behind the node would have an unknown shape."""
    content = model([node("x", "t"), helper.make_node("Relu", ["t"], ["y"])], [])
    content.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    content.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", 4]


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_an_axis_with_neither_size_nor_name_is_no_minus_one(level: str) -> None:
    """What reads the shape reads it at run time: were the axis −1, onnxruntime would compute with that when it loads."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["t"]),
        node("t", "n"),
        helper.make_node("Shape", ["n"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["factors"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["factors"], ["factor"], keepdims=0),
        helper.make_node("Mul", ["n", "factor"], ["y"]),
    ]
    content = model(nodes, [])
    content.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    content.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for rows, columns in ((1, 4), (2, 2)):
        shape = np.array([rows, columns])
        y = session.run(None, {"x": X, "shape": shape})[0]
        x = X.astype(np.float64).reshape(rows, columns)
        deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, 4.0 * (x - x.mean(-1, keepdims=True)) / deviation, rtol=1e-5)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_a_rank_that_onnxruntime_does_not_know_is_not_that_of_a_scalar(level: str) -> None:
    """A Reshape to a target of unknown length, as below opset 14 every computed one is, and a MatMul behind the norm."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["t"]),
        node("t", "n"),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 1], [1.0, 2.0, 3.0, 5.0])
    content = model(nodes, [], initializers=(weight,))
    content.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, ["k"]))
    content.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": X, "shape": np.array([1, 1, 4])})[0]
    np.testing.assert_allclose(y, (NORMALISED @ [[1.0], [2.0], [3.0], [5.0]])[None], rtol=1e-5)


def test_the_head_split_of_an_exporter_loads() -> None:
    """A Reshape whose target is joined of two unnamed axes of the norm: both as −1 would be no target at all."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["t"]),
        node("t", "n"),
        helper.make_node("Shape", ["n"], ["sizes"]),
        helper.make_node("Concat", ["sizes", "one"], ["target"], axis=0),
        helper.make_node("Reshape", ["n", "target"], ["y"]),
    ]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    content = model(nodes, [], initializers=(one,))
    content.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    content.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": X, "shape": np.array([1, 4])})[0]
    np.testing.assert_allclose(y, NORMALISED[..., None], rtol=1e-6)
