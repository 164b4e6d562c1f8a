"""What other tools make of the same files: BatchNorms left, nodes, multiply-adds, error, and latency on onnxruntime.

    python tools/compare_tools.py MODEL.onnx ...          builds an environment in build/compare-tools, runs there
    python tools/compare_tools.py --here MODEL.onnx ...   runs in this environment
    python tools/compare_tools.py --export repvgg unet    on architectures of tools/real_models.py instead of files

Contenders: normfuse, onnxsim, OnnxSlim, onnxscript (optimizer and rewriter) and onnxruntime's own offline optimization
(extended level), each in a process of its own with its defaults; one that fails is reported so. Latency is that of
onnxruntime's CPU with default options on what each wrote. Rounds are interleaved: in each, every contender runs a few
times in turn, and its fastest run counts, so that other work on the machine matters little. ``ratio`` is the fastest other
tool's time over normfuse's, round by round: the median with its 95 % interval; above 1 normfuse's file is faster. Exit code
1 where an interval lies wholly below 0.98.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("onnxsim==0.8.1", "onnxslim==0.1.98")
SLOWER = 0.98
"""An interval of the ratio wholly below this counts as slower."""

ROUND_SECONDS = 0.05
"""How long a contender runs in a round, at least, and at least three times."""

Feeds = Mapping[str, npt.NDArray[Any]]


def with_normfuse(source: Path, target: Path) -> None:
    """Fuse with normfuse."""
    import normfuse

    model, _ = normfuse.fuse(source)
    normfuse.save(model, target)


def with_onnxsim(source: Path, target: Path) -> None:
    """Simplify with onnxsim."""
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(model, target)


def with_onnxslim(source: Path, target: Path) -> None:
    """Slim with OnnxSlim."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def with_onnxscript(source: Path, target: Path) -> None:
    """Optimize and rewrite with onnxscript."""
    from onnxscript import optimizer, rewriter

    model = onnx.load(source)
    onnx.save(rewriter.rewrite(optimizer.optimize(model)), target)


def with_onnxruntime(source: Path, target: Path) -> None:
    """Optimize offline with onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "normfuse": with_normfuse,
    "onnxsim": with_onnxsim,
    "onnxslim": with_onnxslim,
    "onnxscript": with_onnxscript,
    "onnxruntime": with_onnxruntime,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one contender made of a model."""

    path: Path
    norms: int
    nodes: int
    work: int
    outputs: list[npt.NDArray[Any]]


def feeds_of(path: Path) -> Feeds:
    """Return standard normal inputs for a model; unknown sizes are 1, integers 0 or 1."""
    random = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        if "float" in value.type or "double" in value.type:
            kind = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(value.type, np.float32)
            feeds[value.name] = random.standard_normal(shape).astype(kind)
        else:
            kinds = {"tensor(int32)": np.int32, "tensor(bool)": np.bool_}
            feeds[value.name] = random.integers(0, 2, shape).astype(kinds.get(value.type, np.int64))
    return feeds


