"""The outcome of a validation, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Verdict(enum.Enum):
    """What can be said of two graphs. NOT_RUN is never a pass."""

    EQUIVALENT = "EQUIVALENT"
    DIVERGENT = "DIVERGENT"
    NOT_RUN = "NOT_RUN"


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: a leg, an input family, and what was compared.

    leg: "oracle" (float64 evaluation of both graphs) or "cpu"/"cuda" (onnxruntime on that provider).
    inputs: the name of the input family. subject: an output's name, or a segment's.
    error, original_error, allowed: rms of candidate − truth, of reference − truth, and the most that the budget grants;
    NaN where not applicable. detail: one line in words. nodes: of the original, where one segment was judged.
    histogram: how many elements of the candidate, and of the original, are off by less than 2^k budgets, k from -6 to 5,
    the rest last; empty where there is no number to it.
    """

    leg: str
    inputs: str
    subject: str
    verdict: Verdict
    error: float
    original_error: float
    allowed: float
    detail: str
    nodes: tuple[str, ...] = ()
    histogram: tuple[tuple[int, ...], ...] = ()

    @property
    def share(self) -> float:
        """How much of what is allowed the error takes; 0 where there is no number to it."""
        return self.error / self.allowed if self.allowed > 0 and self.error >= 0 else 0.0


def how_local(check: Check) -> tuple[bool, bool]:
    """Return a key for sorting: segments and layers say where, so they come first; single channels come last."""
    return "[" in check.subject, not check.subject.startswith(("segment", "norm"))


@dataclass(frozen=True, slots=True)
class Leg:
    """The verdict of one leg with, where it did not run, the reason."""

    name: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one run of the original and of the candidate, on one leg with one optimization level."""

    leg: str
    level: str
    original: float
    candidate: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How an output of scores ranks its classes in both graphs, over all samples of a leg, as deployed.

    top: samples where both have the same class first. order: where both have the same ``depth`` first, in one order.
    """

    leg: str
    output: str
    samples: int
    top: int
    order: int
    depth: int

    @property
    def words(self) -> str:
        """One line for a report."""
        first = f"output '{self.output}' has the same class first for {self.top} of {self.samples} samples"
        return f"{first}, the same first {self.depth} in the same order for {self.order}"


@dataclass(frozen=True, slots=True)
class DepthPoint:
    """One value that both graphs have, in the candidate's order: error and budget relative to the value's own size."""

    name: str
    op: str
    error: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Location:
    """Where the graphs part. rewrite: the id of the first rewrite after which the verdict flips, and what it replaced.

    tensor: the first value beyond its budget. Either is empty where it was not asked for or not found; words say why.
    """

    rewrite: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    tensor: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class FailingInputs:
    """The inputs of the family on which a check failed: one dictionary of arrays per sample."""

    family: str
    feeds: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """All checks of one validation. The overall verdict is the worst that a leg which ran has found.

    unreached: changed bodies of branches and loops that no input enters and that cannot be forced: no leg has judged
    them, so the verdict is not EQUIVALENT.
    """

    legs: tuple[Leg, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = field(default=())
    unreached: tuple[str, ...] = field(default=())
    latencies: tuple[Latency, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    curve: tuple[DepthPoint, ...] = ()
    location: Location | None = None
    environment: tuple[tuple[str, str], ...] = ()
    failing: FailingInputs | None = field(default=None, compare=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """DIVERGENT if any leg is; else NOT_RUN if a changed part is unreached; else EQUIVALENT if any leg ran."""
        verdicts = {leg.verdict for leg in self.legs}
        if Verdict.DIVERGENT in verdicts:
            return Verdict.DIVERGENT
        return Verdict.EQUIVALENT if Verdict.EQUIVALENT in verdicts and not self.unreached else Verdict.NOT_RUN

    def table(self) -> str:
        """Return the report as text for a terminal."""
        from normfuse.report.terminal import plain
        from normfuse.report.verdict_table import validation

        return plain(validation(self))

    def json(self) -> dict[str, object]:
        """Return the report as the JSON object of ``normfuse validate --json``."""
        from normfuse.report.schema import validation

        return validation(self)

    def junit(self) -> str:
        """Return the report as JUnit XML: one test case per check."""
        from normfuse.report.junit import junit

        return junit(self)

    def html(self) -> str:
        """Return the report as one HTML page that needs no network."""
        from normfuse.report.page import page

        return page(self)
