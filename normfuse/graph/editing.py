"""The one place that changes a graph.

Recognisers and emitters return a :class:`Replacement`; the :class:`Editor` checks it once for everybody (nobody else
may read what goes away) and carries it out: new names are unique over the model, subgraphs and functions included, no
tensor is edited in place, and nodes and initializers that the change made dead go with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import bodies, subgraphs
from normfuse.graph.site import Declined
from normfuse.graph.tensors import Array, tensor_of


@dataclass(frozen=True, slots=True)
class Replacement:
    """A change that is decided but not done.

    removes: nodes that go. adds: nodes that come, in order, not yet in any graph; None names are given.
    rewires: pairs (old, new): all uses of old, graph outputs included, become uses of new, and new takes old's name.
    initializers: values with a ``const_value`` that the added nodes read; the value's name is a wish.
    functions: what the added nodes call. No overload is written, since onnx.reference ignores them and onnxruntime finds
    none inside a function: it is added to the name where the model has that name for another body. domains: pairs
    (domain, version) of the operators that the added nodes are, where they are not of the default domain.
    """

    removes: tuple[ir.Node, ...]
    adds: tuple[ir.Node, ...]
    rewires: tuple[tuple[ir.Value, ir.Value], ...]
    initializers: tuple[ir.Value, ...] = ()
    functions: tuple[ir.Function, ...] = ()
    domains: tuple[tuple[str, int], ...] = ()


def initializer(name: str, content: ir.TensorProtocol | Array) -> ir.Value:
    """Return a value for ``Replacement.initializers``; an array is rounded to no other type."""
    tensor = tensor_of(content) if isinstance(content, np.ndarray) else content
    shape = ir.Shape(content.shape if isinstance(content, np.ndarray) else content.shape.numpy())
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def describe(node: ir.Node) -> str:
    """Name a node for people: its name, else its operator and first output."""
    return node.name or f"{node.op_type} → {node.outputs[0].name}"


def refusal(replacement: Replacement) -> Declined | None:
    """Return why ``replacement`` would take away a value that something else reads, or None."""
    return removal_refusal(replacement.removes, {old for old, _ in replacement.rewires})


def removal_refusal(removes: Sequence[ir.Node], rewired: Set[ir.Value]) -> Declined | None:
    """The same, asked before the new nodes exist: ``rewired`` are the values that get a successor."""
    removed = set(removes)
    for node in removes:
        for output in node.outputs:
            if output in rewired:
                continue
            if output.is_graph_output():
                return Declined(f"{_result_of(node)} is also a graph output", node)
            for user, _ in output.uses():
                if user in removed:
                    continue
                if user.graph is not node.graph:
                    return Declined(f"{_result_of(node)} is also captured by a subgraph, at '{describe(user)}'", node)
                return Declined(f"{_result_of(node)} is also used by '{describe(user)}'", node)
    return None


def _result_of(node: ir.Node) -> str:
    return f"the result of {node.op_type} '{describe(node)}'"


_FUNCTIONS = 8
"""The IR version that brought model-local functions."""

OWN_DOMAIN = "ai.normfuse"


class Editor:
    """Carries out replacements on one model."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken: set[str] = _names(model)
        self._numbers: dict[str, int] = {}
        self._functions = {function.graph for function in model.functions.values()}
        self._orphans: list[ir.Value] = []
        self._brought: dict[ir.OperatorIdentifier, str] = {}

    def unique(self, wish: str) -> str:
        """Return ``wish``, with a number added where the model already has the name, and reserve it."""
        # Counting goes on where it stopped: the same wish a thousand times must not take a million tries.
        name, number = wish, self._numbers.get(wish, 1)
        while name in self._taken:
            name, number = f"{wish}_{number}", number + 1
        self._numbers[wish] = number
        self._taken.add(name)
        return name

    def apply(self, replacement: Replacement, at: ir.Node, *, behind: bool = False) -> None:
        """Carry out ``replacement``, inserting the new nodes where ``at`` stands, or right behind it.

        Raises ValueError when :func:`refusal` has an objection: callers ask first.
        """
        objection = refusal(replacement)
        if objection is not None:
            raise ValueError(objection.reason)
        container = at.graph
        if container is None:
            raise ValueError(f"node '{describe(at)}' is in no graph")
        renamed = dict(replacement.rewires)
        taken_over = {id(new) for new in renamed.values()}
        self._bring(replacement, container)
        placed = {value: self._place(container, value) for value in replacement.initializers}
        constants = [node for node in placed.values() if node is not None]
        made = {value: node.outputs[0] for value, node in placed.items() if node is not None}
        for node in replacement.adds:
            if node.name is None:
                node.name = self.unique(f"{describe(at)}/{node.op_type}")
            for output in node.outputs:
                # The empty name is an output that is not asked for.
                if id(output) not in taken_over and output.producer() is node and output.name != "":
                    output.name = self.unique(output.name or f"{node.name}_out")
        insert = container.insert_after if behind else container.insert_before
        insert(at, [*constants, *replacement.adds])
        for old, new in replacement.rewires:
            _take_over(old, made.get(new, new))
        doomed = list(dict.fromkeys(replacement.removes))
        feeds = [value for node in doomed for value in self._detach(node)]
        container.remove(doomed)
        self._sweep(feeds)

    def _detach(self, node: ir.Node) -> Iterator[ir.Value]:
        """Make ``node`` read nothing any more; yield what it read and what may have lost its last reader.

        An initializer that only ``node`` reads goes with it.
        """
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value.is_initializer() and len(value.uses()) == 1 and _is_private(value):
                del value.graph.initializers[value.name]  # type: ignore[union-attr, arg-type]
                continue
            node.replace_input_with(index, None)
            yield value

    def finish(self) -> tuple[str, ...]:
        """Remove what the changes left behind, and raise the IR version where functions came in. Returns notes.

        Initializers that lost their readers while they were still listed as graph inputs: called after those inputs
        were taken off the list (below IR 4 every initializer is listed). Bodies of ai.normfuse that nobody calls.
        """
        for value in self._orphans:
            if value.is_initializer() and not value.is_graph_input() and not value.uses() and value.graph is not None:
                value.graph.initializers.pop(str(value.name), None)
        self._orphans.clear()
        self._drop_bodies()
        version = self._model.ir_version
        if not self._model.functions or version >= _FUNCTIONS:
            return ()
        self._model.ir_version = _FUNCTIONS
        return (f"IR version {version} → {_FUNCTIONS}: the operators of {OWN_DOMAIN} are functions",)

    def _drop_bodies(self) -> None:
        model = self._model
        if OWN_DOMAIN not in model.opset_imports:
            return
        graphs = (model.graph, *(f.graph for f in model.functions.values() if f.domain != OWN_DOMAIN))
        nodes = [node for graph in graphs for node in graph.all_nodes() if node.domain == OWN_DOMAIN]
        called = {node.op_identifier() for node in nodes}
        for identifier in [key for key in model.functions if key[0] == OWN_DOMAIN and key not in called]:
            del model.functions[identifier]
        if not nodes and not any(key[0] == OWN_DOMAIN for key in model.functions):
            del model.opset_imports[OWN_DOMAIN]

    def keeps_name(self, function: ir.Function, before: ir.Function | None = None) -> bool:
        """Whether ``function`` gets its name without its overload: no other body has it, nor that of ``before``."""
        wished = (function.domain, function.name, "")
        held = self._model.functions.get(wished)
        if before is not None and before.overload != function.overload:
            return False
        # What was brought under this name with this overload is known to be the same without a look.
        return held is None or self._brought.get(wished) == function.overload or _same(held, function)

    def _bring(self, replacement: Replacement, container: ir.Graph | ir.Function) -> None:
        """Add the functions that the new nodes call, and import their domains where the nodes will stand."""
        model = self._model
        for function in replacement.functions:
            overload = function.overload
            name = function.name if self.keeps_name(function) else f"{function.name}_{overload}"
            for node in replacement.adds:
                if node.op_identifier() == function.identifier():
                    node.op_type, node.overload = name, ""
            function.name, function.overload = name, ""
            self._brought.setdefault(function.identifier(), overload)
            if function.identifier() not in model.functions:
                # onnx.reference knows what a function calls only where that comes before it.
                known = dict(model.functions)
                model.functions.clear()
                model.functions.update({function.identifier(): function, **known})
        for domain, version in replacement.domains:
            self._imports(container).setdefault(domain, version)
            # A function's domains must be known to the model that holds it too (onnxruntime).
            model.opset_imports.setdefault(domain, version)

    def _imports(self, container: ir.Graph | ir.Function) -> dict[str, int]:
        """Return the opset imports that hold in ``container``: those of its function, else the model's."""
        for function in self._model.functions.values():
            if container is function.graph or any(container is graph for graph in function.subgraphs()):
                return function.opset_imports
        return self._model.opset_imports

    def _place(self, container: ir.Graph, value: ir.Value) -> ir.Node | None:
        """Register ``value`` as an initializer; in a function, which has none, return a Constant node that makes it."""
        value.name = self.unique(value.name or "constant")
        if container not in self._functions:
            container.register_initializer(value)
            return None
        tensor = value.const_value
        assert tensor is not None
        node = ir.node("Constant", [], attributes={"value": tensor}, name=self.unique(f"{value.name}/Constant"))
        output = node.outputs[0]
        output.name, output.type, output.shape = self.unique(f"{value.name}_value"), value.type, value.shape
        value.replace_all_uses_with(output)
        return node

    def _sweep(self, values: Iterable[ir.Value]) -> None:
        """Remove what the change left without a reader: initializers, and producers whose outputs are all unread."""
        queue = list(values)
        while queue:
            value = queue.pop()
            if value.uses() or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is not None:
                if producer.graph is None or any(out.uses() or out.is_graph_output() for out in producer.outputs):
                    continue
                queue.extend(inner for inner in producer.inputs if inner is not None)
                queue.extend(_captured(producer))
                producer.graph.remove(producer, safe=True)
            elif value.is_initializer() and value.graph is not None:
                if value.is_graph_input():
                    self._orphans.append(value)
                else:
                    value.graph.initializers.pop(str(value.name), None)


