"""Rules for what moved between attribute and input: axes, sizes, bounds, pads and other small numbers.

Up, the attribute becomes a constant. Down, the input must be constant, and becomes the attribute.
Source: the ONNX operator changelog, whose versions are in the tables at the end.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import reads_output
from normfuse.passes.opset.axes import counted_from_front
from normfuse.passes.opset.missing import filled
from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule


def axes_to_input(operation: Operation, context: Context) -> Result:
    """ReduceSum, Squeeze and Unsqueeze at 13, other reductions at 18."""
    axes = operation.integers("axes")
    if not axes:
        return operation.without("axes")
    return operation.without("axes").reading(operation.x(), context.integers("axes", axes))


def axes_to_attribute(operation: Operation, context: Context) -> Result:
    """The same downward. No axes with ``noop_with_empty_axes`` reduce nothing."""
    given = operation.operand(1)
    axes = None if given is None else context.known_integers(given, "axes")
    if not axes and operation.integer("noop_with_empty_axes", 0):
        if operation.op_type not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            raise NoEquivalent("without axes and with noop_with_empty_axes it reduces nothing")
        return (context.op("Identity", operation.x()),)
    operation = operation.without("noop_with_empty_axes").reading(operation.x())
    return operation.having(axes=axes) if axes else operation


def split_13_up(operation: Operation, context: Context) -> Result:
    """Sizes become an input."""
    sizes = operation.integers("split")
    if sizes is None:
        return operation
    return operation.without("split").reading(operation.x(), context.integers("split", sizes))


def split_13_down(operation: Operation, context: Context) -> Result:
    """Sizes become an attribute."""
    sizes = operation.operand(1)
    if sizes is None:
        return operation
    entries = context.known_integers(sizes, "split")
    if min(entries, default=0) < 0:
        # In a branch that never runs, as an input; as an attribute onnxruntime refuses the whole model.
        raise NoEquivalent(f"its parts are of sizes {list(entries)}")
    return operation.reading(operation.x()).having(split=entries)


def split_18_up(operation: Operation, context: Context) -> Result:
    """Without sizes, version 18 wants to be told the number of parts."""
    return operation if operation.operand(1) is not None else operation.having(num_outputs=operation.outputs)


def split_18_down(operation: Operation, context: Context) -> Result:
    """Without sizes, version 13 makes equal parts; 18 lets the last one be smaller."""
    if "num_outputs" not in operation.attributes:
        return operation
    count, axis = operation.outputs, operation.integer("axis", 0)
    operation = operation.without("num_outputs")
    dims = context.dims(operation.x())
    size = None if dims is None else dims[axis]
    if size is None:
        return _split_by_computed_sizes(operation, count, axis, context)
    if size % count == 0:
        return operation
    part = -(-size // count)
    sizes = [part] * (count - 1) + [size - part * (count - 1)]
    return operation.reading(operation.x(), context.integers("split", sizes))


def _split_by_computed_sizes(operation: Operation, count: int, axis: int, context: Context) -> Result:
    """Parts of ⌈size / count⌉ and the rest, computed from the shape of x: as sizes of Split-13, as bounds of Slices before."""
    if context.opset < 10:
        raise NoEquivalent(f"equal parts need the size of axis {axis} of '{operation.x().name}'")
    x = operation.x()
    size = context.sliced(context.shape(x), axis, np.iinfo(np.int64).max if axis == -1 else axis + 1)
    part = context.op(
        "Div", context.op("Add", size, context.integers("less_one", (count - 1,))), context.integers("count", (count,))
    )
    ends = [context.op("Mul", part, context.integers("parts", (index,))) for index in range(1, count)]
    if context.opset >= 13:
        last = size if not ends else context.op("Sub", size, ends[-1])
        return operation.reading(x, context.op("Concat", *[part] * (count - 1), last, axis=0))
    starts, axes = [context.integers("start", (0,)), *ends], context.integers("axes", (axis,))
    if axis < 0 and context.opset < 11:
        axes = context.integers("axes", (axis + context.rank_of(x),))
    return tuple(context.op("Slice", x, start, end, axes) for start, end in zip(starts, [*ends, size], strict=True))


def clip_up(operation: Operation, context: Context) -> Result:
    """Bounds become inputs. An absent one stays absent: the largest float32, its old default, only stops infinities."""
    x = operation.x()
    bounds = [
        None if operation.attribute(name) is None else context.scalar(name, operation.number(name, 0.0), x)
        for name in ("min", "max")
    ]
    return operation.without("min", "max", "consumed_inputs").reading(x, *bounds)


def clip_down(operation: Operation, context: Context) -> Result:
    """Bounds become attributes where float32 holds them and x is of a float type; else Max and Min, or Where."""
    x = operation.x()
    bounds = (operation.operand(1), operation.operand(2))
    if context.type_of(x) in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE):
        constants = [None if bound is None else context.array(bound) for bound in bounds]
        if all(bound is None or _is_float32(array) for bound, array in zip(bounds, constants, strict=True)):
            attributes = {
                name: float(array.reshape(-1)[0])
                for name, array in zip(("min", "max"), constants, strict=True)
                if array is not None
            }
            return operation.reading(x).having(**attributes)
        return (_bounded(x, bounds, context),)
    if context.opset < 9:
        raise NoEquivalent(f"version 6 does not take {context.type_of(x).name.lower()}")
    return (_selected(x, bounds, context),)


def _is_float32(array: np.typing.NDArray[np.generic] | None) -> bool:
    return (
        array is not None and array.size == 1 and float(np.float32(array.reshape(-1)[0])) == float(array.reshape(-1)[0])
    )


def _bounded(x: ir.Value, bounds: tuple[ir.Value | None, ...], context: Context) -> ir.Value:
    if context.opset < 8:
        raise NoEquivalent("its bounds are not constant, and Max broadcasts from opset 8 on")
    for op_type, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound is not None:
            x = context.op(op_type, x, bound)
    return x if bounds != (None, None) else context.op("Identity", x)


def _selected(x: ir.Value, bounds: tuple[ir.Value | None, ...], context: Context) -> ir.Value:
    for op_type, bound in zip(("Less", "Greater"), bounds, strict=True):
        if bound is not None:
            x = context.op("Where", context.boolean(op_type, x, bound), bound, x, dtype=x.dtype)
    return x if bounds != (None, None) else context.op("Identity", x)


def pad_11_up(operation: Operation, context: Context) -> Result:
    """Pads and the value become inputs."""
    pads, x = operation.integers("pads"), operation.x()
    if pads is None:
        raise NoEquivalent("its pads are missing")
    value = operation.number("value", 0.0)
    fill = context.scalar("constant_value", value, x) if value else None
    return operation.without("pads", "value").reading(x, context.integers("pads", pads), fill)


def pad_11_down(operation: Operation, context: Context) -> Result:
    """Pads and the value become attributes."""
    pads, fill = operation.operand(1), operation.operand(2)
    if pads is None:
        raise NoEquivalent("its pads are missing")
    value = 0.0 if fill is None else float(context.known(fill, "constant_value").reshape(-1)[0])
    if operation.text("mode", "constant") == "constant" and value != float(np.float32(value)):
        raise NoEquivalent("its constant_value is not a float32")
    return operation.reading(operation.x()).having(pads=context.known_integers(pads, "pads"), value=value)


def pad_18_down(operation: Operation, context: Context) -> Result:
    """Axes go: the others are padded by zero."""
    axes, x = operation.operand(3), operation.x()
    if axes is None:
        return operation
    pads = operation.operand(1)
    assert pads is not None
    rank = context.rank_of(x)
    chosen = counted_from_front(context.known_integers(axes, "axes"), rank)
    entries = context.known_integers(pads, "pads")
    whole = [0] * (2 * rank)
    for index, axis in enumerate(chosen):
        whole[axis], whole[rank + axis] = entries[index], entries[len(chosen) + index]
    return operation.reading(x, context.integers("pads", whole), operation.operand(2))


def pad_19_down(operation: Operation, context: Context) -> Result:
    """Version 19 brought the mode "wrap"."""
    if operation.text("mode", "constant") == "wrap":
        raise NoEquivalent('mode "wrap" came with version 19')
    return operation


def slice_up(operation: Operation, context: Context) -> Result:
    """Bounds and axes become inputs."""
    starts, ends, axes = (operation.integers(name) for name in ("starts", "ends", "axes"))
    if starts is None or ends is None:
        raise NoEquivalent("its starts or ends are missing")
    inputs = [operation.x(), context.integers("starts", starts), context.integers("ends", ends)]
    if axes is not None:
        inputs.append(context.integers("axes", axes))
    return operation.without("starts", "ends", "axes").reading(*inputs)


def slice_11_down(operation: Operation, context: Context) -> Result:
    """Axes count from the front."""
    axes = operation.operand(3)
    if axes is None:
        return operation
    entries = context.known_integers(axes, "axes")
    if min(entries, default=0) >= 0:
        return operation
    inputs = list(operation.inputs)
    inputs[3] = context.integers("axes", counted_from_front(entries, context.rank_of(operation.x())))
    return operation.reading(*inputs)


def slice_10_down(operation: Operation, context: Context) -> Result:
    """Bounds and axes become attributes; steps must be 1."""
    given = {}
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")):
        value = operation.operand(index)
        if value is not None:
            given[name] = context.known_integers(value, name)
    steps = given.pop("steps", ())
    if any(step != 1 for step in steps):
        return _stepped(operation, given, steps, context)
    return operation.reading(operation.x()).having(**given)


def _stepped(
    operation: Operation, bounds: dict[str, tuple[int, ...]], steps: tuple[int, ...], context: Context
) -> Result:
    """Write a Slice with steps as a Gather for each axis; the sizes must be known."""
    x = operation.x()
    dims = context.dims(x)
    if dims is None:
        raise NoEquivalent(f"steps other than 1 need the sizes of '{x.name}'")
    axes = counted_from_front(bounds.get("axes", tuple(range(len(steps)))), len(dims))
    for axis, start, end, step in zip(axes, bounds["starts"], bounds["ends"], steps, strict=True):
        size = dims[axis]
        if size is None:
            raise NoEquivalent(f"a step of {step} needs the size of axis {axis} of '{x.name}'")
        # ONNX writes "down to the first" as an end far below zero, as Python does.
        picked = range(size)[start : None if step < 0 and end < -size else end : step]
        x = context.op("Gather", x, context.integers("indices", tuple(picked)), axis=axis)
    return (x,)


def topk_10_up(operation: Operation, context: Context) -> Result:
    """k becomes an input."""
    return operation.without("k").reading(operation.x(), context.integers("k", (operation.integer("k", 1),)))


def topk_10_down(operation: Operation, context: Context) -> Result:
    """k becomes an attribute."""
    k = operation.operand(1)
    assert k is not None
    return operation.reading(operation.x()).having(k=context.known_integers(k, "K")[0])


def topk_11_down(operation: Operation, context: Context) -> Result:
    """Version 10 takes the largest, sorted; unsorted may be any order, so it may be that one."""
    x, k = operation.x(), operation.operand(1)
    axis = operation.integer("axis", -1)
    if axis < 0 and (axis != -1 or context.opset < 10):
        axis += context.rank_of(x)
    operation = operation.without("sorted").having(axis=axis)
    if operation.integer("largest", 1):
        return operation.without("largest")
    if (
        context.opset < 10
        or k is None
        or context.type_of(x) not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
    ):
        raise NoEquivalent("version 10 takes the largest only")
    values = context.op("TopK", context.op("Neg", x), k, axis=axis, outputs=2)
    node = values.producer()
    assert node is not None
    node.outputs[1].dtype = ir.DataType.INT64
    return (context.op("Neg", values), node.outputs[1])


def dropout_12_up(operation: Operation, context: Context) -> Result:
    """The ratio becomes an input. Without training_mode it is identity, as it was before."""
    if reads_output(context.node, 1):
        context.caveats.append(
            "its mask, which is read, is all true from version 12 on; earlier versions leave it open"
        )
    ratio = operation.attribute("ratio")
    operation = operation.without("ratio")
    if ratio is None:
        return operation
    return operation.reading(operation.x(), context.constant("ratio", np.float32(ratio), ir.DataType.FLOAT))


def dropout_12_down(operation: Operation, context: Context) -> Result:
    """The ratio becomes an attribute; training has no equivalent."""
    training = operation.operand(2)
    if training is not None and bool(context.known(training, "training_mode").any()):
        raise NoEquivalent("training mode draws random numbers")
    if reads_output(context.node, 1):
        # All true, which version 10 does not say: onnxruntime's leaves it false.
        x = operation.x()
        return (context.op("Identity", x), filled(context.shape(x), np.ones(1), ir.DataType.BOOL, context))
    ratio = context.array(operation.operand(1))
    operation = operation.without("seed").reading(operation.x())
    return operation if ratio is None else operation.having(ratio=float(ratio.reshape(-1)[0]))


def dropout_10(operation: Operation, context: Context) -> Result:
    """The mask was of the type of x before version 10, and is bool since."""
    if not reads_output(context.node, 1):
        return Operation(operation.op_type, operation.inputs, operation.attributes, 1)
    raise NoEquivalent("the type of its mask, which is read, changed with version 10")


def dropout_7_up(operation: Operation, context: Context) -> Result:
    """Version 7 is inference only."""
    if not operation.integer("is_test", 0):
        raise NoEquivalent("without is_test it draws random numbers")
    return operation.without("is_test", "consumed_inputs")


def dft_up(operation: Operation, context: Context) -> Result:
    """The axis becomes an input."""
    axis = context.constant("axis", np.int64(operation.integer("axis", 1)), ir.DataType.INT64)
    return operation.without("axis").reading(operation.x(), operation.operand(1), axis)


def dft_down(operation: Operation, context: Context) -> Result:
    """The axis becomes an attribute."""
    axis = operation.operand(2)
    number = -2 if axis is None else context.known_integers(axis, "axis")[0]
    if number < 0:
        number += context.rank_of(operation.x())
    return operation.reading(operation.x(), operation.operand(1)).having(axis=number)


def reshape_5_up(operation: Operation, context: Context) -> Result:
    """The shape becomes an input."""
    shape = operation.integers("shape")
    if shape is None:
        raise NoEquivalent("its shape is missing")
    return operation.without("shape", "consumed_inputs").reading(operation.x(), context.integers("shape", shape))


def ceil_pool(operation: Operation, context: Context) -> Result:
    """Rounding up, a window may start beyond x and its first pads: version 22 (AveragePool: 19) leaves it out.

    None can where the kernel reaches at least a stride and the pads at the end far; else the sizes must show it.
    """
    if not operation.integer("ceil_mode", 0):
        return operation
    kernel = operation.integers("kernel_shape") or ()
    count = len(kernel)
    strides, dilations = (operation.integers(name) or (1,) * count for name in ("strides", "dilations"))
    pads = operation.integers("pads") or (0,) * (2 * count)
    dims = context.dims(operation.x())
    for axis in range(count):
        reach, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        first, last = pads[axis], pads[count + axis]
        if reach >= stride + last:
            continue
        size = None if dims is None else dims[2 + axis]
        if size is None:
            raise NoEquivalent(f"its ceil_mode needs the size of axis {2 + axis} of '{operation.x().name}'")
        windows = -(-(size + first + last - reach) // stride) + 1
        if (windows - 1) * stride >= size + first:
            raise NoEquivalent("its ceil_mode makes a window of padding only, which versions count differently")
    return operation


_POOLS = (("AveragePool", 19), ("AveragePool", 22), ("LpPool", 22), ("MaxPool", 22))
_REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)

RAISING: dict[tuple[str, int], Rule] = {
    **{(name, 13): axes_to_input for name in ("ReduceSum", "Squeeze", "Unsqueeze")},
    **{(name, 18): axes_to_input for name in _REDUCTIONS},
    **dict.fromkeys(_POOLS, ceil_pool),
    ("Clip", 11): clip_up,
    ("DFT", 20): dft_up,
    ("Dropout", 7): dropout_7_up,
    ("Dropout", 10): dropout_10,
    ("Dropout", 12): dropout_12_up,
    ("Pad", 11): pad_11_up,
    ("Reshape", 5): reshape_5_up,
    ("Slice", 10): slice_up,
    ("Split", 13): split_13_up,
    ("Split", 18): split_18_up,
    ("TopK", 10): topk_10_up,
}
LOWERING: dict[tuple[str, int], Rule] = {
    **{(name, 13): axes_to_attribute for name in ("ReduceSum", "Squeeze", "Unsqueeze")},
    **{(name, 18): axes_to_attribute for name in _REDUCTIONS},
    **dict.fromkeys(_POOLS, ceil_pool),
    ("Clip", 11): clip_down,
    ("DFT", 20): dft_down,
    ("Dropout", 10): dropout_10,
    ("Dropout", 12): dropout_12_down,
    ("Pad", 11): pad_11_down,
    ("Pad", 18): pad_18_down,
    ("Pad", 19): pad_19_down,
    ("Slice", 10): slice_10_down,
    ("Slice", 11): slice_11_down,
    ("Split", 13): split_13_down,
    ("Split", 18): split_18_down,
    ("TopK", 10): topk_10_down,
    ("TopK", 11): topk_11_down,
}
