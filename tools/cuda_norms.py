"""The norms that the CUDA kernels of normfuse/native/cuda are checked and timed on, called through their plain C interface.

On a GPU, or on the CPU with the kernels that tests/native/emulation makes. Needs torch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

NATIVE = pathlib.Path(__file__).resolve().parent.parent / "normfuse" / "native"
TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3}
LANES, BLOCK, CLUSTER, STREAMED, CHANNELS_LAST = range(5)
STRATEGIES = ("lanes", "block", "cluster", "streamed", "channels last")
GUARD = 64


def compiled(folder: str) -> pathlib.Path:
    """Compile the kernels for the GPU of this machine into ``folder`` by nvcc; return the library."""
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


class Kernels:
    """The kernels, compiled: for "cuda", or emulated on the "cpu", with the seed of what a GPU leaves open."""

    def __init__(self, library: pathlib.Path, device: str, seed: int = 0) -> None:
        self.library = ctypes.CDLL(str(library.resolve()))
        self.library.normfuse_cuda_error.restype = ctypes.c_char_p
        self.device = device
        if device == "cpu":
            self.library.emulation_seed(ctypes.c_uint64(seed))
        self.has_clusters = device == "cpu" or torch.cuda.get_device_capability()[0] >= 9

    def check(self, error: int) -> None:
        if error:
            raise RuntimeError(self.library.normfuse_cuda_error(error).decode())

    def plan(self, norm: CNorm) -> CPlan:
        """Return how ``norm`` runs on the current device."""
        plan = CPlan()
        self.check(self.library.normfuse_cuda_plan(ctypes.byref(norm), ctypes.byref(plan)))
        return plan

    def run(self, norm: CNorm, plan: CPlan, workspace: torch.Tensor) -> None:
        """Enqueue ``norm`` on torch's stream."""
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None
        at = ctypes.c_void_p(workspace.data_ptr())
        self.check(self.library.normfuse_cuda_run(ctypes.byref(norm), ctypes.byref(plan), at, ctypes.c_void_p(stream)))


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
        self,
        kernels: Kernels,
        norm: Norm,
        fill: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
        misaligned: int = 0,
    ) -> None:
        batch, groups, channels, spatial = norm.shape
        self.kernels = kernels
        self.norm = norm
        self.layout = (batch, spatial, groups, channels) if norm.channels_last else norm.shape
        size = math.prod(norm.shape)
        device = kernels.device

        def tensor(count: int, values: torch.Tensor | None = None) -> torch.Tensor:
            # On the CPU an address sanitizer sees what is read past an input, where nothing lies behind it.
            behind = GUARD if values is None or device == "cuda" else 0
            whole = torch.full((GUARD + misaligned + count + behind,), math.nan, dtype=norm.dtype, device=device)
            part = whole[GUARD + misaligned : GUARD + misaligned + count]
            if values is not None:
                part.copy_(values.reshape(-1))
            return part

        random = torch.randn(self.layout, device=device, dtype=torch.float32)
        self.x = tensor(size, fill(random))
        self.residual = tensor(size, torch.randn(size, device=device)) if norm.residual else None
        count = groups * channels
        self.scale = tensor(count, torch.rand(count, device=device) + 0.5) if norm.affine else None
        self.bias = tensor(count, torch.randn(count, device=device)) if norm.affine and norm.centred else None
        self.y = tensor(size)
        self.sum = tensor(size) if norm.sum else None
        pointers = (self.x, self.scale, self.bias, self.residual, self.y, self.sum)
        self.c = CNorm(
            TYPES[norm.dtype], ACTIVATIONS[norm.activation], norm.centred, norm.channels_last, norm.epsilon, *norm.shape,
            *(None if t is None else t.data_ptr() for t in pointers),
        )  # fmt: skip
        self.plan = kernels.plan(self.c)
        self.prepare()

    def prepare(self) -> None:
        self.workspace = torch.empty(max(self.plan.workspace, 1), dtype=torch.uint8, device=self.kernels.device)

    def run(self) -> None:
        self.kernels.run(self.c, self.plan, self.workspace)

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


# Correctness


