"""How long fusing takes, and how much memory, as models grow.

    python tools/bench_scale.py            chains of 1000 to 10000 Conv-BN-ReLU blocks, beside onnxsim if installed
    python tools/bench_scale.py --large    a 2.4 GB Conv-BN model with external data, beside a copy of its file

Everything runs in one process after the imports, the contenders in turn; medians and ranges are printed. Validation
is off: this times the tool's own work. Needs `pip install normfuse[cpu] onnxsim` for the comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import normfuse
from normfuse.ledger import Options
from normfuse.pipeline import fuse_in_place

CHANNELS = 8


def chain(blocks: int, path: Path) -> None:
    """Write a chain of Conv(8→8, 3×3)-BatchNormalization-Relu blocks with random weights and statistics."""
    random = np.random.default_rng(0)
    nodes, tensors, x = [], [], "x"
    for index in range(blocks):
        weight = random.standard_normal((CHANNELS, CHANNELS, 3, 3)) / CHANNELS
        rows = [random.standard_normal(CHANNELS) for _ in range(3)]
        rows.append(random.uniform(0.5, 2, CHANNELS))
        names = [f"{name}{index}" for name in ("scale", "bias", "mean", "var")]
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        tensors.extend(numpy_helper.from_array(row.astype(np.float32), n) for n, row in zip(names, rows, strict=True))
        nodes += [
            helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{index}", *names], [f"n{index}"], f"bn{index}"),
            helper.make_node("Relu", [f"n{index}"], [f"r{index}"], f"relu{index}"),
        ]
        x = f"r{index}"
    shape = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def with_normfuse(source: Path, target: Path) -> float:
    """Load, fuse and save; return the processor seconds of our own part, without load and save.

    It has one thread: on a quiet machine they are its seconds, and on a busy one they still compare sizes.
    """
    model = normfuse.load(source)
    start = time.process_time()
    report = fuse_in_place(model, normfuse.Target(), Options())
    own = time.process_time() - start
    assert report.rewrites
    assert not any(node.op_type == "BatchNormalization" for node in model.graph)
    normfuse.save(model, target)
    return own


def with_onnxsim(source: Path, target: Path) -> float:
    """Load, simplify and save with onnxsim."""
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    onnx.save(model, target)
    return float("nan")


def clocked(work: Callable[[], float]) -> tuple[float, float]:
    """Return (seconds of the whole, what ``work`` returned)."""
    start = time.perf_counter()
    part = work()
    return time.perf_counter() - start, part


def spread(values: list[float]) -> str:
    """Return a median with its range."""
    return f"{statistics.median(values):.3f} s ({min(values):.3f}-{max(values):.3f})"


def chains(rounds: int, folder: Path) -> None:
    """Print the table of chains."""
    try:
        import onnxsim

        rival: str | None = f"onnxsim {onnxsim.__version__}"
    except ImportError:
        rival = None
        print("onnxsim is not installed: no comparison")
    own_medians = {}
    for blocks in (1000, 3000, 10000):
        source, target = folder / f"chain{blocks}.onnx", folder / "out.onnx"
        chain(blocks, source)
        ours, parts, theirs = [], [], []
        for _ in range(rounds):
            total, part = clocked(lambda s=source, t=target: with_normfuse(s, t))
            ours.append(total)
            parts.append(part)
            if rival and blocks <= 3000:
                theirs.append(clocked(lambda s=source, t=target: with_onnxsim(s, t))[0])
        own_medians[blocks] = statistics.median(parts)
        print(f"{blocks:6d} blocks: normfuse {spread(ours)}; processor time of fusing {spread(parts)}")
        if theirs:
            ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
            print(f"{'':6s}         {rival} {spread(theirs)}; normfuse takes {ratio:.2f} of its time")
    for blocks in (3000, 10000):
        print(f"fusing {blocks} blocks takes {own_medians[blocks] / own_medians[1000]:.2f} times as long as 1000")


def large_model(path: Path, layers: int = 17, channels: int = 2000) -> None:
    """Write a chain of Conv(2000→2000, 3×3)-BatchNormalization of 144 MB a weight, with external data."""
    random = np.random.default_rng(0)
    data = path.with_suffix(".data")
    nodes, tensors, x, offset = [], [], "x", 0
    with data.open("wb") as file:
        for index in range(layers):
            weight = random.standard_normal((channels, channels, 3, 3), dtype=np.float32)
            weight /= np.float32(3 * channels**0.5)
            file.write(weight.data)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += weight.nbytes
            tensors.append(tensor)
            names = [f"{name}{index}" for name in ("scale", "bias", "mean", "var")]
            rows = [random.standard_normal(channels, dtype=np.float32) for _ in range(3)]
            rows.append(random.uniform(0.5, 2, channels).astype(np.float32))
            tensors.extend(numpy_helper.from_array(row, n) for n, row in zip(names, rows, strict=True))
            nodes += [
                helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4),
                helper.make_node("BatchNormalization", [f"c{index}", *names], [f"n{index}"], f"bn{index}"),
            ]
            x = f"n{index}"
    shape = [1, channels, 8, 8]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process (Linux: RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def watched(work: Callable[[], float]) -> tuple[float, int]:
    """Return (seconds, growth of anonymous memory at its highest) of ``work``."""
    start_bytes, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, _ = clocked(work)
    finally:
        done.set()
        watcher.join()
    return seconds, max(0, peak - start_bytes)


def copy(source: Path, target: Path) -> float:
    """Read, write and flush a file: the least that any tool does with it."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return float("nan")


def large(rounds: int, folder: Path) -> None:
    """Print the figures of the large model."""
    source, target, copied = folder / "large.onnx", folder / "fused.onnx", folder / "copy.data"
    large_model(source)
    data = source.with_suffix(".data")
    print(f"model: {data.stat().st_size / 1e9:.2f} GB of external data in tensors of 144 MB")
    fused, copies, peaks = [], [], []
    for _ in range(rounds):
        copies.append(clocked(lambda: copy(data, copied))[0])
        copied.unlink()
        seconds, peak = watched(lambda: with_normfuse(source, target))
        fused.append(seconds)
        peaks.append(peak)
        for file in folder.glob("fused.onnx*"):
            file.unlink()
    ratio = statistics.median(mine / other for mine, other in zip(fused, copies, strict=True))
    print(f"load, fuse and save: {spread(fused)}; copy of the data file: {spread(copies)}; ratio {ratio:.2f}")
    print(f"anonymous memory above the start: {max(peaks) / 1e6:.0f} MB")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the 2.4 GB model instead of the chains")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write the models (default: a temporary one)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (large if arguments.large else chains)(arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
