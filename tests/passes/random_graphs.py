"""Random graphs for the motion of affine maps: linear operators, norms, and everything of the table between them.

The models are float64, so that a moved map differs by rounding of 1e-16 only and a wrong one shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.affine_move import Move
from normfuse.passes.move_affine import move_affines
from normfuse.recognise import find_norms
from normfuse.validate.oracle import Oracle

Array = npt.NDArray[np.generic]
Operator = Callable[["Net", str], "str | None"]


OPSETS = (9, 9, 11, 13, 18, 18, 21, 23)
"""Upsample ended with 9; axes, pads and parts became inputs at 11, 13 and 18."""


class Net:
    """A graph under construction; the shape of every value is known here, not in the model."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.read: set[str] = set()
        self.opset = int(self.random.choice(OPSETS))
        channels = int(self.random.choice([2, 4, 6]))
        size = int(self.random.choice([4, 5, 6]))
        self.shapes["x"] = (2, channels, size, size)

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def pick(self, *options: int) -> int:
        return int(self.random.choice(options))

    def constant(self, array: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        return self.several(op, inputs, [shape], **attributes)[0]

    def several(self, op: str, inputs: list[str], shapes: list[tuple[int, ...]], **attributes: Any) -> list[str]:
        names = [f"v{len(self.shapes) + index}" for index in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        self.read.update(inputs)
        return names

    def by_axes(self, op: str, x: str, axes: list[int], shape: tuple[int, ...], since: int, **attributes: Any) -> str:
        """Add an operator whose axes are an input since one opset, and an attribute below."""
        if self.opset < since:
            return self.add(op, [x], shape, axes=axes, **attributes)
        return self.add(op, [x, self.constant(np.array(axes, np.int64))], shape, **attributes)

    def model(self) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        ends = [name for name in self.shapes if name not in used]
        ends += [name for name in self.shapes if name in used and name != "x" and self.chance(0.03)]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, self.shapes["x"])],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, self.shapes[name]) for name in ends],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model) if self.chance(0.5) else model


def norm(net: Net, x: str) -> str | None:
    """A BatchNormalization; some without shift, some positive: what passes a Relu."""
    shape = net.shapes[x]
    if len(shape) < 2:
        return None
    count = shape[1]
    scale = net.random.normal(0, 1.5, count)
    bias, mean = net.random.normal(0, 1, count), net.random.normal(0, 1.5, count)
    kind = net.random.random()
    if kind < 0.45:
        bias = mean = np.zeros(count)
    if kind < 0.3 or kind > 0.8:
        scale = np.abs(scale) + 0.1
    if net.chance(0.1):
        scale, bias, mean = np.full(count, scale[0]), np.full(count, bias[0]), np.full(count, mean[0])
        rows = [scale, bias, mean, np.full(count, 0.7)]
    else:
        if net.chance(0.05):
            scale[0] = 0.0
        rows = [scale, bias, mean, net.random.uniform(0.3, 3, count)]
    return net.add("BatchNormalization", [x, *(net.constant(row) for row in rows)], shape)


def linear(net: Net, x: str) -> str | None:
    """Conv, ConvTranspose, Gemm or MatMul, of random attributes."""
    shape = net.shapes[x]
    if len(shape) == 4:
        return convolution(net, x)
    if len(shape) == 2 and net.chance(0.6):
        transposed, out = net.chance(0.5), net.pick(2, 4, 6)
        left = net.chance(0.15)
        inner, rows = (shape[0], shape[1]) if left else (shape[1], shape[0])
        weight = net.normal(*((out, inner) if transposed else (inner, out)))
        inputs = [
            x,
            weight,
            *([net.normal(*((out,) if net.chance(0.7) else (rows, out)))] if net.opset < 11 or net.chance(0.5) else []),
        ]
        attributes = {"alpha": 0.5, "beta": float(net.pick(0, 1, 2))} if net.chance(0.5) else {}
        return net.add("Gemm", inputs, (rows, out), transB=int(transposed), transA=int(left), **attributes)
    if len(shape) < 2:
        return None
    out = net.pick(2, 4, 6)
    if net.chance(0.7):
        return net.add("MatMul", [x, net.normal(shape[-1], out)], (*shape[:-1], out))
    return net.add("MatMul", [net.normal(out, shape[-2]), x], (*shape[:-2], out, shape[-1]))


