"""One segment: a value of both graphs, computed on each side from the same values before it.

Both sides are fed the oracle's values rounded to the graph's type. A channel that is dead there (a Relu in front of it)
is filled with N(μ, σ) of the whole tensor, so that a fault behind it stays visible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normfuse.validate import tolerance
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.compare import Sample, channel_axes
from normfuse.validate.cones import Cone
from normfuse.validate.held import Held
from normfuse.validate.noise import ordinary, undecided
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import Array, is_float, round_to, widen
from normfuse.validate.scopes import drawn_name, is_random, unpaired

Values = Sequence[dict[str, Held]]
Forced = tuple[Collection[ir.Graph], Collection[ir.Graph]]
AS_IT_IS: Forced = ((), ())
_STATISTICS = frozenset(
    ["ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool", "GlobalLpPool"]
)


@dataclass(slots=True)
class Evaluated:
    """A segment on both sides, one sample per feed. trips: how often the reference entered each body."""

    samples: list[Sample] = field(default_factory=list)
    dtype: ir.DataType = ir.DataType.FLOAT
    trips: dict[ir.Graph, int] = field(default_factory=dict)

    @property
    def is_gross(self) -> bool:
        """Whether the two sides differ so much that they may mean something else."""
        if not is_float(self.dtype):
            return True
        if any(sample.truth.shape != sample.candidate.shape for sample in self.samples):
            return True
        error = sum(float(np.square(sample.candidate - sample.truth).sum()) for sample in self.samples)
        size = sum(float(np.square(sample.truth).sum()) for sample in self.samples)
        return not error <= tolerance.GROSS_SHARE**2 * size


@dataclass(frozen=True, slots=True)
class Segment:
    """The value ``name`` of both graphs with the nodes that compute it from the frontier of its cones."""

    reference: Oracle
    candidate: Oracle
    name: str
    cones: tuple[Cone, Cone]

    @property
    def frontier(self) -> tuple[str, ...]:
        """The names of the values that it is computed from."""
        return tuple(dict.fromkeys(item for cone in self.cones for item in cone.frontier))

    @property
    def takes_statistics(self) -> bool:
        """Whether a norm (or what may be a part of one) measures its input here: then an epsilon counts."""
        return any(
            node.op_type in _STATISTICS or ("Norm" in node.op_type and node.op_type != "BatchNormalization")
            for cone in self.cones
            for node in cone.nodes
        )

    def evaluate(
        self, values: Values, *, forced: Forced = AS_IT_IS, quiet: bool = False, runs: int | None = None
    ) -> Evaluated | OracleFailed:
        """Compute both sides, feed after feed until every channel has elements enough.

        forced: bodies that either side enters whatever their condition says. quiet: activations scaled to a deviation
        at which a usual epsilon is as large as the variance. runs: perturbed runs of each feed, None for as many as know P
        where elements are independent. Returns the error where only the candidate fails; raises OracleFailed where the
        reference does, OracleCannotRun as the oracle does.
        """
        found = Evaluated()
        draws = [frozenset(drawn_name(node) for node in cone.nodes if is_random(node)) for cone in self.cones]
        if lonely := unpaired(*draws):
            raise OracleCannotRun(lonely, "a random operator", "the candidate has none of that name to draw alike")
        for index, given in enumerate(values):
            fed = {key: self._fed(held, f"{key}:{index}", key, quiet=quiet) for key, held in given.items()}
            known = {self.reference.values[key]: held for key, held in fed.items()}
            target = self.reference.values[self.name]
            truth = self.reference.evaluate(known, [target], forced=forced[0])[target]
            found.trips.update(
                {body: max(n, found.trips.get(body, 0)) for body, n in self.reference.last.trips.items()}
            )
            if not isinstance(truth.data, np.ndarray):
                raise OracleCannotRun(self.name, "a sequence", "sequences are not compared")
            found.dtype = truth.dtype
            perturbed = self._perturbed(known, truth, runs or _draws(truth.data, len(values)), forced[0])
            own = self.candidate.values[self.name]
            ours = {self.candidate.values[key]: held for key, held in fed.items() if key in self.candidate.values}
            try:
                result = self.candidate.evaluate(ours, [own], forced=forced[1])
            except OracleFailed as error:
                return error
            found.samples.append(Sample(truth.data, perturbed, None, result[own].data))
            if smallest_group(truth.data) * len(found.samples) >= tolerance.GROUP_ELEMENTS:
                break
        return found

    def _perturbed(
        self, known: dict[ir.Value, Held], truth: Held, runs: int, forced: Collection[ir.Graph]
    ) -> tuple[Array, ...]:
        target = self.reference.values[self.name]
        is_smooth = is_float(truth.dtype) and not self.reference.jumps(self.reference.needed(known, [target]))
        noises = ordinary(runs) if is_smooth else undecided(tolerance.PERTURBED_RUNS, tolerance.UNDECIDED_SCALE)
        self.reference.forget()
        found = [self.reference.evaluate(known, [target], noise=noise, forced=forced)[target].data for noise in noises]
        self.reference.forget()
        return tuple(found)

    def _fed(self, held: Held, seed: str, name: str, *, quiet: bool) -> Held:
        """Return a value as the graph's type would carry it."""
        if not is_float(held.dtype) or not isinstance(held.data, np.ndarray):
            return held
        value = self.reference.values[name]
        data = held.data if value.producer() is None else enlivened(held.data, seed)
        if quiet and not self.reference.is_constant(value):
            data = _quietened(data)
        return Held(widen(round_to(data, held.dtype)), held.dtype)


def _quietened(data: Array) -> Array:
    deviation = float(data.std()) if data.size and np.isfinite(data).all() else 0.0
    return data * (tolerance.QUIET_DEVIATION / deviation) if deviation > tolerance.QUIET_DEVIATION else data


def _draws(truth: Array, feeds: int) -> int:
    """Return how many perturbed runs per feed know P of the smallest group well enough, at most four."""
    feeds = min(feeds, -(-tolerance.GROUP_ELEMENTS // smallest_group(truth)))
    needed = -(-tolerance.SEGMENT_DRAWS // (smallest_group(truth) * feeds))
    return max(1, min(tolerance.PERTURBED_RUNS, needed))


def smallest_group(truth: Array) -> int:
    """Return the number of elements of the smallest channel."""
    groups = [truth.size // max(1, truth.shape[axis]) for axis in channel_axes(truth.ndim)]
    return max(1, int(min(groups, default=truth.size)))


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
