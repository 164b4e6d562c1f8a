"""The user's own inputs: read, checked against what the graph takes, and written for replay."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import ValidationError
from normfuse.validate.inputs import Family, Feed, InputSpec
from normfuse.validate.rounding import FLOATS, Array, is_float, round_to

_NAME = "given inputs"


def read_user_inputs(source: Path | Sequence[Mapping[str, Any]], specs: Sequence[InputSpec]) -> Family:
    """Return the user's inputs: an .npz (one sample), a folder of .npz (one each), a folder with NAME.npy per input, or
    one dictionary of arrays per sample.

    Raises ValidationError naming what was expected where a name, a shape or a type does not fit.
    """
    if not isinstance(source, str | os.PathLike):
        arrays_of = [{name: np.asarray(array) for name, array in feed.items()} for feed in source]
        if not arrays_of:
            raise ValidationError("no inputs were given: one dictionary of arrays per sample is expected")
        return Family(_NAME, tuple(_checked(arrays, specs, f"sample {i}") for i, arrays in enumerate(arrays_of)))
    path = Path(source)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not path.exists():
        raise ValidationError(f"inputs '{path}' do not exist")
    if path.is_dir() and not files:
        arrays = {item.stem: _load(item) for item in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValidationError(
                f"folder '{path}' has neither .npz files (one sample each) nor NAME.npy files (one input each)"
            )
        return Family(_NAME, (_checked(arrays, specs, str(path)),))
    return Family(_NAME, tuple(_checked(_load_all(item), specs, item.name) for item in files))


def _load(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ValidationError(f"cannot read '{path}' as .npy: {_why(path, error)}") from error


def _load_all(path: Path) -> Feed:
    try:
        with path.open("rb") as file:  # ours, since NumPy leaves a file open that it cannot read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                hint = "its folder, with a file NAME.npy for each input"
                raise ValidationError(f"'{path}' is a single array without a name: give an .npz, or {hint}")
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValidationError(f"cannot read '{path}' as .npz: {_why(path, error)}") from error


def _why(path: Path, error: Exception) -> str:
    """Return why NumPy does not read a file; of one in no format of its own it says that pickles are not allowed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY" or start[:2] == b"PK":
        return str(error).splitlines()[0]
    return "it is empty" if not start else "it was not written by numpy.save or numpy.savez"


def _checked(arrays: Mapping[str, Array], specs: Sequence[InputSpec], source: str) -> Feed:
    expected = ", ".join(f"{spec.name}: {_shape_words(spec)}" for spec in specs)
    missing = [spec.name for spec in specs if spec.name not in arrays]
    extra = sorted(set(arrays) - {spec.name for spec in specs})
    if missing or extra:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(extra)}, which the model does not take"] if extra else []
        raise ValidationError(f"{source} {' and '.join(what)}; expected {expected}")
    symbols: dict[str, int] = {}
    return {spec.name: _fitting(spec, arrays[spec.name], source, symbols) for spec in specs}


def _shape_words(spec: InputSpec) -> str:
    return f"{spec.dtype.name.lower()}[{', '.join(str(dim) for dim in spec.dims)}]"


def _fitting(spec: InputSpec, array: Array, source: str, symbols: dict[str, int]) -> Array:
    fits = array.ndim == len(spec.dims) and 0 not in array.shape
    for size, dim in zip(array.shape, spec.dims, strict=False):
        fits &= size == (dim if isinstance(dim, int) else symbols.setdefault(dim, size))
    if not fits:
        raise ValidationError(
            f"{source}: input '{spec.name}' has shape {list(array.shape)}; expected {_shape_words(spec)}, no axis empty"
        )
    if spec.dtype == ir.DataType.BFLOAT16 and array.dtype.kind == "V":
        return array.view(FLOATS[spec.dtype])  # NumPy's files keep the bytes of a bfloat16, not its name
    if is_float(spec.dtype):
        if array.dtype.kind != "f" and array.dtype != FLOATS[spec.dtype]:
            raise ValidationError(
                f"{source}: input '{spec.name}' has type {array.dtype}; expected {_shape_words(spec)}"
            )
        rounded = round_to(array, spec.dtype)
        if array.dtype.itemsize > rounded.dtype.itemsize and spec.dtype not in (
            ir.DataType.BFLOAT16,
            ir.DataType.FLOAT16,
        ):
            raise ValidationError(
                f"{source}: input '{spec.name}' has type {array.dtype}; expected {_shape_words(spec)}"
            )
        return rounded
    if spec.dtype != ir.DataType.STRING and array.dtype != spec.dtype.numpy():
        raise ValidationError(f"{source}: input '{spec.name}' has type {array.dtype}; expected {_shape_words(spec)}")
    return array


def write_inputs(folder: Path, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Write one .npz per sample into ``folder``, so that ``--inputs FOLDER`` replays them. Files of an earlier time go."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.npz"):
        stale.unlink()
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index:03}.npz", **dict(feed))  # type: ignore[arg-type]
