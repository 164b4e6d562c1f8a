"""What may be treated as constant, and its value.

A value is constant when no caller and no run can change it: an initializer that is not also an input (from IR 4 on, an
initializer listed as an input is only a default), a Constant node, or a deterministic operator on constants. Values are
computed when asked for, in the type of the graph, so that a reader sees what a runtime would compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.graph.reductions import FUNCTIONS, normalise, reduce
from normfuse.graph.tensors import array_of

Array = npt.NDArray[np.generic]

_IN_MEMORY = (ir.Tensor, ir.TensorProtoTensor)

_MOST_ELEMENTS = 1 << 26
"""The largest constant that is computed (not: read), in elements; 256 MB of float32."""

_DEEPEST = 128
"""Nodes of a constant expression, one behind the other; a deeper one is not constant here. Nothing known has 40."""


class Constants:
    """The constants of one model. Computed arrays are kept; they are read-only."""

    def __init__(self, model: ir.Model, *, freeze_inputs: bool = False) -> None:
        # Below IR 4 every initializer had to be listed as an input, and could not be overridden (ONNX IR changelog).
        self._listed_are_constant = freeze_inputs or model.ir_version < 4
        self._computed: dict[ir.Value, Array | None] = {}
        self._is_wide = False
        self._depth = 0

    def widened(self) -> Constants:
        """Return the same constants, computed in float64 from end to end: what rounds to another float type is left out."""
        wide = Constants.__new__(Constants)
        wide._listed_are_constant, wide._computed, wide._is_wide, wide._depth = self._listed_are_constant, {}, True, 0
        return wide

    def is_overridable(self, value: ir.Value) -> bool:
        """Whether ``value`` is an initializer for which the caller may pass another value."""
        return value.is_initializer() and value.is_graph_input() and not self._listed_are_constant

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """Return the stored tensor of an initializer or Constant without reading its data; None if there is none."""
        if value is None:
            return None
        if value.is_initializer():
            return None if self.is_overridable(value) else value.const_value
        producer = value.producer()
        if producer is None:
            return value.const_value if value.graph is None else None  # a constant of a recogniser's own making
        if producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
            return None
        attribute = producer.attributes.get("value")
        return None if attribute is None or attribute.is_ref() else attribute.as_tensor()

    def array(self, value: ir.Value | None) -> Array | None:
        """Return the value as an array in its own type, or None where it is not constant."""
        if value is None:
            return None
        if value in self._computed:
            return self._computed[value]
        tensor = self.tensor(value)
        if tensor is not None:
            array = self._widened(array_of(tensor))
            if type(tensor) in _IN_MEMORY:  # others stay maps of their file; isinstance is slow on protocols
                self._computed[value] = array
            return array
        if self._depth > _DEEPEST:
            return None
        self._depth += 1
        try:
            result = self._compute(value)
        finally:
            self._depth -= 1
        self._computed[value] = result
        return result

    def _widened(self, array: Array) -> Array:
        return array.astype(np.float64) if self._is_wide and array.dtype.kind in "fV" else array

    def scalar(self, value: ir.Value | None) -> float | None:
        """Return a constant of one element, of any rank, as a float; None for anything else."""
        array = self.array(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return a constant integer vector or scalar as a tuple."""
        array = self.array(value)
        if array is None or array.dtype.kind not in "iu":
            return None
        return tuple(int(entry) for entry in array.reshape(-1))

    def applied(self, node: ir.Node, first: Array) -> Array | None:
        """Return what ``node`` makes of ``first`` in the place of its first operand; None where the others are not constant."""
        evaluate = _EVALUATORS.get(node.op_type)
        if evaluate is None or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return None
        others = [None if operand is None or operand.name == "" else self.array(operand) for operand in node.inputs[1:]]
        try:
            return evaluate(node, [first, *others])
        except (ArithmeticError, ValueError, IndexError, TypeError, KeyError, AttributeError):
            return None

    def obstacle(self, value: ir.Value) -> str:
        """Say why ``value`` is not constant, as the end of a sentence that begins with its name."""
        if self.is_overridable(value):
            return "may be overridden by the caller: it is also a graph input (--freeze-inputs makes it constant)"
        producer = value.producer()
        if producer is not None:
            return f"is computed by {producer.op_type} '{producer.name or value.name}'"
        return "is an input of the graph"

    def _compute(self, value: ir.Value) -> Array | None:
        producer = value.producer()
        if producer is None or producer.domain not in ("", "ai.onnx") or producer.outputs[0] is not value:
            return None
        if any(attribute.is_ref() for attribute in producer.attributes.values()):
            return None
        if producer.op_type == "Constant":
            constant = _constant(producer)
            return None if constant is None else self._widened(constant)
        if producer.op_type == "Shape":
            return _static_shape(producer)
        evaluate = _EVALUATORS.get(producer.op_type)
        if evaluate is None or (len(producer.outputs) != 1 and producer.op_type != "BatchNormalization"):
            return None
        arrays: list[Array | None] = []
        for operand in producer.inputs:
            array = None if operand is None or operand.name == "" else self.array(operand)
            if array is None and operand is not None and operand.name != "":
                if producer.op_type != "CastLike" or len(arrays) != 1:
                    return None
                if operand.dtype is None:
                    return None
                array = np.zeros((), operand.dtype.numpy())  # CastLike reads only the type of its second operand
            arrays.append(array)
        if (
            self._is_wide
            and producer.op_type in ("Cast", "CastLike")
            and _is_float(arrays[0])
            and _rounds(producer, value)
        ):
            return arrays[0]
        try:
            result = evaluate(producer, arrays)
        except (ArithmeticError, ValueError, IndexError, TypeError, KeyError, AttributeError):
            return None  # an ill-formed constant expression is no constant; the runtime will say so
        if result is None or result.size > _MOST_ELEMENTS:
            return None
        result = self._widened(
            np.asarray(result)
        )  # a Gather by a scalar gives a NumPy scalar, which has no flags to set
        result.flags.writeable = False
        return result


