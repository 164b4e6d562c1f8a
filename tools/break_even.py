"""Measure from which size on a native operator is worth its call, beside onnxruntime's own operator.

    python tools/break_even.py [--only TEXT]

One process, one thread. A model is a chain of 32 norms of one tensor, so that what a run of a session takes beside its nodes
hardly counts; both spellings are timed in turn, by processor time, and printed are the medians in microseconds a norm, and
the median of the ratio within a round. Beside it stands whether ``emit/kernels.py`` takes the native operator. Exit code 1
where it takes one that is slower by more than a twelfth, or leaves one that is faster by more than a fifth. Needs onnxruntime
and the native library.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx_ir as ir

from normfuse.emit.kernels import is_worth_its_call, native_wins
from normfuse.emit.target import Provider
from normfuse.runtime.library import find_library

LENGTH = 32
"""Norms in a chain."""
ROUNDS = 40
LEAST = 2e-3
"""Seconds that one timing lasts at least."""

ROWS = [(1, 16), (4, 64), (64, 16), (1, 512), (4, 256), (1, 1024), (32, 64), (256, 8), (2, 1024), (64, 64), (16, 512)]
IMAGES = [(4, 16), (64, 16), (8, 64), (16, 64), (4, 256), (8, 256), (32, 64), (16, 256), (64, 64), (256, 16), (64, 256)]
OWN = {"LayerNorm": "LayerNormalization", "RMSNorm": "RMSNormalization", "InstanceNorm": "InstanceNormalization"}
KINDS = {"LayerNorm": "layer", "RMSNorm": "rms", "InstanceNorm": "instance"}
TYPES = {"float": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Case:
    """A norm, with an Add before it or a Relu behind it, of ``rows`` rows of ``length`` elements."""

    norm: str
    joined: str
    dtype: str
    rows: int
    length: int

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        operator = f"Add{self.norm}" if self.joined == "Add" else f"{self.norm}{self.joined}"
        return f"{operator} {self.dtype} {self.rows}x{self.length}"

    def is_taken(self) -> bool:
        """Whether the automatic form takes the native operator."""
        own = ir.DataType[self.dtype.upper()]
        return is_worth_its_call(
            KINDS[self.norm], own, Provider.CPU, joined=bool(self.joined), rows=self.rows, length=self.length
        )


def step(case: Case, x: str, y: str, *, native: bool) -> list[onnx.NodeProto]:
    """Return the nodes of one norm of the chain."""
    parameters = ["scale"] if case.norm == "RMSNorm" else ["scale", "bias"]
    axis = {} if case.norm == "InstanceNorm" else {"axis": -1}
    if native:
        inputs = [x, "residual", *parameters] if case.joined == "Add" else [x, *parameters]
        return [helper.make_node(case.name.split()[0], inputs, [y], domain="ai.normfuse", **axis)]
    if case.joined == "Add":
        add = helper.make_node("Add", [x, "residual"], [f"{y}_sum"])
        return [add, helper.make_node(OWN[case.norm], [f"{y}_sum", *parameters], [y], **axis)]
    if case.joined:
        norm = helper.make_node(OWN[case.norm], [x, *parameters], [f"{y}_norm"], **axis)
        return [norm, helper.make_node(case.joined, [f"{y}_norm"], [y])]
    return [helper.make_node(OWN[case.norm], [x, *parameters], [y], **axis)]


def runner(case: Case, *, native: bool) -> Callable[[], object]:
    """Return what runs the chain once, its tensors bound."""
    dtype = TYPES[case.dtype]
    shape = (1, case.rows, case.length) if case.norm == "InstanceNorm" else (case.rows, case.length)
    count = case.rows if case.norm == "InstanceNorm" else case.length
    values = ["x", *(f"v{index}" for index in range(LENGTH))]
    nodes = [node for x, y in itertools.pairwise(values) for node in step(case, x, y, native=native)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    held = {"scale": np.ones(count, dtype), "bias": np.zeros(count, dtype), "residual": np.full(shape, 0.5, dtype)}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(values[-1], kind, shape)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("ai.normfuse", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.register_custom_ops_library(str(find_library().path))
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.random.default_rng(0).standard_normal(shape).astype(dtype))
    binding.bind_ortvalue_output(
        values[-1], onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cpu")
    )
    return lambda: session.run_with_iobinding(binding)


def timed(run: Callable[[], object], repeat: int) -> float:
    """Return the processor seconds of one norm."""
    start = time.process_time()
    for _ in range(repeat):
        run()
    return (time.process_time() - start) / repeat / LENGTH


def measure(case: Case) -> tuple[float, float, float]:
    """Return the medians of both spellings, the native one first, and of how often the native one is as fast."""
    runs = [runner(case, native=native) for native in (True, False)]
    for run in runs:
        timed(run, 3)
    repeat = math.ceil(LEAST / max(1e-7, LENGTH * timed(runs[0], 3)))
    rounds = [[timed(run, repeat) for run in runs] for _ in range(ROUNDS)]
    native, own = (statistics.median(column) for column in zip(*rounds, strict=True))
    return native, own, statistics.median(own / native for native, own in rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the cases that have this in their name")
    only = parser.parse_args().only
    wrong = 0
    for dtype in TYPES:
        for norm, kind in KINDS.items():
            if not native_wins(kind, ir.DataType[dtype.upper()], Provider.CPU):
                continue
            for joined in ("", "Add", "Relu"):
                for rows, length in IMAGES if norm == "InstanceNorm" else ROWS:
                    case = Case(norm, joined, dtype, rows, length)
                    if only not in case.name:
                        continue
                    native, own, ratio = measure(case)
                    far = ratio < 11 / 12 if case.is_taken() else ratio > 6 / 5
                    wrong += far
                    verdict = ("native" if case.is_taken() else "left") + (", WRONG" if far else "")
                    print(f"{case.name:32} {native * 1e6:7.2f} {own * 1e6:7.2f} {ratio:6.2f}  {verdict}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
