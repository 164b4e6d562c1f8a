"""The exit codes of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normfuse.report.verdict import Verdict

DIVERGENT, BAD_INPUT, NOT_VERIFIED, INTERNAL, INTERRUPTED = 1, 2, 3, 4, 130


def code_of(verdict: Verdict) -> int:
    """Return the exit code that tells ``verdict``; 0 is a pass."""
    return {"EQUIVALENT": 0, "DIVERGENT": DIVERGENT, "NOT_RUN": NOT_VERIFIED}[verdict.value]
