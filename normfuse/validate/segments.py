"""Locally, not only end to end: each changed part between values that both graphs share is judged alone.

End to end, a 0.1 % change of one γ in the first of a hundred layers drowns in the rounding of the rest; between two
shared values it stands at 199 budgets or more. Both sides of a segment are fed the oracle's values
rounded to the graph's type.

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
from normfuse.validate import tolerance
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.compare import Sample, channel_axes, judge
from normfuse.validate.cones import paired_cones, same_definition
from normfuse.validate.noise import ordinary, undecided
from normfuse.validate.oracle import Held, Oracle
from normfuse.validate.rounding import Array, is_float, round_to, widen

# Values by name, one dictionary per feed; raises OracleCannotRun where a name cannot be had.
Supply = Callable[[Collection[str]], Sequence[dict[str, Held]]]
_SLIGHT_CHAIN = 2


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """checks: one per changed segment. unverified: changed segments that could not be evaluated, with the reason."""

    checks: tuple[Check, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """DIVERGENT if a segment is, NOT_RUN if one is open, else EQUIVALENT (also when nothing has changed)."""
        if any(check.verdict is Verdict.DIVERGENT for check in self.checks):
            return Verdict.DIVERGENT
        return Verdict.NOT_RUN if self.unverified else Verdict.EQUIVALENT


@dataclass(slots=True)
class _Progress:
    """What the walk along the candidate has found so far."""

    shared: set[str]
    checks: list[Check] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    suspects: dict[str, tuple[Check, int]] = field(default_factory=dict)


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
    progress = _Progress(set(names))
    outputs = {value.name for value in candidate.graph.outputs}
    given = {value.name for value in candidate.graph.inputs}
    for name in names:
        if name in given or same_definition(reference, candidate, name, progress.shared):
            continue
        _judge_one(reference, candidate, supply, progress, name, is_output=name in outputs, leg=leg, inputs=inputs)
        if len(progress.suspects) > tolerance.GROSS_LIMIT:
            progress.notes.append(
                f"more than {tolerance.GROSS_LIMIT} values of one name mean something else in the candidate: "
                "not verified locally"
            )
            break
    reused = [
        name for name in progress.suspects if not any(check.subject.endswith(f"'{name}'") for check in progress.checks)
    ]
    if reused and not any(check.verdict is Verdict.DIVERGENT for check in progress.checks):
        progress.notes.append(f"names that mean something else in the candidate: {', '.join(reused[:5])}")
    return SegmentReport(tuple(progress.checks), tuple(progress.unverified), tuple(progress.notes))


def _judge_one(
    reference: Oracle,
    candidate: Oracle,
    supply: Supply,
    progress: _Progress,
    name: str,
    *,
    is_output: bool,
    leg: str,
    inputs: str,
) -> None:
    cones = paired_cones(reference, candidate, name, progress.shared)
    frontier = tuple(dict.fromkeys(item for cone in cones for item in cone.frontier))
    inside = [
        progress.suspects[value.name]
        for node in cones[1].nodes
        for value in node.outputs
        if value.name in progress.suspects and value.name is not None
    ]
    depth = 1 + max((level for _, level in inside), default=0)
    subject = f"segment '{name}'"
    try:
        found = _evaluate(reference, candidate, supply(frontier), name)
    except OracleCannotRun as error:
        progress.unverified.append(f"{subject}: {error}")
        return
    if isinstance(found, OracleFailed):
        failure = Check(leg, inputs, subject, Verdict.DIVERGENT, np.nan, np.nan, np.nan, str(found))
        _fail(progress, name, (failure,), inside, depth, is_output=is_output, gross=True)
        return
    samples, dtype = found
    checks = judge(samples, dtype, leg=leg, inputs=inputs, subject=subject)
    if checks[0].verdict is Verdict.DIVERGENT:
        gross = _is_gross(samples, dtype)
        kept = not gross and _is_read_unchanged(reference, candidate, name, progress.shared)
        _fail(progress, name, checks, inside, depth, is_output=is_output or kept, gross=gross)
        return
    nodes = ", ".join(node.name or node.op_type for node in cones[0].nodes[:4])
    progress.checks.append(replace(checks[0], detail=f"{checks[0].detail} (nodes {nodes})"))


def _is_read_unchanged(reference: Oracle, candidate: Oracle, name: str, shared: Collection[str]) -> bool:
    """Return whether something computes the same from the value ``name`` in both graphs: then it must mean the same."""
    for node, _ in candidate.values[name].uses():
        for value in node.outputs:
            if value.name is None or value.name not in shared:
                continue
            if same_definition(reference, candidate, value.name, shared):
                return True
    return False


def _fail(
    progress: _Progress,
    name: str,
    checks: tuple[Check, ...],
    inside: Sequence[tuple[Check, int]],
    depth: int,
    *,
    is_output: bool,
    gross: bool,
) -> None:
    if is_output or (not gross and depth > _SLIGHT_CHAIN):
        known = {check.subject for check in progress.checks}
        progress.checks.extend(check for check, _ in inside[:3] if check.subject not in known)
        progress.checks.extend(checks)
        return
    progress.suspects[name] = (checks[0], depth)
    progress.shared.discard(name)


def _evaluate(
    reference: Oracle, candidate: Oracle, values: Sequence[dict[str, Held]], name: str
) -> tuple[list[Sample], ir.DataType] | OracleFailed:
    samples: list[Sample] = []
    dtype = ir.DataType.FLOAT
    for index, given in enumerate(values):
        fed = {key: _rounded(held, f"{key}:{index}", is_input=_is_input(reference, key)) for key, held in given.items()}
        known = {reference.values[key]: held for key, held in fed.items()}
        target = reference.values[name]
        truth = reference.evaluate(known, [target])[target]
        if not isinstance(truth.data, np.ndarray):
            raise OracleCannotRun(name, "a sequence", "sequences are not compared")
        dtype = truth.dtype
        reference.forget()
        noises = (
            ordinary(_draws(truth.data, len(values)))
            if is_float(dtype) and not reference.jumps(reference.needed(known, [target]))
            else undecided(tolerance.PERTURBED_RUNS, tolerance.UNDECIDED_SCALE)
        )
        perturbed = [reference.evaluate(known, [target], noise=noise)[target].data for noise in noises]
        reference.forget()
        try:
            own = candidate.values[name]
            result = candidate.evaluate(
                {candidate.values[key]: held for key, held in fed.items() if key in candidate.values}, [own]
            )
        except OracleFailed as error:
            return error
        samples.append(Sample(truth.data, tuple(perturbed), None, result[own].data))
        if _smallest_group(truth.data) * len(samples) >= tolerance.GROUP_ELEMENTS:
            break
    return samples, dtype


def _draws(truth: Array, feeds: int) -> int:
    """Return how many perturbed runs per feed know P of the smallest group well enough, at most four."""
    feeds = min(feeds, -(-tolerance.GROUP_ELEMENTS // _smallest_group(truth)))
    needed = -(-tolerance.SEGMENT_DRAWS // (_smallest_group(truth) * feeds))
    return max(1, min(tolerance.PERTURBED_RUNS, needed))


def _smallest_group(truth: Array) -> int:
    groups = [truth.size // max(1, truth.shape[axis]) for axis in channel_axes(truth.ndim)]
    return max(1, int(min(groups, default=truth.size)))


def _is_input(oracle: Oracle, name: str) -> bool:
    return oracle.values[name].producer() is None


def _rounded(held: Held, name: str, *, is_input: bool) -> Held:
    """Return a value as the graph's type would carry it, dead channels filled with N(μ, σ) of the live ones."""
    if not is_float(held.dtype) or not isinstance(held.data, np.ndarray):
        return held
    data = held.data if is_input else enlivened(held.data, name)
    return Held(widen(round_to(data, held.dtype)), held.dtype)


