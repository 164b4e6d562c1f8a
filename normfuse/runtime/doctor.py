"""What is installed, what onnxruntime offers, and whether the native operators are built and run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from normfuse.runtime.library import OLDEST_RUNTIME, Library, find_cuda_library, find_library
from normfuse.runtime.session import CPU, register, version_of

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "torch")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of one installation. ``operators`` is None where the native operators run, else says why they do not."""

    python: str
    packages: tuple[tuple[str, str | None], ...]
    runtime: str | None
    providers: tuple[str, ...]
    library: Library
    operators: str | None
    cuda_library: Library

    def table(self) -> str:
        """Return the diagnosis as lines of text."""
        lines = [f"Python {self.python}"]
        lines += [f"{name} {version or 'is not installed'}" for name, version in self.packages]
        lines += [
            "onnxruntime is not installed: pip install 'normfuse[cpu]'"
            if self.runtime is None
            else f"onnxruntime {self.runtime}: {', '.join(self.providers)}"
        ]
        on_gpus = self.cuda_library.problem or f"{self.cuda_library.path}, not tried on a GPU"
        lines += [f"native operators for GPUs: {on_gpus}"]
        library, state = self.library, self.operators or "onnxruntime runs them"
        if library.instruction_set is not None:
            lines += [f"native operators: {library.path}, {library.instruction_set}"]
        lines += [state if self.operators is None else f"native operators: {state}"]
        if self.operators is not None:
            lines += ["nodes of ai.normfuse run as the functions in their file"]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at this installation, and run one native operator where there are any."""
    library = find_library()
    try:
        import onnxruntime as ort
    except ImportError:
        return Diagnosis(
            _python(),
            _versions(),
            None,
            (),
            library,
            library.problem or "there is no onnxruntime to run them",
            find_cuda_library(),
        )
    return Diagnosis(
        _python(),
        _versions(),
        ort.__version__,
        tuple(ort.get_available_providers()),
        library,
        library.problem or _tried(ort),
        find_cuda_library(),
    )


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _versions() -> tuple[tuple[str, str | None], ...]:
    return tuple((name, _version(name)) for name in _PACKAGES)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tried(ort: Any) -> str | None:
    """Run a LayerNorm of two numbers; return None where the result is right, else what happened."""
    if version_of(ort) < OLDEST_RUNTIME:
        return f"they need onnxruntime {'.'.join(map(str, OLDEST_RUNTIME))} or newer"
    import numpy as np
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    node = helper.make_node("LayerNorm", ["x"], ["y"], domain="ai.normfuse", epsilon=1.0)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.normfuse", 1)]
    graph = helper.make_graph([node], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        register(options)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        (result,) = session.run(None, {"x": np.array([[-1.0, 1.0]], np.float32)})
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        return f"onnxruntime does not run them: {' '.join(str(error).split())}"
    right = np.allclose(result, np.array([[-1.0, 1.0]]) / np.sqrt(2.0), atol=1e-6)
    return None if right else f"onnxruntime runs them wrongly: {result.tolist()}"
