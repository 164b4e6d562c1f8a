"""The course of one validation, readable top to bottom: load, pair up, feed, find the truth, judge each leg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfuse.errors import ValidationError
from normfuse.report.verdict import Check, FailingInputs, Leg, Ranking, ValidationReport, Verdict
from normfuse.validate import inputs as generated
from normfuse.validate import legs, pairing
from normfuse.validate.backends import Backend
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.cut_truth import CutTruths, cut_truths, write_cut
from normfuse.validate.environment import environment
from normfuse.validate.families import NOT_FINITE, ORDINARY, synthesise
from normfuse.validate.given import read_user_inputs
from normfuse.validate.inputs import Family, InputSpec, Sizes
from normfuse.validate.on_backend import Runner, across, on_backend, still_runs
from normfuse.validate.oracle import Oracle
from normfuse.validate.plan import families
from normfuse.validate.ranking import pooled
from normfuse.validate.regions import check_regions
from normfuse.validate.scopes import drawn_names, label, random_operator, unpaired
from normfuse.validate.segments import changed_names
from normfuse.validate.sensitivity import smallest_visible
from normfuse.validate.sessions import Results
from normfuse.validate.truth import Truth, evaluate

if TYPE_CHECKING:
    import onnx_ir as ir

_NO_INPUTS = "it takes none of the inputs that were generated, give --inputs ({})"


@dataclass(frozen=True, slots=True)
class Task:
    """The two models, and where they are run. ``quick``: one family."""

    reference: pairing.Subject
    candidate: pairing.Subject
    backends: tuple[Backend, ...]
    runner: Runner
    quick: bool

    @classmethod
    def load(
        cls, reference: pairing.Source, candidate: pairing.Source, backends: tuple[Backend, ...], runner: Runner,
        *, quick: bool,
    ) -> Task:  # fmt: skip
        """Read both models. Raises ModelIOError; ValidationError where they cannot be compared."""
        task = cls(pairing.load(reference, "reference"), pairing.load(candidate, "candidate"), backends, runner, quick)
        pairing.pair_up(task.reference.model, task.candidate.model)
        return task


def run(task: Task, user_inputs: Path | Sequence[Mapping[str, Any]] | None) -> ValidationReport:
    """See :func:`normfuse.validate.validate`."""
    narrowed = pairing.narrowed_inputs(task.reference.model, task.candidate.model)
    if narrowed:
        untried = [Leg(item.name, Verdict.NOT_RUN, "not tried: an input was narrowed") for item in task.backends]
        return ValidationReport((Leg("oracle", Verdict.DIVERGENT, narrowed[0]), *untried), notes=narrowed)
    try:
        specs = generated.input_specs(task.reference.model)
    except ValidationError as error:
        if user_inputs is not None:
            raise
        return _without_inputs(task, str(error))
    given = None if user_inputs is None else read_user_inputs(user_inputs, specs)
    try:
        reference = Oracle(task.reference.model)
        oracles = reference, Oracle(task.candidate.model, beside=reference)
    except OracleCannotRun as error:
        found = [legs.Outcome(Leg("oracle", Verdict.NOT_RUN, str(error)))]
        return _report([*found, *_without_truth(task, _some_feed(specs, given))])
    try:
        for oracle in oracles:
            oracle.check_weights()
        _check_draws(oracles)
        truths, notes = _truths(oracles, specs, given, quick=task.quick)
    except OracleCannotRun as error:
        family = _some_feed(specs, given)
        outcome = _by_regions(task, oracles, family, str(error))
        return _report([outcome, *_without_truth(task, family)])
    cut, why = cut_truths((task.reference.model, task.candidate.model), oracles, truths)
    oracle_leg = _oracle_leg(task, oracles, truths, cut)
    for oracle in (*oracles, *(() if cut is None else cut.oracles)):
        oracle.release()  # the runtimes need the memory
    outcomes, differences = _provider_legs(task, truths, oracles[0].graph.outputs, cut)
    report = _report([oracle_leg, *outcomes], [*why, *notes, *differences])
    return replace(report, failing=_failing(report, truths))


def _without_inputs(task: Task, why: str) -> ValidationReport:
    """Judge the changed regions alone where no inputs can be made, or the oracle fails on those that were."""
    outcomes = []
    try:
        outcomes.append(_by_regions(task, (Oracle(task.reference.model), Oracle(task.candidate.model)), None, why))
    except OracleCannotRun as error:
        outcomes.append(legs.Outcome(Leg("oracle", Verdict.NOT_RUN, str(error))))
    return _report([*outcomes, *(legs.Outcome(Leg(item.name, Verdict.NOT_RUN, why)) for item in task.backends)])


def _check_draws(oracles: tuple[Oracle, Oracle]) -> None:
    """Raise OracleCannotRun where both graphs draw random numbers that cannot be the same."""
    lonely = unpaired(drawn_names(oracles[0].graph), drawn_names(oracles[1].graph))
    if lonely:
        raise OracleCannotRun(lonely, "a random operator", "the candidate has none of that name to draw alike")


def _failing(report: ValidationReport, truths: Sequence[Truth]) -> FailingInputs | None:
    """Return the inputs of the first check that failed: a check names its family first."""
    for check in report.checks:
        if check.verdict is Verdict.DIVERGENT:
            name = check.inputs.split(", ")[0]
            family = next((truth.family for truth in truths if truth.family.name == name), truths[0].family)
            return FailingInputs(family.name, family.feeds)
    return None


def _report(outcomes: Sequence[legs.Outcome], notes: Sequence[str] = ()) -> ValidationReport:
    said = [*notes, *(note for outcome in outcomes for note in outcome.notes)]
    return ValidationReport(
        tuple(outcome.leg for outcome in outcomes),
        tuple(check for outcome in outcomes for check in outcome.checks),
        tuple(dict.fromkeys(said)),
        tuple(dict.fromkeys(item for outcome in outcomes for item in outcome.unreached)),
        tuple(latency for outcome in outcomes for latency in outcome.latencies),
        tuple(ranking for outcome in outcomes for ranking in outcome.rankings),
        environment=environment(),
    )


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
    try:
        chosen, notes = families(oracle, specs, quick=quick, capture=capture)
    except OracleFailed as error:
        raise OracleCannotRun("", "the whole graph", _NO_INPUTS.format(error)) from error
    truths: list[Truth] = []
    for family in chosen:
        try:
            truths.append(evaluate(oracle, family, capture=capture if family.is_local else ()))
        except OracleFailed as error:
            if not truths:
                raise OracleCannotRun("", "the whole graph", _NO_INPUTS.format(error)) from error
            notes.append(f"no {family.name} was tried: {error}")  # the original itself has no result there
    return truths, notes


def some_inputs(task: Task, user_inputs: Path | Sequence[Mapping[str, Any]] | None) -> Family:
    """Return inputs that the original takes: the user's, or ordinary ones of a size that works."""
    specs = generated.input_specs(task.reference.model)
    if user_inputs is not None:
        return read_user_inputs(user_inputs, specs)
    return families(Oracle(task.reference.model), specs, quick=True)[0][0]