def variants(call: Call) -> Iterator[CPlan]:
    """Yield every plan that can run ``call``, the chosen one first."""
    chosen = call.plan  # the caller puts others there
    yield chosen
    batch, groups, channels, spatial = call.norm.shape
    rows, length = batch * groups, channels * spatial
    wide = 16 // call.x.element_size()
    if chosen.strategy == CHANNELS_LAST:
        vectors = groups * channels // chosen.width
        walkers = 256 // min(vectors, 256)
        for of_walker in (1, 5, 32):
            chunk = walkers * of_walker
            workspace = batch * groups * channels * (16 + 12 * -(-spatial // chunk))
            yield CPlan(CHANNELS_LAST, chosen.width, 0, 256, 0, 0, chunk, workspace)
        return
    for width in sorted({chosen.width, 1}):
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
    if not call.kernels.has_clusters or chosen.width == 1:
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
    if call.kernels.device == "cuda":
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


def with_first(x: torch.Tensor, value: float) -> torch.Tensor:
    """Return ``x`` with ``value`` as its first element."""
    return x.reshape(-1).index_fill(0, torch.zeros(1, dtype=torch.int64, device=x.device), value)


FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "N(0, 1)": lambda x: x,
    "mean/std 100": lambda x: x + 100.0,
    "mean/std 1e4": lambda x: x + 1e4,
    "deviation 1e-3": lambda x: x * 1e-3,
    "one outlier": lambda x: with_first(x, 3e4),
    "large": lambda x: x * 1e4,
    "constant": lambda x: torch.full_like(x, 3.0),
    "one NaN": lambda x: with_first(x, math.nan),
    "one infinity": lambda x: with_first(x, math.inf),
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


@dataclasses.dataclass(frozen=True)
class Case:
    """What to run: a norm, the family that its inputs come from, and how far off a 16-byte border its tensors start."""

    norm: Norm
    family: str = "N(0, 1)"
    misaligned: int = 0

    def __str__(self) -> str:
        return f"{self.norm} {self.family}{f', {self.misaligned} elements off' * (self.misaligned > 0)}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run: ‖y − T‖ / ‖T‖, the largest error as a share of what is allowed, and what is wrong."""

    case: Case
    plan: str
    relative: float
    share: float
    wrong: str

    def __str__(self) -> str:
        return f"{self.case} [{self.plan}]: {self.wrong or 'right'}"


EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"activation": "silu"},
    {"residual": True, "sum": True},
    {"affine": False, "activation": "relu"},
    {"residual": True, "activation": "gelu"},
)


def cases() -> Iterator[Case]:
    """Yield every shape in every type and alignment, then every family of inputs."""
    extras = itertools.cycle(EXTRAS)
    for kind, shape, channels_last in shapes_to_check():
        for dtype, misaligned in itertools.product(TYPES, (0, 1)):
            yield Case(Norm(kind, shape, dtype, channels_last=channels_last, **next(extras)), misaligned=misaligned)
    for kind, shape, channels_last in (
        ("LayerNorm", (64, 1, 4096, 1), False), ("RMSNorm", (64, 1, 4096, 1), False),
        ("LayerNorm", (64, 1, 96, 1), False), ("LayerNorm", (2, 1, 200000, 1), False),
        ("GroupNorm", (2, 32, 10, 1024), False), ("GroupNorm", (2, 8, 16, 1024), True),
        ("InstanceNorm", (2, 16, 1, 4096), False),
    ):  # fmt: skip
        for family, dtype in itertools.product(FILLS, TYPES):
            yield Case(Norm(kind, shape, dtype, channels_last=channels_last), family)


def outcomes(kernels: Kernels, case: Case) -> Iterator[Outcome]:
    """Run ``case`` by every plan that can run it."""
    call = Call(kernels, case.norm, FILLS[case.family], case.misaligned)
    for plan in variants(call):
        call.plan = plan
        call.prepare()
        try:
            relative, share, wrong = failure_of(call)
        except RuntimeError as error:
            # After an illegal address a GPU answers nothing more.
            if kernels.device == "cuda" and "launch" not in str(error) and "cluster" not in str(error):
                raise
            relative, share, wrong = math.inf, math.inf, str(error)
        yield Outcome(case, str(plan), relative, share, wrong)
