"""Which value of a graph is which of a set of arrays, by their numbers.

The arrays come from the program that the graph was exported from, on the same input and in the same precision; where
nothing is wrong they differ by rounding alone, and where something is, by less than two values that are not the same.
Other values may lie near an array too (an activation without its small mean, or normalized a second time), so that
arrays and values are paired off, the nearest pairs first.
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
        """Return the value that is ``result``, one of the arrays, and what its part of the graph is fed with; None if it
        is no value."""
        name = self.names.get(id(result))
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
    by_shape: dict[tuple[int, ...], list[tuple[Array, float]]] = {}
    for array in arrays:
        if array.dtype.kind == "f" and array.size:
            by_shape.setdefault(array.shape, []).append((array, _rms(array)))
    names = [name for name, value in oracle.values.items() if value.producer() is not None]
    pairs: list[tuple[float, str, Array]] = []
    for start in range(0, len(names), _SLICE):
        for name, held in oracle.run(feed, capture=names[start : start + _SLICE]).items():
            if isinstance(held.data, np.ndarray) and is_float(held.dtype):
                others = by_shape.get(held.data.shape, ())
                pairs.extend((distance, name, array) for distance, array in _near(held.data, others))
    pairs.sort(key=lambda pair: pair[0])
    found, known = dict[int, str](), dict[str, Array]()
    for distance, name, array in pairs:
        if name not in known and (distance < tolerance.SAME_FOR_SURE or id(array) not in found):
            found.setdefault(id(array), name)
            known[name] = array
    inputs = {
        value.name: Held(widen(np.asarray(feed[value.name])), value.dtype or ir.DataType.FLOAT)
        for value in oracle.graph.inputs
        if value.name and value.name in feed
    }
    return Matched(found, known, inputs)


def _near(array: Array, others: Sequence[tuple[Array, float]]) -> list[tuple[float, Array]]:
    """Return those of ``others``, each with its size, that differ from ``array`` by little enough to be the same, and
    by what share."""
    size = _rms(array)
    near: list[tuple[float, Array]] = []
    for other, other_size in others:
        if abs(size - other_size) > tolerance.SAME_SHARE * other_size:
            continue  # by the triangle inequality they are no nearer than that
        with np.errstate(all="ignore"):
            error = _rms(array - other)
        distance = error / other_size if other_size > 0 else float(error > 0)
        near.extend([(distance, other)] if distance < tolerance.SAME_SHARE else [])
    return near


def _rms(array: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(array))))
