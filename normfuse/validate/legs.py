"""The legs of a validation: the oracle on both graphs, and both graphs on each provider, judged by the same truth."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.emit.target import Provider
from normfuse.report.verdict import Check, Leg, Verdict
from normfuse.validate.call import OracleFailed
from normfuse.validate.compare import Sample, judge
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import Array
from normfuse.validate.segments import SegmentReport, check_segments
from normfuse.validate.sessions import Cause, Failure, Results, RuntimeLimits, Task, run_tasks
from normfuse.validate.truth import Truth, output_type

ORT_NAMES = {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}
_NO_RUNTIME = "onnxruntime is not installed: pip install 'normfuse[{extra}]'"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one leg found. unreached: changed parts that no input has entered."""

    leg: Leg
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()


def conclude(name: str, checks: Sequence[Check], open_reason: str = "") -> Leg:
    """Return the leg's verdict: DIVERGENT if a check is; EQUIVALENT if one is and nothing is left open; else
    NOT_RUN."""
    if any(check.verdict is Verdict.DIVERGENT for check in checks):
        failing = [check for check in checks if check.verdict is Verdict.DIVERGENT]
        # A segment says where; an output only that.
        worst = next((check for check in failing if check.subject.startswith("segment")), failing[0])
        return Leg(name, Verdict.DIVERGENT, f"{worst.subject} ({worst.inputs}): {worst.detail}")
    if open_reason:
        return Leg(name, Verdict.NOT_RUN, open_reason)
    if any(check.verdict is Verdict.EQUIVALENT for check in checks):
        return Leg(name, Verdict.EQUIVALENT)
    return Leg(name, Verdict.NOT_RUN, checks[0].detail if checks else "nothing was compared")


def _samples(truth: Truth, name: str, candidate: Sequence[Array], reference: Sequence[Array] | None) -> list[Sample]:
    return [
        Sample(
            truth.outputs[index][name].data,
            tuple(run[name].data for run in truth.perturbed[index]),
            None if reference is None else reference[index],
            candidate[index],
        )
        for index in range(len(truth.family.feeds))
    ]


def end_to_end(
    outputs: Sequence[ir.Value], truth: Truth, candidate: Oracle, *, known: tuple[Check, ...] = ()
) -> list[Check]:
    """Judge the candidate in float64 against the truth, output by output. Raises OracleCannotRun."""
    results: list[dict[str, Held]] = []
    in_range = truth.in_range is not None
    for feed in truth.family.feeds:
        try:
            results.append(candidate.run(feed, in_range=in_range))
        except OracleFailed as error:
            return [
                _lost(
                    "oracle",
                    truth.family.name,
                    "the whole graph",
                    f"the original runs and the candidate does not: {error}",
                )
            ]
    checks: list[Check] = list(known)
    for value in outputs:
        name = value.name or ""
        dtype = output_type(value, truth.outputs[0][name])
        original = None if truth.in_range is None else [result[name].data for result in truth.in_range]
        samples = _samples(truth, name, [result[name].data for result in results], original)
        checks.extend(
            judge(
                samples,
                dtype,
                leg="oracle",
                inputs=truth.family.name,
                subject=f"output '{name}'",
                by_channel=truth.family.by_channel,
            )
        )
    return checks


def _lost(leg: str, inputs: str, subject: str, words: str) -> Check:
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


def on_provider(
    provider: Provider,
    models: tuple[Path, Path],
    truths: Sequence[Truth],
    outputs: Sequence[ir.Value],
    *,
    quick: bool,
    limits: RuntimeLimits | None,
    libraries: Sequence[Path],
) -> Outcome:
    """Run both models on ``provider`` without and with its graph optimizations; judge the candidate by the truth.

    A provider that cannot run the original says nothing; one that runs the original and not the candidate accuses it.
    """
    levels = (True,) if quick else (False, True)
    tasks = [Task(model, level) for level in levels for model in models]
    truths = [truth for truth in truths if truth.family.on_providers]
    feeds = [feed for truth in truths for feed in truth.family.feeds]
    answers = run_tasks(tasks, feeds, ORT_NAMES[provider], limits=limits, libraries=libraries)
    checks: list[Check] = []
    reasons: list[str] = []
    for index, level in enumerate(levels):
        original, candidate = answers[2 * index : 2 * index + 2]
        title = "optimizations on" if level else "optimizations off"
        if isinstance(original, Failure):
            reasons.append(_why_not(original, provider))
        elif isinstance(candidate, Failure):
            if candidate.cause in (Cause.NO_RUNTIME, Cause.NO_PROVIDER, Cause.FALLBACK):
                reasons.append(_why_not(candidate, provider))
                continue
            checks.append(
                _lost(
                    provider.value,
                    title,
                    "the whole graph",
                    f"the original runs and the candidate does not: {candidate}",
                )
            )
        else:
            checks.extend(_judged(provider.value, title, truths, outputs, original, candidate))
    if not checks:
        return Outcome(Leg(provider.value, Verdict.NOT_RUN, reasons[0]))
    return Outcome(conclude(provider.value, checks), tuple(checks), tuple(dict.fromkeys(reasons)))


def _why_not(failure: Failure, provider: Provider) -> str:
    if failure.cause is Cause.NO_RUNTIME:
        return _NO_RUNTIME.format(extra=provider.value)
    if failure.cause in (Cause.NO_PROVIDER, Cause.FALLBACK):
        return str(failure)
    return f"it cannot run the original: {failure}"


def _judged(
    leg: str, title: str, truths: Sequence[Truth], outputs: Sequence[ir.Value], original: Results, candidate: Results
) -> list[Check]:
    checks: list[Check] = []
    start = 0
    for truth in truths:
        count = len(truth.family.feeds)
        ours, theirs = candidate.outputs[start : start + count], original.outputs[start : start + count]
        start += count
        for value in outputs:
            name = value.name or ""
            inputs, subject = f"{truth.family.name}, {title}", f"output '{name}'"
            types = {item[name].dtype for item in ours}, {item[name].dtype for item in theirs}
            if types[0] != types[1]:
                words = f"the type is {_one(types[0])}; the original gives {_one(types[1])}"
                checks.append(_lost(leg, inputs, subject, words))
                continue
            samples = _samples(truth, name, [item[name] for item in ours], [item[name] for item in theirs])
            checks.extend(
                judge(
                    samples,
                    output_type(value, truth.outputs[0][name]),
                    leg=leg,
                    inputs=inputs,
                    subject=subject,
                    by_channel=truth.family.by_channel,
                )
            )
    return checks


def _one(types: set[np.dtype[Any]]) -> str:
    return ", ".join(sorted(str(item) for item in types))


def still_runs(
    provider: Provider,
    models: tuple[Path, Path],
    feeds: Sequence[dict[str, Array]],
    limits: RuntimeLimits | None,
    libraries: Sequence[Path],
) -> Outcome:
    """Where there is no truth of the whole graph: does the candidate run where the original does?"""
    answers = run_tasks(
        [Task(model, True) for model in models], feeds, ORT_NAMES[provider], limits=limits, libraries=libraries
    )
    original, candidate = answers
    if isinstance(original, Failure):
        return Outcome(Leg(provider.value, Verdict.NOT_RUN, _why_not(original, provider)))
    if isinstance(candidate, Failure):
        check = _lost(
            provider.value, "any", "the whole graph", f"the original runs and the candidate does not: {candidate}"
        )
        return Outcome(conclude(provider.value, (check,)), (check,))
    reason = "both graphs run, but the whole graph has no float64 truth to judge by"
    return Outcome(Leg(provider.value, Verdict.NOT_RUN, reason))
