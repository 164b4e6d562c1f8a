"""The legs of the runtimes: both graphs on one provider, first without its graph optimizations, then as deployed.

The candidate is compared with the original on the same provider. How providers differ from each other is another
question: the answer is a note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Check, Latency, Leg, Ranking, Verdict
from normfuse.validate.backends import Backend
from normfuse.validate.compare import judge
from normfuse.validate.decisions import is_quantised
from normfuse.validate.legs import Outcome, conclude, lost, samples_of
from normfuse.validate.ranking import rankings
from normfuse.validate.repeat import differing, left_open, unsteady
from normfuse.validate.rounding import Array
from normfuse.validate.sessions import Cause, Failure, Level, Results, RuntimeLimits, Task, run_tasks
from normfuse.validate.truth import Truth, output_type

# Products of TF32 keep 10 bits of the significand where float32 keeps 23.
_TF32_TO_FLOAT = 2.0**13
_WITH_TF32 = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
_FAILED = "the original runs and the candidate does not: {}"


@dataclass(frozen=True, slots=True)
class Runner:
    """How the runtimes are run: what a child may cost, the libraries that it registers, the optimization levels."""

    limits: RuntimeLimits | None = None
    libraries: tuple[Path, ...] = ()
    levels: tuple[Level, ...] = (Level.OFF, Level.ALL)

    def run(
        self, backend: Backend, tasks: Sequence[Task], feeds: Sequence[dict[str, Array]]
    ) -> tuple[Results | Failure, ...]:
        """Run ``tasks`` on ``backend``, in child processes."""
        return run_tasks(
            tasks, feeds, backend.provider, limits=self.limits, libraries=self.libraries, python=backend.python
        )


def on_backend(
    backend: Backend, models: tuple[Path, Path], truths: Sequence[Truth], outputs: Sequence[ir.Value], runner: Runner
) -> tuple[Outcome, Results | None]:
    """Judge the candidate on ``backend`` by the truth; return the original's results as deployed as well, if any.

    A provider that cannot run the original says nothing; one that runs the original and not the candidate accuses it.
    Outputs of the original that another run has otherwise are left open (:mod:`repeat`), on every level.
    """
    truths = [truth for truth in truths if truth.family.on_providers]
    feeds = [feed for truth in truths for feed in truth.family.feeds]
    answers = runner.run(backend, [Task(model, level) for level in runner.levels for model in models], feeds)
    checks: list[Check] = []
    reasons: list[str] = []
    latencies: list[Latency] = []
    deployed: Results | None = None
    ranked: tuple[Ranking, ...] = ()
    drawn: dict[str, str] = {}
    for original in answers[::2]:
        drawn = {**_unsteady(truths, outputs, original, "original"), **drawn}
    for index, level in enumerate(runner.levels):
        original, candidate = answers[2 * index : 2 * index + 2]
        if isinstance(original, Failure):
            reasons.append(why_not(original, backend))
            continue
        deployed = original
        if isinstance(candidate, Failure):
            if candidate.cause in (Cause.NO_RUNTIME, Cause.NO_PROVIDER, Cause.FALLBACK):
                reasons.append(why_not(candidate, backend))
                continue
            checks.append(lost(backend.name, level.words, "the whole graph", _FAILED.format(candidate)))
            continue
        checks.extend(judged(backend.name, level.words, truths, outputs, original, candidate, drawn))
        second, said = _second_run(backend, level, truths, outputs, original, candidate, drawn)
        checks.extend(second)
        reasons.extend(said)
        steady = [value for value in outputs if value.name not in drawn]
        ranked = rankings(backend.name, steady, original.outputs, candidate.outputs)
        latencies.append(Latency(backend.name, level.words, original.seconds, candidate.seconds))
        for role, results in (("original", original), ("candidate", candidate)):
            reasons.extend(ran_elsewhere(backend, level, role, results))
    if not checks:
        return Outcome(Leg(backend.name, Verdict.NOT_RUN, reasons[0])), deployed
    is_open = "; ".join(drawn.values())
    leg = conclude(backend.name, checks, is_open)
    return Outcome(leg, tuple(checks), tuple(dict.fromkeys(reasons)), (), tuple(latencies), ranked, is_open), deployed


def _unsteady(
    truths: Sequence[Truth], outputs: Sequence[ir.Value], answer: Results | Failure, role: str
) -> dict[str, str]:
    """Return the outputs that a runtime's second run on the first feed has otherwise, in words."""
    if isinstance(answer, Failure) or answer.again is None or not truths:
        return {}
    return unsteady(truths[0], outputs, answer.outputs[0], answer.again, role)


