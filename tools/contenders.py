"""The tools that ``compare_tools.py`` compares: each turns one file into another, in a process of its own.

python tools/contenders.py TOOL SOURCE TARGET
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def with_normfuse(source: Path, target: Path) -> None:
    """Fuse with normfuse."""
    import normfuse

    model, _ = normfuse.fuse(source)
    normfuse.save(model, target)


def with_onnxsim(source: Path, target: Path) -> None:
    """Simplify with onnxsim."""
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(model, target)


def with_onnxslim(source: Path, target: Path) -> None:
    """Slim with OnnxSlim."""
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def with_onnxscript(source: Path, target: Path) -> None:
    """Optimize and rewrite with onnxscript."""
    import onnx
    from onnxscript import optimizer, rewriter

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)


def with_onnxruntime(source: Path, target: Path) -> None:
    """Optimize offline with onnxruntime."""
    import onnxruntime

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


def converted(source: Path, folder: Path) -> dict[str, Path | str]:
    """Return what each contender wrote, or the last line of what it said when it failed."""
    results: dict[str, Path | str] = {}
    for name in CONTENDERS:
        target = folder / f"{name}.onnx"
        command = [sys.executable, str(Path(__file__).resolve()), name, str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        results[name] = target if done.returncode == 0 and target.exists() else f"failed: {said[:80]}"
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=CONTENDERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    CONTENDERS[arguments.tool](arguments.source, arguments.target)
