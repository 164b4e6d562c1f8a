"""The course of one validation, readable top to bottom: load, pair up, feed, find the truth, judge each leg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normfuse.emit.target import Provider
from normfuse.errors import ValidationError
from normfuse.report.verdict import Check, Leg, ValidationReport, Verdict
from normfuse.validate import inputs as generated
from normfuse.validate import legs, pairing
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.inputs import Family, InputSpec, Sizes
from normfuse.validate.oracle import Oracle, random_operator
from normfuse.validate.regions import check_regions
from normfuse.validate.segments import changed_names
from normfuse.validate.truth import Truth, evaluate, feeds_for, has_float_input, working_sizes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from normfuse.validate.sessions import RuntimeLimits

# Segments are judged on the first family, and on further ones where a float64 run takes no longer than this.
_CHEAP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Task:
    """What the legs share."""

    reference: pairing.Subject
    candidate: pairing.Subject
    limits: RuntimeLimits | None
    libraries: tuple[Path, ...]
    quick: bool


def run(
    reference: str | Path | onnx.ModelProto | ir.Model,
    candidate: str | Path | onnx.ModelProto | ir.Model,
    providers: tuple[Provider, ...],
    user_inputs: Path | None,
    *,
    quick: bool,
    limits: RuntimeLimits | None,
    libraries: tuple[Path, ...],
) -> ValidationReport:
    """See :func:`normfuse.validate.validate`."""
    task = _Task(pairing.load(reference, "reference"), pairing.load(candidate, "candidate"), limits, libraries, quick)
    pairing.pair_up(task.reference.model, task.candidate.model)
    narrowed = pairing.narrowed_inputs(task.reference.model, task.candidate.model)
    if narrowed:
        untried = [Leg(provider.value, Verdict.NOT_RUN, "not tried: an input was narrowed") for provider in providers]
        return ValidationReport((Leg("oracle", Verdict.DIVERGENT, narrowed[0]), *untried), notes=narrowed)
    specs = generated.input_specs(task.reference.model)
    given = None if user_inputs is None else generated.read_user_inputs(Path(user_inputs), specs)
    try:
        oracles = Oracle(task.reference.model), Oracle(task.candidate.model)
    except OracleCannotRun as error:
        found = [legs.Outcome(Leg("oracle", Verdict.NOT_RUN, str(error)))]
        return _report([*found, *_without_truth(task, providers, _some_feed(specs, given))])
    try:
        truths, notes = _truths(oracles, specs, given, quick=quick)
    except OracleCannotRun as error:
        family = _some_feed(specs, given)
        outcome = _by_regions(task, oracles, family, str(error))
        return _report([outcome, *_without_truth(task, providers, family)])
    oracle_leg = _oracle_leg(task, oracles, truths)
    return _report([oracle_leg, *_provider_legs(task, providers, truths, oracles[0].graph.outputs)], notes)


def _report(outcomes: Sequence[legs.Outcome], notes: Sequence[str] = ()) -> ValidationReport:
    said = [*notes, *(note for outcome in outcomes for note in outcome.notes)]
    checks = tuple(check for outcome in outcomes for check in outcome.checks)
    return ValidationReport(tuple(outcome.leg for outcome in outcomes), checks, tuple(dict.fromkeys(said)))


def _truths(
    oracles: tuple[Oracle, Oracle], specs: Sequence[InputSpec], given: Family | None, *, quick: bool
) -> tuple[list[Truth], list[str]]:
    """Return the truth of every family, and what could not be tried."""
    oracle = oracles[0]
    _, capture = changed_names(*oracles)
    if given is not None:
        try:
            return [evaluate(oracle, given, capture=capture)], []
        except OracleFailed as error:
            raise ValidationError(f"the original does not run on the given inputs: {error}") from error
    sizes = working_sizes(oracle, specs)
    plan: list[tuple[str, Sizes]] = [("standard normal", sizes)]
    notes: list[str] = [
        f"{node.op_type} at node '{node.name}' jumps at ties: end to end, faults below ten roundings are not seen"
        for node in oracle.jumps()[:1]
    ]
    if not quick and has_float_input(specs):
        plan.append(("large mean", sizes))
    if not quick and generated.is_dynamic(specs):
        try:
            plan.append(("second size", working_sizes(oracle, specs, after=sizes)))
        except ValidationError as error:
            if isinstance(error, OracleCannotRun):
                raise
            notes.append(f"no second size was tried: {error}")
    truths: list[Truth] = []
    for name, chosen in plan:
        feeds = feeds_for(oracle, specs, name, chosen)
        wanted = capture if not truths or truths[0].seconds <= _CHEAP_SECONDS else ()
        truths.append(evaluate(oracle, Family(name, feeds), capture=wanted))
    return truths, notes


def _some_feed(specs: Sequence[InputSpec], given: Family | None) -> Family:
    """Return inputs for a graph that the oracle cannot run, so that only the runtime can say whether they fit."""
    if given is not None:
        return given
    sizes = Sizes(generated.BATCH_SIZES[0], generated.OTHER_SIZES[0])
    return Family("standard normal", (generated.synthesise(specs, "standard normal", sizes, 0),))


def _oracle_leg(task: _Task, oracles: tuple[Oracle, Oracle], truths: Sequence[Truth]) -> legs.Outcome:
    reference, candidate = oracles
    checks: list[Check] = []
    notes: list[str] = []
    try:
        for truth in truths:
            checks.extend(legs.end_to_end(reference.graph.outputs, truth, candidate))
    except OracleCannotRun as error:
        return _by_regions(task, oracles, truths[0].family, str(error))
    for index, truth in enumerate(truths):
        if index and truth.seconds > _CHEAP_SECONDS:
            continue
        report = legs.local(reference, candidate, truth)
        checks.extend(report.checks)
        notes.extend(report.notes)
        notes.extend(f"not verified locally: {item}" for item in report.unverified)
    return legs.Outcome(legs.conclude("oracle", checks), tuple(checks), tuple(notes))


def _by_regions(task: _Task, oracles: tuple[Oracle, Oracle], family: Family | None, why: str) -> legs.Outcome:
    report = check_regions(*oracles, family, limits=task.limits, libraries=task.libraries)
    open_reason = f"{why}; not verified: {report.unverified[0]}" if report.unverified else ""
    if not report.checks and not open_reason:
        leg = Leg("oracle", Verdict.EQUIVALENT, "nothing has changed")
        return legs.Outcome(leg, (), (why, *report.notes))
    return legs.Outcome(legs.conclude("oracle", report.checks, open_reason), report.checks, (why, *report.notes))


def _provider_legs(
    task: _Task, providers: Sequence[Provider], truths: Sequence[Truth], outputs: Sequence[ir.Value]
) -> list[legs.Outcome]:
    with pairing.scratch_folder() as folder:
        models = task.reference.on_disk(Path(folder)), task.candidate.on_disk(Path(folder))
        return [
            legs.on_provider(
                provider, models, truths, outputs, quick=task.quick, limits=task.limits, libraries=task.libraries
            )
            for provider in providers
        ]


def _without_truth(task: _Task, providers: Sequence[Provider], family: Family) -> list[legs.Outcome]:
    for model in (task.reference.model, task.candidate.model):
        node = random_operator(model)
        if node is not None:
            reason = f"the result differs from run to run: {node.op_type} at node '{node.name or node.outputs[0].name}'"
            return [legs.Outcome(Leg(provider.value, Verdict.NOT_RUN, reason)) for provider in providers]
    with pairing.scratch_folder() as folder:
        models = task.reference.on_disk(Path(folder)), task.candidate.on_disk(Path(folder))
        return [legs.still_runs(provider, models, family.feeds, task.limits, task.libraries) for provider in providers]
