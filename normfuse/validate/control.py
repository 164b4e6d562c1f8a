"""If, Loop and Scan, run by the same interpreter; values of outer scopes stay visible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.costs import Run
from normfuse.validate.held import Held

if TYPE_CHECKING:
    from normfuse.validate.oracle import Oracle

# A forced Loop makes two trips: the second reads what the first has carried.
_FORCED_TRIPS = 2


class Control:
    """The control flow of one run: the interpreter, the values known so far, the run's own course."""

    def __init__(self, oracle: Oracle, env: dict[ir.Value, Held], run: Run) -> None:
        self._oracle = oracle
        self._env = env
        self._run = run

    def run(self, node: ir.Node) -> list[Held]:
        """Return the outputs of an If, Loop or Scan."""
        inputs = [None if value is None else self._oracle.lookup(value, self._env, self._run) for value in node.inputs]
        if node.op_type == "If":
            branch = self._branch(node, inputs[0])
            self._enter(branch, 1)
            return self._graph(branch, [])
        if node.op_type == "Loop":
            return self._loop(node, inputs)
        return self._scan(node, [item for item in inputs if item is not None])

    def _branch(self, node: ir.Node, condition: Held | None) -> ir.Graph:
        graphs = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        for graph in graphs:
            if graph in self._run.forced:
                return graph
        return graphs[0] if _truth(condition) else graphs[1]

    def _enter(self, graph: ir.Graph, trips: int) -> None:
        self._run.trips[graph] = max(trips, self._run.trips.get(graph, 0))

    def _graph(self, graph: ir.Graph, arguments: list[Held]) -> list[Held]:
        env = self._env
        env.update(zip(graph.inputs, arguments, strict=True))
        for node in graph:
            env.update(zip(node.outputs, self._oracle.apply(node, env, self._run), strict=False))
            self._run.steps += 1
            self._run.check(node)
        return [self._oracle.lookup(value, env, self._run) for value in graph.outputs]

    def _loop(self, node: ir.Node, inputs: list[Held | None]) -> list[Held]:
        body = node.attributes["body"].as_graph()
        is_forced = body in self._run.forced
        trips = None if inputs[0] is None else int(np.asarray(inputs[0].data).reshape(-1)[0])
        trips = _FORCED_TRIPS if is_forced else trips
        going = inputs[1] is None or _truth(inputs[1])
        carried = [item for item in inputs[2:] if item is not None]
        scanned: list[list[Held]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
        count = 0
        while (going or is_forced) and (trips is None or count < trips):
            head = [Held(np.asarray(count, np.int64), ir.DataType.INT64), Held(np.asarray(True), ir.DataType.BOOL)]
            results = self._graph(body, [*head, *carried])
            going = _truth(results[0])
            carried = results[1 : 1 + len(carried)]
            for series, item in zip(scanned, results[1 + len(carried) :], strict=True):
                series.append(item)
            count += 1
        self._enter(body, count)
        outputs = zip(scanned, node.outputs[len(carried) :], strict=True)
        return [*carried, *(self._stacked(series, 0, value) for series, value in outputs)]

    def _scan(self, node: ir.Node, inputs: list[Held]) -> list[Held]:
        if self._oracle.opsets.get("", 9) < 9:
            raise OracleCannotRun(node.name or "", "Scan", "Scan-8 with its batch axis is not known")
        body = node.attributes["body"].as_graph()
        count = node.attributes["num_scan_inputs"].as_int()
        carried, series = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
        out_count = len(body.outputs) - len(carried)
        axes = _ints(node, "scan_input_axes", count)
        backwards = _ints(node, "scan_input_directions", count)
        columns = [
            [Held(part, item.dtype) for part in _slices(item.data, axis, bool(back))]
            for item, axis, back in zip(series, axes, backwards, strict=True)
        ]
        scanned: list[list[Held]] = [[] for _ in range(out_count)]
        for row in zip(*columns, strict=True):
            results = self._graph(body, [*carried, *row])
            carried = results[: len(carried)]
            for target, item in zip(scanned, results[len(carried) :], strict=True):
                target.append(item)
        self._enter(body, max((len(column) for column in columns), default=0))
        ends = zip(
            scanned,
            _ints(node, "scan_output_axes", out_count),
            _ints(node, "scan_output_directions", out_count),
            strict=True,
        )
        outputs = node.outputs[len(carried) :]
        stacked = [
            self._stacked(target[::-1] if back else target, axis, value)
            for (target, axis, back), value in zip(ends, outputs, strict=True)
        ]
        return [*carried, *stacked]

    @staticmethod
    def _stacked(series: list[Held], axis: int, value: ir.Value) -> Held:
        if not series:
            if value.dtype is None or value.shape is None:
                raise OracleFailed("", f"value '{value.name}'", "a loop without iterations leaves its shape unknown")
            sizes = [size if isinstance(size, int) else 0 for size in value.shape.dims]
            return Held(np.zeros((0, *sizes[1:])), value.dtype)
        return Held(np.stack([item.data for item in series], axis=axis), series[0].dtype)


def _truth(condition: Held | None) -> bool:
    return condition is not None and bool(np.asarray(condition.data).reshape(-1)[0])


def _ints(node: ir.Node, name: str, count: int) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return (0,) * count if attribute is None else tuple(attribute.as_ints())


def _slices(data: Any, axis: int, backwards: bool) -> list[Any]:
    parts = [np.take(data, index, axis=axis) for index in range(data.shape[axis])]
    return parts[::-1] if backwards else parts