def multiply_adds(path: Path, feeds: Feeds, folder: Path) -> int:
    """Return the multiply-adds of Conv, ConvTranspose, Gemm and MatMul, fused ones included, of one run.

    onnxruntime's profile states the shape of every operand, also behind operators that shape inference does not know.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum(_of_node(event["args"]) for event in events if "output_type_shape" in event.get("args", {}))


def _of_node(arguments: Mapping[str, Any]) -> int:
    operator = arguments["op_name"].removeprefix("Fused")
    inputs = [shape for entry in arguments["input_type_shape"] for shape in entry.values()]
    outputs = [shape for entry in arguments["output_type_shape"] for shape in entry.values()]
    if operator == "Conv":
        return math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if operator == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if operator == "Gemm":
        return math.prod(outputs[0]) * (math.prod(inputs[0]) // outputs[0][0])
    if operator == "MatMul":
        return math.prod(outputs[0]) * int(inputs[0][-1])
    return 0


def examine(path: Path, feeds: Feeds, folder: Path) -> Result:
    """Return what a file holds, and what it computes."""
    nodes = list(_nodes(onnx.load(path).graph))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    norms = sum(node.op_type == "BatchNormalization" for node in nodes)
    return Result(path, norms, len(nodes), multiply_adds(path, feeds, folder), session.run(None, dict(feeds)))


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            found.extend(inner for each in graphs for inner in _nodes(each))
    return found


def latencies(paths: Mapping[str, Path], feeds: Feeds, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each file's fastest run in each round, on default options; the order moves on by one."""
    sessions = {
        name: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for name, path in paths.items()
    }
    names = list(sessions)
    first = max(fastest(session, feeds, 2) for session in sessions.values())
    runs = min(50, max(3, math.ceil(ROUND_SECONDS / first)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(fastest(sessions[name], feeds, runs))
    return seconds


def fastest(session: onnxruntime.InferenceSession, feeds: Feeds, runs: int) -> float:
    """Return the seconds of the fastest of a few runs."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, dict(feeds))
        taken.append(time.perf_counter() - start)
    return min(taken)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the median of ``ratios`` and its 95 % interval, by resampling the rounds."""
    values = np.asarray(ratios)
    random = np.random.default_rng(0)
    medians = np.sort(np.median(values[random.integers(0, values.size, (4000, values.size))], axis=1))
    return float(np.median(values)), float(medians[99]), float(medians[3899])


def converted(source: Path, folder: Path) -> dict[str, Path | str]:
    """Return what each contender wrote, or the last line of what it said when it failed."""
    results: dict[str, Path | str] = {}
    for name in CONTENDERS:
        target = folder / f"{name}.onnx"
        command = [sys.executable, str(Path(__file__).resolve()), "--convert", name, str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        results[name] = target if done.returncode == 0 and target.exists() else f"failed: {said[:80]}"
    return results


def compare(source: Path, rounds: int) -> bool:
    """Print the table of one model; return whether normfuse's file is not slower than the best other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        feeds = feeds_of(source)
        rows: dict[str, Result | str] = {"original": examine(source, feeds, folder)}
        for tool, outcome in converted(source, folder).items():
            try:
                rows[tool] = outcome if isinstance(outcome, str) else examine(outcome, feeds, folder)
            except Exception as error:
                rows[tool] = f"does not run: {str(error).splitlines()[0][:80]}"
        ran = {tool: row for tool, row in rows.items() if isinstance(row, Result)}
        seconds = latencies({tool: row.path for tool, row in ran.items()}, feeds, rounds)
    print(f"\n{source.stem}\n\n| tool | BatchNorm | nodes | multiply-adds | error | ms |\n|---|---|---|---|---|---|")
    truth = ran["original"].outputs
    for tool, row in rows.items():
        if isinstance(row, str):
            print(f"| {tool} | {row} | | | | |")
            continue
        error = max(_difference(a, b) for a, b in zip(row.outputs, truth, strict=True))
        took = statistics.median(seconds[tool]) * 1e3
        print(f"| {tool} | {row.norms} | {row.nodes} | {row.work / 1e6:.1f} M | {error:.0e} | {took:.2f} |")
    others = [tool for tool in ran if tool not in ("original", "normfuse")]
    if "normfuse" not in ran or not others:
        return "normfuse" in ran
    best = min(others, key=lambda tool: statistics.median(seconds[tool]))
    ratio, low, high = interval([a / b for a, b in zip(seconds[best], seconds["normfuse"], strict=True)])
    print(f"\nratio {ratio:.3f} ({low:.3f} to {high:.3f}) against {best}, {rounds} rounds", flush=True)
    return high >= SLOWER


def _difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest value."""
    wide = b.astype(np.float64)
    return float(np.abs(a.astype(np.float64) - wide).max(initial=0.0) / max(np.abs(wide).max(initial=0.0), 1e-30))


def exported(names: list[str], folder: Path) -> list[Path]:
    """Write architectures of tools/real_models.py, as they are exported, with random statistics."""
    sys.path.insert(0, str(ROOT))
    import normfuse
    from tools import real_models

    paths = []
    for build in real_models.MODELS:
        if any(name in build.__name__ for name in names):
            paths.append(folder / f"{build.__name__}.onnx")
            normfuse.save(real_models.exported(build), paths[-1])
    return paths


def build_environment(folder: Path) -> Path:
    """Make a virtual environment with the tools; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "-e", f"{ROOT}[cpu]", "onnxscript", *TOOLS], check=True)
        (folder / ".ready").touch()
    return python


def main() -> None:
    """Parse the command line and run, in an environment of its own unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="ONNX files; with --export, parts of the names of architectures")
    parser.add_argument("--export", action="store_true", help="compare on exported architectures (needs torch)")
    parser.add_argument("--here", action="store_true", help="run in this environment")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "compare-tools")
    parser.add_argument("--convert", nargs=3, metavar=("TOOL", "IN", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        tool, source, target = arguments.convert
        CONTENDERS[tool](Path(source), Path(target))
        return
    with tempfile.TemporaryDirectory() as name:
        models = [Path(model) for model in arguments.models]
        if arguments.export:
            models = exported(arguments.models, Path(name))
        if not arguments.here:
            python = build_environment(arguments.environment)
            command = [str(python), str(Path(__file__).resolve()), "--here", "--rounds", str(arguments.rounds)]
            sys.exit(subprocess.run([*command, *map(str, models)], check=False).returncode)
        results = [compare(model, arguments.rounds) for model in models]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
