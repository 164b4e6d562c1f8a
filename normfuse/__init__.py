"""normfuse: export, fuse and verify ONNX models with normalization layers.

The public names are loaded when they are first used, so that ``import normfuse`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfuse.emit.target import Form, Provider, Target
    from normfuse.errors import (
        ExportError,
        MissingDependency,
        ModelIOError,
        NormfuseError,
        UnsupportedForm,
        ValidationError,
    )
    from normfuse.export import export
    from normfuse.io import load, save
    from normfuse.pipeline import fuse, inspect
    from normfuse.report.records import FusionReport
    from normfuse.report.verdict import ValidationReport, Verdict
    from normfuse.runtime.session import session
    from normfuse.spec import NormSpec
    from normfuse.validate import validate

__version__ = "0.1.0"

_HOMES = {
    "ExportError": "normfuse.errors",
    "Form": "normfuse.emit.target",
    "FusionReport": "normfuse.report.records",
    "MissingDependency": "normfuse.errors",
    "ModelIOError": "normfuse.errors",
    "NormSpec": "normfuse.spec",
    "NormfuseError": "normfuse.errors",
    "Provider": "normfuse.emit.target",
    "Target": "normfuse.emit.target",
    "UnsupportedForm": "normfuse.errors",
    "ValidationError": "normfuse.errors",
    "ValidationReport": "normfuse.report.verdict",
    "Verdict": "normfuse.report.verdict",
    "export": "normfuse.export",
    "fuse": "normfuse.pipeline",
    "inspect": "normfuse.pipeline",
    "load": "normfuse.io",
    "save": "normfuse.io",
    "session": "normfuse.runtime.session",
    "validate": "normfuse.validate",
}

__all__ = [
    "ExportError",
    "Form",
    "FusionReport",
    "MissingDependency",
    "ModelIOError",
    "NormSpec",
    "NormfuseError",
    "Provider",
    "Target",
    "UnsupportedForm",
    "ValidationError",
    "ValidationReport",
    "Verdict",
    "export",
    "fuse",
    "inspect",
    "load",
    "save",
    "session",
    "validate",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'normfuse' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