def convolution(net: Net, x: str) -> str | None:
    batch, channels, *sizes = net.shapes[x]
    kernel = 1 if min(sizes) < 3 else net.pick(1, 1, 3)
    pad = net.pick(0, 0, 1)
    group = 2 if channels % 2 == 0 and net.chance(0.3) else 1
    out = net.pick(2, 4, 6)
    bias = net.chance(0.4)
    if net.chance(0.2):
        inputs = [x, net.normal(channels, out // group, kernel, kernel), *([net.normal(out)] if bias else [])]
        if max(sizes) > 12:
            return None
        return net.add("ConvTranspose", inputs, (batch, out, *(size + kernel - 1 for size in sizes)), group=group)
    inputs = [x, net.normal(out, channels // group, kernel, kernel), *([net.normal(out)] if bias else [])]
    shape = (batch, out, *(size + 2 * pad - kernel + 1 for size in sizes))
    return net.add("Conv", inputs, shape, group=group, pads=[pad] * 4)


def identity(net: Net, x: str) -> str | None:
    return net.add("Identity" if net.chance(0.5) else "Dropout", [x], net.shapes[x])


def rectify(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    op = ("Relu", "LeakyRelu", "PRelu")[net.pick(0, 1, 2)]
    if op == "PRelu" and len(shape) > 1:
        slope = net.random.uniform(-0.5 if net.chance(0.35) else 0.2, 2, (shape[1], *[1] * (len(shape) - 2)))
        return net.add(op, [x, net.constant(slope)], shape)
    return net.add("Relu" if op == "PRelu" else op, [x], shape)


def cast(net: Net, x: str) -> str | None:
    return net.add("Cast", [x], net.shapes[x], to=TensorProto.DOUBLE)


def pool(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4 or min(shape[2:]) < 2:
        return None
    pad, counted = net.pick(0, 1), net.pick(0, 1)
    out = tuple(size + 2 * pad - 1 for size in shape[2:])
    if net.chance(0.5):
        return net.add(
            "AveragePool", [x], (*shape[:2], *out), kernel_shape=[2, 2], pads=[pad] * 4, count_include_pad=counted
        )
    return net.add("MaxPool", [x], (*shape[:2], *out), kernel_shape=[2, 2], pads=[pad] * 4)


def whole(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4:
        return None
    kind = net.pick(0, 1, 1, 2, 2)
    if kind < 2:
        return net.add(("GlobalAveragePool", "GlobalMaxPool")[kind], [x], (*shape[:2], 1, 1))
    keep = net.pick(0, 1)
    axes = [[2, 3], [-1], [1, 2, 3], [0]][net.pick(0, 0, 1, 1, 2, 3)]
    gone = {axis % 4 for axis in axes}
    kept = tuple(1 if axis in gone else size for axis, size in enumerate(shape) if keep or axis not in gone)
    if net.opset < 11:
        axes = [axis % 4 for axis in axes]
    return net.by_axes("ReduceMean", x, axes, kept, 18, keepdims=keep)


def last_axis(net: Net, x: str) -> str | None:
    """MatMul, whose channels lie along the last axis, then pooling over it, then that axis becomes the channel axis."""
    shape = net.shapes[x]
    if len(shape) != 4 or min(shape[2:]) < 3:
        return None
    y = net.add("MatMul", [x, net.normal(shape[3], shape[3])], shape)
    op = ("MaxPool", "AveragePool")[net.pick(0, 1)]
    if net.chance(0.7):
        y = net.add(op, [y], shape, kernel_shape=[3, 3], pads=[1] * 4)
    return net.add("Transpose", [y], (shape[0], shape[3], shape[1], shape[2]), perm=[0, 3, 1, 2])


def transpose(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    perm = [int(axis) for axis in net.random.permutation(len(shape))]
    return net.add("Transpose", [x], tuple(shape[axis] for axis in perm), perm=perm)


def transpose_there_and_back(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    perm = [int(axis) for axis in net.random.permutation(len(shape))]
    y = net.add("Transpose", [x], tuple(shape[axis] for axis in perm), perm=perm)
    return net.add("Transpose", [y], shape, perm=[int(axis) for axis in np.argsort(perm)])


def reshape(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    kind = net.pick(0, 1, 2, 3, 4, 5)
    if kind == 0 and len(shape) == 4:
        return net.add("Flatten", [x], (shape[0], int(np.prod(shape[1:]))))
    if kind == 1 and len(shape) == 4:
        return _to(net, x, (shape[0], shape[1], shape[2] * shape[3]))
    if kind == 2 and len(shape) == 3 and shape[2] % 2 == 0:
        return _to(net, x, (shape[0], shape[1], shape[2] // 2, 2))
    if kind == 3 and len(shape) == 3:
        return _to(net, x, (shape[0] * shape[1], shape[2]))
    if kind == 4 and 1 in shape and len(shape) > 2:
        axis = shape.index(1)
        return net.by_axes("Squeeze", x, [axis], shape[:axis] + shape[axis + 1 :], 13)
    if kind == 5 and len(shape) < 4:
        return net.by_axes("Unsqueeze", x, [len(shape)], (*shape, 1), 13)
    if len(shape) == 2 and shape[1] % 2 == 0:
        return _to(net, x, (shape[0], shape[1] // 2, 2))
    return None


def _to(net: Net, x: str, shape: tuple[int, ...]) -> str:
    target = list(shape)
    if net.chance(0.5):
        target[net.pick(*range(len(shape)))] = -1
    for axis, size in enumerate(target):
        own = net.shapes[x]
        if size > 0 and axis < len(own) and own[axis] == size and net.chance(0.3):
            target[axis] = 0
    return net.add("Reshape", [x, net.constant(np.array(target, np.int64))], shape)


def flatten(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4 or np.prod(shape[1:]) > 400:
        return None
    return net.add("Flatten", [x], (shape[0], int(np.prod(shape[1:]))))


def wrap(net: Net, x: str) -> str | None:
    """Unsqueeze and, mostly, Squeeze."""
    shape = net.shapes[x]
    if len(shape) > 4:
        return None
    axis = net.pick(*range(len(shape) + 1))
    axes = [axis if net.opset < 11 or net.chance(0.5) else axis - len(shape) - 1]
    y = net.by_axes("Unsqueeze", x, axes, (*shape[:axis], 1, *shape[axis:]), 13)
    return net.by_axes("Squeeze", y, axes, shape, 13) if len(shape) == 4 or net.chance(0.8) else y


def shuffle(net: Net, x: str) -> str | None:
    """ShuffleNet's channel shuffle: Reshape, Transpose, Reshape."""
    shape = net.shapes[x]
    if len(shape) != 4 or shape[1] % 2:
        return None
    y = _to(net, x, (shape[0], 2, shape[1] // 2, *shape[2:]))
    z = net.add("Transpose", [y], (shape[0], shape[1] // 2, 2, *shape[2:]), perm=[0, 2, 1, 3, 4])
    return _to(net, z, shape)


def depth(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4:
        return None
    if shape[1] % 4 == 0 and net.chance(0.5):
        if net.chance(0.7):
            x, shape = net.add("Conv", [x, net.normal(8, shape[1], 1, 1)], (shape[0], 8, *shape[2:])), (shape[0], 8, *shape[2:])  # fmt: skip
        mode = ("DCR", "CRD")[net.pick(0, 1)]
        out = (shape[0], shape[1] // 4, shape[2] * 2, shape[3] * 2)
        named = {"mode": mode} if net.opset >= 11 else {}
        return net.add("DepthToSpace", [x], out, blocksize=2, **named) if max(shape) < 12 else None
    if shape[2] % 2 == 0 and shape[3] % 2 == 0 and shape[1] < 8:
        return net.add("SpaceToDepth", [x], (shape[0], shape[1] * 4, shape[2] // 2, shape[3] // 2), blocksize=2)
    return None


def resize(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4 or max(shape[2:]) > 8:
        return None
    mode = ("nearest", "linear", "cubic")[net.pick(0, 1, 2)]
    out = (*shape[:2], shape[2] * 2, shape[3] * 2)
    if net.opset < 11:
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        return net.add("Upsample", [x, scales], out, mode="nearest")  # onnx.reference knows no other
    none = "" if net.opset >= 13 else net.constant(np.array([], np.float32))  # what is not given became optional
    if net.chance(0.5):
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        return net.add("Resize", [x, none, scales], out, mode=mode)
    sizes = net.constant(np.array(out, np.int64))
    return net.add("Resize", [x, none, none, sizes], out, mode=mode, coordinate_transformation_mode="asymmetric")


def pad(net: Net, x: str) -> str | None:
    shape = net.shapes[x]
    if len(shape) != 4 or min(shape[2:]) < 2 or max(shape[2:]) > 8:
        return None
    mode = ("reflect", "edge", "constant", "constant")[net.pick(0, 1, 2, 3)]
    along_channels = mode == "constant" and net.chance(0.2)
    amounts = [0, int(along_channels), 1, 0, 0, 0, 0, 1]
    if net.opset < 11:
        out = (shape[0], shape[1] + int(along_channels), shape[2] + 1, shape[3] + 1)
        return net.add("Pad", [x], out, pads=amounts, mode=mode, value=float(net.pick(0, 1)))
    inputs = [x, net.constant(np.array(amounts, np.int64))]
    if mode == "constant" and net.chance(0.5):
        inputs.append(net.constant(np.array(float(net.pick(0, 1)), np.float64)))
    return net.add("Pad", inputs, (shape[0], shape[1] + int(along_channels), shape[2] + 1, shape[3] + 1), mode=mode)


def divide(net: Net, x: str, sizes: list[int], shapes: list[tuple[int, ...]], axis: int) -> list[str]:
    """Split, whose sizes are an input since opset 13."""
    if net.opset < 13:
        return net.several("Split", [x], shapes, axis=axis, split=sizes)
    return net.several("Split", [x, net.constant(np.array(sizes, np.int64))], shapes, axis=axis)


def choose(net: Net, x: str) -> str | None:
    """Split (one or all outputs go on), Slice, Gather, on a random axis."""
    shape = net.shapes[x]
    axis = net.pick(1, 1, 1, *range(len(shape)))
    size = shape[axis]
    if size < 2:
        return None
    kind = net.pick(0, 1, 2)

    def resized(new: int) -> tuple[int, ...]:
        return (*shape[:axis], new, *shape[axis + 1 :])

    if kind == 0:
        sizes = [1, size - 1]
        parts = divide(net, x, sizes, [resized(part) for part in sizes], axis)
        if net.chance(0.3):
            second = norm(net, parts[1]) or parts[1]
            return net.add("Concat", [second, parts[0]], shape, axis=axis)
        return parts[net.pick(0, 1)]
    if kind == 1 and net.opset < 10:
        return net.add("Slice", [x], resized(size - 1), starts=[1], ends=[2**31], axes=[axis])
    if kind == 1:
        rows: list[list[int]] = [[1], [2**31], [axis], [1]]
        if net.chance(0.4):
            rows = [[-1], [-(2**31)], [axis - len(shape)], [-2]]
        kept = len(range(size)[rows[0][0] : None if rows[3][0] < 0 else size : rows[3][0]])
        return net.add("Slice", [x, *(net.constant(np.array(row, np.int64)) for row in rows)], resized(kept))
    count = net.pick(1, 2, 3)
    indices = net.random.integers(0 if net.opset < 11 else -size, size, count)
    return net.add("Gather", [x, net.constant(indices)], resized(count), axis=axis)


def join(net: Net, x: str) -> str | None:
    """Concat with a second branch, with a constant, or with itself."""
    shape = net.shapes[x]
    axis = net.pick(1, 1, *range(len(shape)))
    kind = net.random.random()
    found: str | None = x
    second = shape
    if 0.1 <= kind < 0.25:
        found = net.normal(*shape)
    elif kind >= 0.25:
        found = _branch(net, x)
        second = shape if found is None else net.shapes[found]
    if found is None or shape[axis] + second[axis] > 12:
        return None
    out = (*shape[:axis], shape[axis] + second[axis], *shape[axis + 1 :])
    return net.add("Concat", [x, found], out, axis=axis)


def _branch(net: Net, x: str) -> str | None:
    """Return a second value of the shape of ``x``, mostly a linear operator's."""
    shape = net.shapes[x]
    same = [name for name, own in net.shapes.items() if own == shape and name != x]
    if same and net.chance(0.15):
        return same[net.pick(*range(len(same)))]
    if len(shape) == 4:
        weight = net.normal(shape[1], shape[1], 1, 1)
        source = next(name for name in reversed(net.shapes) if net.shapes[name] == shape)
        return net.add("Conv", [source, weight], shape)
    return net.add("MatMul", [x, net.normal(shape[-1], shape[-1])], shape)


def total(net: Net, x: str) -> str | None:
    """Add or Sub: of another branch, of a pooled one, of a constant of any shape."""
    shape = net.shapes[x]
    op = ("Add", "Sub")[net.pick(0, 1, 1)]
    kind = net.random.random()
    if kind < 0.3:
        constant = (shape, shape[1:], (1,) * len(shape), ())[net.pick(0, 1, 2, 3)]
        other = net.normal(*constant)
    elif kind < 0.45 and len(shape) == 4:
        other = net.add("Conv", [net.add("GlobalAveragePool", [x], (*shape[:2], 1, 1)), net.normal(shape[1], shape[1], 1, 1)], (*shape[:2], 1, 1))  # fmt: skip
    elif kind < 0.55 and len(shape) == 4:
        other = net.add("Conv", [x, net.normal(1, shape[1], 1, 1)], (shape[0], 1, *shape[2:]))
    elif kind < 0.6:
        other = x
    else:
        found = _branch(net, x)
        if found is None:
            return None
        other = found
    return net.add(op, [x, other] if net.chance(0.5) else [other, x], shape)


def beside(net: Net, x: str) -> str | None:
    """Add or Sub of two branches, of which only the second can take a shift."""
    shape = net.shapes[x]
    if len(shape) != 4:
        return None
    one, other = (net.add("Conv", [x, net.normal(shape[1], shape[1], 1, 1)], shape) for _ in range(2))
    return net.add(("Add", "Sub")[net.pick(0, 1)], [net.add("Relu", [one], shape), other], shape)


def arithmetic(net: Net, x: str) -> str | None:
    """Mul, Add, Sub, Div by a constant that is per channel, scalar, or lies along another axis; Neg."""
    shape = net.shapes[x]
    rank = len(shape)
    op = ("Mul", "Add", "Sub", "Div", "Neg")[net.pick(0, 1, 2, 3, 4)]
    if op == "Neg":
        return net.add(op, [x], shape)
    axis = net.pick(1, 1, rank - 1) if rank > 1 else 0
    sizes = tuple(shape[axis] if position == axis else 1 for position in range(axis, rank))
    constant = net.constant(net.random.uniform(0.5, 2, sizes if net.chance(0.7) else ()))
    return net.add(op, [x, constant] if op == "Div" or net.chance(0.5) else [constant, x], shape)


def stop(net: Net, x: str) -> str | None:
    """What no affine map passes."""
    op = ("Sigmoid", "Tanh", "Elu", "HardSwish")[net.pick(0, 1, 2, 3)]
    return net.add("Elu" if net.opset < 14 and op == "HardSwish" else op, [x], net.shapes[x])


def ahead(net: Net, x: str) -> str | None:
    """A norm that nothing behind it absorbs, then Split or DepthToSpace, then what absorbs it."""
    shape = net.shapes[x]
    if len(shape) != 4:
        return None
    n = norm(net, stop(net, x) or x)
    assert n is not None
    if shape[1] % 4 == 0 and max(shape) < 10 and net.chance(0.6):
        mode, out = ("DCR", "CRD")[net.pick(0, 1)], (shape[0], shape[1] // 4, shape[2] * 2, shape[3] * 2)
        y = net.add("DepthToSpace", [n], out, blocksize=2, **({"mode": mode} if net.opset >= 11 else {}))
        return net.add("Conv", [y, net.normal(4, out[1], 1, 1)], (out[0], 4, *out[2:]))
    if shape[1] < 2:
        return None
    sizes = [1, shape[1] - 1]
    parts = divide(net, n, sizes, [(shape[0], size, *shape[2:]) for size in sizes], 1)
    ends = [
        net.add("Conv", [part, net.normal(4, size, 1, 1)], (shape[0], 4, *shape[2:]))
        for part, size in zip(parts, sizes, strict=True)
    ]
    return net.add("Add", ends, net.shapes[ends[0]])


def parted(net: Net, x: str) -> str | None:
    """A norm whose shift can go back and whose scale can go on."""
    shape = net.shapes[x]
    if len(shape) != 4 or min(shape[2:]) < 2:
        return None
    c = net.add("Conv", [x, net.normal(4, shape[1], 1, 1)], (shape[0], 4, *shape[2:]))
    p = net.add("MaxPool", [c], (shape[0], 4, shape[2] - 1, shape[3] - 1), kernel_shape=[2, 2])
    n = norm(net, p)
    assert n is not None
    return net.add("Conv", [n, net.normal(2, 4, 3, 3)], (shape[0], 2, shape[2] - 1, shape[3] - 1), pads=[1] * 4)


PASSES: tuple[Operator, ...] = (
    identity, last_axis, rectify, rectify, cast, pool, pool, whole, whole, transpose, transpose_there_and_back, reshape, reshape,
    reshape, flatten, wrap, rectify, shuffle, depth, depth, depth, depth, rectify, resize, pad, pad, choose, choose, choose, join, join, total, total, total, beside, whole, arithmetic, ahead, pool, parted,
)  # fmt: skip


def random_graph(seed: int, most: int = 40) -> onnx.ModelProto:
    """Return a model of up to about ``most`` operators: blocks of linear, a few others, a norm, in either order."""
    net = Net(seed)
    current = "x"
    length = net.pick(6, 12, 20, most)
    while len(net.nodes) < length:
        if net.chance(0.15):
            current = stop(net, current) or current
        order: list[Operator] = [
            linear,
            *(PASSES[net.pick(*range(len(PASSES)))] for _ in range(net.pick(0, 1, 1, 1, 2, 3))),
        ]
        if net.opset == 9 and net.chance(0.1):
            order.append(resize)
        order.append(norm)
        if net.chance(0.45):
            order.reverse()
        for operator in order:
            if np.prod(net.shapes[current]) > 3000 or len(net.shapes[current]) < 2:
                current = "x"
            current = operator(net, current) or current
        if len(net.shapes[current]) < 2 or min(net.shapes[current]) < 1:
            current = "x"
    return net.model()


def move_all(proto: onnx.ModelProto) -> tuple[ir.Model, list[Move], list[str]]:
    """Return the model with everything moved that can, the moves, and the reasons of the rest."""
    model = ir.from_proto(proto)
    editor, moves, reasons = Editor(model), [], []
    for _ in range(100):
        constants = Constants(model)
        reading = Reading(model.opset_imports[""], constants, Ranks(constants))
        norms = {(o.root if isinstance(o, NormSite) else o.at): o for o in find_norms(model.graph, reading)}
        outcomes = move_affines(model.graph, norms, reading)
        found = [outcome for outcome in outcomes if isinstance(outcome, Move)]
        for move in found:
            move.carry_out(editor)
        moves += found
        reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Declined)]
        if not found:
            return model, moves, reasons
    raise AssertionError("the motion does not come to an end")


def difference(proto: onnx.ModelProto, model: ir.Model) -> float:
    """Return the largest difference of both in float64, relative to the largest entry of each output."""
    onnx.checker.check_model(ir.to_proto(model))
    random = np.random.default_rng(0)
    shape = tuple(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    feeds = {"x": random.standard_normal(shape)}
    before, after = Oracle(ir.from_proto(proto)).run(feeds), Oracle(model).run(feeds)
    worst = 0.0
    for name, held in before.items():
        if after[name].data.shape != held.data.shape:
            return float("inf")
        scale = max(float(np.abs(held.data).max(initial=0.0)), 1e-3)
        error = float(np.abs(after[name].data - held.data).max(initial=0.0)) / scale
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def count_rules(moves: list[Move]) -> Counter[str]:
    """Return how often each operator was passed, each linear operator absorbed, by direction."""
    counts: Counter[str] = Counter()
    for move in moves:
        names = set()
        for arrow, plan in (("←", move.back), ("→", move.on)):
            names |= {f"{arrow} {node.op_type}" for node in plan.through}
            names |= {f"{arrow} into {node.op_type}" for node, _ in plan.linears}
            names |= {f"{arrow} vanishes: {node.op_type}" for node, _ in plan.gone}
            names |= {f"{arrow} rest" for _ in plan.rests}
        counts.update(names | ({"halves"} if move.back.nodes and move.on.nodes else set()))
    return counts
