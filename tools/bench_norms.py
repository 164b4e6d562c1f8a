"""Measure the native norm operators beside onnxruntime's own operators, torch eager and a copy of the tensor.

    python tools/bench_norms.py [--rounds N] [--repeat N] [--threads N] [--only TEXT] [--json FILE]

One process, float32. In each round every method is timed once, in turn, so that what else the machine does hits all of them
alike: on one thread by processor time, on several by the clock; calls are repeated until a timing has at least two
milliseconds. Printed is the median over the rounds of the ratio within a round, with its 5th and 95th percentile. Tensors are
bound beforehand, outputs included; torch allocates its results, as it does in use. ``--repeat`` measures the whole table
several times and prints the median of the medians with the lowest and highest. Needs onnxruntime, torch and the native
library.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from normfuse.runtime.library import find_library

LEAST = 2e-3
"""Seconds that one timing lasts at least."""
THREADS = 1


@dataclass(frozen=True)
class Case:
    """One norm on one tensor. ``groups`` of a group norm; ``target``: (speed-up over onnxruntime's own, copies)."""

    norm: str
    shape: tuple[int, ...]
    groups: int = 0
    target: tuple[float, float | None] = (1.0, None)

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        return f"{self.norm} {'x'.join(map(str, self.shape))}" + (f" g{self.groups}" if self.groups else "")


IMAGES = [((1, 320, 64, 64), 32), ((2, 128, 128, 128), 32), ((1, 64, 32, 32, 32), 8), ((8, 512, 16, 16), 32)]
LARGE = ((4, 128, 256, 256), 32)
SEQUENCES = [(1, 512, 768), (8, 197, 1024), (1, 2048, 4096)]
CASES = [
    *(Case("GroupNorm", shape, groups, (5.0, 2.0)) for shape, groups in IMAGES),
    Case("GroupNorm", *LARGE, (5.0, 1.3)),
    *(Case("GroupNormSilu", shape, groups, (3.5, 3.2)) for shape, groups in IMAGES),
    Case("GroupNormSilu", *LARGE, (3.5, 1.5)),
    *(Case("LayerNorm", shape, 0, (1.4, 2.2)) for shape in SEQUENCES),
    *(Case("AddLayerNorm", shape, 0, (1.4, None)) for shape in SEQUENCES),
    *(Case("InstanceNorm", shape, 0, (1.1, None)) for shape, _ in IMAGES),
    *(Case("RMSNorm", shape) for shape in SEQUENCES),
]


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    """Return a node; operators of ai.normfuse and com.microsoft by their prefix."""
    domain, _, name = op_type.rpartition("::")
    return helper.make_node(name, list(inputs), list(outputs), domain=domain, **attributes)


def graphs(case: Case) -> dict[str, list[Any]]:
    """Return the nodes of each spelling of ``case``: ours first, then onnxruntime's own."""
    own = {"epsilon": 1e-5}
    names = ["x", "scale", "bias"]
    if case.norm.startswith("GroupNorm"):
        attributes = {"num_groups": case.groups, **own}
        standard = [node("GroupNormalization", names, ["n" if case.norm.endswith("Silu") else "y"], **attributes)]
        if case.norm.endswith("Silu"):
            standard += [node("Sigmoid", ["n"], ["s"]), node("Mul", ["n", "s"])]
        return {"native": [node(f"ai.normfuse::{case.norm}", names, **attributes)], "onnxruntime": standard}
    if case.norm == "InstanceNorm":
        standard = [node("InstanceNormalization", names, **own)]
        return {"native": [node("ai.normfuse::InstanceNorm", names, **own)], "onnxruntime": standard}
    if case.norm == "LayerNorm":
        standard = [node("LayerNormalization", names, **own)]
        return {"native": [node("ai.normfuse::LayerNorm", names, **own)], "onnxruntime": standard}
    if case.norm == "RMSNorm":
        standard = [node("RMSNormalization", names[:2], **own)]
        return {"native": [node("ai.normfuse::RMSNorm", names[:2], **own)], "onnxruntime": standard}
    added = [node("Add", ["x", "residual"], ["t"]), node("LayerNormalization", ["t", "scale", "bias"], **own)]
    skip = [node("com.microsoft::SkipLayerNormalization", ["x", "residual", "scale", "bias"], **own)]
    native = [node("ai.normfuse::AddLayerNorm", ["x", "residual", "scale", "bias"], **own)]
    return {"native": native, "onnxruntime": added, "SkipLayerNormalization": skip}


def eager(case: Case, tensors: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """Return the call of torch that computes ``case``."""
    x, scale, bias = tensors["x"], tensors["scale"], tensors["bias"]
    if case.norm == "GroupNorm":
        return lambda: functional.group_norm(x, case.groups, scale, bias)
    if case.norm == "GroupNormSilu":
        return lambda: functional.silu(functional.group_norm(x, case.groups, scale, bias))
    if case.norm == "InstanceNorm":
        return lambda: functional.instance_norm(x, weight=scale, bias=bias)
    if case.norm == "RMSNorm":
        return lambda: functional.rms_norm(x, x.shape[-1:], scale, 1e-5)
    if case.norm == "LayerNorm":
        return lambda: functional.layer_norm(x, x.shape[-1:], scale, bias)
    residual = tensors["residual"]
    return lambda: functional.layer_norm(x + residual, x.shape[-1:], scale, bias)


def runner(nodes: list[Any], tensors: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Return the call that runs a model of ``nodes`` on bound tensors, and returns the tensor that it writes."""
    used = {name for entry in nodes for name in entry.input}
    feeds = [name for name in ("x", "residual") if name in used]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, tensors["x"].shape) for name in [*feeds, "y"]]
    stored = [numpy_helper.from_array(tensors[name].numpy(), name) for name in ("scale", "bias") if name in used]
    opsets = [helper.make_opsetid(*entry) for entry in (("", 23), ("ai.normfuse", 1), ("com.microsoft", 1))]
    model = helper.make_model(
        helper.make_graph(nodes, "bench", values[:-1], values[-1:], stored), opset_imports=opsets, ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    options.register_custom_ops_library(str(find_library().path))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )  # fmt: skip
    binding = session.io_binding()
    result = torch.empty(tensors["x"].shape)
    for name in feeds:
        binding.bind_input(name, "cpu", 0, np.float32, tuple(tensors[name].shape), tensors[name].data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, tuple(result.shape), result.data_ptr())

    def call() -> torch.Tensor:
        session.run_with_iobinding(binding)
        return result

    return call


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds of one of ``calls`` calls."""
    clock = time.process_time if THREADS == 1 else time.perf_counter
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every method in every round; methods must agree on the result."""
    generator = torch.Generator().manual_seed(0)
    channels = case.shape[1] if case.norm.startswith(("Group", "Instance")) else case.shape[-1]
    sizes = {"x": case.shape, "residual": case.shape, "scale": (channels,), "bias": (channels,)}
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    target = torch.empty(case.shape)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(tensors["x"])}
    truth = eager(case, tensors)
    expected = truth()
    for name, nodes in graphs(case).items():
        calls[name] = runner(nodes, tensors)
        torch.testing.assert_close(calls[name](), expected, rtol=1e-4, atol=1e-4)
    calls["torch"] = truth
    counts = {name: max(1, round(LEAST / max(seconds(call, 3), 1e-7))) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 2):
        for name, call in calls.items():
            taken = seconds(call, counts[name])
            if index >= 2:  # two rounds of warming up
                found[name].append(taken)
    return found


def ratio(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Return median, 5th and 95th percentile of the ratio within a round."""
    values = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return statistics.median(values), float(np.percentile(values, 5)), float(np.percentile(values, 95))


def figures(found: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Return the columns of one case."""
    own = found["native"]
    columns = {"copies": ratio(own, found["copy"]), "onnxruntime": ratio(found["onnxruntime"], own)}
    if "SkipLayerNormalization" in found:
        columns["SkipLayerNormalization"] = ratio(found["SkipLayerNormalization"], own)
    columns["torch"] = ratio(found["torch"], own)
    return columns


def merged(columns: list[dict[str, tuple[float, float, float]]]) -> dict[str, tuple[float, float, float]]:
    """Return the median of the medians of several runs, with the lowest and highest of them; of one run, itself."""
    if len(columns) == 1:
        return columns[0]
    merged_: dict[str, tuple[float, float, float]] = {}
    for name in columns[0]:
        medians = [column[name][0] for column in columns]
        merged_[name] = (statistics.median(medians), min(medians), max(medians))
    return merged_


def main() -> None:
    """Measure and print the table."""
    global THREADS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="measure only the cases whose name holds this")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    THREADS = arguments.threads
    torch.set_num_threads(THREADS)
    library = find_library()
    if not library.is_usable:
        raise SystemExit(f"the native library: {library.problem}")
    print(
        f"onnxruntime {ort.__version__}, torch {torch.__version__}, {library.instruction_set}, threads: {THREADS}, float32\n"
    )
    cases = [case for case in CASES if arguments.only in case.name]
    runs: dict[str, list[dict[str, tuple[float, float, float]]]] = {case.name: [] for case in cases}
    with torch.inference_mode():
        for _ in range(arguments.repeat):
            for case in cases:
                runs[case.name].append(figures(measure(case, arguments.rounds)))
    print("| case | × copy | faster than onnxruntime | than SkipLayerNormalization | than torch | wanted |")
    print("|---|---|---|---|---|---|")
    results = {name: merged(columns) for name, columns in runs.items()}
    for case in cases:
        columns = results[case.name]
        cells = [
            "{:.2f} ({:.2f}-{:.2f})".format(*columns[name]) if name in columns else ""
            for name in ("copies", "onnxruntime", "SkipLayerNormalization", "torch")
        ]
        speed, copies = case.target
        wanted = f"{speed:.1f}×" + (f", {copies:.1f} copies" if copies else "")
        print(f"| {case.name} | {' | '.join(cells)} | {wanted} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
