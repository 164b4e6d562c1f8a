"""Float64 evaluation of any model: the truth that both graphs are judged by.

A model is cloned, its functions are inlined, and it is interpreted node by node. Float tensors of every type are
held as float64 (Cast, CastLike, Constant, ConstantOfShape and DequantizeLinear included), integer paths are
untouched. With each value goes its nominal type, the one that the graph gives it: rounding is imitated by it.

Limits, each raised as OracleCannotRun: random operators; more than ``Limits.macs`` multiply-adds in one run (counted
as it runs); more than ``Limits.live_bytes`` alive at once; an operator that neither we nor onnx.reference know.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normfuse.validate import op_basic, op_linear, op_norms, op_pool
from normfuse.validate.call import Call, NotOurs, Operator, OperatorKey, OracleCannotRun, OracleFailed
from normfuse.validate.control import Control
from normfuse.validate.fallback import Fallback
from normfuse.validate.noise import DISCONTINUOUS, Noise, deviation
from normfuse.validate.rounding import Array, is_float, unit_roundoff, widen

OPERATORS: dict[OperatorKey, Operator] = {
    **op_basic.OPERATORS,
    **op_linear.OPERATORS,
    **op_norms.OPERATORS,
    **op_pool.OPERATORS,
}

RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_CONTROL = frozenset({"If", "Loop", "Scan"})
_SHAPES = frozenset({"Shape", "Size"})
# Inputs that must keep their exact value when initializers are perturbed: exponents (a negative base would become NaN),
# sizes and factors that decide shapes.
_EXACT_INPUTS = {"Pow": (1,), "Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2), "QuantizeLinear": (1, 2)}
# Widened initializers are kept between runs up to this many bytes.
_KEPT_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class Limits:
    """What one float64 run may cost. 1e11 multiply-adds take about five seconds on two cores."""

    macs: float = 1e11
    live_bytes: float = 6 * 2**30


class Held(NamedTuple):
    """A value as the oracle holds it: float64, integers, bools, a list, or None; and the type that the graph gives
    it."""

    data: Any
    dtype: ir.DataType


def normal_domain(domain: str) -> str:
    """Return "" for both spellings of the default domain."""
    return "" if domain == "ai.onnx" else domain


def random_operator(model: ir.Model) -> ir.Node | None:
    """Return the first node whose result differs from run to run, functions and subgraphs included."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if is_random(node):
                return node
    return None


def is_random(node: ir.Node) -> bool:
    """Return whether ``node`` draws random numbers: a Random operator, or Dropout in training mode."""
    if normal_domain(node.domain) != "":
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        flag = node.inputs[2].const_value
        return flag is None or bool(flag.numpy().any())
    return node.op_type in RANDOM


