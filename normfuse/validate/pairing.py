"""The two models: loading them, and whether they can be compared at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from normfuse import io
from normfuse.errors import ModelIOError, ValidationError

# Above this a protobuf file would not hold the weights (2 GiB is the format's limit).
_INLINE_BYTES = 1_500_000_000


Source = str | Path | onnx.ModelProto | ir.Model


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the two models. ``path`` is where a runtime can read it, None if it only exists in memory."""

    role: str
    model: ir.Model
    path: Path | None

    def on_disk(self, folder: Path) -> Path:
        """Return a file that onnxruntime can load, writing one into ``folder`` if there is none."""
        if self.path is not None:
            return self.path
        return write(self.model, folder / f"{self.role}.onnx")


def write(model: ir.Model, path: Path) -> Path:
    """Save a copy of ``model`` to ``path``, its weights beside it where they are large or external."""
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    large = external or sum(tensor.nbytes for tensor in tensors) > _INLINE_BYTES
    ir.save(model.clone(), path, external_data=f"{path.name}.data" if large else None)
    return path


def load(source: Source, role: str) -> Subject:
    """Return a model from a path, a proto or an IR model. Raises ModelIOError for a file that cannot be read."""
    if isinstance(source, ir.Model):
        return Subject(role, source, None)
    if isinstance(source, onnx.ModelProto):
        return Subject(role, io.from_proto(source), None)
    if not isinstance(source, str | os.PathLike):
        expected = "a path, an onnx.ModelProto or an onnx_ir.Model"
        raise ModelIOError(f"{role}: a model is {expected}; got {type(source).__name__}")
    try:
        return Subject(role, io.load(source), Path(source))
    except ModelIOError as error:
        raise ModelIOError(f"{role}: {error}") from error


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for models that only exist in memory; removed when closed."""
    return tempfile.TemporaryDirectory(prefix="normfuse-models-")


def pair_up(reference: ir.Model, candidate: ir.Model) -> None:
    """Raise ValidationError unless both models take and return values of the same names and types, in any order of
    inputs.

    Outputs must come in the same order: callers read them by position as well.
    """
    given = [_inputs(model) for model in (reference, candidate)]
    if set(given[0]) != set(given[1]):
        raise ValidationError(
            f"the models take different inputs: {_names(given[0])} the reference and {_names(given[1])} the candidate"
        )
    returned = [{value.name or "": value for value in model.graph.outputs} for model in (reference, candidate)]
    if list(returned[0]) != list(returned[1]):
        raise ValidationError(
            f"the models return different outputs: {_names(returned[0])} the reference and {_names(returned[1])} the "
            "candidate (names and order are a model's interface)"
        )
    for kind, pair in (("input", given), ("output", returned)):
        for name, value in pair[0].items():
            other = pair[1][name]
            if None not in (value.dtype, other.dtype) and value.dtype != other.dtype:
                raise ValidationError(
                    f"{kind} '{name}' is {_type(value)} in the reference and {_type(other)} in the candidate"
                )
            if value.shape is not None and other.shape is not None and len(value.shape) != len(other.shape):
                raise ValidationError(
                    f"{kind} '{name}' has shape {value.shape} in the reference and {other.shape} in the candidate"
                )


def narrowed_inputs(reference: ir.Model, candidate: ir.Model) -> tuple[str, ...]:
    """Return, in words, the inputs with an axis that is free in the reference and fixed in the candidate.

    Raises ValidationError where both fix an axis to different sizes.
    """
    found = []
    theirs = _inputs(candidate)
    for name, value in _inputs(reference).items():
        shape, other = value.shape, theirs[name].shape
        if shape is None or other is None:
            continue
        pairs = list(zip(shape.dims, other.dims, strict=True))
        if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            raise ValidationError(f"input '{name}' has shape {shape} in the reference and {other} in the candidate")
        if any(isinstance(b, int) and not isinstance(a, int) for a, b in pairs):
            found.append(f"input '{name}' takes {shape} in the reference and only {other} in the candidate")
    return tuple(found)


def _inputs(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers}


def _names(values: dict[str, ir.Value]) -> str:
    return "[" + ", ".join(values) + "]"


def _type(value: ir.Value) -> str:
    return value.dtype.name.lower() if value.dtype is not None else "untyped"
