"""Where both graphs are run: an execution provider of onnxruntime by the name users type, here or in another Python."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path

from normfuse.emit.target import Provider
from normfuse.errors import UnsupportedForm

ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
_SUFFIX = "ExecutionProvider"


@dataclass(frozen=True, slots=True)
class Backend:
    """One leg of a validation. name: as the user wrote it. provider: as onnxruntime calls it. python: which one runs it."""

    name: str
    provider: str
    python: str = sys.executable


def parse_backend(text: str | Provider) -> Backend:
    """Return what ``cpu``, ``cuda``, …, ``SomeExecutionProvider`` or ``cpu@/venv/bin/python`` names.

    The last runs the onnxruntime of another environment. Raises UnsupportedForm with the nearest name.
    """
    if isinstance(text, Provider):
        return Backend(text.value, ORT_NAMES[text.value])
    if not isinstance(text, str):
        raise UnsupportedForm(f"unknown provider {text!r}; expected a name, such as 'cpu'")
    name, at, python = text.partition("@")
    if at and not python:
        raise UnsupportedForm(f"provider '{text}': no Python is named behind the @")
    if python and not Path(python).is_file():
        raise UnsupportedForm(f"provider '{text}': there is no Python at '{python}'")
    if name not in ORT_NAMES and not name.endswith(_SUFFIX):
        close = difflib.get_close_matches(name, ORT_NAMES, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(ORT_NAMES)}, or onnxruntime's own name"
        raise UnsupportedForm(f"unknown provider '{name}'; {hint}")
    return Backend(text, ORT_NAMES.get(name, name), python or sys.executable)
