"""One operator by onnx.reference, its evaluator cached per node and input types.

Operators that draw are known by name (:mod:`scopes`) and never come here. One that is not known to would give a truth
that no other run has: it runs twice the first time, and is refused where the two differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.rounding import widen

_Key = tuple[ir.Node, tuple[object, ...]]


class Fallback:
    """Runs nodes that the oracle has no own implementation of. Float arrays are float64 before and after."""

    def __init__(self, opset_imports: dict[str, int]) -> None:
        self._opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in opset_imports.items()]
        self._evaluators: dict[_Key, Any] = {}

    def run(self, node: ir.Node, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs of ``node``.

        Raises OracleCannotRun where onnx.reference does not know the operator, OracleFailed where it rejects the
        inputs.
        """
        name = node.name or node.outputs[0].name or ""
        key: _Key = (node, tuple(item.dtype if isinstance(item, np.ndarray) else type(item) for item in inputs))
        is_new = key not in self._evaluators
        if is_new:
            self._evaluators[key] = self._build(node, inputs, name)
        feeds = {f"x{index}": _exact_types(node, index, item) for index, item in enumerate(inputs) if item is not None}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = self._evaluators[key].run(None, feeds)
                again = self._evaluators[key].run(None, feeds) if is_new else results
        except NotImplementedError as error:
            raise OracleCannotRun(name, node.op_type, str(error)) from error
        except Exception as error:
            # onnx.reference raises whatever NumPy does: any of it means that these inputs do not fit this operator.
            raise OracleFailed(name, node.op_type, f"{type(error).__name__}: {error}") from error
        if not _are_same(results, again):
            raise OracleCannotRun(name, node.op_type, "it gives another result in every run")
        given = iter([widen(item) if isinstance(item, np.ndarray) else item for item in map(_as_array, results)])
        # The evaluator gives the results that have a name; those without one keep their place.
        return [next(given) if output.name else None for output in node.outputs]

    def _build(self, node: ir.Node, inputs: Sequence[Any], name: str) -> Any:
        from onnx.reference import ReferenceEvaluator

        proto = ir.serde.serialize_node(node)
        del proto.input[:]
        proto.input.extend("" if item is None else f"x{index}" for index, item in enumerate(inputs))
        outputs = [f"y{index}" if output.name else "" for index, output in enumerate(node.outputs)]
        del proto.output[:]
        proto.output.extend(outputs)
        infos = [_info(f"x{index}", item) for index, item in enumerate(inputs) if item is not None]
        results = [onnx.ValueInfoProto(name=output) for output in outputs if output]
        graph = onnx.helper.make_graph([proto], "one", infos, results)
        try:
            return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=self._opsets))
        except Exception as error:
            # It raises several unrelated types (RuntimeContextError, NotImplementedError, KeyError) for "no such
            # operator".
            raise OracleCannotRun(name, node.op_type, f"no implementation ({type(error).__name__}: {error})") from error


def _are_same(first: Any, again: Any) -> bool:
    if isinstance(first, list | tuple):
        return len(first) == len(again) and all(map(_are_same, first, again))
    one, other = np.asarray(first), np.asarray(again)
    return one.shape == other.shape and bool(np.all((one == other) | ((one != one) & (other != other))))


def _as_array(result: Any) -> Any:
    return np.asarray(result) if isinstance(result, np.generic | float | int) else result


def _exact_types(node: ir.Node, index: int, item: Any) -> Any:
    """Resize takes scales and roi in float32 in every opset, and its reference compares their type."""
    if (
        node.op_type in ("Resize", "Upsample")
        and index > 0
        and isinstance(item, np.ndarray)
        and item.dtype == np.float64
    ):
        return item.astype(np.float32)
    return item


def _info(name: str, item: Any) -> onnx.ValueInfoProto:
    if not isinstance(item, np.ndarray):
        return onnx.ValueInfoProto(name=name)
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(item.dtype), item.shape)
