"""Measure which spelling of a per-channel affine map is the fastest on onnxruntime's CPU provider.

    python tools/cheapest_map.py

One process, one thread, sixteen maps in a row (six between convolutions), spellings in turn, medians of wall time in
microseconds a map. What it prints is what ``passes/affine_rest.py`` decides by: BatchNormalization, Add alone, Mul alone, Mul
and Add, by shape and type; along the last axis; and between Conv, with and without Relu.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

SPELLINGS = ("BatchNormalization", "Add", "Mul", "Mul and Add")
ROUNDS = 15
SHAPES: tuple[tuple[tuple[int, ...], str], ...] = (
    ((1, 2048), "float32"), ((8, 512), "float32"), ((64, 64), "float32"), ((1, 64, 7, 7), "float32"),
    ((1, 256, 14, 14), "float32"), ((1, 64, 28, 28), "float32"), ((1, 64, 40, 40), "float32"), ((1, 64, 56, 56), "float32"),
    ((8, 64, 32, 32), "float32"), ((1, 64, 56, 56), "float16"), ((1, 64, 56, 56), "float64"),
)  # fmt: skip
BETWEEN = ((1, 64, 56, 56), (1, 256, 14, 14), (8, 64, 28, 28))


class Chain:
    """A model of maps in a row, under construction."""

    def __init__(self, shape: tuple[int, ...], dtype: str, *, last_axis: bool = False) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.channels = shape[1]
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, onnx.TensorProto] = {}
        self.factors = (self.channels,) if last_axis else (self.channels, *[1] * (len(shape) - 2))
        self.input = (shape[0], *shape[2:], self.channels) if last_axis else shape
        self.value = "x"

    def hold(self, name: str, array: np.ndarray) -> str:
        self.held[name] = numpy_helper.from_array(array.astype(self.dtype), name)
        return name

    def add(self, op: str, inputs: list[str], **attributes: object) -> None:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.value, *inputs], [out], **attributes))
        self.value = out

    def map(self, spelling: str) -> None:
        if spelling == "BatchNormalization":
            rows = {"s": 1.01, "b": 0.01, "m": 0.1, "v": 1.0}
            self.add(spelling, [self.hold(name, np.full(self.channels, value)) for name, value in rows.items()])
        for op, value in (("Mul", 1.001), ("Add", 0.01)):
            if op in spelling.split():
                self.add(op, [self.hold(op, np.full(self.factors, value))])

    def convolve(self) -> None:
        weight = np.random.default_rng(0).standard_normal((self.channels, self.channels, 1, 1)) / math.sqrt(
            self.channels
        )
        self.add("Conv", [self.hold("W", weight), self.hold("B", np.zeros(self.channels))])

    def run(self) -> Callable[[], object]:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        ends = [
            helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", self.input), (self.value, None))
        ]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], list(self.held.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(0).standard_normal(self.input).astype(self.dtype)
        return lambda: session.run(None, {"x": x})


def measure(runs: dict[str, Callable[[], object]], maps: int) -> str:
    """Time all in turn; return the medians in microseconds a map."""
    for run in runs.values():
        run()
    start = time.perf_counter()
    next(iter(runs.values()))()
    repeat = max(1, math.ceil(4e-3 / (time.perf_counter() - start)))
    rows: list[list[float]] = []
    for _ in range(ROUNDS):
        row = []
        for run in runs.values():
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            row.append((time.perf_counter() - start) / repeat / maps * 1e6)
        rows.append(row)
    return "  ".join(f"{statistics.median(column):9.2f}" for column in zip(*rows, strict=True))


def alone(shape: tuple[int, ...], dtype: str, spelling: str, *, last_axis: bool = False) -> Callable[[], object]:
    """Return what runs sixteen maps in a row; the norm's channels lie along axis 1 whatever the others' do."""
    chain = Chain(shape, dtype, last_axis=last_axis and spelling != "BatchNormalization")
    for _ in range(16):
        chain.map(spelling)
    return chain.run()


def between(shape: tuple[int, ...], spelling: str, *, relu: bool) -> Callable[[], object]:
    """Return what runs six times a Conv, a Relu or none, and the map, and a last Conv."""
    chain = Chain(shape, "float32")
    for _ in range(6):
        chain.convolve()
        if relu:
            chain.add("Relu", [])
        chain.map(spelling)
    chain.convolve()
    return chain.run()


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'':44}" + "  ".join(f"{spelling.replace('Normalization', ''):>9.9}" for spelling in SPELLINGS))
    for shape, dtype in SHAPES:
        runs = {spelling: alone(shape, dtype, spelling) for spelling in SPELLINGS}
        print(f"{f'{shape} {dtype}':44}{measure(runs, 16)}", flush=True)
    for shape in ((1, 3, 56, 56), (1, 64, 14, 14), (1, 768, 14, 14)):
        runs = {spelling: alone(shape, "float32", spelling, last_axis=True) for spelling in SPELLINGS}
        print(f"{f'{shape}, constants along the last axis':44}{measure(runs, 16)}", flush=True)
    for shape in BETWEEN:
        for relu in (False, True):
            found = {spelling: between(shape, spelling, relu=relu) for spelling in SPELLINGS}
            place = "Conv, Relu, this" if relu else "Conv, this"
            print(f"{f'{place} of {shape}':44}{measure(found, 6)}", flush=True)


if __name__ == "__main__":
    main()
