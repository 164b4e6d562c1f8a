"""The bodies of the operators of ``ai.normfuse``: functions in the model, for every runtime that has no kernel for them.

A body can neither branch nor see an operand that is missing, so there is one per operator, opset, type of x and
operands present. It knows neither the rank nor the channels of x; attributes are its parameters, but below opset 12,
where Constant cannot refer to one: there each set of attributes has a body of its own.

Statistics are means of deviations, never E[x²] − E[x]², in float32 for half types. Where onnxruntime has the kernels,
groups are normalised by InstanceNormalization between two Reshapes and scaled by BatchNormalization, which is 2 to
3 times as fast as onnxruntime's GroupNormalization; where it has not (float64, CUDA at opset 22), means are taken.
A batch of zero is a limit: a Reshape cannot infer an axis of an empty tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.emit.standard import UNIT_EPSILON
from normfuse.emit.writing import Draft
from normfuse.graph.constants import Constants
from normfuse.spec import Activation

DOMAIN = "ai.normfuse"
VERSION = 1
NORMS = ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
SUFFIXES = {Activation.NONE: "", Activation.RELU: "Relu", Activation.SILU: "Silu", Activation.GELU: "Gelu"}

CONSTANTS_REFER = 12
"""Constant takes numbers as attributes, which may refer to an attribute of the function, from version 12 on."""
_STEADY_BATCHNORM = 14
"""From here on BatchNormalization has training_mode, and onnx.reference takes the statistics that it is given."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a body depends on.

    norm: one of NORMS. dtype: the type of every operand and result. literals: attributes that the body holds as numbers,
    () where it refers to them. by_means: whether groups and channels are normalised by means, not InstanceNormalization.
    """

    norm: str
    opset: int
    dtype: ir.DataType
    scale: bool = True
    bias: bool = True
    residual: bool = False
    sum: bool = False
    activation: Activation = Activation.NONE
    channels_last: bool = False
    literals: tuple[tuple[str, int | float], ...] = ()
    by_means: bool = False

    @property
    def operator(self) -> str:
        """Return the name that kernels are registered under: ``AddLayerNorm``, ``GroupNormSilu``."""
        add, last = "Add" if self.residual else "", "ChannelsLast" if self.channels_last else ""
        return f"{add}{self.norm}{SUFFIXES[self.activation]}{last}{'WithSum' if self.sum else ''}"

    @property
    def is_complete(self) -> bool:
        """Whether every operand of the operator is there: γ and β, but an RMS norm has no β."""
        return self.scale and self.bias is (self.norm != "RMSNorm")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the positions of the operands, those that are missing included."""
        return ("x", "residual", "scale", "bias") if self.residual else ("x", "scale", "bias")

    @property
    def key(self) -> str:
        """Return what tells two bodies of one operator apart, as a part of a name: ``opset17_float_scale_bias``."""
        parts = [f"opset{self.opset}", self.dtype.name.lower()]
        parts += [name for name in ("scale", "bias", "by_means") if getattr(self, name)]
        for name, value in self.literals:
            # The bits of a float, since a name cannot hold a point or a sign.
            bits = f"{np.float32(value).view(np.uint32):08x}" if isinstance(value, float) else str(value)
            parts.append(f"{name}_{bits}".replace("-", "minus"))
        return "_".join(parts)


def literals(opset: int, attributes: dict[str, int | float]) -> tuple[tuple[str, int | float], ...]:
    """Return the attributes that a body of ``opset`` holds as numbers, since it cannot refer to them."""
    return tuple(sorted(attributes.items())) if opset < CONSTANTS_REFER else ()


def body(signature: Signature) -> ir.Function:
    """Return the function of ``signature``: inputs as it names them; outputs y and, where it has it, the sum.

    A position whose operand is missing is an input that nothing reads. The key is the overload, which tells the editor
    how to name a second body of the same operator; what is complete may have the operator's name for itself.
    """
    return _Body(signature).function()