def _same(one: ir.Function, other: ir.Function) -> bool:
    """Whether two functions compute the same: the same nodes between the same inputs, outputs, attributes and opsets."""
    first, second = (ir.to_proto(function) for function in (one, other))
    for proto in (first, second):
        proto.ClearField("overload")
        proto.ClearField("value_info")
    return bool(first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True))


def _is_private(value: ir.Value) -> bool:
    """Whether an initializer is nothing to callers: no input that they may override, no result."""
    return not value.is_graph_input() and not value.is_graph_output()


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Give every use of ``old``, its name, type, shape and metadata to ``new``."""
    if new.shape is None or old.is_graph_output():
        new.shape = old.shape
    if new.type is None or old.is_graph_output():
        new.type = old.type
    if old.metadata_props:
        new.metadata_props.update(old.metadata_props)
    if old.meta:
        new.meta.update(old.meta)  # onnx_ir keeps quantization annotations here
    if new.doc_string is None:
        new.doc_string = old.doc_string
    name, old.name = old.name, None
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Yield every value that the subgraphs of ``node`` read."""
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            yield from (value for value in inner.inputs if value is not None)


def _names(model: ir.Model) -> set[str]:
    """Return every name of a value or a node in the model."""
    names: set[str | None] = set()
    for graph, _ in bodies(model):
        names.update(value.name for value in graph.inputs)
        names.update(graph.initializers)
        for node in graph:
            names.add(node.name)
            names.update([value.name for value in node.outputs])
            # What a node reads is named above, but for what onnx_ir does not carry (sparse initializers).
            names.update([value.name for value in node.inputs if value is not None])
    return {name for name in names if name}
