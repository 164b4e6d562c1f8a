"""The sizes of values along their axes, as far as the graph proves them, without running shape inference."""

from __future__ import annotations

import math

import onnx_ir as ir

from normfuse.graph.reading import has_parameters, input_at, is_standard
from normfuse.graph.reductions import FUNCTIONS
from normfuse.graph.site import Reading
from normfuse.passes.slices import kept
from normfuse.passes.spread import Dims
from normfuse.recognise.dims import dims_of

_SAME = frozenset(
    "Identity Cast Dropout Relu LeakyRelu PRelu Sigmoid Tanh Elu Selu HardSigmoid HardSwish Clip Softplus Erf Gelu "
    "Abs Neg Sqrt Exp BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LRN".split()
)
_WINDOWS = frozenset("MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split())


class Sizes:
    """Sizes of the values of a graph that does not change meanwhile; each value is looked at once."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._known: dict[ir.Value, Dims | None] = {}
        self._visited: set[ir.Graph] = set()

    def of(self, value: ir.Value | None) -> Dims | None:
        """Return the size of each axis, None for an unknown one; None where not even the rank is known."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        dims = self._look(value)
        self._known[value] = dims
        return dims

    def integers(self, value: ir.Value | None) -> Dims | None:
        """Return a vector of integers that is constant or computed from sizes; None for an entry that is not known."""
        constant = self._reading.constants.integers(value)
        if constant is not None or value is None:
            return constant
        found = dims_of(value, self._reading, size_of=self._along)
        if not isinstance(found, tuple):
            return None
        return tuple(size if isinstance(size, int) else None for size in found)

    def _along(self, value: ir.Value, axis: int) -> int | None:
        dims = self.of(value)
        return None if dims is None or axis >= len(dims) else dims[axis]

    def _look(self, value: ir.Value) -> Dims | None:
        stated = _stated(value)
        if stated is not None and None not in stated:
            return stated
        tensor = self._reading.constants.tensor(value)
        if tensor is not None:
            return tuple(int(size) for size in tensor.shape.numpy())
        graph = value.graph
        if graph is not None and graph not in self._visited:
            self._visited.add(graph)
            for node in graph:
                self._visit(node)
        return self._known[value] if value in self._known else self._fallback(value)

    def _fallback(self, value: ir.Value) -> Dims | None:
        stated = _stated(value)
        if stated is not None:
            return stated
        rank = self._reading.ranks.of(value)
        return None if rank is None else (None,) * rank

    def _visit(self, node: ir.Node) -> None:
        outputs = self._outputs(node) if is_standard(node) and not has_parameters(node) else None
        for index, output in enumerate(node.outputs):
            if output in self._known:
                continue
            found = outputs[index] if outputs is not None and index < len(outputs) else None
            if found is not None and output.shape is None:
                self._known[output] = found
                continue
            other = self._fallback(output)
            if found is None or other is None or len(found) != len(other):
                self._known[output] = other if other is not None else found
            else:
                self._known[output] = tuple(a if a is not None else b for a, b in zip(other, found, strict=True))

    def _outputs(self, node: ir.Node) -> list[Dims | None] | None:
        x = self.of(input_at(node, 0))
        if x is None:
            return None
        op = node.op_type
        if op in _SAME:
            return [x]
        if op in _WINDOWS and len(x) >= 2:
            kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
            spatial = (1,) * (len(x) - 2) if op.startswith("Global") else _windows(node, x[2:], kernel)
            return [(*x[:2], *spatial)] * len(node.outputs)
        if op in ("Conv", "ConvTranspose"):
            w = self.of(input_at(node, 1))
            group = node.attributes.get_int("group", 1)
            if w is None or len(w) != len(x):
                return None
            if op == "Conv":
                return [(x[0], w[0], *_windows(node, x[2:], w[2:]))]
            return [(x[0], None if w[1] is None else w[1] * group, *_spreads(node, x[2:], w[2:]))]
        if op in ("Gemm", "MatMul"):
            return self._product(node, x)
        if op in ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min"):
            return self._broadcast(node)
        return self._moved(node, x)

    def _product(self, node: ir.Node, x: Dims) -> list[Dims | None] | None:
        w = self.of(input_at(node, 1))
        if w is None or len(w) < 2 or len(x) < 2:
            return None
        if node.op_type == "Gemm":
            rows = x[1] if node.attributes.get_int("transA", 0) else x[0]
            return [(rows, w[0] if node.attributes.get_int("transB", 0) else w[1])]
        rank = max(len(x), len(w))
        batch = _joined([x[:-2], w[:-2]], rank - 2)
        return [None if batch is None else (*batch, x[-2], w[-1])]

    def _broadcast(self, node: ir.Node) -> list[Dims | None] | None:
        if self._reading.opset < 7:
            return [self.of(input_at(node, 0))]
        found = [self.of(value) for value in node.inputs]
        known = [dims for dims in found if dims is not None]
        if len(known) != len(found):
            return None
        return [_joined(known, max(len(dims) for dims in known))]

    def _moved(self, node: ir.Node, x: Dims) -> list[Dims | None] | None:
        op, rank = node.op_type, len(x)
        if op == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(range(rank))[::-1])
            return [tuple(x[axis] for axis in perm)]
        if op == "Concat":
            axis = node.attributes.get_int("axis", 1) % rank
            parts = [self.of(value) for value in node.inputs]
            sizes = [None if part is None or len(part) != rank else part[axis] for part in parts]
            known = [size for size in sizes if size is not None]
            total = sum(known) if len(known) == len(sizes) else None
            return [(*x[:axis], total, *x[axis + 1 :])]
        if op == "Reshape":
            target = self.integers(input_at(node, 1))
            if target is None or (0 in target and node.attributes.get_int("allowzero", 0) != 0):
                return None
            return [reshaped(x, target)]
        if op == "Flatten":
            axis = node.attributes.get_int("axis", 1)
            axis = axis + rank if axis < 0 else axis
            return [(_product_of(x[:axis]), _product_of(x[axis:]))]
        if op in ("Squeeze", "Unsqueeze", *FUNCTIONS):
            return self._axes_changed(node, x)
        if op == "Gather":
            indices, axis = self.of(input_at(node, 1)), node.attributes.get_int("axis", 0) % rank
            return None if indices is None else [(*x[:axis], *indices, *x[axis + 1 :])]
        if op == "Split":
            return self._split(node, x)
        if op in ("Slice", "Pad", "Resize", "Upsample"):
            return [self._partly(node, x)]
        return None

    def _split(self, node: ir.Node, x: Dims) -> list[Dims | None]:
        axis = node.attributes.get_int("axis", 0) % len(x)
        stated = self.integers(input_at(node, 1))
        parts: tuple[int | None, ...] = stated or tuple(node.attributes.get_ints("split", ()))
        if len(parts) != len(node.outputs):
            total, count = x[axis], len(node.outputs)
            even = input_at(node, 1) is None and total is not None and total % count == 0
            parts = ((total or 0) // count if even else None,) * count
        return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]

    def _partly(self, node: ir.Node, x: Dims) -> Dims:
        """Keep the sizes of the axes that a Slice, Pad or Resize leaves alone, and follow those that are stated."""
        constants, rank = self._reading.constants, len(x)
        touched: set[int] | None = None
        if node.op_type == "Slice":
            picked = kept(node, x, self.integers)
            if picked is None:
                return (None,) * rank
            lengths = {axis: None if indices is None else len(indices) for axis, indices in picked.items()}
            return tuple(lengths.get(axis, size) for axis, size in enumerate(x))
        if node.op_type == "Pad":
            pads = constants.integers(input_at(node, 1)) or tuple(node.attributes.get_ints("pads", ()))
            if len(pads) == 2 * rank and input_at(node, 3) is None:
                touched = {axis for axis in range(rank) if pads[axis] or pads[axis + rank]}
        else:
            place = 2 if node.op_type == "Resize" and self._reading.opset >= 11 else 1
            scales = constants.array(input_at(node, place))
            cropped = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
            if cropped or "axes" in node.attributes:
                return (None,) * rank
            if scales is not None and scales.size == rank:
                touched = {axis for axis in range(rank) if float(scales.reshape(-1)[axis]) != 1.0}
            elif node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch":
                target = self.integers(input_at(node, 3))
                if target is not None and len(target) == rank:
                    return target
        return tuple(None if touched is None or axis in touched else size for axis, size in enumerate(x))

    def _axes_changed(self, node: ir.Node, x: Dims) -> list[Dims | None] | None:
        value = input_at(node, 1)
        axes = self._reading.constants.integers(value)
        if value is None and "axes" in node.attributes:
            axes = tuple(node.attributes["axes"].as_ints())
        if axes is None:
            return None
        if node.op_type == "Unsqueeze":
            rank = len(x) + len(axes)
            new = {axis % rank for axis in axes}
            rest = iter(x)
            return [tuple(1 if axis in new else next(rest) for axis in range(rank))]
        gone = {axis % len(x) for axis in axes}
        if node.op_type in FUNCTIONS and (not gone or node.attributes.get_int("keepdims", 1) != 0):
            return [tuple(1 if axis in gone else size for axis, size in enumerate(x))] if gone else None
        return [tuple(size for axis, size in enumerate(x) if axis not in gone)]


