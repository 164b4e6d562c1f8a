"""What a graph must be fed with: names, types, sizes; and what the graph says about the numbers.

Equal symbols get equal sizes, never 0. Integer inputs are bounded by the table that they index where a Gather shows it,
a loop's trip count is known by the Loop that it goes to, masks and lengths by their names.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from normfuse.errors import ValidationError
from normfuse.validate.held import Held
from normfuse.validate.rounding import Array, is_float

# A batch of 2 so that batch statistics and per-sample ones differ; 224 is what image networks with a fixed head need.
BATCH_SIZES = (2, 3, 1)
OTHER_SIZES = (8, 16, 32, 64, 224)
# Second sizes: not multiples of the first where the graph lets us, else the next power of two.
SECOND_SIZES = {8: (11, 12, 16), 16: (20, 24, 32), 32: (40, 48, 64), 64: (96, 128), 224: (256, 288)}
_LOOKS_THROUGH = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Transpose"})

Feed = dict[str, Array]


class Role(enum.Enum):
    """What an input is for, where its name or its reader says so."""

    DATA = "data"
    MASK = "mask"
    ADDED_MASK = "added mask"
    LENGTH = "length"
    TRIPS = "trips"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A graph input that a caller must give. dims: a size, or the symbol (or a private name) of a dynamic axis.

    bound: the size of the smallest table that it indexes.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]
    bound: int | None = None
    role: Role = Role.DATA

    @property
    def is_scalar(self) -> bool:
        """Whether it holds a single number whatever the sizes are."""
        return all(dim == 1 for dim in self.dims)


@dataclass(frozen=True, slots=True)
class Family:
    """Inputs that are judged together. on_providers: whether a runtime is held to them as well.

    by_channel: whether every channel is judged, which takes values that are spread evenly: where a few large ones
    decide a channel, its error is one draw of a rounding. runs: how many perturbed runs measure what rounding does.
    is_local: whether each changed segment is judged on it. known: what a float64 run of the original on the first feed has
    given already.
    """

    name: str
    feeds: tuple[Feed, ...]
    on_providers: bool = True
    by_channel: bool = True
    runs: int = 4
    is_local: bool = True
    known: Mapping[str, Held] = field(default_factory=dict, compare=False, repr=False)


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
        role = _role(value)
        specs.append(InputSpec(value.name or "", value.dtype, dims, _table_size(value, set()), role))
    return tuple(specs)


def _role(value: ir.Value) -> Role:
    name = (value.name or "").lower()
    if "mask" in name and is_float(value.dtype) and "bias" in name:
        return Role.ADDED_MASK
    if "mask" in name:
        return Role.MASK
    if is_float(value.dtype):
        return Role.DATA
    if _counts_trips(value, set()):
        return Role.TRIPS
    return Role.LENGTH if "len" in name and value.dtype is not ir.DataType.BOOL else Role.DATA


def _counts_trips(value: ir.Value, seen: set[ir.Value]) -> bool:
    """Return whether ``value`` is the trip count of a Loop."""
    seen.add(value)
    for node, index in value.uses():
        if node.op_type == "Loop" and index == 0:
            return True
        if node.op_type in _LOOKS_THROUGH and node.outputs[0] not in seen and _counts_trips(node.outputs[0], seen):
            return True
    return False


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
