"""If, Loop and Scan, run by the same interpreter; values of outer scopes stay visible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.noise import Noise

if TYPE_CHECKING:
    from normfuse.validate.oracle import Held, Oracle

# A Loop whose condition never turns false would not end; ONNX sets no limit, we do.
_MAX_TRIPS = 100_000


class Control:
    """The control flow of one run: the interpreter, the values known so far, the perturbation."""

    def __init__(self, oracle: Oracle, env: dict[ir.Value, Held], noise: Noise | None) -> None:
        self._oracle = oracle
        self._env = env
        self._noise = noise

    def run(self, node: ir.Node) -> list[Held]:
        """Return the outputs of an If, Loop or Scan."""
        inputs = [
            None if value is None else self._oracle.lookup(value, self._env, self._noise) for value in node.inputs
        ]
        if node.op_type == "If":
            assert inputs[0] is not None
            branch = "then_branch" if bool(np.asarray(inputs[0].data).reshape(-1)[0]) else "else_branch"
            return self._graph(node.attributes[branch].as_graph(), [])
        if node.op_type == "Loop":
            return self._loop(node, inputs)
        return self._scan(node, [item for item in inputs if item is not None])

    def _graph(self, graph: ir.Graph, arguments: list[Held]) -> list[Held]:
        env = self._env
        env.update(zip(graph.inputs, arguments, strict=True))
        for node in graph:
            env.update(zip(node.outputs, self._oracle.apply(node, env, self._noise), strict=False))
        return [self._oracle.lookup(value, env, self._noise) for value in graph.outputs]

    def _loop(self, node: ir.Node, inputs: list[Held | None]) -> list[Held]:
        from normfuse.validate.oracle import Held

        body = node.attributes["body"].as_graph()
        trips = None if inputs[0] is None else int(np.asarray(inputs[0].data).reshape(-1)[0])
        going = inputs[1] is None or bool(np.asarray(inputs[1].data).reshape(-1)[0])
        carried = [item for item in inputs[2:] if item is not None]
        scanned: list[list[Held]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
        count = 0
        while going and (trips is None or count < trips):
            if count >= _MAX_TRIPS:
                raise OracleCannotRun(node.name or "", "Loop", f"more than {_MAX_TRIPS} iterations")
            head = [
                Held(np.asarray(count, dtype=np.int64), ir.DataType.INT64),
                Held(np.asarray(going), ir.DataType.BOOL),
            ]
            results = self._graph(body, [*head, *carried])
            going = bool(np.asarray(results[0].data).reshape(-1)[0])
            carried = results[1 : 1 + len(carried)]
            for series, item in zip(scanned, results[1 + len(carried) :], strict=True):
                series.append(item)
            count += 1
        return [
            *carried,
            *(
                self._stacked(series, 0, value)
                for series, value in zip(scanned, node.outputs[len(carried) :], strict=True)
            ),
        ]

    def _scan(self, node: ir.Node, inputs: list[Held]) -> list[Held]:
        from normfuse.validate.oracle import Held

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
        from normfuse.validate.oracle import Held

        if not series:
            if value.dtype is None or value.shape is None:
                raise OracleFailed("", f"value '{value.name}'", "a loop without iterations leaves its shape unknown")
            sizes = [size if isinstance(size, int) else 0 for size in value.shape.dims]
            return Held(np.zeros((0, *sizes[1:])), value.dtype)
        return Held(np.stack([item.data for item in series], axis=axis), series[0].dtype)


def _ints(node: ir.Node, name: str, count: int) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return (0,) * count if attribute is None else tuple(attribute.as_ints())


def _slices(data: Any, axis: int, backwards: bool) -> list[Any]:
    parts = [np.take(data, index, axis=axis) for index in range(data.shape[axis])]
    return parts[::-1] if backwards else parts
