"""Rules about axes: negative ones, which version 11 brought, and Softmax, whose axis version 13 gave another meaning.

Softmax, LogSoftmax and Hardmax before version 13 see x as a matrix, ``axis`` saying where its columns begin; from 13 on
they work along ``axis`` alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule


def counted_from_front(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return ``axes`` of a tensor of ``rank`` axes without negative ones."""
    return tuple(axis + rank if axis < 0 else axis for axis in axes)


def axis_from_front(operation: Operation, context: Context) -> Result:
    """11 to 10: make the attribute ``axis`` count from the front."""
    axis = operation.attribute("axis")
    if axis is None or axis >= 0:
        return operation
    return operation.having(axis=int(axis) + context.rank_of(operation.x()))


def axes_from_front(operation: Operation, context: Context) -> Result:
    """11 to 10: make the attribute ``axes`` count from the front."""
    axes = operation.integers("axes")
    if axes is None or min(axes, default=0) >= 0:
        return operation
    # What Unsqueeze inserts counts among the axes of its result; onnx's reference inserts them in the order given.
    added = len(axes) if operation.op_type == "Unsqueeze" else 0
    return operation.having(axes=sorted(counted_from_front(axes, context.rank_of(operation.x()) + added)))


def indices_from_front(operation: Operation, context: Context) -> Result:
    """11 to 10, Gather: make constant negative indices and the axis count from the front."""
    operation = _operation(axis_from_front(operation, context))
    data, indices = operation.inputs[:2]
    if data is None or indices is None or context.array(indices) is None:
        return operation
    entries = context.known(indices, "indices").astype(np.int64)
    if entries.size == 0 or int(np.min(entries)) >= 0:
        return operation
    dims = context.dims(data)
    size = None if dims is None else dims[operation.integer("axis", 0)]
    if size is None:
        raise NoEquivalent(f"negative indices need the size of '{data.name}'")
    positive = context.constant(
        f"{indices.name}_from_front", np.where(entries < 0, entries + size, entries), context.type_of(indices)
    )
    return operation.reading(data, positive, *operation.inputs[2:])


def _operation(result: Result) -> Operation:
    assert isinstance(result, Operation)
    return result


def softmax_up(operation: Operation, context: Context) -> Result:
    """12 to 13: along the last axis as it is, else Flatten to a matrix, along its rows, and back."""
    x, axis = operation.x(), operation.integer("axis", 1)
    rank = context.rank(x)
    if axis == -1 or (rank is not None and axis in (rank - 1, -1)):
        return operation.having(axis=-1)
    if axis < 0:
        axis += context.rank_of(x)
    rows = context.op(operation.op_type, context.flattened(x, axis), axis=-1)
    return (context.op("Reshape", rows, context.shape(x)),)


def softmax_down(operation: Operation, context: Context) -> Result:
    """13 to 12: along the last axis as it is, else with that axis transposed to the end."""
    x, axis = operation.x(), operation.integer("axis", -1)
    if axis == -1 and (context.opset >= 11 or context.rank(x) is None):
        if context.opset < 11:
            raise NoEquivalent(f"the rank of '{x.name}' is unknown")
        return operation.having(axis=-1)
    rank = context.rank_of(x)
    axis = axis + rank if axis < 0 else axis
    if axis == rank - 1:
        return operation.having(axis=axis)
    perm = [*range(rank)]
    perm[axis], perm[-1] = perm[-1], perm[axis]
    rows = context.op(operation.op_type, context.transposed(x, tuple(perm)), axis=rank - 1)
    return (context.transposed(rows, tuple(perm)),)


def broadcast_up(operation: Operation, context: Context) -> Result:
    """6 to 7: broadcasting became NumPy's; where ``axis`` aligned the second operand, give it the axes after."""
    axis = operation.attribute("axis")
    operation = operation.without("axis", "broadcast", "consumed_inputs")
    if axis is None:
        return operation
    a, b = operation.inputs[:2]
    assert a is not None
    assert b is not None
    rank, own = context.rank_of(a), context.rank_of(b)
    trailing = rank - own - (axis + rank if axis < 0 else axis)
    if trailing <= 0:
        return operation
    return operation.reading(a, _with_trailing(b, own, trailing, context))


def _with_trailing(value: ir.Value, rank: int, count: int, context: Context) -> ir.Value:
    array = context.array(value)
    if array is not None:
        return context.vector(f"{value.name}_aligned", array.reshape(*array.shape, *(1,) * count), value)
    return context.unsqueezed(value, tuple(range(rank, rank + count)))


def prelu_up(operation: Operation, context: Context) -> Result:
    """6 to 7: the slope, one for each channel, broadcasts from the right from now on."""
    operation = operation.without("consumed_inputs")
    x, slope = operation.x(), operation.operand(1)
    assert slope is not None
    dims = context.dims(slope)
    if dims is not None and int(np.prod([dim or 2 for dim in dims])) == 1:
        return operation
    trailing = context.rank_of(x) - 2
    if trailing <= 0 or context.rank_of(slope) != 1:
        return operation
    return operation.reading(x, _with_trailing(slope, 1, trailing, context))


def _has_no_negatives(indices: ir.Value, context: Context) -> bool:
    known = context.array(indices)
    return known is not None and bool((np.asarray(known, np.int64) >= 0).all())


def one_hot_down(operation: Operation, context: Context) -> Result:
    """Version 11 counts indices from the end too, and axes of the result, which has one more than the indices."""
    indices = operation.x()
    if not _has_no_negatives(indices, context):
        raise NoEquivalent(f"version 9 has no negative indices, and '{indices.name}' is not known to hold none")
    axis = operation.attribute("axis")
    if axis is None or axis >= -1:  # version 9 knows −1 as well
        return operation
    return operation.having(axis=axis + context.rank_of(indices) + 1)


def one_hot_up(operation: Operation, context: Context) -> Result:
    """Version 9 has no row for a negative index, version 11 counts it from the end; onnxruntime's always did."""
    if not _has_no_negatives(operation.x(), context):
        context.caveats.append(
            "indices below 0 count from the end from version 11 on, as onnxruntime had it; by version 9 they are in no row"
        )
    return operation


_AXIS = ("Concat", "Split", "Flatten", "ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax", "Compress")
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_AXES = ("Squeeze", "Unsqueeze", *(f"Reduce{kind}" for kind in _REDUCTIONS))
_SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less", "Gemm")

RAISING: dict[tuple[str, int], Rule] = {
    **{(name, 13): softmax_up for name in _SOFTMAXES},
    **{(name, 7): broadcast_up for name in _BROADCASTING},
    ("OneHot", 11): one_hot_up,
    ("PRelu", 7): prelu_up,
}
LOWERING: dict[tuple[str, int], Rule] = {
    **{(name, 11): axis_from_front for name in _AXIS},
    **{(name, 11): axes_from_front for name in _AXES},
    **{(name, 13): softmax_down for name in _SOFTMAXES},
    ("Gather", 11): indices_from_front,
    ("OneHot", 11): one_hot_down,
}
