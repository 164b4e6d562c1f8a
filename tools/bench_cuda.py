"""Check and time the CUDA kernels of normfuse/native/cuda, called through their plain C interface. Needs a GPU and torch.

    python tools/bench_cuda.py [--library FILE] [--compile] [--variants] [--seconds N] [--markdown FILE]

Check: tools/check_cuda.py. Time: device events, medians, against torch eager, torch.compile and a device-to-device copy of
the same bytes in the same run; small sizes as replays of a CUDA graph. Without --library the kernels are compiled with nvcc
first.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import check_cuda
import torch
from cuda_norms import TYPES, Call, Kernels, Norm, compiled, failure_of, variants


def median_ms(run: Callable[[], object], repeats: int = 25) -> float:
    """Return the median milliseconds of ``run`` on the device."""
    for _ in range(3):
        run()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


def graph_ms(run: Callable[[], object], calls: int = 20) -> float:
    """Return the median milliseconds of one of ``calls`` runs in a replayed CUDA graph: no launch gaps from Python."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return median_ms(graph.replay, 15) / calls


def copy_of(streams: int, size: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return a device-to-device copy that moves the bytes of ``streams`` tensors of ``size`` elements."""
    source = torch.randn(streams * size // 2, device="cuda").to(dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def large_norms() -> Iterator[Norm]:
    for dtype in TYPES:
        for length in (768, 1024, 4096, 8192):
            rows = 2**28 // length if dtype is torch.float32 else 2**29 // length
            yield Norm("LayerNorm", (rows, 1, length, 1), dtype)
            yield Norm("RMSNorm", (rows, 1, length, 1), dtype)
        batch = 16 if dtype is torch.float32 else 32
        for activation in ("none", "silu"):
            yield Norm("GroupNorm", (2 * batch, 32, 10, 128 * 128), dtype, activation)
            yield Norm("GroupNorm", (batch, 32, 4, 256 * 256), dtype, activation)
            yield Norm("GroupNorm", (batch // 4, 32, 4, 512 * 512), dtype, activation)
        yield Norm("GroupNorm", (2 * batch, 32, 10, 128 * 128), dtype, "silu", channels_last=True)
        yield Norm("InstanceNorm", (batch, 128, 1, 256 * 256), dtype)
        rows = 2**25 // 1024 if dtype is torch.float32 else 2**26 // 1024
        for kind, length in (("LayerNorm", 1024), ("RMSNorm", 4096)):
            yield Norm(kind, (rows * 4096 // length, 1, length, 1), dtype, residual=True, sum=True)
        yield Norm("LayerNorm", (rows, 1, 4096, 1), dtype, residual=True)


def small_norms() -> Iterator[Norm]:
    for dtype in (torch.float32, torch.float16):
        for rows, length in ((1, 768), (128, 384), (512, 768), (1576, 1024), (2048, 4096)):
            yield Norm("LayerNorm", (rows, 1, length, 1), dtype)
        for rows, length in ((1, 4096), (512, 4096)):
            yield Norm("RMSNorm", (rows, 1, length, 1), dtype)
        yield Norm("LayerNorm", (512, 1, 768, 1), dtype, residual=True, sum=True)
        for shape in (
            (1, 32, 4, 64),
            (1, 32, 10, 4096),
            (8, 32, 16, 256),
            (2, 32, 4, 128 * 128),
            (1, 8, 8, 32**3),
            (1, 32, 16, 64 * 64),
        ):
            yield Norm("GroupNorm", shape, dtype)
            yield Norm("GroupNorm", shape, dtype, "silu")
        yield Norm("GroupNorm", (2, 32, 10, 4096), dtype, "silu", channels_last=True)
        yield Norm("InstanceNorm", (1, 320, 1, 4096), dtype)
        yield Norm("InstanceNorm", (8, 512, 1, 256), dtype)


def compiled_ms(call: Call, timer: Callable[[Callable[[], object]], float]) -> str:
    try:
        run = call.eager()
        inputs = list(run.__defaults__ or ())
        torch._dynamo.reset()
        compiled = torch.compile(run, dynamic=False)
        return f"{timer(lambda: compiled(*inputs)):.4f}"
    except Exception as error:
        return f"failed ({type(error).__name__})"


def time_norm(kernels: Kernels, norm: Norm, *, small: bool, compile: bool, every: bool) -> tuple[str, ...]:
    """Return a row: norm, plan, ms, GB/s, share of the copy, against eager, against torch.compile, error."""
    timer = graph_ms if small else median_ms
    call = Call(kernels, norm)
    streams = 2 + norm.residual + norm.sum
    size = math.prod(norm.shape)
    copy = timer(copy_of(streams, size, norm.dtype))
    own = timer(call.run)
    eager = timer(call.eager())
    if every:
        tried = []
        chosen = call.plan
        for plan in variants(call):
            call.plan = plan
            call.prepare()
            try:
                tried.append((timer(call.run), str(plan)))
            except RuntimeError:
                continue
        tried.sort()
        print(
            "   ",
            norm,
            "| chosen",
            chosen,
            f"{own:.4f} |",
            ", ".join(f"{p} {ms:.4f}" for ms, p in tried[:4]),
            flush=True,
        )
        call.plan = chosen
        call.prepare()
    relative, _, wrong = failure_of(call) if size <= 2**28 else (math.nan, 0.0, "")
    compiled = compiled_ms(call, timer) if compile else "-"
    again = timer(call.run)
    own, spread = min(own, again), abs(own - again) / own
    moved = streams * size * call.x.element_size()
    return (
        str(norm), str(call.plan), f"{own:.4f}", f"{moved / own / 1e6:.0f}", f"{copy / own:.2f}", f"{eager:.4f}",
        f"{eager / own:.2f}", compiled, "-" if math.isnan(relative) else f"{relative:.1e}", wrong or f"{spread:.1%}",
    )  # fmt: skip


HEADER = ("norm", "plan", "ms", "GB/s", "of copy", "eager ms", "× eager", "compile ms", "error", "spread")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def environment() -> str:
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{driver} ({properties.multi_processor_count} multiprocessors, "
        f"{properties.L2_cache_size / 2**20:.0f} MB of L2 cache); torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--library", type=pathlib.Path, help="the kernels, compiled; compiled here where it is left out"
    )
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument(
        "--variants", action="store_true", help="time every plan that can run a norm, not only the chosen one"
    )
    parser.add_argument("--skip-check", action="store_true")
    parser.add_argument("--only", default="", help="time only norms whose description holds this text")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further measurement after this time")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables to this file as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was run")
        return 3
    start = time.monotonic()
    deadline = start + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        kernels = Kernels(arguments.library or compiled(folder), "cuda")
    torch.manual_seed(int(time.time()))
    pages = [f"{environment()}", "Command: `python tools/bench_cuda.py " + " ".join(sys.argv[1:]) + "`"]
    print(pages[0], flush=True)

    failures: list[str] = []
    if not arguments.skip_check:
        seen, failures = check_cuda.check(kernels, deadline=deadline)
        header = ("operator", "type", "inputs", "‖y − T‖ / ‖T‖", "largest error / allowed")
        verdict = f"{len(seen)} runs checked, {len(failures)} failed"
        pages += [f"{verdict}.", *failures, table(header, check_cuda.accuracy(seen))]
        print(f"{verdict}, {time.monotonic() - start:.0f} s", *failures[:40], sep="\n", flush=True)
    for title, norms, small in (
        ("Beyond the cache", large_norms(), False),
        ("Small, as CUDA graphs", small_norms(), True),
    ):
        rows = []
        for norm in norms:
            if arguments.only not in str(norm) or time.monotonic() > deadline:
                continue
            torch.cuda.empty_cache()
            rows.append(time_norm(kernels, norm, small=small, compile=arguments.compile, every=arguments.variants))
        pages += [f"## {title}", table(HEADER, rows)]
        print(pages[-1], f"{time.monotonic() - start:.0f} s", sep="\n", flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join(pages) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
