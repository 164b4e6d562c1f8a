"""Float64 evaluation of any model: the truth that both graphs are judged by.

A model is cloned, its functions are inlined, and it is interpreted node by node. Float tensors of every type are
held as float64 (Cast, CastLike, Constant, ConstantOfShape and DequantizeLinear included), integer paths are
untouched. With each value goes its nominal type, the one that the graph gives it: rounding is imitated by it. Random
operators draw the same numbers in every run (:mod:`draws`).

Raises OracleCannotRun for an operator that neither we nor onnx.reference know, and past the limits of :mod:`costs`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normfuse.validate import op_basic, op_indexing, op_linear, op_norms, op_pool, op_sampling
from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, OracleCannotRun, OracleFailed
from normfuse.validate.control import Control
from normfuse.validate.costs import Limits, Run
from normfuse.validate.decisions import decides
from normfuse.validate.draws import draw
from normfuse.validate.fallback import Fallback
from normfuse.validate.held import Held, nominal_type
from normfuse.validate.noise import Noise
from normfuse.validate.perturbing import Perturbation
from normfuse.validate.rounding import Array, is_float, widen
from normfuse.validate.scopes import (
    captured_values,
    constant_values,
    drawn_name,
    is_control,
    is_random,
    label,
    normal_domain,
)

OPERATORS: dict[OperatorKey, Operator] = {
    **op_basic.OPERATORS,
    **op_indexing.OPERATORS,
    **op_linear.OPERATORS,
    **op_norms.OPERATORS,
    **op_pool.OPERATORS,
    **op_sampling.OPERATORS,
}
# Widened initializers are kept between runs up to this many bytes.
_KEPT_BYTES = 2**31
# The largest float16; a result beyond it is rounded to infinity.
_HALF_MAXIMUM = 65504.0

# What NumPy raises for operands that do not fit each other; anything else is a defect of ours and shows as such.
_MISFITS = (
    ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError, AttributeError, np.exceptions.AxisError,
)  # fmt: skip


class Oracle:
    """A model, ready to be evaluated in float64 any number of times. The model given is not changed.

    beside: of another model with much the same weights; those that are equal are held once.
    """

    def __init__(self, model: ir.Model, limits: Limits | None = None, *, beside: Oracle | None = None) -> None:
        clone = model.clone()
        if clone.functions:
            try:
                InlinePass()(clone)
            except Exception as error:
                # onnx_ir wraps whatever went wrong (an opset that differs, a cycle) in its own PassError.
                raise OracleCannotRun("", "a model-local function", f"it cannot be inlined: {error}") from error
        clone.graph.sort()
        self.model = clone
        self.graph = clone.graph
        self.nodes: tuple[ir.Node, ...] = tuple(clone.graph)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.limits = limits or Limits()
        self.opsets = {normal_domain(domain): version for domain, version in clone.opset_imports.items()}
        self.values = self._named()
        self.last = Run(self.limits)
        self.entered: dict[ir.Graph, int] = {}
        self._fallback = Fallback(self.opsets)
        self._perturbation = Perturbation(frozenset(self.nodes))
        self._types: dict[ir.Value, ir.DataType] = {}
        self._attributes: dict[ir.Node, dict[str, Any]] = {}
        self._constants: dict[ir.Value, Held] = {}
        self._kept = 0
        self._beside = beside
        self._captured = {node: captured_values(node) for node in self.nodes}
        self._constant_values, self._unperturbed = constant_values(self.graph, self.nodes)

    def _named(self) -> dict[str, ir.Value]:
        values = [*self.graph.inputs, *(output for node in self.nodes for output in node.outputs)]
        return {value.name: value for value in values if value.name}

    @functools.cached_property
    def has_half_types(self) -> bool:
        """Whether a value may overflow float16."""
        values = [value for node in self.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value]
        return any(value.dtype == ir.DataType.FLOAT16 for value in values)

    def is_constant(self, value: ir.Value) -> bool:
        """Return whether ``value`` depends on constants and shapes only."""
        return value in self._constant_values

    def jumps(self, nodes: Iterable[ir.Node] | None = None) -> tuple[ir.Node, ...]:
        """Return the nodes (of ``nodes``, else of all) whose result may jump when a computed float moves a little.

        Types are those that the graph states, or that a run has shown.
        """
        found = self.nodes if nodes is None else nodes
        return tuple(node for node in found if decides(node, self._is_computed, self.type_of))

    def _is_computed(self, value: ir.Value) -> bool:
        return value not in self._constant_values

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        """Return the type of ``value``, as the graph states it or a run has shown it; None where neither did."""
        return value.dtype or self._types.get(value)

    def check_weights(self) -> None:
        """Raise OracleCannotRun where the initializers are too large to be evaluated and shaken as a whole."""
        tensors = (value.const_value for value in self.graph.initializers.values())
        size = sum(8.0 * tensor.size for tensor in tensors if tensor is not None)
        if size > self.limits.weight_bytes:
            words = f"{size / 2**30:.1f} GiB of weights in float64, more than {self.limits.weight_bytes / 2**30:.0f}"
            raise OracleCannotRun("", "the whole graph", f"too large: {words}")

    def run(
        self,
        feeds: Mapping[str, Array],
        *,
        capture: Iterable[str] = (),
        noise: Noise | None = None,
        in_range: bool = False,
    ) -> dict[str, Held]:
        """Return the graph's outputs and the ``capture``d values by name.

        feeds: by input name, in the input's own type or wider. Raises OracleCannotRun or OracleFailed.
        """
        known: dict[ir.Value, Held] = {}
        for value in self.graph.inputs:
            if value.name is not None and value.name in feeds:
                array = np.asarray(feeds[value.name])
                known[value] = Held(widen(array), value.dtype or ir.DataType.from_numpy(array.dtype))
        wanted = {name: self.values[name] for name in capture if name in self.values}
        targets = [*self.graph.outputs, *wanted.values()]
        found = self.evaluate(known, targets, noise=noise, in_range=in_range)
        return {value.name: found[value] for value in targets if value.name}

    def evaluate(
        self,
        known: Mapping[ir.Value, Held],
        targets: Sequence[ir.Value],
        *,
        noise: Noise | None = None,
        forced: Collection[ir.Graph] = (),
        in_range: bool = False,
    ) -> dict[ir.Value, Held]:
        """Return ``targets`` computed from ``known``: only the nodes between them run, each value is freed after its
        last use. ``noise``, ``forced``, ``in_range``: see :class:`normfuse.validate.costs.Run`; ``last`` keeps what
        this run cost and entered, ``entered`` the most trips of any run that was not forced."""
        nodes = self.needed(known, targets)
        last: dict[ir.Value, int] = {}
        for index, node in enumerate(nodes):
            for value in (*node.inputs, *self._captured[node]):
                if value is not None:
                    last[value] = index
        kept = set(targets)
        env = dict(known)
        run = Run(self.limits, noise, frozenset(forced), in_range)
        self.last = run
        run.live = float(sum(item.nbytes for item in env.values()))
        with np.errstate(all="ignore"):
            for index, node in enumerate(nodes):
                for value, held in zip(node.outputs, self.apply(node, env, run), strict=False):
                    env[value] = held
                    run.live += held.nbytes
                    self._types[value] = held.dtype
                run.check(node)
                for value in {*node.inputs, *self._captured[node]}:
                    if value is not None and last[value] == index and value not in kept and value in env:
                        run.live -= env.pop(value).nbytes
        if not run.forced:
            self.entered.update({body: max(trips, self.entered.get(body, 0)) for body, trips in run.trips.items()})
        return {value: self.lookup(value, env, run) for value in targets}

    def needed(self, known: Mapping[ir.Value, Held], targets: Sequence[ir.Value]) -> list[ir.Node]:
        """Return the nodes that lie between ``known`` and ``targets``, in graph order."""
        seen: set[ir.Node] = set()
        pending = list(targets)
        while pending:
            value = pending.pop()
            producer = value.producer()
            if value in known or producer is None or producer in seen or producer not in self.order:
                continue
            seen.add(producer)
            pending.extend(item for item in (*producer.inputs, *self._captured[producer]) if item is not None)
        return sorted(seen, key=self.order.__getitem__)

    def lookup(self, value: ir.Value, env: Mapping[ir.Value, Held], run: Run) -> Held:
        """Return ``value`` from ``env`` or from its constant tensor. Raises OracleFailed where there is neither."""
        if value in env:
            return env[value]
        tensor = value.const_value
        if tensor is None:
            raise OracleFailed("", f"value '{value.name}'", "it is neither computed, nor an input, nor an initializer")
        held = self._constants.get(value)
        if held is None:
            held = self._held_beside(value.name, tensor) or Held(widen(tensor.numpy()), tensor.dtype)
            if self._kept + held.nbytes < _KEPT_BYTES:
                self._constants[value] = held
                self._kept += held.nbytes
        if run.noise is None or not is_float(held.dtype) or value in self._unperturbed:
            return held
        return self._perturbation.shaken(value, held, run.noise)

    def _held_beside(self, name: str | None, tensor: ir.TensorProtocol) -> Held | None:
        """Return an initializer as the oracle beside this one holds it, where it is the same there, bit by bit."""
        if self._beside is None or name is None:
            return None
        other = self._beside.graph.initializers.get(name)
        held = None if other is None else self._beside._constants.get(other)
        if other is None or held is None or other.const_value is None:
            return None
        mine, theirs = tensor.numpy(), other.const_value.numpy()
        is_same = (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape) and mine.tobytes() == theirs.tobytes()
        return held if is_same else None

    def release(self) -> None:
        """Let go of the widened initializers, and of the shaken ones; they are made again when they are asked for."""
        self._perturbation.release()
        self._constants.clear()
        self._kept = 0

    def apply(self, node: ir.Node, env: dict[ir.Value, Held], run: Run) -> list[Held]:
        """Return the outputs of one node."""
        if is_control(node):
            return self._controlled(node, env, run)
        inputs = [None if value is None else self.lookup(value, env, run) for value in node.inputs]
        data = [None if item is None else item.data for item in inputs]
        call = self.call(node)
        is_drawn = is_random(node)
        results = list(draw(call, drawn_name(node), data)) if is_drawn else self._compute(node, call, data)
        run.count(call, data, results)
        held = [Held(item, nominal_type(call, item, inputs)) for item in results]
        if run.in_range:
            held = [_overflowed(item) for item in held]
        noise = run.noise
        if noise is None or (is_drawn and node.op_type != "Dropout"):
            return held
        if node.op_type == "Constant":
            if node.outputs[0] in self._unperturbed or not is_float(held[0].dtype):
                return held
            return [self._perturbation.shaken(node.outputs[0], held[0], noise)]
        if node.outputs[0] in self._constant_values:
            return held
        return [
            self._perturbation.perturbed(node, call, data, item, index, inputs, noise)
            for index, item in enumerate(held)
        ]

    def _controlled(self, node: ir.Node, env: dict[ir.Value, Held], run: Run) -> list[Held]:
        try:
            return Control(self, env, run).run(node)
        except _MISFITS as error:
            raise OracleFailed(label(node), node.op_type, f"{error}") from error

    def call(self, node: ir.Node) -> Call:
        """Return what an operator is told about its node."""
        domain = normal_domain(node.domain)
        if node not in self._attributes:
            self._attributes[node] = {name: attribute.value for name, attribute in node.attributes.items()}
        asked = tuple(bool(output.name) for output in node.outputs)
        return Call(node.op_type, domain, self.opsets.get(domain, 1), self._attributes[node], asked)

    def _compute(self, node: ir.Node, call: Call, data: list[Any]) -> list[Any]:
        operator = OPERATORS.get((call.domain, call.op))
        if operator is None:
            return self._fallback.run(node, data)
        while data and data[-1] is None:
            data = data[:-1]
        try:
            return list(operator(call, *data))
        except NotOurs:
            return self._fallback.run(node, data)
        except MemoryError as error:
            raise OracleCannotRun(label(node), node.op_type, "too large: out of memory") from error
        except _MISFITS as error:
            raise OracleFailed(label(node), node.op_type, f"{error}") from error

    def forget(self) -> None:
        """Drop what perturbed runs have collected: it belongs to one set of inputs."""
        self._perturbation.forget()


def _overflowed(held: Held) -> Held:
    """Return a float16 value with infinity where it is beyond the type's range."""
    if held.dtype != ir.DataType.FLOAT16 or not isinstance(held.data, np.ndarray):
        return held
    # Round to nearest: half a unit beyond the largest number still rounds to it.
    beyond = np.abs(held.data) >= _HALF_MAXIMUM + 16.0
    return Held(np.where(beyond, np.copysign(np.inf, held.data), held.data), held.dtype) if beyond.any() else held
