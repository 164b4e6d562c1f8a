"""The truth of one input family: the reference in float64, four times perturbed, on inputs that it accepts."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.errors import ValidationError
from normfuse.validate import inputs as generated
from normfuse.validate import tolerance
from normfuse.validate.call import OracleFailed
from normfuse.validate.compare import channel_axes
from normfuse.validate.inputs import Family, Feed, InputSpec, Sizes
from normfuse.validate.noise import Noise, ordinary, undecided
from normfuse.validate.oracle import Held, Oracle
from normfuse.validate.rounding import is_float

# More samples of a small graph, until every channel has 16 elements; not where one float64 run takes longer than this.
_CHEAP_SECONDS = 0.25
_MOST_FEEDS = 16


@dataclass(frozen=True, slots=True)
class Truth:
    """One family with, per feed, the outputs in float64, those of the perturbed runs, and captured values."""

    family: Family
    outputs: tuple[dict[str, Held], ...]
    perturbed: tuple[tuple[dict[str, Held], ...], ...]
    seconds: float


def working_sizes(oracle: Oracle, specs: Sequence[InputSpec], *, after: Sizes | None = None) -> Sizes:
    """Return sizes of the dynamic axes that the reference accepts; with ``after`` another choice than that.

    Raises ValidationError with the graph's own words where none of the sizes works, OracleCannotRun as the oracle does.
    """
    refusal = ""
    for sizes in _candidates(specs, after):
        try:
            oracle.run(generated.synthesise(specs, "standard normal", sizes, 0))
        except OracleFailed as error:
            refusal = str(error)
            continue
        return sizes
    raise ValidationError(f"no size of the dynamic axes works in the reference: give --inputs ({refusal})")


def _candidates(specs: Sequence[InputSpec], after: Sizes | None) -> Iterator[Sizes]:
    if after is None:
        for batch in generated.BATCH_SIZES[::2]:
            for other in generated.OTHER_SIZES:
                yield Sizes(batch, other)
        return
    table = generated.resolve(specs, Sizes(-1, -2))
    batches = [size for size in generated.BATCH_SIZES if size != after.batch] if -1 in table.values() else [after.batch]
    others = generated.SECOND_SIZES[after.other] if -2 in table.values() else (after.other,)
    for batch in batches:
        for other in others:
            yield Sizes(batch, other)
    if -1 in table.values():
        for batch in batches:
            yield Sizes(batch, after.other)


def evaluate(oracle: Oracle, family: Family, *, capture: Collection[str] = ()) -> Truth:
    """Return the truth of ``family``. Raises OracleCannotRun, OracleFailed.

    Where a result jumps inside the graph (QuantizeLinear, Round, a comparison), end to end only faults above ten
    roundings are told from a decision that fell otherwise: P is that of the runs that perturb ten times as much.
    Segments cut there.
    """
    perturbed = []
    jumps = bool(oracle.jumps())
    discrete = jumps or any(not is_float(value.dtype) for value in oracle.graph.outputs)
    start = time.monotonic()
    outputs = [oracle.run(feed, capture=capture) for feed in family.feeds]
    seconds = time.monotonic() - start
    for feed in family.feeds:
        oracle.forget()
        runs = [oracle.run(feed, noise=noise) for noise in ordinary(tolerance.PERTURBED_RUNS)]
        if discrete:
            near_ties = undecided(tolerance.PERTURBED_RUNS, tolerance.UNDECIDED_SCALE)
            wide = [oracle.run(feed, noise=noise) for noise in near_ties]
            runs = [_with_discrete(run, other) for run, other in zip(runs, wide, strict=True)] if not jumps else wide
        perturbed.append(tuple(runs))
    oracle.forget()
    return Truth(family, tuple(outputs), tuple(perturbed), seconds)


def _with_discrete(run: dict[str, Held], wide: dict[str, Held]) -> dict[str, Held]:
    return {name: held if is_float(held.dtype) else wide[name] for name, held in run.items()}


def feeds_for(oracle: Oracle, specs: Sequence[InputSpec], family: str, sizes: Sizes) -> tuple[Feed, ...]:
    """Return as many feeds as give every channel of every output 16 elements, while the graph is cheap; at least one.

    Cheap by a perturbed run, which draws noise for every weight: five such runs follow for each feed.
    """
    first = generated.synthesise(specs, family, sizes, 0)
    outputs = oracle.run(first)
    start = time.monotonic()
    oracle.run(first, noise=Noise(0))
    seconds = time.monotonic() - start
    oracle.forget()
    smallest = min((_group(outputs[value.name].data) for value in oracle.graph.outputs if value.name), default=1)
    count = -(-tolerance.GROUP_ELEMENTS // max(1, smallest))
    if seconds * count > _CHEAP_SECONDS:
        count = max(1, min(count, int(_CHEAP_SECONDS / seconds)))
    count = min(count, _MOST_FEEDS)
    return (first, *(generated.synthesise(specs, family, sizes, index) for index in range(1, count)))


def _group(data: object) -> int:
    if not isinstance(data, np.ndarray):
        return tolerance.GROUP_ELEMENTS
    groups = [data.size // max(1, data.shape[axis]) for axis in channel_axes(data.ndim)]
    return int(min(groups, default=data.size))


def has_float_input(specs: Sequence[InputSpec]) -> bool:
    """Return whether "large mean" differs from "standard normal" for this graph."""
    return any(is_float(spec.dtype) for spec in specs)


def output_type(value: ir.Value, held: Held) -> ir.DataType:
    """Return the declared type of an output, else the type that the oracle derived."""
    return value.dtype or held.dtype
