"""Which families, of which sizes, with how many samples: as many as a graph of this size may cost.

What is left out is decided by counted work, not by the clock: the same model gets the same plan on every machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from normfuse.validate import inputs as given
from normfuse.validate import tolerance
from normfuse.validate.call import OracleFailed
from normfuse.validate.compare import channel_axes
from normfuse.validate.families import NOT_FINITE, ORDINARY, Aim, aims_for, least_feeds, synthesise
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family, Feed, InputSpec, Sizes
from normfuse.validate.oracle import Oracle
from normfuse.validate.scopes import is_control, label

# Beyond the first family, further ones until their runs have cost this much: about ten seconds on one core.
_WORK = 2e10
# Segments are judged on the first family, and on these of a graph whose run takes no longer than about a second.
_LOCALLY = frozenset({"large mean", "second size"})
_LOCAL_WORK = 2e9
# More samples of a small graph, until every channel has 16 elements, while they stay below this: a tenth of a second.
_SAMPLES_WORK = 5e8
_MOST_FEEDS = 16
# Families beyond the first: fewer samples, and of a large graph, where each has draws in plenty, fewer perturbed runs.
_FURTHER_RUNS = 2
_FURTHER_FEEDS = 4


def families(
    oracle: Oracle, specs: Sequence[InputSpec], *, quick: bool, capture: Collection[str] = ()
) -> tuple[list[Family], list[str]]:
    """Return the families for ``oracle``'s graph, the ordinary one first, and notes on what was left out.

    capture: values that the run which finds the sizes keeps, for whoever evaluates the first family.

    Raises OracleFailed where no size of the dynamic axes works, OracleCannotRun as the oracle does.
    """
    sizes, outputs = _working_sizes(oracle, specs, _first_choices(), capture)
    count = _samples(oracle, specs, outputs)
    further = min(count, _FURTHER_FEEDS)
    unit = oracle.last.work * further
    few = _FURTHER_RUNS if unit > _SAMPLES_WORK else tolerance.PERTURBED_RUNS
    runs = few if quick else tolerance.PERTURBED_RUNS
    found = [Family(ORDINARY.name, _feeds(specs, ORDINARY, sizes, count), runs=runs, known=outputs)]
    if quick:
        return found, []
    work, notes, skipped = 0.0, [], []
    chooses = next((node for node in oracle.jumps() if is_control(node)), None)
    for name, aim, choices in _further(specs, sizes):
        if name in NOT_FINITE and chooses is not None:
            notes.append(
                f"no {name} was tried: a decision in {chooses.op_type} at node '{label(chooses)}' may place NaN anywhere"
            )
            continue
        if work + unit > _WORK:
            skipped.append(name)
            continue
        chosen = sizes
        if choices is not None:
            try:
                chosen, _ = _working_sizes(oracle, specs, choices)
            except OracleFailed as error:
                notes.append(f"no {name} was tried: {error}")
                continue
        feeds = _feeds(specs, aim, chosen, further, seed=name)
        is_local = name in _LOCALLY and unit <= _LOCAL_WORK
        found.append(Family(name, feeds, aim.on_providers, aim is ORDINARY, few, is_local))
        work += unit
    if skipped:
        notes.append(f"families left out, since the graph is large: {', '.join(skipped)}")
    return found, notes


def _further(specs: Sequence[InputSpec], sizes: Sizes) -> Iterator[tuple[str, Aim, Iterator[Sizes] | None]]:
    """Yield the families after the first, those that find most first: a name, an aim, and sizes to choose from."""
    aims = aims_for(specs)
    dynamic = given.is_dynamic(specs)
    if dynamic:
        yield "second size", ORDINARY, _second_choices(specs, sizes)
    for aim in aims[:2]:
        yield aim.name, aim, None
    if dynamic:
        yield "size 1", ORDINARY, _smallest_choices(specs, sizes)
        yield "odd size", ORDINARY, _odd_choices(specs, sizes)
    for aim in aims[2:]:
        yield aim.name, aim, None


def _working_sizes(
    oracle: Oracle, specs: Sequence[InputSpec], choices: Iterator[Sizes], capture: Collection[str] = ()
) -> tuple[Sizes, dict[str, Held]]:
    """Return the first of ``choices`` that the reference accepts, and what it gives there; the oracle's last run is that.

    Raises OracleFailed with the graph's own words where none of the sizes works, OracleCannotRun as the oracle does.
    """
    refusal: OracleFailed | None = None
    for sizes in choices:
        try:
            return sizes, oracle.run(synthesise(specs, ORDINARY, sizes, 0), capture=capture)
        except OracleFailed as error:
            refusal = refusal or error
    raise refusal or OracleFailed("", "the whole graph", "there is no size to try")


def _first_choices() -> Iterator[Sizes]:
    for batch in given.BATCH_SIZES[::2]:
        for other in given.OTHER_SIZES:
            yield Sizes(batch, other)


def _axes(specs: Sequence[InputSpec]) -> tuple[bool, bool]:
    """Return whether there is a dynamic first axis, and whether there is another one."""
    table = given.resolve(specs, Sizes(-1, -2))
    return -1 in table.values(), -2 in table.values()


def _second_choices(specs: Sequence[InputSpec], first: Sizes) -> Iterator[Sizes]:
    has_batch, has_other = _axes(specs)
    batches = [size for size in given.BATCH_SIZES if size != first.batch] if has_batch else [first.batch]
    others = given.SECOND_SIZES[first.other] if has_other else (first.other,)
    for batch in batches:
        for other in others:
            yield Sizes(batch, other)
    if has_batch and has_other:
        for batch in batches:
            yield Sizes(batch, first.other)


def _smallest_choices(specs: Sequence[InputSpec], first: Sizes) -> Iterator[Sizes]:
    has_batch, has_other = _axes(specs)
    if has_other:
        yield Sizes(1, 1)
    if has_batch:
        yield Sizes(1, first.other)
    if has_other and has_batch:
        yield Sizes(first.batch, 1)


def _odd_choices(specs: Sequence[InputSpec], first: Sizes) -> Iterator[Sizes]:
    has_batch, has_other = _axes(specs)
    if has_other:
        for other in (5, 7, 9, 33):
            yield Sizes(3, other)
    if has_batch:
        yield Sizes(3, first.other)


def _samples(oracle: Oracle, specs: Sequence[InputSpec], outputs: dict[str, Held]) -> int:
    """Return how many feeds give every channel of every output 16 elements, while the graph is cheap; at least one."""
    smallest = min((_group(outputs[value.name].data) for value in oracle.graph.outputs if value.name), default=1)
    wanted = -(-tolerance.GROUP_ELEMENTS // max(1, smallest))
    affordable = int(_SAMPLES_WORK / max(oracle.last.work, 1.0))
    return max(least_feeds(specs), min(wanted, affordable, _MOST_FEEDS))


def _feeds(specs: Sequence[InputSpec], aim: Aim, sizes: Sizes, count: int, *, seed: str = "") -> tuple[Feed, ...]:
    return tuple(synthesise(specs, aim, sizes, index, seed=seed) for index in range(count))


def _group(data: object) -> int:
    if not isinstance(data, np.ndarray):
        return tolerance.GROUP_ELEMENTS
    groups = [data.size // max(1, data.shape[axis]) for axis in channel_axes(data.ndim)]
    return int(min(groups, default=data.size))
