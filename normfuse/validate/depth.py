"""Error over depth: every value that both graphs have, beside what rounding allows there.

Values are captured a slice at a time, so that no more than ``_SLICE_BYTES`` of them are held at once: the graph is run
again for each slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normfuse.report.verdict import DepthPoint
from normfuse.validate import tolerance
from normfuse.validate.backends import Backend
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.held import Held
from normfuse.validate.inputs import Feed
from normfuse.validate.noise import ordinary
from normfuse.validate.on_backend import Runner
from normfuse.validate.oracle import Oracle
from normfuse.validate.pairing import scratch_folder, write
from normfuse.validate.rounding import Array, is_float
from normfuse.validate.sessions import Failure, Level, Task

_SLICE_BYTES = 256 * 2**20
_FIRST_SLICE = 32
_RUNS = 2


def error_curve(
    reference: Oracle, candidate: Oracle, feed: Feed, on: tuple[Backend, Level, Runner] | None = None
) -> tuple[DepthPoint, ...]:
    """Return the error of every shared float value, in the candidate's order, relative to the value's own size.

    on: where both graphs are run; None compares the candidate in float64. Values that cannot be had are left out.
    """
    names = [
        name
        for name, value in candidate.values.items()
        if name in reference.values and value.producer() is not None and not candidate.is_constant(value)
    ]
    found: list[DepthPoint] = []
    for slice_, truth in _slices(reference, feed, names):
        try:
            perturbed = [reference.run(feed, capture=slice_, noise=noise) for noise in ordinary(_RUNS)]
            reference.forget()
            results = (
                _in_float64(candidate, feed, slice_) if on is None else _on(on, reference, candidate, feed, slice_)
            )
        except (OracleCannotRun, OracleFailed):
            break
        if results is None:
            break
        ours, theirs = results
        for name in slice_:
            if name in ours and is_float(truth[name].dtype):
                others = [run[name].data for run in perturbed]
                found.extend(_point(candidate.values[name], truth[name], others, ours[name], theirs.get(name)))
    return tuple(found)


def _slices(oracle: Oracle, feed: Feed, names: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Held]]]:
    start, count = 0, _FIRST_SLICE
    while start < len(names):
        chosen = list(names[start : start + count])
        try:
            truth = oracle.run(feed, capture=chosen)
        except (OracleCannotRun, OracleFailed):
            return
        size = sum(held.nbytes for held in truth.values())
        if size > _SLICE_BYTES and len(chosen) > 1:
            count = max(1, len(chosen) // 2)
            continue
        yield chosen, truth
        start += len(chosen)
        count = max(1, min(4 * count, int(count * _SLICE_BYTES / max(size, 1))))


def _in_float64(oracle: Oracle, feed: Feed, names: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    return {name: held.data for name, held in oracle.run(feed, capture=names).items()}, {}


def _on(
    on: tuple[Backend, Level, Runner], reference: Oracle, candidate: Oracle, feed: Feed, names: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    backend, level, runner = on
    with scratch_folder() as folder:
        paths = [
            write(_returning(oracle.model, names), Path(folder) / f"{role}.onnx")
            for role, oracle in (("original", reference), ("candidate", candidate))
        ]
        original, ours = runner.run(backend, [Task(path, level) for path in paths], [feed])
    if isinstance(original, Failure) or isinstance(ours, Failure):
        return None
    return ours.outputs[0], original.outputs[0]


def _returning(model: ir.Model, names: Sequence[str]) -> ir.Model:
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    clone.graph.outputs[:] = [values[name] for name in names]
    RemoveUnusedNodesPass()(clone)
    return clone


def _point(
    value: ir.Value, truth: Held, perturbed: Sequence[Array], ours: Array, theirs: Array | None
) -> list[DepthPoint]:
    if not isinstance(truth.data, np.ndarray) or not truth.data.size or np.shape(ours) != truth.data.shape:
        return []
    size = _rms(truth.data)
    noise = math.sqrt(sum(_rms(other - truth.data) ** 2 for other in perturbed) / len(perturbed))
    original = 0.0 if theirs is None else _rms(np.asarray(theirs, np.float64) - truth.data)
    allowed = tolerance.OUTPUT_FACTOR * tolerance.budget(original, noise, size, truth.dtype)
    error = _rms(np.asarray(ours, np.float64) - truth.data)
    producer = value.producer()
    op = producer.op_type if producer is not None else ""
    return [DepthPoint(value.name or "", op, error / size, allowed / size)] if size > 0 and math.isfinite(error) else []


def _rms(array: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(array))))
