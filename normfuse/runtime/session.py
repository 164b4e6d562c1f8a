"""Make an onnxruntime session as it should be made for a fused model."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normfuse.errors import MissingDependency
from normfuse.runtime.library import OLDEST_RUNTIME, Library, find_cuda_library, find_library

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SLOW_FUSION = "SkipLayerNormFusion"
_LAST_FAST_FUSION = (1, 27)
"""Newer ones replace Add and LayerNormalization by an operator that is 4 to 8 times slower on the CPU."""


def session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    session_options: Any = None,
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of ``model``.

    Registers the native operators where they are built: once per options object, and only for sessions on the CPU or on
    CUDA, since a kernel of the CPU would be preferred to a body on another device. On the CPU, onnxruntime's
    SkipLayerNormFusion is turned off for the versions in which it is slower than what it replaces.
    providers: as onnxruntime takes them; None is the CPU. Warns where the session leaves one of them unused.
    session_options: used and changed; a fresh one by default.
    Raises MissingDependency without onnxruntime; onnxruntime's own errors where the model does not load.
    """
    ort = onnxruntime()
    wanted = [CPU] if providers is None else list(providers)
    names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
    options = ort.SessionOptions() if session_options is None else session_options
    available = ort.get_available_providers()
    usable = [entry for entry, name in zip(wanted, names, strict=True) if name in available] or [CPU]
    devices = {entry if isinstance(entry, str) else entry[0] for entry in usable}
    on_cpu = devices == {CPU}
    if on_cpu:
        register(options)
    elif devices <= {CPU, CUDA}:
        register_cuda(options)
    slow = [_SLOW_FUSION] if on_cpu and version_of(ort) > _LAST_FAST_FUSION else []
    made = ort.InferenceSession(_content(model), options, providers=usable, disabled_optimizers=slow)
    unused = [name for name in names if name not in made.get_providers()]
    if unused:
        warnings.warn(
            f"the session does not use {', '.join(unused)}; it runs on {', '.join(made.get_providers())}",
            RuntimeWarning,
            stacklevel=2,
        )
    return made


def register(options: Any) -> bool:
    """Register the native operators with ``options``; return whether they are there. Doing it twice is doing it once."""
    return _register(options, find_library())


def register_cuda(options: Any) -> bool:
    """Register the native operators of the GPU and the CPU with ``options``; return whether they are there."""
    return _register(options, find_cuda_library())


def _register(options: Any, library: Library) -> bool:
    if not library.is_usable or version_of(onnxruntime()) < OLDEST_RUNTIME:
        return False
    options.register_custom_ops_library(str(library.path))
    return True


def version_of(ort: Any) -> tuple[int, int]:
    """Return major and minor of onnxruntime: (1, 32)."""
    major, minor = str(ort.__version__).split(".")[:2]
    return int(major), int(minor)


def onnxruntime() -> Any:
    """Import onnxruntime. Raises MissingDependency where it is not installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise MissingDependency("onnxruntime", "cpu", "running a model") from None


def _content(model: Any) -> Any:
    """Return what onnxruntime takes: a path, or the bytes of a model."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if hasattr(model, "SerializeToString"):
        return model.SerializeToString()
    import onnx_ir as ir

    return ir.to_proto(model).SerializeToString()