def _stated(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _windows(node: ir.Node, x: Dims, kernel: Dims) -> Dims:
    """Return how many windows of a Conv or a pooling fit along each axis: ⌊(x + pads − ((k − 1)·d + 1)) / s⌋ + 1.

    With SAME padding it is ⌈x / s⌉. Not followed: ceil_mode, whose last window may begin in the padding.
    """
    rank, attributes = len(x), node.attributes
    ones, auto = (1,) * rank, attributes.get_string("auto_pad", "NOTSET")
    strides, dilations = (tuple(attributes.get_ints(name, ())) or ones for name in ("strides", "dilations"))
    pads = tuple(attributes.get_ints("pads", ())) or (0,) * (2 * rank)
    if len(kernel) != rank or len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        return (None,) * rank
    if attributes.get_int("ceil_mode", 0):
        return (None,) * rank
    sizes: list[int | None] = []
    for axis, (size, taps) in enumerate(zip(x, kernel, strict=True)):
        if size is None or taps is None:
            plain = taps == 1 and auto == "NOTSET" and strides[axis] == 1 and not pads[axis] and not pads[axis + rank]
            sizes.append(size if plain else None)
        elif auto.startswith("SAME"):
            sizes.append(-(-size // strides[axis]))
        else:
            padding = 0 if auto == "VALID" else pads[axis] + pads[axis + rank]
            sizes.append(max((size + padding - (taps - 1) * dilations[axis] - 1) // strides[axis] + 1, 0))
    return tuple(sizes)


def _spreads(node: ir.Node, x: Dims, kernel: Dims) -> Dims:
    """Return the sizes of what a ConvTranspose writes: s·(x − 1) + output_padding + (k − 1)·d + 1 − pads.

    A stated output_shape stands. With SAME padding it is s·x, and where a kernel is too short for that runtimes differ.
    """
    rank, attributes = len(x), node.attributes
    stated = tuple(attributes.get_ints("output_shape", ()))
    if len(stated) == rank:
        return stated
    ones, auto = (1,) * rank, attributes.get_string("auto_pad", "NOTSET")
    strides, dilations = (tuple(attributes.get_ints(name, ())) or ones for name in ("strides", "dilations"))
    added = tuple(attributes.get_ints("output_padding", ())) or (0,) * rank
    pads = tuple(attributes.get_ints("pads", ())) or (0,) * (2 * rank)
    if stated or not len(strides) == len(dilations) == len(added) == rank or len(pads) != 2 * rank:
        return (None,) * rank
    sizes: list[int | None] = []
    for axis, (size, taps) in enumerate(zip(x, kernel, strict=True)):
        if size is None or taps is None:
            sizes.append(None)
            continue
        padding = pads[axis] + pads[axis + rank] if auto == "NOTSET" else 0
        whole = strides[axis] * (size - 1) + added[axis] + (taps - 1) * dilations[axis] + 1 - padding
        if auto.startswith("SAME"):
            same = strides[axis] * size
            sizes.append(same if same <= whole else None)
        else:
            sizes.append(whole)
    return tuple(sizes)


def _product_of(dims: Dims) -> int | None:
    return None if None in dims else math.prod(size or 0 for size in dims)


def _joined(shapes: list[Dims], rank: int) -> Dims | None:
    """Return the shape that ``shapes`` broadcast to."""
    result: list[int | None] = []
    for axis in range(-rank, 0):
        sizes = [dims[axis] for dims in shapes if len(dims) >= -axis]
        large = [size for size in sizes if size is not None and size != 1]
        result.append(large[0] if large else None if None in sizes else 1)
    return tuple(result)


def reshaped(x: Dims, target: Dims) -> Dims | None:
    """Return the shape that a Reshape of ``x`` to ``target`` gives: 0 keeps a size, -1 is what is left."""
    if any(size == 0 and axis >= len(x) for axis, size in enumerate(target)):
        return None
    sizes: list[int | None] = [x[axis] if size == 0 else size for axis, size in enumerate(target)]
    if -1 in sizes:
        # What both sides share beside the -1 cancels, known or not: a kept axis is the same number on both sides.
        kept = {axis for axis, size in enumerate(target) if size == 0}
        numerator = _product_of(tuple(size for axis, size in enumerate(x) if axis not in kept))
        others = _product_of(tuple(size for axis, size in enumerate(target) if axis not in kept and size != -1))
        known = numerator is not None and others and numerator % others == 0
        sizes[target.index(-1)] = (numerator or 0) // others if known and others else None
    return tuple(sizes)
