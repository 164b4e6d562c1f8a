"""Models that hold operators of ai.normfuse, and what they should compute."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from normfuse.emit.functions import DOMAIN, SUFFIXES, Signature, body
from normfuse.runtime.library import find_library
from normfuse.spec import Activation

Array = npt.NDArray[Any]
OPSET = 20
TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
NUMPY = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of a number in [1, 2): what rounding costs at most."""


def needs_library() -> None:
    """Skip the test without the library, with the reason; fail where the environment says that it must be there."""
    library = find_library()
    if not library.is_usable:
        if os.environ.get("NORMFUSE_REQUIRE_NATIVE"):
            pytest.fail(f"the native library is required, and {library.problem}")
        pytest.skip(f"the native library is {library.problem}")


@dataclass(frozen=True)
class Node:
    """One operator on one tensor."""

    norm: str
    shape: tuple[int, ...]
    groups: int = 1
    axis: int = -1
    activation: Activation = Activation.NONE
    residual: bool = False
    sum: bool = False
    last: bool = False
    scale: bool = True
    bias: bool = True
    epsilon: float = 1e-5

    def signature(self, dtype: str) -> Signature:
        """Return what names the operator and its body."""
        return Signature(
            self.norm, OPSET, ir.DataType(TYPES[dtype]), self.scale, self.bias and self.norm != "RMSNorm",
            self.residual, self.sum, self.activation, self.last,
        )  # fmt: skip

    @property
    def attributes(self) -> dict[str, Any]:
        """Return the numbers of the node."""
        own = {"GroupNorm": {"num_groups": self.groups}, "InstanceNorm": {}}.get(self.norm, {"axis": self.axis})
        return {**own, "epsilon": self.epsilon}

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """Return the shape of scale and bias."""
        if self.norm in ("LayerNorm", "RMSNorm"):
            return self.shape[self.axis % len(self.shape) :]
        return (self.shape[-1 if self.last else 1],)


def variants(shape: tuple[int, ...], groups: int, *, axis: int = -1, last: bool = False) -> list[Node]:
    """Return every operator on ``shape``."""
    norms = ("GroupNorm", "InstanceNorm") if last else ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
    return [
        Node(norm, shape, groups, axis, activation, residual, total, last)
        for norm in norms
        for activation in SUFFIXES
        for residual, total in ((False, False), (True, False), (True, True))
    ]