def _some_feed(specs: Sequence[InputSpec], given: Family | None) -> Family:
    """Return inputs for a graph that the oracle cannot run, so that only the runtime can say whether they fit."""
    if given is not None:
        return given
    sizes = Sizes(generated.BATCH_SIZES[0], generated.OTHER_SIZES[0])
    return Family("standard normal", (synthesise(specs, ORDINARY, sizes, 0),))


def _oracle_leg(
    task: Task, oracles: tuple[Oracle, Oracle], truths: Sequence[Truth], cut: CutTruths | None
) -> legs.Outcome:
    reference, candidate = oracles
    checks: list[Check] = []
    ranked: list[Ranking] = []
    notes: list[str] = []
    unreached: dict[str, None] = {}
    not_local: list[str] = []
    try:
        for truth in truths:
            if truth.family.name not in NOT_FINITE or not reference.jumps():  # else cut, or not at all
                found, order = legs.end_to_end(reference.graph.outputs, truth, candidate)
                checks.extend(found)
                ranked.extend(order if truth.family.on_providers else ())
        if cut is not None:
            for truth in cut.truths:
                found, _ = legs.end_to_end(cut.oracles[0].graph.outputs, truth, cut.oracles[1])
                checks.extend(found)
    except OracleCannotRun as error:
        return _by_regions(task, oracles, truths[0].family, str(error))
    for truth in truths:
        if not truth.family.is_local:
            continue
        report = legs.local(reference, candidate, truth)
        unreached.update(dict.fromkeys(report.unreached))
        checks.extend(report.checks)
        notes.extend(report.notes)
        notes.extend(f"not verified locally: {item}" for item in report.unverified)
        not_local.extend(report.not_local)
    leg = legs.conclude("oracle", checks)
    if not_local and leg.verdict is Verdict.EQUIVALENT:
        seen = smallest_visible(reference, truths[0])
        leg = replace(leg, reason="; ".join(filter(None, [f"not local: {not_local[0]}", seen])))
    return legs.Outcome(leg, tuple(checks), tuple(notes), tuple(unreached), rankings=pooled(ranked))


