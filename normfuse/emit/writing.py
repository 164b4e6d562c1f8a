"""A small vocabulary for writing graphs: operators as the opset spells them, constants, types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.graph.constants import Constants
from normfuse.graph.editing import Replacement, initializer
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite
from normfuse.spec import Activation, ComputeType, Trailing

Array = npt.NDArray[np.generic]

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (*HALVES, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SAME_SHAPE = frozenset(
    {
        "Cast",
        "Sigmoid",
        "Relu",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
    }
)
OLDEST_OPSET = 7
"""Opset 7 brought NumPy broadcasting to Mul and Add; what is written here relies on it."""


class Draft:
    """The nodes and constants of one replacement, in the order in which they are written."""

    def __init__(self, opset: int, constants: Constants) -> None:
        self.opset = opset
        self._constants = constants
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        outputs: int = 1,
        domain: str = "",
        overload: str = "",
        **attributes: object,
    ) -> ir.Value:
        """Write a node and return its first output, of type ``dtype`` (that of the first input by default)."""
        operands = [self._placed(value) for value in inputs]
        node = ir.node(
            op_type,
            operands,
            attributes=attributes or None,  # type: ignore[arg-type]
            domain=domain,
            overload=overload,
            num_outputs=outputs,
        )
        kind = dtype if dtype is not None else (None if operands[0] is None else operands[0].dtype)
        if kind is not None:
            for value in node.outputs:
                value.dtype = kind
        # A later reader must find axes and channels without shape inference.
        if op_type in _SAME_SHAPE and operands[0] is not None:
            node.outputs[0].shape = copied(operands[0].shape)
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """Return an initializer of ``array``, rounded once to ``dtype``."""
        wide = np.asarray(array)
        value = initializer(name, ir.tensor(wide.astype(dtype.numpy()), dtype=dtype, name=name))
        self._initializers.append(value)
        return value

    def integers(self, name: str, entries: Sequence[int]) -> ir.Value:
        """Return an initializer of int64: a shape, or axes."""
        return self.constant(name, np.asarray(entries, np.int64), ir.DataType.INT64)

    def array(self, value: ir.Value | None) -> Array | None:
        """Return the array of a constant, also of one that is in no graph yet; None where ``value`` is not constant."""
        if value is None:
            return None
        if is_detached(value):
            assert value.const_value is not None
            return np.asarray(value.const_value.numpy())
        return self._constants.array(value)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return ``value`` in ``dtype``: as it is, as a constant of that type, or through a Cast."""
        if value.dtype == dtype:
            return value
        array = self.array(value)
        if array is not None:
            return self.constant(f"{value.name}_{dtype.name.lower()}", array, dtype)
        return self.op("Cast", value, dtype=dtype, to=int(dtype))

    def reshaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Return a parameter in ``shape``, which may hold one -1: as it is, as a constant, or through a Reshape."""
        if _has_shape(value, shape):
            return value
        array = self.array(value)
        if array is not None:
            assert value.name is not None
            assert value.dtype is not None
            return self.constant(value.name, array.reshape(shape), value.dtype)
        source, dtype = _unviewed(value), value.dtype
        if _has_shape(source, shape):
            return source
        result = self.op("Reshape", source, self.integers("parameter_shape", shape), dtype=dtype)
        if min(shape, default=1) > 0:
            result.shape = ir.Shape(shape)
        return result

    def mean(self, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        """Write ReduceMean with kept dimensions: axes are an attribute before version 18, an input from then on."""
        if self.opset < 18:
            return self.op("ReduceMean", value, axes=axes, keepdims=1)
        return self.op("ReduceMean", value, self.integers("axes", axes), keepdims=1)

    def back(self, value: ir.Value, x: ir.Value) -> ir.Value:
        """Write a Reshape of ``value`` to the shape of ``x``, whatever the batch."""
        result = self.op("Reshape", value, self.op("Shape", x, dtype=ir.DataType.INT64))
        result.shape = copied(x.shape)
        return result

    def transposed(self, value: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        """Write Transpose."""
        result = self.op("Transpose", value, perm=perm)
        if value.shape is not None:
            result.shape = ir.Shape([value.shape[axis] for axis in perm])
        return result

    def activated(self, value: ir.Value, activation: Activation, slope: float = 0.0) -> ir.Value:
        """Write the activation; SiLU as Sigmoid and Mul, GELU with the error function. slope: of a leaky ReLU."""
        match activation:
            case Activation.NONE:
                return value
            case Activation.RELU:
                return self.op("Relu", value)
            case Activation.LEAKY_RELU:
                return self._leaky_relu(value, slope)
            case Activation.SILU:
                return self.op("Mul", value, self.op("Sigmoid", value))
            case Activation.GELU:
                return self._gelu(value)
            case _:
                assert_never(activation)

    def _leaky_relu(self, value: ir.Value, slope: float) -> ir.Value:
        """Write LeakyRelu, for bfloat16 in float32; for float64 ``max(y, slope · y)``: onnxruntime's CPU has it for float32."""
        if value.dtype == ir.DataType.DOUBLE and 0.0 <= slope <= 1.0:
            scaled = self.op("Mul", value, self.constant("slope", slope, ir.DataType.DOUBLE))
            return self.op("Max", value, scaled)
        wide = ir.DataType.FLOAT if value.dtype == ir.DataType.BFLOAT16 else value.dtype
        return self.op("LeakyRelu", value if wide is None else self.cast(value, wide), alpha=slope)

    def _gelu(self, value: ir.Value) -> ir.Value:
        dtype = value.dtype
        assert dtype is not None
        error = self.op("Erf", self.op("Div", value, self.constant("sqrt_two", np.sqrt(2.0), dtype)))
        half = self.op("Mul", value, self.constant("half", 0.5, dtype))
        return self.op("Mul", half, self.op("Add", error, self.constant("one", 1.0, dtype)))

    def replacement(
        self,
        site: NormSite,
        rewires: Sequence[tuple[ir.Value, ir.Value]],
        *,
        functions: tuple[ir.Function, ...] = (),
        domains: tuple[tuple[str, int], ...] = (),
    ) -> Replacement:
        """Return what was written as the replacement of ``site``; each new value takes over one old one."""
        for old, new in rewires:
            # What the file says of the result stays as it is said, names of symbolic axes included.
            if old.shape is not None:
                new.shape = copied(old.shape)
        read = {value for node in self._nodes for value in node.inputs if value is not None}
        return Replacement(
            removes=site.interior,
            adds=tuple(self._nodes),
            rewires=tuple(rewires),
            initializers=tuple(value for value in self._initializers if value in read),
            functions=functions,
            domains=domains,
        )

    def discard(self, reason: str, site: NormSite) -> Declined:
        """Let go of everything written so far and return the reason."""
        detach(self._nodes)
        return Declined(reason, site.root)

    def _placed(self, value: ir.Value | None) -> ir.Value | None:
        """Register a constant that a recogniser computed with the initializers."""
        if value is not None and is_detached(value) and not any(value is known for known in self._initializers):
            self._initializers.append(value)
        return value