def model(nodes: Iterable[Node], dtype: str, *, functions: bool = True) -> onnx.ModelProto:
    """Return a model with one output for each result of ``nodes``; all inputs and outputs are float32 or float64.

    Half types are cast from and to float32 at the borders, which is exact: NumPy cannot hand bfloat16 to onnxruntime.
    """
    outside = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
    inputs: dict[str, Any] = {}
    outputs, made, bodies = [], [], {}
    for index, node in enumerate(nodes):
        signature = node.signature(dtype)
        if functions:
            bodies[signature.operator] = body(signature)
        # A missing operand is an empty name, and none at the end.
        given = [name if getattr(signature, name, True) else "" for name in signature.inputs]
        while not given[-1]:
            given.pop()
        shapes = {"x": node.shape, "residual": node.shape, "scale": node.parameter_shape, "bias": node.parameter_shape}
        names = []
        for name in given:
            key = f"{name}_{'_'.join(map(str, shapes[name]))}" if name else ""
            if name and key not in inputs:
                inputs[key] = helper.make_tensor_value_info(key, outside, shapes[name])
                made.append(helper.make_node("Cast", [key], [f"{key}_cast"], to=TYPES[dtype]))
            names.append(f"{key}_cast" if name else "")
        results = [f"y{index}", *([f"sum{index}"] if node.sum else [])]
        made.append(
            helper.make_node(
                signature.operator, names, [f"{name}_narrow" for name in results], f"node{index}", domain=DOMAIN,
                **node.attributes,
            )
        )  # fmt: skip
        made += [helper.make_node("Cast", [f"{name}_narrow"], [name], to=outside) for name in results]
        outputs += [helper.make_tensor_value_info(name, outside, node.shape) for name in results]
    graph = helper.make_graph(made, "grid", list(inputs.values()), outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    result = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    for function in bodies.values():
        proto = ir.to_proto(function)
        proto.overload = ""
        result.functions.append(proto)
    return result


def session(content: onnx.ModelProto, *, native: bool, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session with or without the library."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(find_library().path))
    return onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(content: onnx.ModelProto, dtype: str, *, mean: float = 0.5, deviation: float = 1.0) -> dict[str, Array]:
    """Return random inputs that ``dtype`` holds exactly."""
    random = np.random.default_rng(7)
    outside = np.float64 if dtype == "float64" else np.float32
    found: dict[str, Array] = {}
    for value in content.graph.input:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        around = mean if value.name.startswith("x") else 0.0
        found[value.name] = (random.standard_normal(shape) * deviation + around).astype(NUMPY[dtype]).astype(outside)
    return found


def expected(node: Node, dtype: str, values: Mapping[str, Array]) -> list[Array]:
    """Return y, and the sum where the node has it, in more digits than ``dtype`` has."""
    wide: Any = np.longdouble if dtype == "float64" else np.float64
    given: dict[str, Any] = {
        name: values[f"{name}_{'_'.join(map(str, shape))}"].astype(wide)
        for name, shape, present in (
            ("x", node.shape, True), ("residual", node.shape, node.residual), ("scale", node.parameter_shape, node.scale),
            ("bias", node.parameter_shape, node.bias and node.norm != "RMSNorm"),
        )
        if present
    }  # fmt: skip
    x = given["x"] + given.get("residual", wide(0))
    scale, bias = given.get("scale", wide(1)), given.get("bias", wide(0))
    if node.norm in ("LayerNorm", "RMSNorm"):
        axis = node.axis % x.ndim
        parts = x.reshape(*x.shape[:axis], -1)
    else:
        first = np.moveaxis(x, -1, 1) if node.last else x
        groups = node.groups if node.norm == "GroupNorm" else first.shape[1]
        parts = first.reshape(first.shape[0], groups, -1)
        if not node.last:
            scale, bias = (p.reshape(-1, *[1] * (x.ndim - 2)) if p.ndim else p for p in (scale, bias))
    centre = wide(0) if node.norm == "RMSNorm" else parts.mean(-1, keepdims=True)
    variance = ((parts - centre) ** 2).mean(-1, keepdims=True)
    normalised = (parts - centre) / np.sqrt(variance + wide(np.float32(node.epsilon)))
    if node.norm in ("GroupNorm", "InstanceNorm") and node.last:
        normalised = np.moveaxis(normalised.reshape(first.shape), 1, -1)
    y = activated(normalised.reshape(x.shape) * scale + bias, node.activation)
    return [y, x] if node.sum else [y]


def magnitude(node: Node, dtype: str, values: Mapping[str, Array]) -> float:
    """Return how large ``normalised · scale`` and ``bias`` are together: what is rounded on the way to y, which is less."""
    scaled = expected(replace(node, bias=False, sum=False, activation=Activation.NONE), dtype, values)[0]
    bias = values["bias_" + "_".join(map(str, node.parameter_shape))] if node.bias and node.norm != "RMSNorm" else 0
    return float(np.max(np.abs(scaled)) + np.max(np.abs(bias)))


def activated(y: Array, activation: Activation) -> Array:
    """Apply an activation in the precision of ``y``."""
    if activation is Activation.RELU:
        return np.asarray(np.maximum(y, 0))
    if activation is Activation.SILU:
        return np.asarray(y / (1 + np.exp(-y)))
    if activation is Activation.GELU:
        import torch

        # Φ(y) by erfc, which keeps small results; float64 is wide enough for all but float64's last digit.
        tail = torch.special.erfc(torch.from_numpy(-np.asarray(y, np.float64) / np.sqrt(2.0))).numpy()
        return np.asarray(y * tail / 2)
    return y
