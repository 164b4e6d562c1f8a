"""Types and shapes that rules need and the file does not state: inferred, lent to the model, and taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx_ir as ir

from normfuse.graph.editing import Replacement
from normfuse.graph.inference import infer
from normfuse.graph.reading import bodies


class Annotations:
    """What was lent, with what the file states in its place."""

    def __init__(self) -> None:
        self._stated: dict[ir.Value, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}

    def lend(self, value: ir.Value, type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> None:
        """Give ``value`` what it lacks."""
        if (value.type is None and type_ is not None) or (value.shape is None and shape is not None):
            self._stated.setdefault(value, (value.type, value.shape))
            value.type = type_ if value.type is None else value.type
            value.shape = shape if value.shape is None else value.shape

    def take_back(self, replacement: Replacement) -> None:
        """Let a value that took over from another say no more than the file said of that."""
        for old, new in replacement.rewires:
            if old in self._stated:
                new.type, new.shape = self._stated[old]

    def take_back_all(self) -> None:
        """Let every value say what the file says."""
        for value, (type_, shape) in self._stated.items():
            value.type, value.shape = type_, shape


@contextmanager
def inferred(model: ir.Model) -> Iterator[Annotations]:
    """Give every value of ``model`` the type and shape that onnx infers, where the file states none, until the end.

    Weights are not read. A function's values get the types and shapes in which all its calls agree.
    """
    lent = Annotations()
    try:
        if any(value.type is None or value.shape is None for graph, _ in bodies(model) for value in _results(graph)):
            _infer(model, lent)
        yield lent
    finally:
        lent.take_back_all()


def _infer(model: ir.Model, lent: Annotations) -> None:
    for found in infer(model):
        lent.lend(found.value, found.type, found.shape)
    for function in _callers_first(model):
        calls = [node for node in _all_nodes(model) if node.op_identifier() == function.identifier()]
        _infer_function(model, function, calls, lent)


def _callers_first(model: ir.Model) -> list[ir.Function]:
    """Return the functions so that each comes after those that call it."""
    order: dict[ir.OperatorIdentifier, ir.Function] = {}

    def visit(function: ir.Function) -> None:
        if function.identifier() in order:
            return
        for node in function.all_nodes():
            called = model.functions.get(node.op_identifier())
            if called is not None and called is not function:
                visit(called)
        order[function.identifier()] = function

    for function in model.functions.values():
        visit(function)
    return list(reversed(order.values()))


def _infer_function(
    model: ir.Model,
    function: ir.Function,
    calls: list[ir.Node],
    lent: Annotations,
) -> None:
    if not calls:
        return
    clone = function.graph.clone()
    for index, (own, copy) in enumerate(zip(function.inputs, clone.inputs, strict=True)):
        given = [node.inputs[index] if index < len(node.inputs) else None for node in calls]
        type_, shape = _agreed(given)
        copy.type, copy.shape = type_ if own.type is None else own.type, shape if own.shape is None else own.shape
    clone.opset_imports.update({**model.opset_imports, **function.opset_imports})
    clone.name = clone.name or "function"
    whole = ir.Model(
        clone, ir_version=model.ir_version, functions=[other.clone() for other in model.functions.values()]
    )
    for found in infer(whole):
        found.value.type = found.value.type or found.type
        found.value.shape = found.value.shape if found.shape is None else found.shape
    inner = (graph for graph in function.subgraphs())
    outer = (graph for graph in whole.graphs() if graph is not clone)
    _lend(function.graph, clone, lent)
    for own_graph, other in zip(inner, outer, strict=False):
        _lend(own_graph, other, lent)


def _agreed(values: list[ir.Value | None]) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """Return the type that all values have, and their shape, as far as they agree."""
    first = values[0]
    if first is None or any(value is None or value.type != first.type for value in values):
        return None, None
    ranks = {None if value is None or value.shape is None else value.shape.rank() for value in values}
    if None in ranks or len(ranks) != 1 or first.shape is None:
        return first.type, None
    dims: list[int | None] = []
    for axis in range(first.shape.rank()):
        sizes = {value.shape[axis] for value in values if value is not None and value.shape is not None}
        size = next(iter(sizes))
        dims.append(size if len(sizes) == 1 and isinstance(size, int) else None)
    return first.type, ir.Shape(dims)


def _lend(own: ir.Graph, other: ir.Graph, lent: Annotations) -> None:
    for value, copy in zip(_values(own), _values(other), strict=True):
        lent.lend(value, copy.type, copy.shape)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from _results(graph)


def _results(graph: ir.Graph) -> Iterable[ir.Value]:
    for node in graph:
        yield from node.outputs


def _all_nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
