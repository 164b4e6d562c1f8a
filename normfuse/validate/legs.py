"""What a leg of a validation concludes, and the leg of the oracle: both graphs in float64."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.report.verdict import Check, Latency, Leg, Ranking, Verdict
from normfuse.validate.call import OracleFailed
from normfuse.validate.compare import Sample, judge
from normfuse.validate.decisions import is_quantised
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.ranking import rankings
from normfuse.validate.rounding import Array
from normfuse.validate.segments import SegmentReport, check_segments
from normfuse.validate.truth import Truth, output_type


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one leg found. unreached: changed parts that no input has entered. open: why it is not EQUIVALENT, though no
    check has failed."""

    leg: Leg
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    latencies: tuple[Latency, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    open: str = ""


def conclude(name: str, checks: Sequence[Check], open_reason: str = "") -> Leg:
    """Return the leg's verdict: DIVERGENT if a check is; EQUIVALENT if one is and nothing is left open; else
    NOT_RUN."""
    if any(check.verdict is Verdict.DIVERGENT for check in checks):
        failing = [check for check in checks if check.verdict is Verdict.DIVERGENT]
        # A segment says where; an output only that.
        worst = next((check for check in failing if check.subject.startswith(("segment", "norm"))), failing[0])
        return Leg(name, Verdict.DIVERGENT, f"{worst.subject} ({worst.inputs}): {worst.detail}")
    if open_reason:
        return Leg(name, Verdict.NOT_RUN, open_reason)
    if any(check.verdict is Verdict.EQUIVALENT for check in checks):
        return Leg(name, Verdict.EQUIVALENT)
    return Leg(name, Verdict.NOT_RUN, checks[0].detail if checks else "nothing was compared")


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Return what one leg says after two rounds of checks; a round that says nothing takes nothing from the other."""
    checks = (*first.checks, *second.checks)
    if not checks:
        return first
    is_open = first.open or second.open
    return Outcome(
        conclude(first.leg.name, checks, is_open),
        checks,
        tuple(dict.fromkeys((*first.notes, *second.notes))),
        (*first.unreached, *second.unreached),
        first.latencies or second.latencies,
        first.rankings or second.rankings,
        is_open,
    )


def samples_of(truth: Truth, name: str, candidate: Sequence[Array], reference: Sequence[Array] | None) -> list[Sample]:
    """Return one output over all feeds of a family; ``reference`` None where no runtime gave the original's."""
    return [
        Sample(
            truth.outputs[index][name].data,
            tuple(run[name].data for run in truth.perturbed[index]),
            None if reference is None else reference[index],
            candidate[index],
        )
        for index in range(len(truth.family.feeds))
    ]


def end_to_end(outputs: Sequence[ir.Value], truth: Truth, candidate: Oracle) -> tuple[list[Check], tuple[Ranking, ...]]:
    """Judge the candidate in float64 against the truth, output by output; return how both rank classes as well.

    Raises OracleCannotRun.
    """
    results: list[dict[str, Held]] = []
    in_range = truth.in_range is not None
    for feed in truth.family.feeds:
        try:
            results.append(candidate.run(feed, in_range=in_range))
        except OracleFailed as error:
            words = f"the original runs and the candidate does not: {error}"
            return [lost("oracle", truth.family.name, "the whole graph", words)], ()
    checks: list[Check] = []
    for value in outputs:
        name = value.name or ""
        dtype = output_type(value, truth.outputs[0][name])
        original = None if truth.in_range is None else [result[name].data for result in truth.in_range]
        samples = samples_of(truth, name, [result[name].data for result in results], original)
        checks.extend(
            judge(
                samples,
                dtype,
                leg="oracle",
                inputs=truth.family.name,
                subject=f"output '{name}'",
                by_channel=truth.family.by_channel,
                quantised=is_quantised(value),
            )
        )
    sides = ([{name: held.data for name, held in run.items()} for run in runs] for runs in (truth.outputs, results))
    return checks, rankings("oracle", outputs, *sides)


def lost(leg: str, inputs: str, subject: str, words: str) -> Check:
    """Return the check of a candidate that gives nothing to compare."""
    return Check(leg, inputs, subject, Verdict.DIVERGENT, math.nan, math.nan, math.nan, words)


def local(reference: Oracle, candidate: Oracle, truth: Truth) -> SegmentReport:
    """Judge each changed segment on the values that the truth has captured, computing others when asked."""
    captured = [dict(outputs) for outputs in truth.outputs]

    def supply(names: Collection[str]) -> list[dict[str, Held]]:
        for index, feed in enumerate(truth.family.feeds):
            missing = [name for name in names if name not in captured[index]]
            if missing:
                captured[index].update(reference.run(feed, capture=missing))
        return [{name: values[name] for name in names} for values in captured]

    return check_segments(reference, candidate, supply, leg="oracle", inputs=truth.family.name)
