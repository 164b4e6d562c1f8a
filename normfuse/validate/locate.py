"""Where two graphs part: the first rewrite after which the verdict flips, and the first value beyond its budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from normfuse.errors import NormfuseError
from normfuse.report.records import Rewrite
from normfuse.report.verdict import DepthPoint, Location, ValidationReport, Verdict
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.depth import error_curve
from normfuse.validate.oracle import Oracle
from normfuse.validate.pairing import Subject
from normfuse.validate.run import Task, run, some_inputs
from normfuse.validate.sessions import Level

Replay = Callable[[Collection[str]], ir.Model]


def located(
    report: ValidationReport,
    task: Task,
    inputs: Path | Sequence[Mapping[str, Any]] | None,
    rewrites: Sequence[Rewrite],
    replay: Replay | None,
) -> ValidationReport:
    """Return ``report`` with the error over depth and, if it is DIVERGENT, where the graphs part."""
    failed = {leg.name for leg in report.legs if leg.verdict is Verdict.DIVERGENT}
    curve: tuple[DepthPoint, ...] = ()
    try:
        oracles = Oracle(task.reference.model), Oracle(task.candidate.model)
        feed = dict(report.failing.feeds[0]) if report.failing else some_inputs(task, inputs).feeds[0]
        backend = next((item for item in task.backends if item.name in failed), None)
        only_there = backend is not None and "oracle" not in failed
        level = Level.OFF if task.runner.levels[0] is Level.OFF else Level.ALL
        curve = error_curve(*oracles, feed, (backend, level, task.runner) if backend and only_there else None)
    except (OracleCannotRun, OracleFailed):
        pass  # the report says already that the oracle does not run this model
    if not failed:
        return replace(report, curve=curve, location=Location(words="nothing to locate: no leg is divergent"))
    location = Location(tensor=_first_tensor(report, curve))
    if replay is not None and not rewrites:
        location = replace(location, words="the fusion report holds no rewrites to look among")
    elif replay is not None:
        location = _first_rewrite(report, task, rewrites, replay, location)
    return replace(report, curve=curve, location=location)


def _first_tensor(report: ValidationReport, curve: Sequence[DepthPoint]) -> str:
    """Return the value of the first failing segment; where there is none, the first that is beyond its budget for good.

    A name that the candidate uses for something else is beyond its budget alone, what follows from it is not.
    """
    for check in report.checks:
        if check.verdict is Verdict.DIVERGENT and check.subject.startswith("segment '"):
            return check.subject.split("'")[1]
    first = ""
    for point in reversed(curve):
        if point.error <= point.allowed:
            break
        first = point.name
    return first


def _first_rewrite(
    report: ValidationReport, task: Task, rewrites: Sequence[Rewrite], replay: Replay, location: Location
) -> Location:
    """Bisect over the rewrites in their order: log2(n) replays, each judged on the inputs that failed."""
    failed = {leg.name for leg in report.legs if leg.verdict is Verdict.DIVERGENT}
    backends = () if "oracle" in failed else tuple(item for item in task.backends if item.name in failed)
    feeds = report.failing.feeds if report.failing else None

    def is_divergent(count: int) -> bool:
        model = replay([rewrite.id for rewrite in rewrites[:count]])
        part = replace(task, candidate=Subject("candidate", model, None), backends=backends)
        return run(part, feeds).verdict is Verdict.DIVERGENT

    try:
        if not is_divergent(len(rewrites)):
            return replace(location, words="replaying all rewrites of the report gives a model that is not divergent")
        good, bad = 0, len(rewrites)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if is_divergent(middle) else (middle, bad)
    except NormfuseError as error:
        return replace(location, words=f"the rewrites cannot be replayed: {error}")
    found = rewrites[bad - 1]
    words = f"the verdict flips with rewrite {bad} of {len(rewrites)}, {found.id}"
    return replace(location, rewrite=found.id, before=found.nodes, after=found.into, words=words)
