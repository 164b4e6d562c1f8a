"""Where the whole graph cannot be evaluated: each changed region alone, on activations of the original.

The activations come from the reference's runtime (onnxruntime in a child, with extra outputs), or, where there is
none, are seeded N(0, 1) of the shapes that the graph states. Unknown operators inside unchanged parts never matter.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normfuse.validate.call import OracleCannotRun
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family
from normfuse.validate.oracle import Oracle
from normfuse.validate.pairing import write
from normfuse.validate.repeat import differing
from normfuse.validate.rounding import Array, is_float, round_to, widen
from normfuse.validate.segments import SegmentReport, changed_names, check_segments
from normfuse.validate.sessions import Failure, Level, RuntimeLimits, Task, run_tasks

_ORT_CPU = "CPUExecutionProvider"
# The size given to a dynamic axis of a made-up activation.
_UNKNOWN_SIZE = 8


def check_regions(
    reference: Oracle,
    candidate: Oracle,
    family: Family | None,
    *,
    limits: RuntimeLimits | None = None,
    libraries: Sequence[Path] = (),
) -> SegmentReport:
    """Judge every changed region alone. ``family`` None: no inputs could be made, the activations are made up."""
    changed, needed = changed_names(reference, candidate)
    captured: tuple[dict[str, Held], ...] | None = None
    drawn: tuple[str, ...] = ()
    source = "made-up activations of N(0, 1)"
    if changed and family is not None:
        captured, drawn = _captured(reference, family, needed, limits, libraries)
        source = "activations of the original's run" if captured is not None else source

    def supply(names: Collection[str]) -> Sequence[dict[str, Held]]:
        if captured is None:
            return ({name: _made_up(reference.values[name]) for name in names},)
        missing = [name for name in names if name not in captured[0]]
        if missing:
            raise OracleCannotRun(missing[0], "a value", "its activation was not captured")
        return tuple({name: values[name] for name in names} for values in captured)

    report = check_segments(reference, candidate, supply, leg="oracle", inputs=source)
    regions = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
    note = f"not end to end: {len(changed)} changed regions were verified alone on {source}: {regions or 'none'}"
    notes = [note, *report.notes]
    if drawn:
        notes.append(f"values that differ from run to run, taken from one run of the original: {', '.join(drawn[:8])}")
    return SegmentReport(report.checks, report.unverified, tuple(notes))


def _captured(
    reference: Oracle, family: Family, names: Collection[str], limits: RuntimeLimits | None, libraries: Sequence[Path]
) -> tuple[tuple[dict[str, Held], ...] | None, tuple[str, ...]]:
    """Return what the original's run gives for ``names``, or None where no runtime runs it; and what another run gives
    otherwise."""
    inputs = {value.name for value in reference.graph.inputs}
    if inputs.issuperset(names):
        return _held([{name: feed[name] for name in names if name in feed} for feed in family.feeds]), ()
    clone = reference.model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    # What does not lead to them is not run: it may be what the oracle could not run.
    clone.graph.outputs[:] = [values[name] for name in names if name in values]
    RemoveUnusedNodesPass()(clone)
    with tempfile.TemporaryDirectory(prefix="normfuse-regions-") as folder:
        path = write(clone, Path(folder) / "extra.onnx")
        answer = run_tasks([Task(path, Level.OFF)], family.feeds, _ORT_CPU, limits=limits, libraries=libraries)[0]
    if isinstance(answer, Failure):
        return None, ()
    given = [{name: feed[name] for name in names if name in inputs and name in feed} for feed in family.feeds]
    held = _held([{**arrays, **outputs} for arrays, outputs in zip(given, answer.outputs, strict=True)])
    return held, tuple(differing(answer.outputs[0], answer.again, "original"))


def _held(feeds: Sequence[dict[str, Array]]) -> tuple[dict[str, Held], ...]:
    return tuple(
        {name: Held(widen(array), ir.DataType.from_numpy(array.dtype)) for name, array in arrays.items()}
        for arrays in feeds
    )


def _made_up(value: ir.Value) -> Held:
    """Return a seeded N(0, 1) activation of the stated shape and type. Raises OracleCannotRun where they are not
    stated."""
    if value.shape is None or value.dtype is None or not is_float(value.dtype):
        raise OracleCannotRun("", f"value '{value.name}'", "neither a runtime nor the graph says what it looks like")
    sizes = [dim if isinstance(dim, int) else _UNKNOWN_SIZE for dim in value.shape.dims]
    rng = np.random.default_rng(zlib.crc32((value.name or "").encode()))
    return Held(widen(round_to(rng.standard_normal(sizes), value.dtype)), value.dtype)