def enlivened(data: Array, name: str) -> Array:
    """Return ``data`` (N, C, …) with noise in the channels that do not vary: a fault behind a dead channel stays
    visible.

    The noise has mean and deviation of the whole tensor, and no negative values where the tensor has none.
    """
    if data.ndim < 2 or data.size == 0 or not np.isfinite(data).all():
        return data
    axes = (0, *range(2, data.ndim))
    whole = float(data.std())
    dead = data.std(axis=axes, keepdims=True) <= tolerance.DEAD_SHARE * whole
    if data.size == data.shape[1] or not dead.any():
        return data
    if dead.all():
        return data
    rng = np.random.Generator(np.random.SFC64([len(name), *name.encode()]))
    noise = float(data.mean()) + whole * rng.standard_normal(data.shape)
    return np.where(dead, np.abs(noise) if float(data.min()) >= 0 else noise, data)


def _is_gross(samples: Sequence[Sample], dtype: ir.DataType) -> bool:
    if not is_float(dtype):
        return True
    if any(sample.truth.shape != sample.candidate.shape for sample in samples):
        return True
    error = sum(float(np.square(sample.candidate - sample.truth).sum()) for sample in samples)
    size = sum(float(np.square(sample.truth).sum()) for sample in samples)
    return not error <= tolerance.GROSS_SHARE**2 * size
