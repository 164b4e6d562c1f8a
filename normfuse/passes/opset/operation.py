"""One operator on its way from version to version, and what a rule may ask and write.

A rule takes an :class:`Operation` as one version of the operator spells it and returns it as the neighbouring version
does; or it writes the operation in other operators of the target opset and returns the values that take the place of
the outputs. Where neither is exact it raises :class:`NoEquivalent`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.emit.writing import Draft, detach, is_detached
from normfuse.graph.constants import Array
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Reading
from normfuse.passes.opset.folding import evaluate


class NoEquivalent(Exception):
    """The target opset cannot say what the operation does. The text is a reason, a lower-case clause."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator with its operands and attributes, apart from any node; None stands for an omitted input."""

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, ir.Attr]
    outputs: int = 1

    def operand(self, index: int) -> ir.Value | None:
        """Return input ``index``, None where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def x(self) -> ir.Value:
        """Return the first input."""
        value = self.operand(0)
        if value is None:
            raise NoEquivalent("its first input is missing")
        return value

    def attribute(self, name: str) -> Any:
        """Return the value of an attribute, None where it is absent. Refuses a parameter of a function."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise NoEquivalent(f"attribute '{name}' is a parameter of the function")
        return attribute.value

    def integer(self, name: str, default: int) -> int:
        """Return an attribute of type INT."""
        value = self.attribute(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """Return an attribute of type FLOAT, at the float32 precision in which it is stored."""
        value = self.attribute(name)
        return float(np.float32(default if value is None else value))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute of type INTS, None where it is absent."""
        value = self.attribute(name)
        return None if value is None else tuple(int(entry) for entry in value)

    def text(self, name: str, default: str) -> str:
        """Return an attribute of type STRING."""
        value = self.attribute(name)
        return default if value is None else str(value)

    def having(self, **attributes: int | float | str | Sequence[int] | Sequence[float]) -> Operation:
        """Return the operation with these attributes set."""
        added = {name: ir.convenience.convert_attribute(name, value) for name, value in attributes.items()}
        return replace(self, attributes={**self.attributes, **added})

    def without(self, *names: str) -> Operation:
        """Return the operation without these attributes."""
        return replace(self, attributes={name: own for name, own in self.attributes.items() if name not in names})

    def reading(self, *inputs: ir.Value | None) -> Operation:
        """Return the operation with these inputs; omitted ones at the end are dropped."""
        count = len(inputs)
        while count and inputs[count - 1] is None:
            count -= 1
        return replace(self, inputs=inputs[:count])

    def named(self, op_type: str) -> Operation:
        """Return the operation under another name."""
        return replace(self, op_type=op_type)


def operation_of(node: ir.Node) -> Operation:
    """Return what ``node`` does, apart from the node."""
    inputs = tuple(None if value is None or value.name == "" else value for value in node.inputs)
    return Operation(node.op_type, (), dict(node.attributes), len(node.outputs)).reading(*inputs)


Result = Operation | tuple[ir.Value, ...]
Rule = Callable[[Operation, "Context"], Result]


class Context(Draft):
    """What a rule knows of the graph around ``node``, and the operators of the target opset that it writes."""

    def __init__(self, node: ir.Node, target: int, reading: Reading, *, in_function: bool = False) -> None:
        super().__init__(target, reading.constants)
        self.node = node
        self.source = reading.opset
        self.in_function = in_function
        self.caveats: list[str] = []
        self._reading = reading
        self._known = reading.constants
        self._ranks = reading.ranks

    def at(self, opset: int) -> Context:
        """Return a context of the same node that writes at another opset."""
        return Context(self.node, opset, self._reading, in_function=self.in_function)

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of axes of ``value`` where it is proven."""
        return self._ranks.of(value)

    def rank_of(self, value: ir.Value) -> int:
        """Return the number of axes of ``value``. Refuses where it is unknown."""
        rank = self._ranks.of(value)
        if rank is None:
            raise NoEquivalent(f"the rank of '{value.name}' is unknown")
        return rank

    def type_of(self, value: ir.Value | None) -> ir.DataType:
        """Return the type of ``value``. Refuses where it is unknown."""
        if value is not None and value.dtype is not None:
            return value.dtype
        tensor = self._known.tensor(value)
        if tensor is None:
            raise NoEquivalent(f"the type of '{'' if value is None else value.name}' is unknown")
        return tensor.dtype

    def dims(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Return the sizes of ``value``, None for each unknown one; None where not even their number is known."""
        tensor = self._known.tensor(value)
        if tensor is not None:
            return tuple(int(dim) for dim in tensor.shape.numpy())
        if value.shape is None:
            return None
        return tuple(dim if isinstance(dim, int) else None for dim in value.shape)

    def array(self, value: ir.Value | None) -> Array | None:
        """Return a constant, also one that small operators compute from constants; None where it is none."""
        array = super().array(value)
        return array if array is not None or value is None else evaluate(value, self._known, self.source)

    def known(self, value: ir.Value, what: str) -> Array:
        """Return the constant ``value``. Refuses where it is not constant."""
        array = self.array(value)
        if array is None:
            raise NoEquivalent(f"its {what} must be constant; '{value.name}' {self._known.obstacle(value)}")
        return array

    def known_integers(self, value: ir.Value, what: str) -> tuple[int, ...]:
        """Return the constant integers ``value``. Refuses where it is not constant."""
        return tuple(int(entry) for entry in self.known(value, what).reshape(-1))

    def add(self, node: ir.Node) -> None:
        """Write ``node``, whose constants come from this context."""
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, self._placed(value))
        self._nodes.append(node)

    def discard_all(self) -> None:
        """Let go of everything written so far."""
        detach(self._nodes)
        self._nodes.clear()
        self._initializers.clear()

    def scalar(self, name: str, number: float, like: ir.Value) -> ir.Value:
        """Write a constant without axes, in the type of ``like``."""
        return self.constant(name, np.asarray(number), self.type_of(like))

    def vector(self, name: str, numbers: npt.ArrayLike, like: ir.Value) -> ir.Value:
        """Write a constant in the type of ``like``."""
        return self.constant(name, np.asarray(numbers), self.type_of(like))

    def boolean(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        """Write an operator whose result is bool."""
        return self.op(op_type, *inputs, dtype=ir.DataType.BOOL)

    def shape(self, x: ir.Value) -> ir.Value:
        """Write Shape."""
        result, rank = self.op("Shape", x, dtype=ir.DataType.INT64), self.rank(x)
        result.shape = None if rank is None else ir.Shape([rank])
        return result

    def flattened(self, x: ir.Value, axis: int) -> ir.Value:
        """Write Flatten."""
        return self.op("Flatten", x, axis=axis)

    def unsqueezed(self, x: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        """Write Unsqueeze: axes are an attribute before version 13."""
        if self.opset < 13:
            return self.op("Unsqueeze", x, axes=axes)
        return self.op("Unsqueeze", x, self.integers("axes", axes))

    def sliced(self, x: ir.Value, start: int, end: int) -> ir.Value:
        """Write Slice along the first axis: the bounds are attributes before version 10."""
        if self.opset < 10:
            return self.op("Slice", x, axes=(0,), starts=(start,), ends=(end,))
        bounds = (self.integers(name, (entry,)) for name, entry in (("starts", start), ("ends", end), ("axes", 0)))
        return self.op("Slice", x, *bounds)

    def replacing(self, result: Result) -> Replacement:
        """Return the replacement of the node by what was written, and by ``result`` at its end."""
        node = self.node
        if isinstance(result, Operation):
            written = ir.Node(
                node.domain, result.op_type, [self._placed(value) for value in result.inputs],
                list(result.attributes.values()), num_outputs=result.outputs, name=node.name,
                doc_string=node.doc_string, metadata_props=dict(node.metadata_props),
            )  # fmt: skip
            self._nodes.append(written)
            values: Sequence[ir.Value] = written.outputs
        else:
            values = [self._named_apart(value) for value in result]
        rewires = tuple(zip(node.outputs, values, strict=False))
        for old, new in rewires:
            if old.shape is not None:
                new.shape = old.shape.copy()
            if old.type is not None:
                new.type = old.type
        read = {value for added in self._nodes for value in added.inputs if value is not None}
        read.update(values)
        kept = tuple(value for value in self._initializers if value in read)
        return Replacement((node,), tuple(self._nodes), rewires, kept)

    def _named_apart(self, value: ir.Value) -> ir.Value:
        """Return a value that can take over the name of an output: a new one, and no constant that a graph returns."""
        producer = value.producer()
        if producer is not None and any(producer is node for node in self._nodes):
            return value
        if is_detached(value) and not self.in_function and not self.node.outputs[0].is_graph_output():
            return value
        return self.op("Identity", value, dtype=value.dtype)
