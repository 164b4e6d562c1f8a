"""How long models take on onnxruntime: latency, interleaved; where the time goes; what their norms cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normfuse.errors import UnsupportedForm
from normfuse.runtime.profile import Profile, read_profile
from normfuse.runtime.session import CPU, onnxruntime, session

Array = npt.NDArray[Any]

WARM_UP, PROFILED = 3, 5
"""Runs before the clock counts, and runs under the profiler."""

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Latency:
    """One model: seconds a run at the 5th percentile, the median and the 95th."""

    model: str
    low: float
    median: float
    high: float
    profile: Profile


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, in the order of the models; the first is what the others are compared with."""

    runtime: str
    provider: str
    threads: int
    rounds: int
    latencies: tuple[Latency, ...]

    def json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "schema": 1,
            "runtime": self.runtime,
            "provider": self.provider,
            "threads": self.threads,
            "rounds": self.rounds,
            "models": [
                {
                    "model": each.model,
                    "seconds": {"p5": each.low, "median": each.median, "p95": each.high},
                    "operators": [
                        {"operator": share.operator, "nodes": share.nodes, "share": share.share}
                        for share in each.profile.shares
                    ],
                    "norms": [
                        {
                            "node": norm.node,
                            "operator": norm.operator,
                            "shape": list(norm.shape),
                            "seconds": norm.seconds,
                            "copies": norm.copies,
                        }
                        for norm in each.profile.norms
                    ],
                }
                for each in self.latencies
            ],
        }

    def table(self) -> str:
        """Return the report as lines of text."""
        threads = "as many threads as onnxruntime takes" if self.threads == 0 else f"threads: {self.threads}"
        lines = [f"onnxruntime {self.runtime}, {self.provider}, {threads}, {self.rounds} rounds"]
        first = self.latencies[0].median
        for each in self.latencies:
            lines.append(
                f"{each.model}: {each.median * 1e3:.3f} ms ({each.low * 1e3:.3f}-{each.high * 1e3:.3f})"
                + (
                    f", {first / each.median:.2f} times as fast as {self.latencies[0].model}"
                    if each.median != first
                    else ""
                )
            )
            lines += [f"  {share.share:6.1%}  {share.operator} × {share.nodes}" for share in each.profile.shares[:8]]
            lines += [
                f"  {norm.operator} '{norm.node}' {'×'.join(map(str, norm.shape))}: {norm.seconds * 1e6:.0f} µs, "
                f"{norm.copies:.1f} copies"
                for norm in each.profile.norms
            ]
        return "\n".join(lines)


def bench(models: Sequence[Path], provider: str = CPU, *, threads: int = 0, rounds: int = 50) -> BenchReport:
    """Return how long ``models`` take, one run of each in turn, so that what else the machine does hits all alike.

    provider: onnxruntime's name. threads: within an operator; 0 leaves it to onnxruntime. Inputs are random, axes
    without a size 1. Raises UnsupportedForm for an input that cannot be made up; what session raises.
    """
    ort = onnxruntime()
    sessions = [session(path, [provider], _options(threads)) for path in models]
    feeds = [random_inputs(each) for each in sessions]
    times: list[list[float]] = [[] for _ in models]
    for index in range(WARM_UP + rounds):
        for taken, each, feed in zip(times, sessions, feeds, strict=True):
            start = time.perf_counter()
            each.run(None, feed)
            if index >= WARM_UP:
                taken.append(time.perf_counter() - start)
    return BenchReport(
        ort.__version__,
        provider,
        threads,
        rounds,
        tuple(
            Latency(
                path.name,
                float(np.percentile(taken, 5)),
                statistics.median(taken),
                float(np.percentile(taken, 95)),
                _profile(path, provider, threads, feed),
            )
            for path, taken, feed in zip(models, times, feeds, strict=True)
        ),
    )


def random_inputs(running: Any) -> dict[str, Array]:
    """Return inputs for a session: standard normal, or zeros of an integer type, or True."""
    random = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for item in running.get_inputs():
        dtype = _TYPES.get(item.type)
        if dtype is None:
            raise UnsupportedForm(f"input '{item.name}' is of type {item.type}, for which no values can be made up")
        shape = [size if isinstance(size, int) else 1 for size in item.shape]
        if issubclass(dtype, np.floating):
            found[item.name] = random.standard_normal(shape).astype(dtype)
        else:
            found[item.name] = np.full(shape, dtype is np.bool_, dtype)
    return found


def _options(threads: int) -> Any:
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def _profile(path: Path, provider: str, threads: int, feed: dict[str, Array]) -> Profile:
    """Profile a session of its own, since the profiler costs time."""
    with tempfile.TemporaryDirectory(prefix="normfuse-") as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        running = session(path, [provider], options)
        for _ in range(PROFILED):
            running.run(None, feed)
        return read_profile(Path(running.end_profiling()))
