"""Time exported against fused models on onnxruntime's CUDA provider, and look where their nodes run.

    python tools/bench_cuda_models.py EXPORTED.onnx FUSED.onnx [EXPORTED.onnx FUSED.onnx]... [--markdown FILE]

Exported: a session with onnxruntime's defaults. Fused: ``normfuse.session``, with the native operators where they are
built. Inputs and outputs stay on the device; the two are run in turn, medians over --runs. Kernels: nodes that one run
executes on the GPU, by onnxruntime's profile, which also says what was copied to the host or ran there. Each pair is timed
with and without TF32, and ``normfuse.validate`` judges it on the same provider.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import normfuse
from normfuse.runtime.library import find_cuda_library

CUDA = "CUDAExecutionProvider"
Feeds = dict[str, np.ndarray[Any, Any]]


def feeds_of(path: pathlib.Path) -> Feeds:
    """Return normal inputs of the shapes in the file; a symbolic axis has 1, integers are small."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        shape = [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        numbers = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 100, shape)
        feeds[value.name] = np.asarray(numbers).astype(dtype)
    return feeds


CONVOLUTIONS = "EXHAUSTIVE"
"""How the provider looks for the algorithm of a convolution; its own default."""


def open_session(path: pathlib.Path, *, fused: bool, tf32: bool, profile: pathlib.Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = [
        (CUDA, {"use_tf32": str(int(tf32)), "cudnn_conv_algo_search": CONVOLUTIONS}),
        "CPUExecutionProvider",
    ]
    if fused:
        return normfuse.session(path, providers, options)
    return ort.InferenceSession(str(path), options, providers=providers)


class Bound:
    """A session with its inputs and outputs on the device."""

    def __init__(self, session: Any, feeds: Feeds) -> None:
        self.session = session
        self.binding = session.io_binding()
        for name, array in feeds.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for output in session.get_outputs():
            self.binding.bind_output(output.name, "cuda")

    def milliseconds(self) -> float:
        start = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        return (time.perf_counter() - start) * 1e3

    def result(self) -> np.ndarray[Any, Any]:
        self.session.run_with_iobinding(self.binding)
        return np.asarray(self.binding.copy_outputs_to_cpu()[0])


def latencies(pair: list[Bound], runs: int) -> list[float]:
    """Return the median milliseconds of each, run in turn."""
    for bound in pair:
        for _ in range(5):
            bound.milliseconds()
    times: list[list[float]] = [[] for _ in pair]
    for _ in range(runs):
        for bound, list_of in zip(pair, times, strict=True):
            list_of.append(bound.milliseconds())
    return [statistics.median(list_of) for list_of in times]


def kernels(path: pathlib.Path, feeds: Feeds, *, fused: bool, folder: pathlib.Path) -> dict[str, Any]:
    """Return how many nodes one run executes on the GPU, which run on the host, and the copies between the two."""
    session = open_session(path, fused=fused, tf32=True, profile=folder / "profile")
    bound = Bound(session, feeds)
    bound.milliseconds()
    events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    on_gpu = [node for node in nodes if node.get("provider") == CUDA]
    return {
        "gpu": len(on_gpu),
        "norms": dict(collections.Counter(n["op_name"] for n in on_gpu if "Norm" in n["op_name"])),
        "host": dict(collections.Counter(n["op_name"] for n in nodes if n.get("provider") != CUDA)),
        "copies": dict(collections.Counter(n["op_name"] for n in nodes if n["op_name"].startswith("Memcpy"))),
    }


def verdict(exported: pathlib.Path, fused: pathlib.Path) -> str:
    library = find_cuda_library()
    libraries = [library.path] if library.path is not None and library.is_usable else []
    report = normfuse.validate(exported, fused, providers=["cuda"], quick=True, libraries=libraries)
    return report.table()


def main() -> int:
    global CONVOLUTIONS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=pathlib.Path, nargs="+", help="exported and fused, in turn")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--convolutions", choices=("EXHAUSTIVE", "HEURISTIC"), default="EXHAUSTIVE")
    parser.add_argument("--validate", action="store_true", help="judge each pair as well")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("."), help="where profiles are written")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables to this file as well")
    arguments = parser.parse_args()
    CONVOLUTIONS = arguments.convolutions
    if CUDA not in ort.get_available_providers():
        print("no CUDA provider: nothing was run")
        return 3
    lines = [
        f"onnxruntime {ort.__version__}, library: {find_cuda_library()}",
        "",
        "| model | TF32 | exported ms | fused ms | faster | largest difference / largest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for exported, fused in zip(arguments.models[::2], arguments.models[1::2], strict=True):
        feeds = feeds_of(exported)
        for tf32 in (True, False):
            pair = [Bound(open_session(path, fused=path == fused, tf32=tf32), feeds) for path in (exported, fused)]
            before, after = latencies(pair, arguments.runs)
            first, second = (bound.result().astype(np.float64) for bound in pair)
            difference = np.abs(first - second).max() / np.abs(first).max()
            state = "on" if tf32 else "off"
            lines.append(
                f"| {exported.stem} | {state} | {before:.3f} | {after:.3f} | {before / after:.2f} | {difference:.1e} |"
            )
            print(lines[-1], flush=True)
            del pair
        for path in (exported, fused):
            notes.append(f"{path.name}: {kernels(path, feeds, fused=path == fused, folder=arguments.folder)}")
            print(notes[-1], flush=True)
        if arguments.validate:
            notes.append(verdict(exported, fused))
            print(notes[-1], flush=True)
    page = "\n".join([*lines, "", *notes])
    if arguments.markdown:
        arguments.markdown.write_text(page + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