def _second_run(
    backend: Backend,
    level: Level,
    truths: Sequence[Truth],
    outputs: Sequence[ir.Value],
    original: Results,
    candidate: Results,
    drawn: Mapping[str, str],
) -> tuple[list[Check], list[str]]:
    """Judge the second run of a candidate that is not the same bit by bit, where the original is steady; say which outputs
    differ from run to run by more than rounding."""
    if candidate.again is None or not truths:
        return [], []
    steady = [value for value in outputs if value.name not in drawn]
    own, again = replace(original, outputs=original.outputs[:1]), replace(candidate, outputs=(candidate.again,))
    checks = judged(backend.name, f"{level.words}, again", [truths[0].first], steady, own, again)
    words = _unsteady(truths, steady, candidate, "candidate").values()
    return checks, [f"{backend.name}, {level.words}: {item}" for item in words]


def ran_elsewhere(backend: Backend, level: Level, role: str, results: Results) -> list[str]:
    """Return, in words, which nodes another provider has run: what was judged of them is not this one's work."""
    words = results.placement.words
    return [f"{backend.name}, {level.words}: of the {role}, {words}"] if words else []


def why_not(failure: Failure, backend: Backend) -> str:
    """Return, in words, why a provider says nothing of a model."""
    if failure.cause is Cause.NO_RUNTIME:
        extra = "cuda" if backend.name == "cuda" else "cpu"
        return f"onnxruntime is not installed: pip install 'normfuse[{extra}]'"
    if failure.cause in (Cause.NO_PROVIDER, Cause.FALLBACK):
        return str(failure)
    return f"it cannot run the original: {failure}"


def judged(
    leg: str,
    title: str,
    truths: Sequence[Truth],
    outputs: Sequence[ir.Value],
    original: Results,
    candidate: Results,
    drawn: Mapping[str, str] = MappingProxyType({}),
) -> list[Check]:
    """Judge the candidate's results by the truth, output by output; ``original`` gives the reference's own error.

    drawn: outputs that the original has otherwise in every run, in words; they are left open.
    """
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
                checks.append(lost(leg, inputs, subject, words))
                continue
            if name in drawn:
                checks.append(left_open(drawn[name], leg, inputs, subject))
                continue
            samples = samples_of(truth, name, [item[name] for item in ours], [item[name] for item in theirs])
            dtype = output_type(value, truth.outputs[0][name])
            how = {"by_channel": truth.family.by_channel, "quantised": is_quantised(value)}
            checks.extend(judge(samples, dtype, leg=leg, inputs=inputs, subject=subject, **how))
    return checks


def _one(types: set[np.dtype[Any]]) -> str:
    return ", ".join(sorted(str(item) for item in types))


def across(
    first: tuple[Backend, Results],
    second: tuple[Backend, Results],
    truths: Sequence[Truth],
    outputs: Sequence[ir.Value],
) -> list[str]:
    """Return, in words, the outputs of the original on which two providers differ by more than rounding explains."""
    truths = [truth for truth in truths if truth.family.on_providers][:1]
    drawn = {name for _, results in (first, second) for name in _unsteady(truths, outputs, results, "original")}
    outputs = [value for value in outputs if value.name not in drawn]
    can = bool({first[0].provider, second[0].provider} & _WITH_TF32)
    in_float32 = {f"output '{value.name}'" for value in outputs if value.dtype == ir.DataType.FLOAT}
    found = []
    for check in judged(second[0].name, "", truths, outputs, first[1], second[1]):
        if check.verdict is not Verdict.DIVERGENT or "[" in check.subject:
            continue
        is_tf32 = can and check.subject in in_float32 and check.error <= _TF32_TO_FLOAT * check.allowed
        cause = "; products in TF32, which this provider can use, would explain it" if is_tf32 else ""
        found.append(
            f"{second[0].name} against {first[0].name}, {check.subject} of the original: {check.detail}{cause}"
        )
    return found


def still_runs(
    backend: Backend, models: tuple[Path, Path], feeds: Sequence[dict[str, Array]], runner: Runner
) -> Outcome:
    """Where there is no truth of the whole graph: does the candidate run where the original does?"""
    original, candidate = runner.run(backend, [Task(model, Level.ALL) for model in models], feeds)
    if isinstance(original, Failure):
        return Outcome(Leg(backend.name, Verdict.NOT_RUN, why_not(original, backend)))
    if isinstance(candidate, Failure):
        check = Check(
            backend.name, "any", "the whole graph", Verdict.DIVERGENT, math.nan, math.nan, math.nan,
            _FAILED.format(candidate),
        )  # fmt: skip
        return Outcome(conclude(backend.name, (check,)), (check,))
    reason = "both graphs run, but the whole graph has no float64 truth to judge by"
    drawn = differing(original.outputs[0], original.again, "original")
    drawn = drawn or differing(candidate.outputs[0], candidate.again, "candidate")
    return Outcome(Leg(backend.name, Verdict.NOT_RUN, "; ".join([*drawn.values(), reason])))
