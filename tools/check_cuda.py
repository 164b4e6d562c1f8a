"""Check every CUDA kernel of normfuse/native/cuda against float64: on a GPU, or emulated on the CPU. Needs torch.

    python tools/check_cuda.py [--emulated] [--seed N] [--largest N] [--library FILE] [--seconds N]

Every kernel on fresh random inputs, odd shapes, every alignment and by every strategy that can run a shape; then inputs
with large means, outliers, NaN and infinity. Outputs are poisoned with NaN and lie between guards that must stay untouched.
On a GPU the kernels are compiled by nvcc. --emulated compiles them by the C++ compiler and runs them on the CPU, where a
seed draws in which order threads go on after a barrier and when copies arrive (tests/native/emulation/block.h): what is
right there is right for the language and the barriers, and says nothing of speed. --largest leaves out larger tensors.
Exits 1 where a run failed.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
from cuda_norms import NAMES, Kernels, Outcome, cases, compiled, outcomes

EMULATION = pathlib.Path(__file__).resolve().parent.parent / "tests" / "native" / "emulation"


def emulated(folder: str) -> pathlib.Path:
    """Compile the emulated kernels into ``folder``; return the library."""
    beside = pathlib.Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.exists() else "cmake"
    for step in (["-S", str(EMULATION), "-B", folder], ["--build", folder, "--parallel", "2"]):
        subprocess.run([cmake, *step], check=True, stdout=subprocess.DEVNULL)
    return pathlib.Path(folder) / "libnormfuse_emulated.so"


def check(
    kernels: Kernels, *, largest: float = math.inf, deadline: float = math.inf
) -> tuple[list[Outcome], list[str]]:
    """Return what became of every run, and what is wrong, a line each."""
    seen: list[Outcome] = []
    for case in cases():
        if math.prod(case.norm.shape) > largest:
            continue
        if time.monotonic() > deadline:
            return seen, [*(str(one) for one in seen if one.wrong), f"out of time at {case}: the rest was not checked"]
        seen += outcomes(kernels, case)
    return seen, [str(one) for one in seen if one.wrong]


def accuracy(seen: list[Outcome]) -> list[tuple[str, ...]]:
    """Return a row for each operator, type and family of inputs: the largest errors."""
    worst: dict[tuple[str, str, str], tuple[float, float]] = {}
    for one in seen:
        norm = one.case.norm
        key = (norm.kind + " NHWC" * norm.channels_last, NAMES[norm.dtype], one.case.family)
        relative, share = worst.get(key, (0.0, 0.0))
        worst[key] = (max(relative, one.relative), max(share, one.share))
    return [(*key, f"{relative:.1e}", f"{share:.2f}") for key, (relative, share) in sorted(worst.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="run the kernels on the CPU; needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0, help="of the emulation; 0: threads in order, copies late")
    parser.add_argument("--largest", type=float, default=math.inf, help="elements of the largest tensor to check")
    parser.add_argument("--library", type=pathlib.Path, help="the kernels, compiled; compiled here where left out")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further case after this time")
    arguments = parser.parse_args()
    if not arguments.emulated and not torch.cuda.is_available():
        print("no GPU: nothing was run; --emulated runs the kernels on the CPU")
        return 3
    torch.manual_seed(int(time.time()))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = arguments.library or (emulated(folder) if arguments.emulated else compiled(folder))
        kernels = Kernels(library, "cpu" if arguments.emulated else "cuda", arguments.seed)
    seen, failures = check(kernels, largest=arguments.largest, deadline=start + arguments.seconds)
    for row in accuracy(seen):
        print(" | ".join(row))
    print(*failures, f"{len(seen)} runs checked, {len(failures)} failed", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
