"""Locally, not only end to end: each changed part between values that both graphs share is judged alone.

End to end, a 0.1 % change of one γ in the first of a hundred layers drowns in the rounding of the rest; between two
shared values it stands at 199 budgets or more (:mod:`segment`).

A value is shared if both graphs have one of its name at the top level. Other tools use a name again for something
else (the folded convolution keeps the name of the bare one; a γ of 1.02 moves behind a value that keeps its name). So
a value that fails is only suspected, and taken out of the shared ones, where that may have happened: it is off
grossly, or whatever reads it in the candidate has changed as well. If what follows from it agrees, the name was used
again; if that fails too, or the value is an output, the graphs diverge. Chains of values that are off grossly may be
``GROSS_LIMIT`` long, of values that are off slightly two. By induction along the candidate every remaining shared
value is the reference's, given the ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Check, Verdict
from normfuse.validate import branches, tolerance
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.compare import judge
from normfuse.validate.cones import paired_cones, same_definition
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.scopes import label
from normfuse.validate.segment import AS_IT_IS, Evaluated, Forced, Segment, Values

# Values by name, one dictionary per feed; raises OracleCannotRun where a name cannot be had.
Supply = Callable[[Collection[str]], Sequence[dict[str, Held]]]
_SLIGHT_CHAIN = 2


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """checks: one per changed segment. unverified: changed segments that could not be evaluated, with the reason.

    unreached: changed bodies that no input enters and that cannot be forced: nothing at all has judged them.
    not_local: why a part of the graph has only been judged end to end, or in one piece with very much else.
    """

    checks: tuple[Check, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...]
    unreached: tuple[str, ...] = ()
    not_local: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """DIVERGENT if a segment is, NOT_RUN if one is open, else EQUIVALENT (also when nothing has changed)."""
        if any(check.verdict is Verdict.DIVERGENT for check in self.checks):
            return Verdict.DIVERGENT
        return Verdict.NOT_RUN if self.unverified or self.unreached else Verdict.EQUIVALENT


@dataclass(slots=True)
class _Progress:
    """What the walk along the candidate has found so far."""

    leg: str
    inputs: str
    shared: set[str]
    checks: list[Check] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    not_local: list[str] = field(default_factory=list)
    suspects: dict[str, tuple[Check, int]] = field(default_factory=dict)

    def failure(self, subject: str, error: OracleFailed) -> Check:
        """Return the check of a segment that the candidate cannot compute."""
        return Check(self.leg, self.inputs, subject, Verdict.DIVERGENT, np.nan, np.nan, np.nan, str(error))


def shared_names(reference: Oracle, candidate: Oracle) -> tuple[str, ...]:
    """Return the names that both graphs give to a top-level value, in the candidate's order."""
    return tuple(name for name in candidate.values if name in reference.values)