def _by_regions(task: Task, oracles: tuple[Oracle, Oracle], family: Family | None, why: str) -> legs.Outcome:
    report = check_regions(*oracles, family, limits=task.runner.limits, libraries=task.runner.libraries)
    open_reason = f"{why}; not verified: {report.unverified[0]}" if report.unverified else ""
    if not report.checks and not open_reason:
        leg = Leg("oracle", Verdict.EQUIVALENT, "nothing has changed")
        return legs.Outcome(leg, (), (why, *report.notes), report.unreached)
    leg = legs.conclude("oracle", report.checks, open_reason)
    return legs.Outcome(leg, report.checks, (why, *report.notes), report.unreached)


def _provider_legs(
    task: Task, truths: Sequence[Truth], outputs: Sequence[ir.Value], cut: CutTruths | None
) -> tuple[list[legs.Outcome], list[str]]:
    """Return what each provider says, and how they differ among themselves.

    What draws random numbers is not run as it is, only cut.
    """
    found: list[legs.Outcome] = []
    ran: list[tuple[Backend, Results]] = []
    subjects = (task.reference, task.candidate)
    random = next((node for item in subjects if (node := random_operator(item.model)) is not None), None)
    with pairing.scratch_folder() as folder:
        models = task.reference.on_disk(Path(folder)), task.candidate.on_disk(Path(folder))
        for backend in task.backends:
            outcome, results = None, None
            if random is None:
                outcome, results = on_backend(backend, models, truths, outputs, task.runner)
            if cut is not None and cut.is_for_providers:
                others = write_cut(cut, Path(folder))
                more, _ = on_backend(backend, others, cut.truths, cut.oracles[0].graph.outputs, task.runner)
                outcome = more if outcome is None else legs.joined(outcome, more)
            if outcome is None and random is not None:
                outcome = _differs_from_run_to_run(random, backend)
            found.extend([] if outcome is None else [outcome])
            if results is not None:
                ran.append((backend, results))
    return found, [line for other in ran[1:] for line in across(ran[0], other, truths, outputs)]


def _without_truth(task: Task, family: Family) -> list[legs.Outcome]:
    for model in (task.reference.model, task.candidate.model):
        node = random_operator(model)
        if node is not None:
            return [_differs_from_run_to_run(node, backend) for backend in task.backends]
    with pairing.scratch_folder() as folder:
        models = task.reference.on_disk(Path(folder)), task.candidate.on_disk(Path(folder))
        return [still_runs(backend, models, family.feeds, task.runner) for backend in task.backends]


def _differs_from_run_to_run(node: ir.Node, backend: Backend) -> legs.Outcome:
    reason = f"the result differs from run to run: {node.op_type} at node '{label(node)}'"
    return legs.Outcome(Leg(backend.name, Verdict.NOT_RUN, reason))