class Oracle:
    """A model, ready to be evaluated in float64 any number of times. The model given is not changed."""

    def __init__(self, model: ir.Model, limits: Limits | None = None) -> None:
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
        self._fallback = Fallback(self.opsets)
        self._attributes: dict[ir.Node, dict[str, Any]] = {}
        self._constants: dict[ir.Value, Held] = {}
        self._kept = 0
        self._deviations: dict[tuple[ir.Node, int], Array | None] = {}
        self._captured = {node: captured_values(node) for node in self.nodes}
        self._constant_values, self._unperturbed = self._constant_analysis()
        self._macs = 0.0

    def _named(self) -> dict[str, ir.Value]:
        values = [*self.graph.inputs, *(output for node in self.nodes for output in node.outputs)]
        return {value.name: value for value in values if value.name}

    def _constant_analysis(self) -> tuple[frozenset[ir.Value], frozenset[ir.Value]]:
        """Return the values that depend on constants and shapes only, and the constants that must not be perturbed.

        What is computed from shapes ends in shapes: a perturbed Floor(16 · 2.0) would be another size.
        """
        overridable = set(self.graph.inputs)
        constant = {value for value in self.graph.initializers.values() if value not in overridable}
        shaped: set[ir.Value] = set()
        for node in self.nodes:
            if node.op_type in _CONTROL or is_random(node):
                continue
            if node.op_type in _SHAPES or all(value is None or value in constant for value in node.inputs):
                constant.update(node.outputs)
                if node.op_type in _SHAPES or not shaped.isdisjoint(value for value in node.inputs if value):
                    shaped.update(node.outputs)
        exact: set[ir.Value] = set()
        pending = [value for node in self.nodes if node.outputs[0] in shaped for value in node.inputs if value]
        pending += [
            value
            for node in self.graph.all_nodes()
            for index in _EXACT_INPUTS.get(node.op_type, ())
            if index < len(node.inputs) and (value := node.inputs[index]) is not None
        ]
        while pending:
            value = pending.pop()
            producer = value.producer()
            if value in exact or (value not in constant and producer is not None):
                continue
            exact.add(value)
            pending.extend(item for item in (producer.inputs if producer else ()) if item is not None)
        return frozenset(constant), frozenset(exact)

    def jumps(self, nodes: Iterable[ir.Node] | None = None) -> tuple[ir.Node, ...]:
        """Return the nodes (of ``nodes``, else of all) whose result may jump when a computed input moves a little."""
        found = self.nodes if nodes is None else nodes
        return tuple(
            node
            for node in found
            if node.op_type in DISCONTINUOUS
            and not all(value is None or value in self._constant_values for value in node.inputs)
        )

    def run(
        self, feeds: Mapping[str, Array], *, capture: Iterable[str] = (), noise: Noise | None = None
    ) -> dict[str, Held]:
        """Return the graph's outputs and the ``capture``d values by name.

        feeds: by input name, in the input's own type or wider. Raises OracleCannotRun or OracleFailed.
        """
        known: dict[ir.Value, Held] = {}
        for value in self.graph.inputs:
            if value.name is not None and value.name in feeds:
                array = np.asarray(feeds[value.name])
                known[value] = Held(widen(array), value.dtype or _dtype_of(array))
        wanted = {name: self.values[name] for name in capture if name in self.values}
        targets = [*self.graph.outputs, *wanted.values()]
        found = self.evaluate(known, targets, noise=noise)
        return {value.name: found[value] for value in targets if value.name}

    def evaluate(
        self, known: Mapping[ir.Value, Held], targets: Sequence[ir.Value], *, noise: Noise | None = None
    ) -> dict[ir.Value, Held]:
        """Return ``targets`` computed from ``known``: only the nodes between them run, each value is freed after its
        last use."""
        nodes = self.needed(known, targets)
        last: dict[ir.Value, int] = {}
        for index, node in enumerate(nodes):
            for value in (*node.inputs, *self._captured[node]):
                if value is not None:
                    last[value] = index
        kept = set(targets)
        env = dict(known)
        self._macs = 0.0
        live = float(sum(_nbytes(item) for item in env.values()))
        with np.errstate(all="ignore"):
            for index, node in enumerate(nodes):
                for value, held in zip(node.outputs, self.apply(node, env, noise), strict=False):
                    env[value] = held
                    live += _nbytes(held)
                self._check_limits(node, live)
                for value in {*node.inputs, *self._captured[node]}:
                    if value is not None and last[value] == index and value not in kept and value in env:
                        live -= _nbytes(env.pop(value))
        return {value: self.lookup(value, env, noise) for value in targets}

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

    def _check_limits(self, node: ir.Node, live: float) -> None:
        if self._macs > self.limits.macs:
            raise OracleCannotRun(
                _name(node), node.op_type, f"too large: more than {self.limits.macs:.0e} multiply-adds"
            )
        if live > self.limits.live_bytes:
            raise OracleCannotRun(
                _name(node),
                node.op_type,
                f"too large: more than {self.limits.live_bytes / 2**30:.0f} GiB alive at once",
            )

    def lookup(self, value: ir.Value, env: Mapping[ir.Value, Held], noise: Noise | None) -> Held:
        """Return ``value`` from ``env`` or from its constant tensor. Raises OracleFailed where there is neither."""
        if value in env:
            return env[value]
        tensor = value.const_value
        if tensor is None:
            raise OracleFailed("", f"value '{value.name}'", "it is neither computed, nor an input, nor an initializer")
        held = self._constants.get(value)
        if held is None:
            held = Held(widen(tensor.numpy()), tensor.dtype)
            if self._kept + _nbytes(held) < _KEPT_BYTES:
                self._constants[value] = held
                self._kept += _nbytes(held)
        if noise is None or not is_float(held.dtype) or value in self._unperturbed:
            return held
        return Held(self._shaken(held, noise, value.name or ""), held.dtype)

    def _shaken(self, held: Held, noise: Noise, name: str) -> Array:
        """Return an initializer times 1 + u·U(−1, 1)."""
        draw = _generator(noise, name).random(held.data.shape, dtype=np.float32)
        draw -= np.float32(0.5)
        # In place: this runs over every weight of every perturbed run.
        shaken: Array = np.multiply(held.data, draw, dtype=np.float64)
        shaken *= 2.0 * noise.scale * unit_roundoff(held.dtype)
        shaken += held.data
        return shaken

    def apply(self, node: ir.Node, env: dict[ir.Value, Held], noise: Noise | None) -> list[Held]:
        """Return the outputs of one node."""
        if is_random(node):
            raise OracleCannotRun(_name(node), node.op_type, "its result differs from run to run")
        if node.op_type in _CONTROL and normal_domain(node.domain) == "":
            return Control(self, env, noise).run(node)
        inputs = [None if value is None else self.lookup(value, env, noise) for value in node.inputs]
        data = [None if item is None else item.data for item in inputs]
        call = self.call(node)
        results = self._compute(node, call, data)
        self._macs += _macs(call, data, results)
        held = [Held(item, nominal_type(call, item, inputs)) for item in results]
        if noise is None:
            return held
        if node.op_type == "Constant":
            if node.outputs[0] in self._unperturbed or not is_float(held[0].dtype):
                return held
            return [Held(self._shaken(held[0], noise, node.outputs[0].name or ""), held[0].dtype)]
        if node.outputs[0] in self._constant_values:
            return held
        return [self._perturbed(node, call, data, item, index, inputs, noise) for index, item in enumerate(held)]

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
            raise OracleCannotRun(_name(node), node.op_type, "too large: out of memory") from error
        except (ValueError, TypeError, IndexError, ZeroDivisionError, AttributeError, np.exceptions.AxisError) as error:
            # What NumPy raises for operands that do not fit each other; anything else is a defect of ours and shows as
            # such.
            raise OracleFailed(_name(node), node.op_type, f"{error}") from error

    def _perturbed(
        self,
        node: ir.Node,
        call: Call,
        data: list[Any],
        held: Held,
        index: int,
        inputs: list[Held | None],
        noise: Noise,
    ) -> Held:
        if not is_float(held.dtype) or not isinstance(held.data, np.ndarray):
            return held
        if call.op in ("Cast", "CastLike"):
            source = inputs[0].dtype if inputs[0] is not None else held.dtype
            if is_float(source) and unit_roundoff(source) >= unit_roundoff(held.dtype):
                return held
        key = (node, index)
        top_level = node in self.order
        if top_level and key in self._deviations and _fits(self._deviations[key], held.data):
            spread = self._deviations[key]
        else:
            spread = self._deviation(call, data, held, index)
            if top_level:
                self._deviations[key] = spread
        if spread is None:
            return held
        draw = _generator(noise, f"{_name(node)}:{index}").standard_normal(held.data.shape, dtype=np.float32)
        return Held(held.data + noise.scale * spread * draw, held.dtype)

    def _deviation(self, call: Call, data: list[Any], held: Held, index: int) -> Array | None:
        roundoff = unit_roundoff(held.dtype)
        if index:
            return np.asarray(roundoff / math.sqrt(3.0) * np.abs(held.data))
        spread = deviation(call, data, held.data, roundoff)
        return None if spread is None else spread.astype(np.float32)

    def forget(self) -> None:
        """Drop the deviations that perturbed runs have collected: they belong to one set of inputs."""
        self._deviations.clear()


