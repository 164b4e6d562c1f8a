"""Run the native operators, every one in every type, under several versions of onnxruntime.

    python tools/check_runtimes.py 1.17.3 1.20.1 1.27.0 1.32.0

Each version is installed by pip into a folder of its own; a child process that finds it there loads the library that is
built here, runs a model of all operators in each type and compares the results with float64. Exit code 1 if one differs
or does not run. Needs onnx, and a package index that has those versions for this Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from normfuse.runtime.library import find_library  # noqa: E402  (the checkout must be on the path first)
from tests.native.grid import TYPES, UNIT, expected, feeds, model, variants  # noqa: E402

CHILD = """
import sys, numpy as np, onnxruntime as ort
library, *cases = sys.argv[1:]
for case in cases:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(case + ".onnx", options, providers=["CPUExecutionProvider"])
    results = session.run(None, dict(np.load(case + "_in.npz")))
    truths = np.load(case + "_out.npz")
    limit = float(truths["limit"])
    for index, result in enumerate(results):
        truth = truths[f"y{index}"]
        error = np.max(np.abs(result - truth)) / np.max(np.abs(truth))
        assert error <= limit, f"{case}: output {index} differs by {error:.2g}, allowed {limit:.2g}"
print(f"onnxruntime {ort.__version__}: {len(cases)} models run, all results right")
"""


def write_cases(folder: Path) -> list[str]:
    """Write a model of all operators, its inputs and results for each type; return the stems of the files."""
    stems = []
    for dtype in TYPES:
        for last in (False, True):
            nodes = variants((2, 5, 7, 12) if last else (2, 12, 5, 7), 4, axis=-2, last=last)
            content = model(nodes, dtype, functions=False)
            values = feeds(content, dtype)
            truths = [truth.astype(np.float64) for node in nodes for truth in expected(node, dtype, values)]
            stem = str(folder / f"{dtype}_{last}")
            Path(f"{stem}.onnx").write_bytes(content.SerializeToString())
            np.savez(f"{stem}_in.npz", **values)
            outputs = {f"y{index}": truth for index, truth in enumerate(truths)}
            np.savez(f"{stem}_out.npz", limit=np.float64(16 * UNIT[dtype]), **outputs)
            stems.append(stem)
    return stems


def main(versions: list[str]) -> int:
    """Check each version; return the exit code."""
    library = find_library()
    if not library.is_usable:
        print(library.problem)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stems = write_cases(folder)
        for version in versions:
            target = folder / version
            # Up to 1.18 onnxruntime was compiled for NumPy 1.
            old = tuple(map(int, version.split(".")[:2])) < (1, 19)
            packages = [f"onnxruntime=={version}", "numpy<2" if old else "numpy>=2"]
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), *packages]
            subprocess.run(install, check=True)
            environment = {**os.environ, "PYTHONPATH": str(target)}
            child = [sys.executable, "-c", CHILD, str(library.path), *stems]
            result = subprocess.run(child, env=environment, capture_output=True, text=True, check=False)
            failed += result.returncode != 0
            print(result.stdout.strip() or f"onnxruntime {version}: {result.stderr.strip().splitlines()[-1]}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="of onnxruntime")
    sys.exit(main(parser.parse_args().versions))
