"""The truth of one input family: the reference in float64, several times perturbed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.validate import tolerance
from normfuse.validate.cuts import needs
from normfuse.validate.decisions import decided
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family
from normfuse.validate.noise import ordinary
from normfuse.validate.noise import undecided as undecided_noise
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import Array, is_float
from normfuse.validate.scopes import is_control, is_random


@dataclass(frozen=True, slots=True)
class Truth:
    """One family with, per feed, the outputs in float64, those of the perturbed runs, and captured values: of those,
    what random nodes draw and deciding ones decide.

    in_range: the outputs where every result beyond float16 becomes infinite, as on a device; None without float16.
    undecided: how many decisions inside the graph fall otherwise when rounding is ten times as large.
    """

    family: Family
    outputs: tuple[dict[str, Held], ...]
    perturbed: tuple[tuple[dict[str, Held], ...], ...]
    in_range: tuple[dict[str, Held], ...] | None
    undecided: int = 0

    @property
    def first(self) -> Truth:
        """The truth of the first feed alone."""
        family = replace(self.family, feeds=self.family.feeds[:1])
        in_range = None if self.in_range is None else self.in_range[:1]
        return replace(self, family=family, outputs=self.outputs[:1], perturbed=self.perturbed[:1], in_range=in_range)


def evaluate(oracle: Oracle, family: Family, *, capture: Collection[str] = ()) -> Truth:
    """Return the truth of ``family``. Raises OracleCannotRun, OracleFailed.

    Where a decision inside the graph (QuantizeLinear, Round, a comparison) falls otherwise in a run that perturbs ten
    times as much, P is that of those runs: end to end only faults above ten roundings are told from such a decision.
    Segments cut there, and so do :mod:`cuts`. Decisions in bodies of control flow are not seen and taken to do so.
    """
    jumps = oracle.jumps()
    decisions = needs([node for node in jumps if not is_control(node)])
    drawn = needs([node for node in oracle.nodes if is_random(node)])
    discrete = bool(jumps) or any(not is_float(value.dtype) for value in oracle.graph.outputs)
    wanted = [*capture, *decisions, *drawn]
    outputs = [
        dict(family.known)
        if not index and family.known and family.known.keys() >= set(wanted)
        else oracle.run(feed, capture=wanted)
        for index, feed in enumerate(family.feeds)
    ]
    perturbed: list[list[dict[str, Held]]] = []
    near_ties: list[list[dict[str, Held]]] = []
    undecided = 0
    for feed, truth in zip(family.feeds, outputs, strict=True):
        oracle.forget()
        noises = undecided_noise(tolerance.PERTURBED_RUNS, tolerance.UNDECIDED_SCALE) if discrete else ()
        near_ties.append([oracle.run(feed, noise=noise, capture=decisions) for noise in noises])
        undecided += sum(
            _differing(truth[name], [run[name] for run in near_ties[-1]]) for name in _telling(jumps, truth)
        )
    is_loose = undecided > 0 or any(is_control(node) for node in jumps)
    for feed, wide in zip(family.feeds, near_ties, strict=True):
        oracle.forget()
        runs = wide if is_loose else [oracle.run(feed, noise=noise) for noise in ordinary(family.runs)]
        perturbed.append(runs if is_loose or not wide else _with_discrete(runs, wide))
    oracle.forget()
    in_range = tuple(oracle.run(feed, in_range=True) for feed in family.feeds) if oracle.has_half_types else None
    return Truth(family, tuple(outputs), tuple(map(tuple, perturbed)), in_range, undecided)


def _telling(jumps: Sequence[ir.Node], truth: dict[str, Held]) -> list[str]:
    """Return the results that show how a node decided: the discrete ones where it has any."""
    found: list[str] = []
    for node in jumps:
        names = [value.name or "" for value in decided(node) if not is_control(node)]
        found += [name for name in names if not is_float(truth[name].dtype)] or names
    return found


def _differing(truth: Held, others: Sequence[Held]) -> int:
    """Return how many elements of a decision one of ``others`` has otherwise."""
    array = np.asarray(truth.data)
    if any(np.shape(other.data) != array.shape for other in others):
        return max(1, array.size)
    different = np.zeros(array.shape, dtype=bool)
    for other in others:
        if is_float(truth.dtype):
            with np.errstate(invalid="ignore"):
                jump = min(tolerance.JUMP, tolerance.ILL_CONDITIONED * float(np.abs(array).max(initial=0.0)))
                different |= np.abs(np.asarray(other.data) - array) > jump
        else:
            different |= np.asarray(other.data) != array
    return int(np.count_nonzero(different))


def _with_discrete(runs: Sequence[dict[str, Held]], wide: Sequence[dict[str, Held]]) -> list[dict[str, Held]]:
    """Return ``runs`` with the discrete results of ``wide``."""
    return [
        {name: held if is_float(held.dtype) else other[name] for name, held in run.items()}
        for run, other in zip(runs, wide, strict=False)
    ]


def moved(noisy: Held, clean: Held, exact: Array) -> Held:
    """Return what rounding does to a value, moved to where another run of it lies; what is no float stays."""
    if np.shape(clean.data) != np.shape(exact) or exact.dtype.kind != "f":
        return noisy
    return Held(exact + (noisy.data - clean.data), noisy.dtype)


def output_type(value: ir.Value, held: Held) -> ir.DataType:
    """Return the declared type of an output, else the type that the oracle derived."""
    return value.dtype or held.dtype