def _fits(spread: Array | None, data: Array) -> bool:
    return spread is None or all(a in (1, b) for a, b in zip(spread.shape[::-1], data.shape[::-1], strict=False))


def captured_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the values of outer scopes that the subgraphs of ``node`` read."""
    graphs = [attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    found: dict[ir.Value, None] = {}
    for graph in graphs:
        own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
        read: list[ir.Value | None] = list(graph.outputs)
        for inner in graph.all_nodes():
            own.update(inner.outputs)
            read.extend(inner.inputs)
            for sub in (item.value for item in inner.attributes.values() if item.type == ir.AttributeType.GRAPH):
                own.update((*sub.inputs, *sub.initializers.values()))
                read.extend(sub.outputs)
        found.update((value, None) for value in read if value is not None and value not in own)
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _digest(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


def _generator(noise: Noise, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([noise.seed, _digest(name)]))


def _name(node: ir.Node) -> str:
    return node.name or next((output.name for output in node.outputs if output.name), "")


def _nbytes(held: Held) -> int:
    return int(held.data.nbytes) if isinstance(held.data, np.ndarray) else 0


def _dtype_of(array: Array) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def _macs(call: Call, data: Sequence[Any], results: Sequence[Any]) -> float:
    if call.op in ("Conv", "FusedConv"):
        return float(results[0].size * math.prod(data[1].shape[1:]))
    if call.op == "ConvTranspose":
        return float(data[0].size * math.prod(data[1].shape[1:]))
    if call.op in ("MatMul", "Gemm", "FusedMatMul"):
        return float(results[0].size * data[0].shape[-1])
    return 0.0


def nominal_type(call: Call, result: Any, inputs: Sequence[Held | None]) -> ir.DataType:
    """Return the type that the graph gives ``result``: what the operator says, else that of its first float input."""
    if isinstance(result, np.ndarray) and result.dtype != np.float64:
        return _dtype_of(result)
    attribute = call.attributes.get(
        "to" if call.op == "Cast" else "dtype" if "dtype" in call.attributes else "output_dtype"
    )
    if isinstance(attribute, int) and is_float(ir.DataType(attribute)):
        return ir.DataType(attribute)
    tensor = call.attributes.get("value")
    if tensor is not None and hasattr(tensor, "dtype"):
        return ir.DataType(tensor.dtype)
    ordered = inputs[1:] if call.op in ("CastLike", "DequantizeLinear", "Where") else inputs
    floats = [item.dtype for item in ordered if item is not None and is_float(item.dtype)]
    return floats[0] if floats else ir.DataType.FLOAT
