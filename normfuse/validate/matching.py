"""Which value of a graph is which of a set of arrays, by their numbers.

The arrays come from the program that the graph was exported from, on the same input and in the same precision; where
nothing is wrong they differ by rounding alone, and where something is, by less than two values that are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.validate import tolerance
from normfuse.validate.cones import cone_of
from normfuse.validate.held import Held
from normfuse.validate.inputs import Feed
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import Array, is_float, widen

# So many values are captured in one run of the graph.
_SLICE = 64


@dataclass(frozen=True, slots=True)
class Matched:
    """names: of the value that equals each array, by the array's identity. arrays: by the value's name."""

    names: dict[int, str]
    arrays: dict[str, Array]
    inputs: dict[str, Held]

    def part_for(self, oracle: Oracle, result: Array) -> tuple[ir.Value, dict[ir.Value, Held]] | None:
        """Return the value that is ``result``, and what its part of the graph is fed with; None if it is no value."""
        name = self.names.get(id(result)) or _like(result, self.arrays)
        if name is None:
            return None
        target = oracle.values[name]
        known = dict(self.inputs)
        for item in cone_of(oracle, name, {*self.arrays, *self.inputs}).frontier:
            if item in self.arrays:
                known[item] = Held(self.arrays[item], oracle.values[item].dtype or ir.DataType.FLOAT)
        return target, {oracle.values[item]: held for item, held in known.items() if item != name}


def match(oracle: Oracle, feed: Feed, arrays: Sequence[Array]) -> Matched:
    """Return which float value of ``oracle``'s graph each of ``arrays`` is. Raises OracleCannotRun, OracleFailed."""
    floats = [array for array in arrays if array.dtype.kind == "f" and array.size]
    by_shape: dict[tuple[int, ...], list[Array]] = {}
    for array in floats:
        by_shape.setdefault(array.shape, []).append(array)
    names = [name for name, value in oracle.values.items() if value.producer() is not None]
    found, known = dict[int, str](), dict[str, Array]()
    for start in range(0, len(names), _SLICE):
        for name, held in oracle.run(feed, capture=names[start : start + _SLICE]).items():
            if not isinstance(held.data, np.ndarray) or not is_float(held.dtype) or name in known:
                continue
            same = _nearest(held.data, by_shape.get(held.data.shape, ()))
            if same is not None:
                found.setdefault(id(same), name)
                known[name] = same
    inputs = {
        value.name: Held(widen(np.asarray(feed[value.name])), value.dtype or ir.DataType.FLOAT)
        for value in oracle.graph.inputs
        if value.name and value.name in feed
    }
    return Matched(found, known, inputs)


def _like(array: Array, known: dict[str, Array]) -> str | None:
    same = _nearest(array, [other for other in known.values() if other.shape == array.shape])
    return next((name for name, other in known.items() if other is same), None)


def _nearest(array: Array, others: Sequence[Array]) -> Array | None:
    """Return the one of ``others`` that differs least from ``array``, if that is little enough to be the same."""
    nearest, least = None, tolerance.SAME_SHARE
    for other in others:
        distance = _distance(other, array)
        if distance < least:
            nearest, least = other, distance
        if distance < tolerance.SAME_FOR_SURE:
            break
    return nearest


def _distance(a: Array, b: Array) -> float:
    with np.errstate(all="ignore"):
        size = float(np.mean(np.square(a)))
        error = float(np.mean(np.square(a - b)))
    return float(np.sqrt(error / size)) if size > 0 else float(error > 0)