def changed_names(reference: Oracle, candidate: Oracle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the shared values whose definitions differ, and all values that judging them needs."""
    shared = set(shared_names(reference, candidate))
    changed = [
        name for name in shared_names(reference, candidate) if not same_definition(reference, candidate, name, shared)
    ]
    needed: dict[str, None] = {}
    for name in changed:
        for cone in paired_cones(reference, candidate, name, shared):
            needed.update(dict.fromkeys(cone.frontier))
    return tuple(changed), tuple(needed)


def check_segments(reference: Oracle, candidate: Oracle, supply: Supply, *, leg: str, inputs: str) -> SegmentReport:
    """Judge every changed segment on the values that ``supply`` gives, walking along the candidate."""
    names = shared_names(reference, candidate)
    progress = _Progress(leg, inputs, set(names))
    outputs = {value.name for value in candidate.graph.outputs}
    given = {value.name for value in candidate.graph.inputs}
    for name in names:
        if name in given or same_definition(reference, candidate, name, progress.shared):
            continue
        cones = paired_cones(reference, candidate, name, progress.shared)
        segment = Segment(reference, candidate, name, cones)
        try:
            values = supply(segment.frontier)
        except OracleCannotRun as error:
            progress.unverified.append(f"segment '{name}': {error}")
            _judge_bodies(segment, None, {}, progress)
            continue
        size = len(cones[0].nodes)
        if size > tolerance.LOCAL_NODES:
            progress.not_local.append(f"no value of one name divides the {size} nodes before '{name}'")
        _judge_one(segment, values, progress, is_output=name in outputs)
        if len(progress.suspects) > tolerance.GROSS_LIMIT:
            words = f"more than {tolerance.GROSS_LIMIT} values of one name mean something else in the candidate"
            progress.notes.append(f"{words}: not verified locally")
            progress.not_local.append(words)
            break
    reused = [
        name for name in progress.suspects if not any(check.subject.endswith(f"'{name}'") for check in progress.checks)
    ]
    if reused and not any(check.verdict is Verdict.DIVERGENT for check in progress.checks):
        progress.notes.append(f"names that mean something else in the candidate: {', '.join(reused[:5])}")
    return SegmentReport(
        tuple(progress.checks),
        tuple(progress.unverified),
        tuple(progress.notes),
        tuple(progress.unreached),
        (*progress.unverified, *progress.not_local),
    )


def _judge_one(segment: Segment, values: Values, progress: _Progress, *, is_output: bool) -> None:
    """Judge one segment: as it is, on quiet activations where a norm measures them, and in bodies not entered."""
    subject = f"segment '{segment.name}'"
    try:
        outcome = _judged(segment, values, progress, subject)
    except (OracleCannotRun, OracleFailed) as error:  # made-up activations may not fit the reference's own operators
        if not _judge_cut(segment, values, progress):
            progress.unverified.append(f"{subject}: {error}")
        _judge_bodies(segment, values, {}, progress)
        return
    if isinstance(outcome, OracleFailed):
        _fail(segment, progress, (progress.failure(subject, outcome),), is_output=is_output, gross=True)
        return
    found, checks = outcome
    if checks[0].verdict is not Verdict.DIVERGENT and segment.takes_statistics:
        checks = _on_quiet_values(segment, values, progress) or checks
    if checks[0].verdict is Verdict.DIVERGENT:
        gross = found.is_gross
        kept = not gross and _is_read_unchanged(segment, progress.shared)
        _fail(segment, progress, checks, is_output=is_output or kept, gross=gross)
        return
    nodes = ", ".join(node.name or node.op_type for node in segment.cones[0].nodes[:4])
    covered = tuple(label(node) for node in segment.cones[0].nodes)
    progress.checks.append(replace(checks[0], detail=f"{checks[0].detail} (nodes {nodes})", nodes=covered))
    _judge_bodies(segment, values, found.trips, progress)


def _judged(
    segment: Segment,
    values: Values,
    progress: _Progress,
    subject: str,
    *,
    forced: Forced = AS_IT_IS,
    quiet: bool = False,
) -> tuple[Evaluated, tuple[Check, ...]] | OracleFailed:
    """Evaluate a segment and judge it; one that is off once more, so that it is not accused of a P that chance made small.

    Returns the error where only the candidate fails; raises as Segment.evaluate does.
    """
    runs = None
    while True:
        found = segment.evaluate(values, forced=forced, quiet=quiet, runs=runs)
        if isinstance(found, OracleFailed):
            return found
        checks = judge(found.samples, found.dtype, leg=progress.leg, inputs=progress.inputs, subject=subject)
        if runs is not None or checks[0].verdict is not Verdict.DIVERGENT or found.is_gross:
            return found, checks
        runs = tolerance.ACCUSING_RUNS


def _on_quiet_values(segment: Segment, values: Values, progress: _Progress) -> tuple[Check, ...]:
    """Return the checks of a segment that fails on activations so small that epsilon counts; else nothing."""
    inputs, subject = f"{progress.inputs}, made quiet", f"segment '{segment.name}'"
    try:
        outcome = _judged(segment, values, progress, subject, quiet=True)
    except (OracleCannotRun, OracleFailed):
        return ()
    if isinstance(outcome, OracleFailed):
        return (replace(progress.failure(subject, outcome), inputs=inputs),)
    checks = tuple(replace(check, inputs=inputs) for check in outcome[1])
    return checks if checks[0].verdict is Verdict.DIVERGENT else ()


def _judge_cut(segment: Segment, values: Values, progress: _Progress) -> bool:
    """Judge a segment whose loops run too long on two trips of each; return whether that could be done."""
    forced = tuple(branches.loops(cone.nodes) for cone in segment.cones)
    if not forced[0]:
        return False
    subject = f"segment '{segment.name}', loops cut to two trips"
    try:
        outcome = _judged(segment, values, progress, subject, forced=(forced[0], forced[1]))
    except (OracleCannotRun, OracleFailed):
        return False
    progress.checks.extend((progress.failure(subject, outcome),) if isinstance(outcome, OracleFailed) else outcome[1])
    return True


def _judge_bodies(segment: Segment, values: Values | None, trips: dict[ir.Graph, int], progress: _Progress) -> None:
    """Enter every changed body that this segment's own run did not enter often enough; ``values`` None: there are
    none."""
    reference = segment.reference
    for body, other in branches.changed_bodies(segment.cones, progress.shared):
        if trips.get(body.graph, 0) >= body.enough:
            continue
        subject = f"segment '{segment.name}', {body.words} forced"
        reason = "the candidate has no such body"
        if other is not None and values is not None:
            loops = [branches.loops(cone.nodes) for cone in segment.cones]
            forced = (body.around | loops[0], other.around | loops[1])
            try:
                outcome = _judged(segment, values, progress, subject, forced=forced)
            except (OracleCannotRun, OracleFailed) as error:
                reason = str(error)
            else:
                progress.checks.extend(
                    (progress.failure(subject, outcome),) if isinstance(outcome, OracleFailed) else outcome[1]
                )
                continue
        if not branches.is_dead(reference, body) and reference.entered.get(body.graph, 0) < body.enough:
            progress.unreached.append(f"no input enters {body.words} (changed), and it cannot be forced: {reason}")


def _is_read_unchanged(segment: Segment, shared: Collection[str]) -> bool:
    """Return whether something computes the same from the value in both graphs: then it must mean the same."""
    for node, _ in segment.candidate.values[segment.name].uses():
        for value in node.outputs:
            if value.name is None or value.name not in shared:
                continue
            if same_definition(segment.reference, segment.candidate, value.name, shared):
                return True
    return False


def _fail(segment: Segment, progress: _Progress, checks: tuple[Check, ...], *, is_output: bool, gross: bool) -> None:
    """Accuse the segment, or suspect that its name was used again: see the top of this file."""
    covered = tuple(label(node) for node in segment.cones[0].nodes)
    checks = tuple(replace(check, nodes=covered) for check in checks)
    inside = [
        progress.suspects[value.name]
        for node in segment.cones[1].nodes
        for value in node.outputs
        if value.name in progress.suspects and value.name is not None
    ]
    depth = 1 + max((level for _, level in inside), default=0)
    if is_output or (not gross and depth > _SLIGHT_CHAIN):
        known = {check.subject for check in progress.checks}
        progress.checks.extend(check for check, _ in inside[:3] if check.subject not in known)
        progress.checks.extend(checks)
        return
    progress.suspects[segment.name] = (checks[0], depth)
    progress.shared.discard(segment.name)
