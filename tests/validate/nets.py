"""Small networks as protos, and an independent fold of BatchNormalization in NumPy with faults to plant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True, slots=True)
class Block:
    """Conv (no bias), BatchNormalization: the parameters of one block."""

    weight: Array
    scale: Array
    bias: Array
    mean: Array
    var: Array


def blocks(count: int = 3, channels: int = 8, dtype: str = "float32") -> tuple[Block, ...]:
    """Seeded parameters, representable in ``dtype``, held in float64. Scales of both signs, no dead channel in the
    first."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        inputs = 3 if index == 0 else channels
        arrays = (
            rng.normal(size=(channels, inputs, 3, 3)) / np.sqrt(inputs * 9),
            rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels),
            rng.normal(size=channels) * 0.5,
            rng.normal(size=channels),
            rng.uniform(0.5, 2.0, channels),
        )
        found.append(Block(*(array.astype(dtype).astype(np.float64) for array in arrays)))
    return tuple(found)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: dict[str, Array],
    *,
    opset: int = 17,
    domains: tuple[str, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    """Put a model together."""
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def info(name: str, dtype: str, shape: list[int | str] | tuple[int | str, ...]) -> onnx.ValueInfoProto:
    """A typed graph input or output."""
    return helper.make_tensor_value_info(name, TYPES.get(dtype, 0) or getattr(TensorProto, dtype.upper()), shape)


def network(parameters: tuple[Block, ...], dtype: str = "float32", **attributes: Any) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu per block; dynamic batch and plane. ``attributes`` go to every
    BatchNormalization."""
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, Array] = {}
    x = "x"
    for index, block in enumerate(parameters):
        names = [f"{kind}{index}" for kind in ("weight", "scale", "bias", "mean", "var")]
        for name, array in zip(names, (block.weight, block.scale, block.bias, block.mean, block.var), strict=True):
            tensors[name] = array.astype(dtype)
        nodes += [
            helper.make_node("Conv", [x, names[0]], [f"conv{index}"], f"/conv{index}", pads=[1, 1, 1, 1]),
            helper.make_node(
                "BatchNormalization", [f"conv{index}", *names[1:]], [f"norm{index}"], f"/norm{index}", **attributes
            ),
            helper.make_node("Relu", [f"norm{index}"], [f"relu{index}"], f"/relu{index}"),
        ]
        x = f"relu{index}"
    channels = len(parameters[-1].scale)
    shape: list[int | str] = ["N", channels, "H", "W"]
    return model(nodes, [info("x", dtype, ["N", 3, "H", "W"])], [info(x, dtype, shape)], tensors)


def folded(
    parameters: tuple[Block, ...], dtype: str = "float32", *, epsilon: float = 1e-5, bias: bool = True
) -> onnx.ModelProto:
    """The same network with every BatchNormalization folded: W·a, β − a·μ, a = γ/sqrt(σ² + ε), computed in float64.

    ε as the operator's attribute has it, a float32.
    """
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, Array] = {}
    x = "x"
    for index, block in enumerate(parameters):
        factor = block.scale / np.sqrt(block.var + float(np.float32(epsilon)))
        tensors[f"weight{index}_folded"] = (block.weight * factor[:, None, None, None]).astype(dtype)
        tensors[f"bias{index}_folded"] = (block.bias - factor * block.mean).astype(dtype)
        operands = [x, f"weight{index}_folded", *([f"bias{index}_folded"] if bias else [])]
        nodes += [
            helper.make_node("Conv", operands, [f"norm{index}"], f"/conv{index}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"norm{index}"], [f"relu{index}"], f"/relu{index}"),
        ]
        x = f"relu{index}"
    shape: list[int | str] = ["N", len(parameters[-1].scale), "H", "W"]
    return model(nodes, [info("x", dtype, ["N", 3, "H", "W"])], [info(x, dtype, shape)], tensors)
