"""What :func:`normfuse.validate` is given, checked before anything is loaded or run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from normfuse.errors import ValidationError
from normfuse.validate.sessions import Level, RuntimeLimits

_MODELS = (str, os.PathLike, onnx.ModelProto, ir.Model)


def check_arguments(
    reference: Any, candidate: Any, inputs: Any, limits: RuntimeLimits | None, sequences: Mapping[str, Any]
) -> None:
    """Raise TypeError for an argument of another type than is taken, ValidationError for limits that nothing keeps.

    sequences: by name, what is None or several of something; one string would be read letter by letter.
    """
    for role, model in (("reference", reference), ("candidate", candidate)):
        is_module = role == "reference" and hasattr(model, "named_modules")
        if not isinstance(model, _MODELS) and not is_module:
            module = ", or the torch.nn.Module that it was exported from" if role == "reference" else ""
            kinds = f"a path, an onnx.ModelProto or an onnx_ir.Model{module}"
            raise TypeError(f"{role} is {_kind(model)}; expected {kinds}")
    for name, value in sequences.items():
        if isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} is one {_kind(value)}; expected several: {name}=({os.fspath(value)!r},)")
        if value is not None and not isinstance(value, Iterable):
            raise TypeError(f"{name} is {_kind(value)}; expected a sequence")
    if sequences.get("levels") is not None and not list(sequences["levels"]):
        raise ValidationError(f"levels is empty; give one of {', '.join(level.name.lower() for level in Level)}")
    if isinstance(inputs, Mapping):
        raise TypeError("inputs is one dictionary; expected one per sample: inputs=[{...}]")
    if inputs is not None and not isinstance(inputs, str | os.PathLike | Iterable):
        raise TypeError(f"inputs is {_kind(inputs)}; expected a path, or a sequence of dictionaries of arrays")
    for index, feed in enumerate(() if inputs is None or isinstance(inputs, str | os.PathLike) else inputs):
        if not isinstance(feed, Mapping):
            raise TypeError(f"inputs[{index}] is {_kind(feed)}; expected a dictionary of arrays by input name")
    if limits is not None and (limits.seconds <= 0 or limits.memory_bytes <= 0):
        raise ValidationError(
            f"limits must be positive; got seconds={limits.seconds:g}, memory_bytes={limits.memory_bytes}"
        )


def _kind(value: object) -> str:
    return type(value).__name__
