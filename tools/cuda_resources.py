"""Print what each CUDA kernel uses of a multiprocessor: registers, stack, spills, shared memory. Needs nvcc, no GPU.

    python tools/cuda_resources.py [--architecture 80 90]

Exits 1 where a kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

NATIVE = pathlib.Path(__file__).resolve().parent.parent / "normfuse" / "native"
TYPES = ("float", "half", "bfloat16")
NUMBERS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
STRATEGIES = {"0": "lanes", "1": "block"}


def report_of(source: pathlib.Path, architecture: int) -> str:
    """Return what ptxas says about the kernels in ``source``, with their names as they are written."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc", "-std=c++17", "-O3", f"-I{NATIVE}", "-Xptxas", "-v", "-c", str(source),
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-o", f"{folder}/kernels.o",
        ]  # fmt: skip
        made = subprocess.run(command, capture_output=True, text=True, check=True)
    return subprocess.run(["c++filt"], input=made.stderr, capture_output=True, text=True, check=True).stdout


def kernels(report: str) -> list[tuple[str, ...]]:
    """Return a row for each kernel: name, registers, stack, spill stores, spill loads, shared memory."""
    rows = []
    name, stack = "", ("0", "0", "0")
    for line in report.splitlines():
        if found := re.search(r"Function properties for .*?cuda::(\w+<.*?>)\(", line):
            name = re.sub(r"\(NormfuseStrategy\)(\d)", lambda match: STRATEGIES[match[1]], found[1])
        elif found := NUMBERS.search(line):
            stack = (found[1], found[2], found[3])
        elif (found := USED.search(line)) and name:
            rows.append((name, found[1], *stack, found[2] or "0"))
            name = ""
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", default=[80, 90])
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("no nvcc: nothing was compiled")
        return 3
    spilled = 0
    print("| architecture | kernel | registers | stack | spill stores | spill loads | shared memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for architecture in arguments.architecture:
        for source in TYPES:
            for row in kernels(report_of(NATIVE / "cuda" / f"{source}.cu", architecture)):
                spilled += row[3] != "0" or row[4] != "0"
                print(f"| sm_{architecture} | {' | '.join(row)} |", flush=True)
    print(f"\n{spilled} kernels spill")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
