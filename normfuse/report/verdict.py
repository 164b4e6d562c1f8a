"""The outcome of a validation, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


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
    NaN where not applicable. detail: one line in words.
    """

    leg: str
    inputs: str
    subject: str
    verdict: Verdict
    error: float
    original_error: float
    allowed: float
    detail: str


@dataclass(frozen=True, slots=True)
class Leg:
    """The verdict of one leg with, where it did not run, the reason."""

    name: str
    verdict: Verdict
    reason: str = ""


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

    @property
    def verdict(self) -> Verdict:
        """DIVERGENT if any leg is; else NOT_RUN if a changed part is unreached; else EQUIVALENT if any leg ran."""
        verdicts = {leg.verdict for leg in self.legs}
        if Verdict.DIVERGENT in verdicts:
            return Verdict.DIVERGENT
        return Verdict.EQUIVALENT if Verdict.EQUIVALENT in verdicts and not self.unreached else Verdict.NOT_RUN
