"""What the graphs are fed with: deterministic families of inputs, or the user's own.

Same model, same numbers: every array is seeded by its family and input name. Equal symbols get equal sizes, never 0.
Integer inputs are bounded by the table that they index where a Gather shows it, else guessed from the name (mask,
length), else small.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normfuse.errors import ValidationError
from normfuse.validate.rounding import FLOATS, Array, is_float, round_to

# A batch of 2 so that batch statistics and per-sample ones differ; 224 is what image networks with a fixed head need.
BATCH_SIZES = (2, 3, 1)
OTHER_SIZES = (8, 16, 32, 64, 224)
# Second sizes: not multiples of the first where the graph lets us, else the next power of two.
SECOND_SIZES = {8: (11, 12, 16), 16: (20, 24, 32), 32: (40, 48, 64), 64: (96, 128), 224: (256, 288)}
_LARGE_MEAN = 100.0
_SMALL_INTEGER = 4
_LOOKS_THROUGH = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Transpose"})

Feed = dict[str, Array]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A graph input that a caller must give. dims: a size, or the symbol (or a private name) of a dynamic axis."""

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]
    bound: int | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """Inputs that are judged together."""

    name: str
    feeds: tuple[Feed, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes given to dynamic axes: batch-like (first) axes, and all others."""

    batch: int
    other: int


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return what a caller has to feed. Raises ValidationError for an input that is not a tensor of known rank."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or value.shape is None or not isinstance(value.type, ir.TensorType):
            raise ValidationError(f"input '{value.name}' has no tensor type with a known rank: give --inputs")
        dims = tuple(
            dim if isinstance(dim, int) else dim.value or f"{value.name}.{axis}"
            for axis, dim in enumerate(value.shape.dims)
        )
        specs.append(InputSpec(value.name or "", value.dtype, dims, _table_size(value, set())))
    return tuple(specs)


def _table_size(value: ir.Value, seen: set[ir.Value]) -> int | None:
    """Return the smallest table that ``value`` indexes through a Gather, if any."""
    seen.add(value)
    found: list[int] = []
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1:
            attribute = node.attributes.get("axis")
            table = node.inputs[0]
            shape = table.shape if table is not None else None
            size = None if shape is None else shape[0 if attribute is None else attribute.as_int()]
            found.extend([size] if isinstance(size, int) else [])
        elif node.op_type in _LOOKS_THROUGH and node.outputs[0] not in seen:
            deeper = _table_size(node.outputs[0], seen)
            found.extend([] if deeper is None else [deeper])
    return min(found) if found else None


def is_dynamic(specs: Sequence[InputSpec]) -> bool:
    """Return whether any axis has no fixed size."""
    return any(isinstance(dim, str) for spec in specs for dim in spec.dims)


def resolve(specs: Sequence[InputSpec], sizes: Sizes) -> dict[str, int]:
    """Return the size of every symbol: ``sizes.batch`` if it is the first axis of an input, else ``sizes.other``."""
    first = {spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], str)}
    symbols = {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}
    return {symbol: sizes.batch if symbol in first else sizes.other for symbol in symbols}


def synthesise(specs: Sequence[InputSpec], family: str, sizes: Sizes, index: int) -> Feed:
    """Return feed number ``index`` of ``family``: "standard normal", "large mean" or "second size"."""
    table = resolve(specs, sizes)
    return {spec.name: _array(spec, family, table, sizes, index) for spec in specs}


def _array(spec: InputSpec, family: str, table: Mapping[str, int], sizes: Sizes, index: int) -> Array:
    shape = tuple(dim if isinstance(dim, int) else table[dim] for dim in spec.dims)
    seed = zlib.crc32(f"{family}|{spec.name}|{index}".encode())
    rng = np.random.default_rng(seed)
    if is_float(spec.dtype):
        x = rng.standard_normal(shape)
        if _is_mask(spec.name):
            return round_to(np.zeros(shape) if "bias" in spec.name.lower() else np.ones(shape), spec.dtype)
        return round_to(x + _LARGE_MEAN if family == "large mean" else x, spec.dtype)
    if spec.dtype == ir.DataType.BOOL:
        return np.ones(shape, dtype=bool) if _is_mask(spec.name) else rng.random(shape) < 0.5
    if spec.dtype == ir.DataType.STRING:
        return np.full(shape, "text", dtype=object)
    kind = spec.dtype.numpy()
    if spec.bound is None and _is_mask(spec.name):
        return np.ones(shape, dtype=kind)
    if spec.bound is None and "len" in spec.name.lower():
        return np.full(shape, sizes.other, dtype=kind)
    bound = _SMALL_INTEGER if spec.bound is None else max(1, spec.bound)
    return rng.integers(0, bound, size=shape).astype(kind)


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def read_user_inputs(path: Path, specs: Sequence[InputSpec]) -> Family:
    """Return the user's inputs: an .npz (one sample), a folder of .npz (one each), or a folder with NAME.npy per input.

    Raises ValidationError naming what was expected where a name, a shape or a type does not fit.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not path.exists():
        raise ValidationError(f"inputs '{path}' do not exist")
    if path.is_dir() and not files:
        arrays = {item.stem: _load(item) for item in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValidationError(
                f"folder '{path}' has neither .npz files (one sample each) nor NAME.npy files (one input each)"
            )
        return Family("given inputs", (_checked(arrays, specs, str(path)),))
    return Family("given inputs", tuple(_checked(_load_all(item), specs, item.name) for item in files))


def _load(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ValidationError(f"cannot read '{path}': {error}") from error


def _load_all(path: Path) -> Feed:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        # np.load gives a bare array (no context manager) for an .npy, pickled data raise ValueError, bad zips OSError.
        raise ValidationError(f"cannot read '{path}' as .npz: {error}") from error


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