def _constant(node: ir.Node) -> Array | None:
    """Read the spellings of Constant other than ``value``."""
    for name, attribute in node.attributes.items():
        if name in ("value_float", "value_floats"):
            return np.asarray(attribute.value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(attribute.value, np.int64)
    return None


def _static_shape(node: ir.Node) -> Array | None:
    operand = node.inputs[0]
    if operand is None or operand.shape is None:
        return None
    dims = list(operand.shape)[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", None))]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return np.asarray(dims, np.int64)


def _is_float(array: Array | None) -> bool:
    return array is not None and array.dtype.kind in "fV"


def _rounds(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Cast or CastLike leads to a float type; for a CastLike, as far as the file says."""
    attribute = node.attributes.get("to")
    if node.op_type == "Cast":
        return attribute is not None and ir.DataType(attribute.as_int()).is_floating_point()
    return value.dtype is None or value.dtype.is_floating_point()


Evaluator = Callable[[ir.Node, list[Array | None]], Array | None]


def _elementwise(function: Callable[..., Array]) -> Evaluator:
    """Apply ``function`` in the operands' own type, as a runtime does (opset 7 on: NumPy broadcasting)."""

    def evaluate(node: ir.Node, arrays: list[Array | None]) -> Array | None:
        operands = _present(arrays)
        if operands is None or "axis" in node.attributes:
            return None
        if node.op_type == "Div" and operands[0].dtype.kind in "iu":
            return None
        with np.errstate(all="ignore"):
            return np.asarray(function(*operands), operands[0].dtype)

    return evaluate


def _present(arrays: list[Array | None]) -> list[Array] | None:
    operands = [array for array in arrays if array is not None]
    return operands if len(operands) == len(arrays) else None


def _axes(node: ir.Node, arrays: list[Array | None]) -> tuple[int, ...] | None:
    """Read axes as an attribute (before opset 13) or as the second input."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return tuple(attribute.as_ints())
    if len(arrays) > 1 and arrays[1] is not None:
        return tuple(int(axis) for axis in arrays[1].reshape(-1))
    return None


def _identity(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    return None if arrays[0] is None else arrays[0].view()


def _cast(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    attribute = node.attributes.get("to")
    if attribute is None or attribute.type != ir.AttributeType.INT or arrays[0] is None:
        return None  # opset 5 and below spelled the type as a string
    with np.errstate(all="ignore"):
        return arrays[0].astype(ir.DataType(attribute.as_int()).numpy())


def _cast_like(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None or arrays[1] is None:
        return None
    with np.errstate(all="ignore"):
        return arrays[0].astype(arrays[1].dtype)


def _transpose(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    return None if arrays[0] is None else np.transpose(arrays[0], node.attributes.get_ints("perm", None))


def _reshape(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None:
        return None
    if "shape" in node.attributes:
        target = [int(dim) for dim in node.attributes["shape"].as_ints()]
    elif len(arrays) > 1 and arrays[1] is not None:
        target = [int(dim) for dim in arrays[1].reshape(-1)]
    else:
        return None
    if node.attributes.get_int("allowzero", 0) == 0:
        target = [arrays[0].shape[i] if dim == 0 else dim for i, dim in enumerate(target)]
    return arrays[0].reshape(target)


def _unsqueeze(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    axes = _axes(node, arrays)
    return None if axes is None or arrays[0] is None else np.expand_dims(arrays[0], axes)


def _squeeze(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    return None if arrays[0] is None else np.squeeze(arrays[0], _axes(node, arrays))


def _flatten(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None:
        return None
    axis = node.attributes.get_int("axis", 1)
    shape = arrays[0].shape
    return arrays[0].reshape(int(np.prod(shape[:axis], dtype=np.int64)), -1)


def _concat(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    operands = _present(arrays)
    return None if operands is None else np.concatenate(operands, node.attributes.get_int("axis", 1))


def _expand(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None or arrays[1] is None:
        return None
    target = np.broadcast_shapes(arrays[0].shape, tuple(int(dim) for dim in arrays[1]))
    if int(np.prod(target, dtype=np.int64)) > _MOST_ELEMENTS:
        return None
    return np.broadcast_to(arrays[0], target).copy()


def _tile(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None or arrays[1] is None:
        return None
    repeats = tuple(int(count) for count in arrays[1])
    if arrays[0].size * int(np.prod(repeats, dtype=np.int64)) > _MOST_ELEMENTS:
        return None
    return np.tile(arrays[0], repeats)


def _constant_of_shape(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None:
        return None
    shape = tuple(int(dim) for dim in arrays[0])
    if int(np.prod(shape, dtype=np.int64)) > _MOST_ELEMENTS:
        return None
    attribute = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    return np.full(shape, fill.reshape(-1)[0], fill.dtype)


def _gather(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None or arrays[1] is None:
        return None
    return np.take(arrays[0], arrays[1].astype(np.int64), axis=node.attributes.get_int("axis", 0))


def _slice(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    if arrays[0] is None:
        return None
    if "starts" in node.attributes:  # opset 1 to 9
        starts = [int(i) for i in node.attributes["starts"].as_ints()]
        ends = [int(i) for i in node.attributes["ends"].as_ints()]
        axes = [int(i) for i in node.attributes.get_ints("axes", range(len(starts)))]
        steps = [1] * len(starts)
    else:
        rows = [None if array is None else [int(i) for i in array.reshape(-1)] for array in arrays[1:]]
        rows += [None] * (4 - len(rows))
        if rows[0] is None or rows[1] is None:
            return None
        starts, ends = rows[0], rows[1]
        axes = rows[2] if rows[2] is not None else list(range(len(starts)))
        steps = rows[3] if rows[3] is not None else [1] * len(starts)
    if any(step < 1 for step in steps):
        return None
    index = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return arrays[0][tuple(index)].copy()


def _clip(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """Clip by attributes (before opset 11) or by inputs; a bound that is absent is no bound."""
    result: Any = arrays[0]
    for index, (name, bounded) in enumerate((("min", np.maximum), ("max", np.minimum)), start=1):
        bound: Any = node.attributes.get_float(name, None)
        if index < len(arrays):
            bound = arrays[index]
        if result is not None and bound is not None:
            result = bounded(result, bound).astype(result.dtype)
    return None if result is None else np.asarray(result)


def _range(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    bounds: Any = _present(arrays)
    if bounds is None or any(bound.size != 1 for bound in bounds):
        return None
    start, limit, delta = (bound.reshape(-1)[0] for bound in bounds)
    if delta == 0 or (limit - start) / delta > _MOST_ELEMENTS:
        return None
    return np.asarray(np.arange(start, limit, delta)).astype(bounds[0].dtype)


def _equal(_: ir.Node, arrays: list[Array | None]) -> Array | None:
    operands = _present(arrays)
    return None if operands is None or len(operands) != 2 else np.asarray(np.equal(*operands))


def _sign(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """Sign of what is stored (binary weights), perhaps laid out anew: near zero, rounding decides what is computed."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in _LAYOUTS:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    is_stored = producer is None or producer.op_type == "Constant"
    return np.sign(arrays[0]) if is_stored and arrays[0] is not None else None


_LAYOUTS = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


_EVALUATORS: dict[str, Evaluator] = {
    "Identity": _identity,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Concat": _concat,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Slice": _slice,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(np.divide),
    "Pow": _elementwise(np.power),
    "Sqrt": _elementwise(np.sqrt),
    "Neg": _elementwise(np.negative),
    "Sign": _sign,
    "Abs": _elementwise(np.abs),
    "Exp": _elementwise(np.exp),
    "Reciprocal": _elementwise(lambda x: np.divide(np.ones((), x.dtype), x)),
    "MatMul": _elementwise(np.matmul),
    "Max": _elementwise(lambda *operands: functools.reduce(np.maximum, operands)),
    "Min": _elementwise(lambda *operands: functools.reduce(np.minimum, operands)),
    "Clip": _clip,
    "Range": _range,
    "Equal": _equal,
    "Size": lambda _, arrays: None if arrays[0] is None else np.asarray(arrays[0].size, np.int64),
    **dict.fromkeys(FUNCTIONS, reduce),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), normalise),
}
