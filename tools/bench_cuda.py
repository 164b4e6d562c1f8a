"""Check and time the CUDA kernels of normfuse/native/cuda, called through their plain C interface. Needs a GPU and torch.

    python tools/bench_cuda.py [--library FILE] [--compile] [--variants] [--seconds N] [--markdown FILE]

Check: every kernel, on fresh random inputs, odd shapes, every alignment and every strategy that can run a shape, against
float64 on the device; outputs are poisoned with NaN and lie between guards that must stay untouched. Time: device events,
medians, against torch eager, torch.compile and a device-to-device copy of the same bytes in the same run; small sizes as
replays of a CUDA graph. Without --library the kernels are compiled with nvcc first.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import itertools
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

NATIVE = pathlib.Path(__file__).resolve().parent.parent / "normfuse" / "native"
TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3}
LANES, BLOCK, CLUSTER, STREAMED, CHANNELS_LAST = range(5)
STRATEGIES = ("lanes", "block", "cluster", "streamed", "channels last")
GUARD = 64


class CNorm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("type", "activation", "centred", "channels_last")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "spatial")),
        *((name, ctypes.c_void_p) for name in ("x", "scale", "bias", "residual", "y", "sum")),
    ]


class CPlan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("strategy", "width", "elements", "threads", "team", "clusters")),
        ("chunk", ctypes.c_int64),
        ("workspace", ctypes.c_int64),
    ]

    def __str__(self) -> str:
        where = f"/{self.team}" if self.strategy in (LANES, CLUSTER) else f"/{self.chunk}" if self.chunk else ""
        return f"{STRATEGIES[self.strategy]}{where} {self.threads}x{self.elements} w{self.width}"


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm of x seen as (batch, groups, channels, spatial); see normfuse/native/cuda/norm.h."""

    kind: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    activation: str = "none"
    residual: bool = False
    sum: bool = False
    affine: bool = True
    channels_last: bool = False
    epsilon: float = 1e-5

    @property
    def centred(self) -> bool:
        return self.kind != "RMSNorm"

    def __str__(self) -> str:
        batch, groups, channels, spatial = self.shape
        trailing = self.kind in ("LayerNorm", "RMSNorm")
        dims = f"({batch}, {channels})" if trailing else f"({batch}, {groups * channels}, {spatial})"
        name = self.kind + (f" g{groups}" if self.kind == "GroupNorm" else "")
        extras = [self.activation.upper()] * (self.activation != "none") + ["add"] * self.residual + ["sum"] * self.sum
        return f"{'+'.join([name, *extras])} {dims}{' NHWC' * self.channels_last} {NAMES[self.dtype]}"