_DEFAULTS: dict[str, dict[str, int | float]] = {
    "GroupNorm": {"num_groups": 1},
    "InstanceNorm": {},
    "LayerNorm": {"axis": -1},
    "RMSNorm": {"axis": -1},
}


class _Body(Draft):
    """Writes one function. Constants are nodes, for a function has no initializers."""

    def __init__(self, key: Signature) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": key.opset})
        super().__init__(key.opset, Constants(ir.Model(graph, ir_version=10)))
        self.key = key
        self.wide = ir.DataType.DOUBLE if key.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        self.by_means = key.by_means or self.wide == ir.DataType.DOUBLE
        self.inputs = {name: ir.Value(name=name, type=ir.TensorType(key.dtype)) for name in key.inputs}

    def function(self) -> ir.Function:
        key = self.key
        x = self.cast(self.inputs["x"], self.wide)
        if key.residual:
            x = self.op("Add", x, self.cast(self.inputs["residual"], self.wide))
        y = {
            "GroupNorm": self._group_norm,
            "InstanceNorm": self._instance_norm,
            "LayerNorm": self._trailing_norm,
            "RMSNorm": self._trailing_norm,
        }[key.norm](x)
        outputs = [self._named(self.activated(y, key.activation), "y")]
        if key.sum:
            outputs.append(self._named(x, "sum"))
        for number, node in enumerate(self._nodes):
            node.name = f"{node.op_type}_{number}"
            for index, output in enumerate(node.outputs):
                output.name = output.name or f"t{number}" + (f"_{index}" if index else "")
        last = max(index for index, name in enumerate(key.inputs) if getattr(key, name, True))
        inputs = list(self.inputs.values())[: last + 1]
        graph = ir.Graph(inputs, outputs, nodes=self._nodes, opset_imports={"": key.opset}, name="body")
        # A file keeps no types of values inside a function: without them here, saving and loading changes nothing.
        for value in (*inputs, *(output for node in self._nodes for output in node.outputs)):
            value.type = value.shape = None
        defaults = {"epsilon": 1e-5, **_DEFAULTS[key.norm]}
        attributes = [ir.convenience.convert_attribute(name, value) for name, value in defaults.items()]
        name = key.operator if key.is_complete else f"{key.operator}_{key.key}"
        return ir.Function(DOMAIN, name, key.key, graph=graph, attributes=attributes)

    def _named(self, value: ir.Value, name: str) -> ir.Value:
        """Return ``value`` in the type of x, under a name of its own: an output is no input, and is listed once."""
        if value.dtype != self.key.dtype:
            value = self.op("Cast", value, dtype=self.key.dtype, to=int(self.key.dtype))
        elif value.producer() is None or value.name is not None:
            value = self.op("Identity", value)
        value.name = name
        return value

    # Numbers

    def constant(self, name: str, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """Write a Constant node; before version 9 it is of float types only."""
        if dtype == ir.DataType.INT64 and self.opset < 9:
            return self.op("Cast", self.constant(name, array, ir.DataType.FLOAT), dtype=dtype, to=int(dtype))
        tensor = ir.tensor(np.asarray(array).astype(dtype.numpy()), dtype=dtype, name=name)
        return self.op("Constant", dtype=dtype, value=tensor)

    def _attribute(self, name: str, dtype: ir.DataType) -> ir.Value:
        """Return the number of an attribute: int64 of shape (1), or a scalar of ``dtype``."""
        is_integer = name in ("num_groups", "axis")
        literals = dict(self.key.literals)
        if name in literals:
            value = [literals[name]] if is_integer else literals[name]
            return self.constant(name, value, dtype)
        if is_integer:
            reference = ir.RefAttr("value_int", name, ir.AttributeType.INT)
            return self.op("Reshape", self._constant_of(reference, ir.DataType.INT64), self.integers("one", [1]))
        reference = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
        return self.cast(self._constant_of(reference, ir.DataType.FLOAT), dtype)

    def _constant_of(self, reference: ir.Attr, dtype: ir.DataType) -> ir.Value:
        value = self.op("Constant", dtype=dtype)
        node = value.producer()
        assert node is not None
        node.attributes.add(reference)
        return value

    def _refer(self, value: ir.Value, *names: str) -> ir.Value:
        """Give the node of ``value`` the attributes ``names`` of the function."""
        node = value.producer()
        assert node is not None
        for name in names:
            kind = ir.AttributeType.FLOAT if name == "epsilon" else ir.AttributeType.INT
            node.attributes.add(ir.RefAttr(name, name, kind))
        return value

    def _filled(self, shape: ir.Value, fill: float) -> ir.Value:
        """Write a tensor of ``shape`` full of ``fill`` (opset 9 and up)."""
        tensor = ir.tensor(np.full(1, fill, self.wide.numpy()), dtype=self.wide)
        return self.op("ConstantOfShape", shape, dtype=self.wide, value=tensor)

    def _like(self, vector: ir.Value, fill: float) -> ir.Value:
        """Write ``fill`` in the shape of a parameter."""
        if self.opset >= 9:
            return self._filled(self.op("Shape", vector, dtype=ir.DataType.INT64), fill)
        return self.op("Add", self.op("Sub", vector, vector), self.constant("fill", fill, self.wide))

    def _parameter(self, name: str) -> ir.Value | None:
        return self.cast(self.inputs[name], self.wide) if getattr(self.key, name) else None

    # Norms

    def _group_norm(self, x: ir.Value) -> ir.Value:
        first = self._channels_first(x) if self.key.channels_last else x
        groups = self._attribute("num_groups", ir.DataType.INT64)
        zero, rest = self.integers("batch", [0]), self.integers("rest", [-1])
        grouped = self.op("Reshape", first, self.op("Concat", zero, groups, rest, axis=0))
        if self.by_means:
            y = self._normalised(grouped, 2)
        else:
            literals = dict(self.key.literals)
            if literals:
                ones, zeros = (self.constant(n, np.full(literals["num_groups"], f), self.wide) for n, f in _UNITS)
            else:
                ones, zeros = (self._filled(groups, fill) for _, fill in _UNITS)
            y = self._refer(self.op("InstanceNormalization", grouped, ones, zeros), "epsilon")
        y = self._scaled(y, first)
        return self._channels_last(y, x) if self.key.channels_last else y

    def _instance_norm(self, x: ir.Value) -> ir.Value:
        first = self._channels_first(x) if self.key.channels_last else x
        scale, bias = self._parameter("scale"), self._parameter("bias")
        present = scale if scale is not None else bias
        if self.by_means or (present is None and self.opset < 9):
            y = self.op("Reshape", first, self.integers("channels", (0, 0, -1)))
            y = self._scaled(self._normalised(y, 2), first)
        else:
            if present is None:
                channels = self._slice(self.op("Shape", first, dtype=ir.DataType.INT64), 1, 2)
                scale, bias = (self._filled(channels, fill) for _, fill in _UNITS)
            else:
                scale = self._like(present, 1.0) if scale is None else scale
                bias = self._like(present, 0.0) if bias is None else bias
            y = self._refer(self.op("InstanceNormalization", first, scale, bias), "epsilon")
        return self._channels_last(y, x) if self.key.channels_last else y

    def _trailing_norm(self, x: ir.Value) -> ir.Value:
        key = self.key
        scale, bias = self._parameter("scale"), self._parameter("bias")
        if scale is not None and key.norm == "LayerNorm" and self.opset >= 17:
            operands = [scale] if bias is None else [scale, bias]
            return self._refer(self.op("LayerNormalization", x, *operands), "axis", "epsilon")
        if scale is not None and bias is None and key.norm == "RMSNorm" and self.opset >= 23:
            return self._refer(self.op("RMSNormalization", x, scale), "axis", "epsilon")
        rows = self._rows(x)
        y = self.back(self._normalised(rows, 1, centred=key.norm == "LayerNorm"), x)
        y = y if scale is None else self.op("Mul", y, scale)
        return y if bias is None else self.op("Add", y, bias)

    def _rows(self, x: ir.Value) -> ir.Value:
        """Return x with the axes from ``axis`` on as one, and those before it as another.

        onnx.reference gives Flatten no attribute of a function, so that it is written only where its axis is a number.
        """
        literals = dict(self.key.literals)
        if literals:
            return self.op("Flatten", x, axis=literals["axis"])
        end = self.integers("end", [np.iinfo(np.int64).max])
        shape = self.op("Shape", x, dtype=ir.DataType.INT64)
        normalised = self.op("Slice", shape, self._attribute("axis", ir.DataType.INT64), end)
        size = self.op("ReduceProd", normalised, keepdims=1)
        return self.op("Reshape", x, self.op("Concat", self.integers("rest", [-1]), size, axis=0))

    def _normalised(self, x: ir.Value, axis: int, *, centred: bool = True) -> ir.Value:
        """Write ``(x − mean) / sqrt(mean((x − mean)²) + ε)`` along ``axis``."""
        deviation = self.op("Sub", x, self.mean(x, (axis,))) if centred else x
        variance = self.mean(self.op("Mul", deviation, deviation), (axis,))
        return self.op(
            "Div", deviation, self.op("Sqrt", self.op("Add", variance, self._attribute("epsilon", self.wide)))
        )

    def _scaled(self, y: ir.Value, x: ir.Value) -> ir.Value:
        """Write ``y · γ + β`` per channel in the shape of x, for any rank.

        One BatchNormalization of mean 0 and variance 1 reads y once. Below version 14 onnx.reference mixes statistics of
        the batch into it: there y is seen as (N, C, rest).
        """
        scale, bias = self._parameter("scale"), self._parameter("bias")
        present = scale if scale is not None else bias
        if present is None:
            return self.back(y, x)
        if self.opset < _STEADY_BATCHNORM:
            channels = self.op("Shape", present, dtype=ir.DataType.INT64)
            zero, rest = self.integers("batch", [0]), self.integers("rest", [-1])
            y = self.op("Reshape", y, self.op("Concat", zero, channels, rest, axis=0))
            for op_type, parameter in (("Mul", scale), ("Add", bias)):
                if parameter is not None:
                    y = self.op(op_type, y, self.op("Reshape", parameter, self.integers("column", (-1, 1))))
            return self.back(y, x)
        scale = self._like(present, 1.0) if scale is None else scale
        bias = self._like(present, 0.0) if bias is None else bias
        mean, variance = self._like(present, 0.0), self._like(present, 1.0 - UNIT_EPSILON)
        return self.op("BatchNormalization", self.back(y, x), scale, bias, mean, variance, epsilon=UNIT_EPSILON)

    # Channels last: (N, *positions, C) is seen as (N, C, L), with the positions on one axis

    def _channels_first(self, x: ir.Value) -> ir.Value:
        channels = self._slice(self.op("Shape", x, dtype=ir.DataType.INT64), -1, np.iinfo(np.int64).max)
        shape = self.op("Concat", self.integers("rows", [0, -1]), channels, axis=0)
        return self.transposed(self.op("Reshape", x, shape), (0, 2, 1))

    def _channels_last(self, y: ir.Value, x: ir.Value) -> ir.Value:
        return self.back(self.transposed(y, (0, 2, 1)), x)

    def _slice(self, shape: ir.Value, start: int, end: int) -> ir.Value:
        """Write a Slice of a vector: bounds are attributes before version 10."""
        if self.opset < 10:
            return self.op("Slice", shape, starts=[start], ends=[end])
        return self.op("Slice", shape, self.integers("start", [start]), self.integers("end", [end]))


_UNITS = (("ones", 1.0), ("zeros", 0.0))