def detach(nodes: Sequence[ir.Node]) -> None:
    """Take nodes that will not be used away from the values they read, which otherwise count them as readers."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def copied(shape: ir.Shape | None) -> ir.Shape | None:
    """Return a shape of its own: two values that share one would change together."""
    return None if shape is None else shape.copy()


def is_detached(value: ir.Value) -> bool:
    """Whether ``value`` is a constant that a recogniser computed, in no graph yet."""
    return value.const_value is not None and value.graph is None and value.producer() is None


def _unviewed(value: ir.Value) -> ir.Value:
    """Return the value of which ``value`` is a view: the entries are the same, in the same order."""
    view = value.producer()
    while view is not None and is_op(view, "Unsqueeze", "Squeeze", "Reshape", "Flatten") and view.inputs[0] is not None:
        value = view.inputs[0]
        view = value.producer()
    return value


def _has_shape(value: ir.Value, shape: tuple[int, ...]) -> bool:
    if value.shape is None or value.shape.rank() != len(shape):
        return False
    wild = sum(size == -1 for size in shape)
    return wild <= 1 and all(size in (-1, own) for size, own in zip(shape, value.shape, strict=True))


def type_of(site: NormSite) -> ir.DataType | None:
    """Return the type of x, from the output or the parameters where the file does not state it."""
    operands = site.operands
    for value in (operands.x, site.output, operands.scale, operands.bias):
        if value is not None and value.dtype is not None:
            return value.dtype
    return None


def output_type(site: NormSite) -> ir.DataType | None:
    """Return the type of the result. RMSNormalization gives it the type of scale where that differs from x."""
    if site.output.dtype is not None:
        return site.output.dtype
    scale = site.operands.scale
    if not site.spec.centred and scale is not None and scale.dtype is not None:
        return scale.dtype
    return type_of(site)


def wide_type(site: NormSite) -> ir.DataType:
    """Return the type of statistics and affine: float32, or float64 where an operand or the norm asks for it."""
    operands = site.operands
    values = (operands.x, site.output, operands.scale, operands.bias, operands.mean, operands.var)
    doubles = any(value is not None and value.dtype == ir.DataType.DOUBLE for value in values)
    doubles = doubles or site.spec.compute_type is ComputeType.DOUBLE
    return ir.DataType.DOUBLE if doubles else ir.DataType.FLOAT


def unwritable(site: NormSite, opset: int) -> Declined | None:
    """Say why no form can be written for ``site`` in a model of ``opset``."""
    dtype = type_of(site)
    if opset < OLDEST_OPSET:
        return Declined(f"opset {opset} is older than {OLDEST_OPSET}, the oldest that is written", site.root)
    if dtype is None:
        return Declined(f"the type of '{site.operands.x.name}' is unknown (run shape inference)", site.root)
    if dtype not in FLOATS:
        return Declined(f"'{site.operands.x.name}' is of type {dtype.name}; norms are of float types", site.root)
    if opset < 13 and ir.DataType.BFLOAT16 in (dtype, output_type(site)):
        return Declined(f"bfloat16 needs opset 13; the model is at opset {opset}", site.root)
    if opset < 9 and site.spec.activation is Activation.GELU:
        return Declined(f"GELU needs Erf of opset 9; the model is at opset {opset}", site.root)
    return None


def role(site: NormSite, output: ir.Value) -> str:
    """Name an extra output: the sum of x and residual, the mean, or the inverse deviation.

    LayerNormalization-17: (Y, Mean, InvStdDev). onnxruntime: SimplifiedLayerNormalization (Y, inv_std_var),
    SkipGroupNorm (Y, S), the other Skip operators (Y, mean, inv_std_var, sum). ai.normfuse: (y, sum).
    """
    if output is site.mean or output is site.inverse_deviation:
        return "mean" if output is site.mean else "inverse deviation"
    index, op_type = output.index(), site.root.op_type
    if output.producer() is not site.root or index is None or site.root.domain == "ai.normfuse":
        return "sum"
    if op_type == "SkipGroupNorm" or index == 3:
        return "sum"
    if op_type == "SimplifiedLayerNormalization" or index == 2:
        return "inverse deviation"
    return "mean"


def lies_along(site: NormSite) -> bool:
    """Whether γ and β are known to vary along normalised axes only: RMSNormalization-23 takes a γ of the shape of x."""
    assert isinstance(site.spec.statistics, Trailing)
    count = len(site.spec.statistics.axes)
    present = (site.operands.scale, site.operands.bias)
    return all(
        value is None or (value.shape is not None and all(size == 1 for size in list(value.shape)[:-count]))
        for value in present
    )


def sizes_of(value: ir.Value, count: int) -> tuple[int, ...] | None:
    """Return the sizes of the last ``count`` axes; None where one is unknown."""
    if value.shape is None or value.shape.rank() < count:
        return None
    sizes = [size for size in list(value.shape)[-count:] if isinstance(size, int)]
    return tuple(sizes) if len(sizes) == count else None


def channel_count(site: NormSite) -> int | None:
    """Return C, from the shape of x or of a parameter that lies along the channels."""
    x = site.operands.x
    if x.shape is not None and x.shape.rank() >= 2:
        size = x.shape[site.spec.channel_axis]
        if isinstance(size, int):
            return size
    if site.spec.affine.axes.value != "channel":
        return None
    for value in (site.operands.scale, site.operands.bias):
        if value is not None and value.shape is not None and value.shape.is_static():
            return int(np.prod(value.shape.numpy(), dtype=np.int64))
    return None
