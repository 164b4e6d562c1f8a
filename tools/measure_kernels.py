"""Measure what the table of normfuse/emit/kernels.py says: which norm operators onnxruntime runs, and how fast each form is.

    python tools/measure_kernels.py

First: for each operator and type, whether a session of that operator alone is created on the CPU provider. Then: for each
norm, the time of each form as a multiple of a copy of the tensor (one thread, interleaved, medians, with the range), and
the largest error against float64 at mean/std 0, 100 and 10,000. Needs onnxruntime.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import normfuse
from normfuse import Form, Target

OPSET, ROUNDS = 23, 31
TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
IMAGE, SEQUENCE = (1, 320, 64, 64), (8, 197, 1024)
NORMS: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "InstanceNormalization": (IMAGE, {}, 1),
    "GroupNormalization": (IMAGE, {"num_groups": 32}, 1),
    "LayerNormalization": (SEQUENCE, {"axis": -1}, -1),
    "RMSNormalization": (SEQUENCE, {"axis": -1}, -1),
}


def model_of(op_type: str, dtype: int, shape: tuple[int, ...]) -> Any:
    """Return a model of one norm with random γ and β."""
    _, attributes, axis = NORMS[op_type]
    random = np.random.default_rng(0)
    names = ["scale"] if op_type == "RMSNormalization" else ["scale", "bias"]
    tensors = []
    for name in names:
        row = ir.tensor(random.standard_normal(shape[axis]).astype(np.float32)).numpy()
        tensor = ir.to_proto(ir.Tensor(row.astype(ir.DataType(dtype).numpy()), name=name))
        tensors.append(tensor)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], **attributes)],
        op_type,
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def session(model: Any) -> ort.InferenceSession:
    """Return a session on one thread of the CPU provider, as deployed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kernels() -> None:
    """Print which operator runs on which type."""
    print("| operator | " + " | ".join(TYPES.values()) + " |\n|---|" + "---|" * len(TYPES))
    for op_type in NORMS:
        cells = []
        for dtype in TYPES:
            try:
                session(model_of(op_type, dtype, (2, 32, 4, 4)))
                cells.append("yes")
            except Exception as error:  # onnxruntime raises its own types for a missing kernel and for a type error
                cells.append(type(error).__name__)
        print(f"| {op_type} | {' | '.join(cells)} |")


def clocked(work: Callable[[], Any]) -> float:
    """Return the seconds of processor time that ``work`` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speeds() -> None:
    """Print the time of each form as a multiple of a copy, and its error at three means."""
    print("| norm | form | × copy (range) | error at mean/std 0 | 100 | 10000 |\n|---|---|---|---|---|---|")
    for op_type, (shape, _, _) in NORMS.items():
        model = model_of(op_type, TensorProto.FLOAT, shape)
        sessions = {"operator": session(model)}
        for form in (Form.AUTO, Form.PRIMITIVE, Form.CUSTOM):
            fused, report = normfuse.fuse(model, Target(form))
            if report.rewrites:
                sessions[form.value] = session(ir.to_proto(fused))
        x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        target = np.empty_like(x)
        ratios: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            copy = max(clocked(lambda to=target, source=x: np.copyto(to, source)), 1e-9)
            for name, running in sessions.items():
                ratios[name].append(clocked(lambda r=running, source=x: r.run(None, {"x": source})) / copy)
        for name, running in sessions.items():
            errors = [f"{error(model, running, x + np.float32(mean)):.1e}" for mean in (0, 100, 10000)]
            values = ratios[name][3:]
            spread = f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
            print(f"| {op_type} | {name} | {spread} | {' | '.join(errors)} |")


def error(model: Any, running: ort.InferenceSession, x: np.ndarray[Any, Any]) -> float:
    """Return the largest absolute error of a session against the norm in float64."""
    node = model.graph.node[0]
    rows = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    wide = x.astype(np.float64)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups = {"GroupNormalization": attributes.get("num_groups", 1), "InstanceNormalization": x.shape[1]}
    if node.op_type in groups:
        parts = wide.reshape(x.shape[0], groups[node.op_type], -1)
        shape = (1, -1) + (1,) * (x.ndim - 2)
    else:
        parts, shape = wide, (-1,)
    centre = 0.0 if node.op_type == "RMSNormalization" else parts.mean(-1, keepdims=True)
    deviation = parts - centre
    norm = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + float(np.float32(1e-5)))
    expected = norm.reshape(x.shape) * rows["scale"].reshape(shape) + rows.get("bias", np.zeros(1)).reshape(
        shape if "bias" in rows else (-1,)
    )
    return float(np.max(np.abs(running.run(None, {"x": x})[0] - expected)))


if __name__ == "__main__":
    print(f"onnxruntime {ort.__version__}, CPUExecutionProvider, opset {OPSET}\n")
    kernels()
    print()
    speeds()
