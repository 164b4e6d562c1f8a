"""The truth of one input family: the reference in float64, several times perturbed."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.validate import tolerance
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family
from normfuse.validate.noise import ordinary, undecided
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import is_float


@dataclass(frozen=True, slots=True)
class Truth:
    """One family with, per feed, the outputs in float64, those of the perturbed runs, and captured values.

    in_range: the outputs where every result beyond float16 becomes infinite, as on a device; None without float16.
    """

    family: Family
    outputs: tuple[dict[str, Held], ...]
    perturbed: tuple[tuple[dict[str, Held], ...], ...]
    in_range: tuple[dict[str, Held], ...] | None
    seconds: float


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
        runs = [] if jumps else [oracle.run(feed, noise=noise) for noise in ordinary(family.runs)]
        if discrete:
            near_ties = undecided(tolerance.PERTURBED_RUNS, tolerance.UNDECIDED_SCALE)
            wide = [oracle.run(feed, noise=noise) for noise in near_ties]
            runs = wide if jumps else [_with_discrete(run, other) for run, other in zip(runs, wide, strict=False)]
        perturbed.append(tuple(runs))
    oracle.forget()
    in_range = tuple(oracle.run(feed, in_range=True) for feed in family.feeds) if oracle.has_half_types else None
    return Truth(family, tuple(outputs), tuple(perturbed), in_range, seconds)


def _with_discrete(run: dict[str, Held], wide: dict[str, Held]) -> dict[str, Held]:
    return {name: held if is_float(held.dtype) else wide[name] for name, held in run.items()}


def output_type(value: ir.Value, held: Held) -> ir.DataType:
    """Return the declared type of an output, else the type that the oracle derived."""
    return value.dtype or held.dtype
