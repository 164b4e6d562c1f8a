"""What other tools make of the same files: BatchNorms left, nodes, multiply-adds, error, and latency on onnxruntime.

    python tools/compare_tools.py MODEL.onnx ...          builds an environment in build/compare-tools, runs there
    python tools/compare_tools.py --here MODEL.onnx ...   runs in this environment
    python tools/compare_tools.py --export repvgg unet    on some of tools/architectures.py instead of files

Contenders: normfuse, onnxsim, OnnxSlim, onnxscript (optimizer and rewriter) and onnxruntime's own offline optimization
(extended level), each in a process of its own with its defaults; one that fails is reported so. ``run``: the operators
that are left when onnxruntime has optimized the file at load, with default options; latency is measured so. Rounds are
interleaved: in each, every contender's file is loaded anew (where a session's memory lies makes it up to a tenth faster
or slower) and runs a few times in turn; its fastest run counts. ``ratio`` is the fastest other tool's time over
normfuse's, round by round: the median with its 95 % interval; above 1 normfuse's file is faster. Exit code 1 where an
interval lies wholly below 0.98.

A model with a form of its own for inference (timm's RepVGG and MobileOne: one Conv a block) is exported in that form too,
as ``NAME.own.onnx``, and measured beside the tools.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from contenders import converted
from environments import environment, run_there

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("onnxsim==0.8.1", "onnxslim==0.1.98")
SLOWER = 0.98
"""An interval of the ratio wholly below this counts as slower."""

ROUND_SECONDS = 0.05
"""How long a contender runs in a round, at least, and at least three times."""

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """What one contender made of a model."""

    path: Path
    norms: int
    convolutions: int
    nodes: int
    run: int
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
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = sum(1 for _ in _nodes(onnx.load(folder / "loaded.onnx").graph))
    kinds = Counter(node.op_type.removeprefix("Fused") for node in nodes)
    work, outputs = multiply_adds(path, feeds, folder), session.run(None, dict(feeds))
    return Result(path, kinds["BatchNormalization"], kinds["Conv"], len(nodes), run, work, outputs)


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
    names = list(paths)
    first = max(fastest(_session(path), feeds, 2) for path in paths.values())
    runs = min(50, max(3, math.ceil(ROUND_SECONDS / first)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            session = _session(paths[name])
            fastest(session, feeds, 1)
            seconds[name].append(fastest(session, feeds, runs))
    return seconds


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


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


OWN = "own form"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A contender's time over normfuse's: the median and its 95 % interval."""

    against: str
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}) {self.against}"


def compare(source: Path, rounds: int) -> tuple[bool, str]:
    """Print the table of one model; return whether normfuse's file is not slower than the best other, and its row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        feeds = feeds_of(source)
        rows: dict[str, Result | str] = {"original": examine(source, feeds, folder)}
        own = source.with_suffix(".own.onnx")
        for tool, outcome in (converted(source, folder) | ({OWN: own} if own.exists() else {})).items():
            try:
                rows[tool] = outcome if isinstance(outcome, str) else examine(outcome, feeds, folder)
            except Exception as error:
                rows[tool] = f"does not run: {str(error).splitlines()[0][:80]}"
        ran = {tool: row for tool, row in rows.items() if isinstance(row, Result)}
        seconds = latencies({tool: row.path for tool, row in ran.items()}, feeds, rounds)
    print(f"\n{source.stem}\n\n| tool | BatchNorm | Conv | nodes | run | multiply-adds | error | ms |")
    print("|---" * 8 + "|")
    truth = ran["original"].outputs
    for tool, row in rows.items():
        if isinstance(row, str):
            print(f"| {tool} | {row} |" + " |" * 6)
            continue
        error = max(_difference(a, b) for a, b in zip(row.outputs, truth, strict=True))
        took = statistics.median(seconds[tool]) * 1e3
        counts = f"{row.norms} | {row.convolutions} | {row.nodes} | {row.run}"
        print(f"| {tool} | {counts} | {row.work / 1e6:.1f} M | {error:.0e} | {took:.2f} |")
    others = [tool for tool in ran if tool not in ("original", "normfuse", OWN)]
    if "normfuse" not in ran or not others:
        return "normfuse" in ran, f"| {source.stem} | {rows['normfuse']} |" + " |" * 4
    ratios = [
        Ratio(tool, *interval([a / b for a, b in zip(seconds[tool], seconds["normfuse"], strict=True)]))
        for tool in (min(others, key=lambda tool: statistics.median(seconds[tool])), OWN)
        if tool in ran
    ]
    print(f"\nratio, {rounds} rounds: {'; '.join(map(str, ratios))}", flush=True)
    return ratios[0].high >= SLOWER, _summary(source.stem, ran, others, ratios)


def _summary(model: str, ran: Mapping[str, Result], others: list[str], ratios: list[Ratio]) -> str:
    """Return a row: the original, normfuse, and the least of the other tools, column by column."""
    rows = [ran["original"], ran["normfuse"]]
    cells = []
    for field, form in (("norms", "{}"), ("nodes", "{}"), ("work", "{:.1f} M")):
        values = [getattr(row, field) for row in rows] + [min(getattr(ran[tool], field) for tool in others)]
        cells.append(" / ".join(form.format(value / 1e6 if field == "work" else value) for value in values))
    return f"| {model} | {' | '.join(cells)} | {'; '.join(map(str, ratios))} |"


def _difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest value."""
    wide = b.astype(np.float64)
    return float(np.abs(a.astype(np.float64) - wide).max(initial=0.0) / max(np.abs(wide).max(initial=0.0), 1e-30))


def exported(names: list[str], folder: Path) -> list[Path]:
    """Write architectures, as they are exported, with random statistics."""
    sys.path.insert(0, str(ROOT))
    import normfuse
    from tools import architectures, real_models

    paths = []
    for build in architectures.MODELS:
        if any(name in build.__name__ for name in names):
            paths.append(folder / f"{build.__name__}.onnx")
            normfuse.save(real_models.exported(build), paths[-1])
            own = real_models.exported_in_own_form(build)
            if own is not None:
                normfuse.save(own, paths[-1].with_suffix(".own.onnx"))
    return paths


def main() -> None:
    """Parse the command line and run, in an environment of its own unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="ONNX files; with --export, parts of the names of architectures")
    parser.add_argument("--export", action="store_true", help="compare on exported architectures (needs torch)")
    parser.add_argument("--here", action="store_true", help="run in this environment")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "compare-tools")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models = [Path(model) for model in arguments.models]
        if arguments.export:
            models = exported(arguments.models, Path(name))
        if not arguments.here:
            python = environment(arguments.environment, "cpu", ["onnxscript", *TOOLS])
            sys.exit(run_there(python, __file__, ["--rounds", str(arguments.rounds), *map(str, models)]))
        results = [compare(model, arguments.rounds) for model in models]
    print("\nOriginal / normfuse / the least of the others:\n")
    print(
        "| model | BatchNorm left | nodes | multiply-adds | × the fastest other's speed (95 %) |\n|---|---|---|---|---|"
    )
    print("\n".join(row for _, row in results))
    sys.exit(0 if all(fine for fine, _ in results) else 1)


if __name__ == "__main__":
    main()
