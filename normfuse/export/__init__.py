"""torch.nn.Module → onnx_ir.Model. ``normfuse.export`` is this package and, called, the function :func:`export`.

Importing this package imports neither torch nor onnx: the public names are looked up on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from normfuse.packages import make_callable

if TYPE_CHECKING:
    from normfuse.export.factory import InputSpec, Prepared, prepare
    from normfuse.export.torch_onnx import TrainModeWarning, closest_opset, export

__all__ = ["InputSpec", "Prepared", "TrainModeWarning", "closest_opset", "export", "prepare"]

_HOMES = {
    "InputSpec": "factory",
    "Prepared": "factory",
    "prepare": "factory",
    "TrainModeWarning": "torch_onnx",
    "closest_opset": "torch_onnx",
    "export": "torch_onnx",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


make_callable(__name__)
