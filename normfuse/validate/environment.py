"""What a verdict was reached with: versions and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform

_PACKAGES = ("normfuse", "onnx", "onnx-ir", "numpy", "onnxruntime", "onnxruntime-gpu", "torch")


def environment() -> tuple[tuple[str, str], ...]:
    """Return names and versions, without importing what they belong to."""
    found = [("python", platform.python_version()), ("machine", f"{platform.system()} {platform.machine()}")]
    found.append(("processors", str(os.cpu_count())))
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