class Call:
    """One norm with its operands on the device. Tensors start ``misaligned`` elements past a 16-byte border."""

    def __init__(
        self, norm: Norm, fill: Callable[[torch.Tensor], torch.Tensor] = lambda x: x, misaligned: int = 0
    ) -> None:
        batch, groups, channels, spatial = norm.shape
        self.norm = norm
        self.layout = (batch, spatial, groups, channels) if norm.channels_last else norm.shape
        size = math.prod(norm.shape)

        def tensor(count: int, values: torch.Tensor | None = None) -> torch.Tensor:
            whole = torch.full((count + 2 * GUARD + misaligned,), math.nan, dtype=norm.dtype, device="cuda")
            part = whole[GUARD + misaligned : GUARD + misaligned + count]
            if values is not None:
                part.copy_(values.reshape(-1))
            return part

        random = torch.randn(self.layout, device="cuda", dtype=torch.float32)
        self.x = tensor(size, fill(random))
        self.residual = tensor(size, torch.randn(size, device="cuda")) if norm.residual else None
        count = groups * channels
        self.scale = tensor(count, torch.rand(count, device="cuda") + 0.5) if norm.affine else None
        self.bias = tensor(count, torch.randn(count, device="cuda")) if norm.affine and norm.centred else None
        self.y = tensor(size)
        self.sum = tensor(size) if norm.sum else None
        pointers = (self.x, self.scale, self.bias, self.residual, self.y, self.sum)
        self.c = CNorm(
            TYPES[norm.dtype], ACTIVATIONS[norm.activation], norm.centred, norm.channels_last, norm.epsilon, *norm.shape,
            *(None if t is None else t.data_ptr() for t in pointers),
        )  # fmt: skip
        self.plan = CPlan()
        check(LIBRARY.normfuse_cuda_plan(ctypes.byref(self.c), ctypes.byref(self.plan)))
        self.prepare()

    def prepare(self) -> None:
        self.workspace = torch.empty(max(self.plan.workspace, 1), dtype=torch.uint8, device="cuda")

    def run(self) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        workspace = ctypes.c_void_p(self.workspace.data_ptr())
        check(LIBRARY.normfuse_cuda_run(ctypes.byref(self.c), ctypes.byref(self.plan), workspace, stream))

    def reference(self) -> torch.Tensor:
        """Return y in float64."""
        x = self.x.double().reshape(self.layout)
        if self.residual is not None:
            x = x + self.residual.double().reshape(self.layout)
        along = (1, 3) if self.norm.channels_last else (2, 3)
        if self.norm.centred:
            x = x - x.mean(along, keepdim=True)
        y = x / (x.square().mean(along, keepdim=True) + torch.tensor(self.norm.epsilon).double().item()).sqrt()
        _, groups, channels, _ = self.norm.shape
        affine = (groups, channels) if self.norm.channels_last else (groups, channels, 1)
        if self.scale is not None:
            y = y * self.scale.double().reshape(affine)
        if self.bias is not None:
            y = y + self.bias.double().reshape(affine)
        follow = {"none": lambda v: v, "relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu}
        return follow[self.norm.activation](y).reshape(-1)

    def eager(self) -> Callable[[], object]:
        """Return the same computation as a torch user writes it."""
        norm = self.norm
        batch, groups, channels, spatial = norm.shape
        x = self.x
        residual = self.residual
        if norm.kind in ("LayerNorm", "RMSNorm"):
            x = x.view(batch, channels)
            residual = None if residual is None else residual.view(batch, channels)
        elif norm.channels_last:
            x = x.view(batch, spatial, groups * channels).transpose(1, 2)
        else:
            x = x.view(batch, groups * channels, spatial)
            residual = None if residual is None else residual.view(batch, groups * channels, spatial)
        follow = {"none": None, "relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu}[
            norm.activation
        ]
        scale, bias, epsilon = self.scale, self.bias, norm.epsilon

        def run(x: torch.Tensor = x, residual: torch.Tensor | None = residual) -> object:
            h = x if residual is None else x + residual
            if norm.kind == "LayerNorm":
                y = functional.layer_norm(h, (channels,), scale, bias, epsilon)
            elif norm.kind == "RMSNorm":
                y = functional.rms_norm(h, (channels,), scale, epsilon)
            elif norm.kind == "GroupNorm":
                y = functional.group_norm(h, groups, scale, bias, epsilon)
            else:
                y = functional.instance_norm(h, None, None, scale, bias, True, 0.0, epsilon)
            y = y if follow is None else follow(y)
            return (y, h) if norm.sum else y

        return run


def check(error: int) -> None:
    if error:
        raise RuntimeError(LIBRARY.normfuse_cuda_error(error).decode())


# Correctness


def variants(call: Call) -> Iterator[CPlan]:
    """Yield every plan that can run ``call``, the chosen one first."""
    yield call.plan
    batch, groups, channels, spatial = call.norm.shape
    rows, length = batch * groups, channels * spatial
    wide = 16 // call.x.element_size()
    if call.plan.strategy == CHANNELS_LAST:
        vectors = groups * channels // call.plan.width
        walkers = 256 // min(vectors, 256)
        for of_walker in (1, 5, 32):
            chunk = walkers * of_walker
            workspace = batch * groups * channels * (16 + 12 * -(-spatial // chunk))
            yield CPlan(CHANNELS_LAST, call.plan.width, 0, 256, 0, 0, chunk, workspace)
        return
    for width in {call.plan.width, 1}:
        for elements in (8, 16, 32) if width == wide else (8, 16):
            lanes = 1
            while lanes <= 32 and lanes * elements < length:
                lanes *= 2
            if lanes <= 32:
                yield CPlan(LANES, width, elements, 128, lanes, 0, 0, 0)
            threads = -(-length // (elements * 32)) * 32
            if threads <= 512:
                yield CPlan(BLOCK, width, elements, threads, 1, 0, 0, 0)
        for tiles in (1, 3):
            chunk = tiles * 4096
            if rows * -(-length // chunk) < 2**20:
                yield CPlan(STREAMED, width, 0, 256, 0, 0, chunk, 24 * rows * -(-length // chunk))
    if not CLUSTERS or call.plan.width == 1:
        return
    tensors = 2 if call.residual is not None else 1
    for team in (1, 2, 4, 8):
        if -(-(length // wide) // team) * 16 * tensors <= 6 * 16 * 1024:
            # Few clusters that take many rows each are right, but slow.
            for clusters in {min(rows, 3 if rows < 64 else 256), min(rows, 256 // team)}:
                yield CPlan(CLUSTER, wide, 0, 512, team, clusters, 0, 0)


def error_of(call: Call) -> tuple[float, float]:
    """Return ‖y − T‖ / ‖T‖, and the largest error in units of what rounding allows an element; NaN where T is NaN is none."""
    truth = call.reference()
    y = call.y.double()
    number = truth.isfinite()
    if not bool((y.isfinite() == number).all()) or not bool((y.isnan() == truth.isnan()).all()):
        return math.inf, math.inf
    truth, y = truth[number], y[number]
    if truth.numel() == 0:
        return 0.0, 0.0
    info = torch.finfo(call.norm.dtype)
    # Half a unit in the last place of the result, and 16 roundings of float32 at the size of the largest.
    allowed = truth.abs() * info.eps / 2 + truth.abs().max() * 16 * 2.0**-24 + info.smallest_normal * info.eps
    error = (y - truth).abs()
    return float(error.norm() / truth.norm().clamp_min(1e-300)), float((error / allowed).max())


def guards_are_untouched(part: torch.Tensor) -> bool:
    whole = part._base
    assert whole is not None
    before = part.storage_offset()
    return bool(whole[:before].isnan().all()) and bool(whole[before + part.numel() :].isnan().all())


def failure_of(call: Call) -> tuple[float, float, str]:
    """Run ``call`` on poisoned outputs; return its errors and what is wrong, or an empty string."""
    for output in (call.y, call.sum):
        if output is not None:
            output.fill_(math.nan)
    call.run()
    torch.cuda.synchronize()
    relative, units = error_of(call)
    wrong = []
    if not units <= 1.0:
        wrong.append(f"error {relative:.1e}, {units:.2g} times what rounding allows")
    if call.sum is not None and call.residual is not None:
        expected = (call.x.float() + call.residual.float()).to(call.x.dtype)
        if not bool((call.sum == expected).all()):
            wrong.append("the sum differs")
    if not all(guards_are_untouched(output) for output in (call.y, call.sum) if output is not None):
        wrong.append("it wrote past its output")
    return relative, units, "; ".join(wrong)


FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "N(0, 1)": lambda x: x,
    "mean/std 100": lambda x: x + 100.0,
    "mean/std 1e4": lambda x: x + 1e4,
    "deviation 1e-3": lambda x: x * 1e-3,
    "one outlier": lambda x: x.reshape(-1).index_fill(0, torch.zeros(1, dtype=torch.int64, device="cuda"), 3e4),
    "large": lambda x: x * 1e4,
    "constant": lambda x: torch.full_like(x, 3.0),
    "one NaN": lambda x: x.reshape(-1).index_fill(0, torch.zeros(1, dtype=torch.int64, device="cuda"), math.nan),
    "one infinity": lambda x: x.reshape(-1).index_fill(0, torch.zeros(1, dtype=torch.int64, device="cuda"), math.inf),
}


def shapes_to_check() -> Iterator[tuple[str, tuple[int, int, int, int], bool]]:
    """Yield (kind, shape, channels_last): one element, odd sizes, C = G, G = 1, rows of every strategy."""
    for rows, length in (
        (1, 1), (3, 1), (7, 5), (33, 8), (129, 24), (5, 49), (64, 256), (17, 257), (65, 512), (9, 513), (31, 768),
        (3, 1000), (4, 1537), (5, 4096), (3, 8191), (2, 12288), (2, 16384), (3, 16392), (1, 65536), (2, 100003),
        (1, 262144), (1, 262148), (2, 700000),
    ):  # fmt: skip
        yield "LayerNorm", (rows, 1, length, 1), False
        yield "RMSNorm", (rows, 1, length, 1), False
    for batch, groups, channels, spatial in (
        (1, 1, 1, 1), (2, 3, 5, 7), (2, 32, 10, 64), (1, 32, 10, 4096), (3, 8, 4, 49), (2, 4, 3, 1000), (2, 1, 12, 33),
        (5, 6, 4, 1), (1, 2, 64, 128 * 128), (1, 2, 7, 50001),
    ):  # fmt: skip
        yield "GroupNorm", (batch, groups, channels, spatial), False
        yield "GroupNorm", (batch, groups, channels, spatial), True
    for batch, channels, spatial in ((1, 3, 1), (2, 5, 9), (2, 64, 49), (4, 8, 1024), (1, 3, 66049), (1, 1, 300000)):
        yield "InstanceNorm", (batch, channels, 1, spatial), False
        yield "InstanceNorm", (batch, channels, 1, spatial), True
    for channels in (1025, 4096):
        yield "GroupNorm", (2, 1, channels, 19), True


def check_all(deadline: float) -> tuple[list[tuple[str, ...]], list[str], int]:
    """Return the rows of the accuracy table, the failures, and how many runs were checked."""
    worst: dict[tuple[str, str, str], tuple[float, float]] = {}
    failures: list[str] = []
    runs = 0

    def judge(norm: Norm, family: str, misaligned: int, *, every: bool) -> None:
        nonlocal runs
        call = Call(norm, FILLS[family], misaligned)
        for plan in variants(call) if every else (call.plan,):
            call.plan = plan
            call.prepare()
            try:
                relative, units, wrong = failure_of(call)
            except RuntimeError as error:
                failures.append(f"{norm} [{plan}] {family}: {error}")
                if "launch" not in str(error) and "cluster" not in str(error):
                    raise
                continue
            runs += 1
            if wrong:
                failures.append(f"{norm} [{plan}] {family}, {misaligned} elements off: {wrong}")
            key = (norm.kind + " NHWC" * norm.channels_last, NAMES[norm.dtype], family)
            before = worst.get(key, (0.0, 0.0))
            worst[key] = (max(before[0], relative), max(before[1], units))

    extras = itertools.cycle(
        [
            {},
            {"activation": "silu"},
            {"residual": True, "sum": True},
            {"affine": False, "activation": "relu"},
            {"residual": True, "activation": "gelu"},
        ]
    )
    for kind, shape, channels_last in shapes_to_check():
        for dtype in TYPES:
            for misaligned in (0, 1):
                judge(
                    Norm(kind, shape, dtype, channels_last=channels_last, **next(extras)),
                    "N(0, 1)",
                    misaligned,
                    every=True,
                )  # type: ignore[arg-type]
            if time.monotonic() > deadline:
                failures.append(f"out of time at {kind} {shape}: the rest was not checked")
                return [], failures, runs
    for kind, shape, channels_last in (
        ("LayerNorm", (64, 1, 4096, 1), False), ("RMSNorm", (64, 1, 4096, 1), False),
        ("LayerNorm", (64, 1, 96, 1), False), ("LayerNorm", (2, 1, 200000, 1), False),
        ("GroupNorm", (2, 32, 10, 1024), False), ("GroupNorm", (2, 8, 16, 1024), True),
        ("InstanceNorm", (2, 16, 1, 4096), False),
    ):  # fmt: skip
        for family, dtype in itertools.product(FILLS, TYPES):
            judge(Norm(kind, shape, dtype, channels_last=channels_last), family, 0, every=True)
    table = [(kind, dtype, family, f"{e:.1e}", f"{u:.2f}") for (kind, dtype, family), (e, u) in sorted(worst.items())]
    return table, failures, runs


# Speed


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


def time_norm(norm: Norm, *, small: bool, compile: bool, every: bool) -> tuple[str, ...]:
    """Return a row: norm, plan, ms, GB/s, share of the copy, against eager, against torch.compile, error."""
    timer = graph_ms if small else median_ms
    call = Call(norm)
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


def build_library(folder: str) -> pathlib.Path:
    library = pathlib.Path(folder) / "libnormfuse_cuda.so"
    major, minor = torch.cuda.get_device_capability()
    sources = [str(NATIVE / "cuda" / f"{name}.cu") for name in ("float", "half", "bfloat16", "norm", "plan")]
    options = [
        "-std=c++17",
        "-O3",
        f"-arch=sm_{major}{minor}",
        "-shared",
        "-cudart=static",
        "-Xcompiler=-fPIC",
        "-t",
        "0",
    ]
    subprocess.run(["nvcc", *options, f"-I{NATIVE}", *sources, "-o", str(library)], check=True)
    return library


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
    global LIBRARY, CLUSTERS
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
        LIBRARY = ctypes.CDLL(str((arguments.library or build_library(folder)).resolve()))
    LIBRARY.normfuse_cuda_error.restype = ctypes.c_char_p
    CLUSTERS = torch.cuda.get_device_capability()[0] >= 9
    torch.manual_seed(int(time.time()))
    pages = [f"{environment()}", "Command: `python tools/bench_cuda.py " + " ".join(sys.argv[1:]) + "`"]
    print(pages[0], flush=True)

    failures: list[str] = []
    if not arguments.skip_check:
        accuracy, failures, runs = check_all(deadline)
        header = ("operator", "type", "inputs", "‖y − T‖ / ‖T‖", "largest error / allowed")
        pages += [f"{runs} runs checked, {len(failures)} failed.", *failures, table(header, accuracy)]
        print(
            f"{runs} runs checked, {len(failures)} failed, {time.monotonic() - start:.0f} s",
            *failures[:40],
            sep="\n",
            flush=True,
        )
    for title, norms, small in (
        ("Beyond the cache", large_norms(), False),
        ("Small, as CUDA graphs", small_norms(), True),
    ):
        rows = []
        for norm in norms:
            if arguments.only not in str(norm) or time.monotonic() > deadline:
                continue
            torch.cuda.empty_cache()
            rows.append(time_norm(norm, small=small, compile=arguments.compile, every=arguments.variants))
        pages += [f"## {title}", table(HEADER, rows)]
        print(pages[-1], f"{time.monotonic() - start:.0f} s", sep="\n", flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join(pages) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
