"""Models with BatchNormalization for the tests of folding: ONNX text for the graph, arrays for its constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

import normfuse
from normfuse import FusionReport, Target, Verdict

Array = npt.NDArray[np.generic]

BN = "BatchNormalization (c, s, b, m, v)"

PLAIN = Target(native=False)
"""The default target, wherever the tests run: with the library of native operators and without."""


def parameters(channels: int, dtype: str = "float32", seed: int = 0) -> dict[str, Array]:
    """Return s, b, m, v of a trained BatchNormalization: nothing is 0 or 1, some scales are negative."""
    random = np.random.default_rng(seed)
    return {
        "s": random.normal(0.0, 1.5, channels).astype(dtype),
        "b": random.normal(0.0, 1.0, channels).astype(dtype),
        "m": random.normal(0.0, 2.0, channels).astype(dtype),
        "v": random.uniform(0.2, 3.0, channels).astype(dtype),
    }


def normal(*shape: int, dtype: str = "float32", seed: int = 1) -> Array:
    """Return a standard normal array."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def graph(body: str, x: str = "float[2,3,9,8]", y: str = "float[2,4,h,w]") -> str:
    """Return the text of a graph from x to y."""
    return f"g ({x} x) => ({y} y) {{ {body} }}"


def build(
    text: str,
    arrays: Mapping[str, Array],
    *,
    opset: int = 17,
    ir_version: int = 8,
    as_inputs: bool = False,
) -> onnx.ModelProto:
    """Return the model of a graph in ONNX text; ``arrays`` become its initializers, and inputs where asked."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    model = onnx.parser.parse_model(header + text)
    for name, array in arrays.items():
        tensor = ir.to_proto(ir.Tensor(array, name=name))
        model.graph.initializer.append(tensor)
        if as_inputs:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape))
    return model


def fuse(model: onnx.ModelProto, **options: object) -> tuple[ir.Model, FusionReport]:
    """Fuse with the given options of normfuse.fuse; whether a native library was built here changes nothing."""
    return normfuse.fuse(model, **{"target": PLAIN, **options})  # type: ignore[arg-type]


def count(model: ir.Model, op_type: str) -> int:
    """Return how many nodes of one operator the model holds, subgraphs and functions included."""
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    return sum(node.op_type == op_type for node in nodes)


def assert_same(original: onnx.ModelProto, fused: ir.Model) -> None:
    """Assert that both are valid, have the same interface, and compute the same in float64 up to rounding."""
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)
    optional = {tensor.name for tensor in original.graph.initializer}
    inputs = [value.SerializeToString() for value in original.graph.input if value.name not in optional]
    result = ir.to_proto(fused)
    assert [value.SerializeToString() for value in result.graph.input if value.name not in optional] == inputs
    assert [value.SerializeToString() for value in result.graph.output] == [
        value.SerializeToString() for value in original.graph.output
    ]
    report = normfuse.validate(original, fused, providers=())
    failed = [check for check in report.checks if check.verdict is not Verdict.EQUIVALENT]
    assert report.verdict is Verdict.EQUIVALENT, (failed, report.legs)


def reasons(report: FusionReport) -> list[str]:
    """Return the reasons of what was declined, in order."""
    return [entry.reason for entry in report.declined]
