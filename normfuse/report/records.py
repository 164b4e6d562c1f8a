"""What fuse and inspect found and did, as values. ``schema.py`` writes them as JSON, ``table.py`` as tables."""

from __future__ import annotations

from dataclasses import dataclass

from normfuse.report.verdict import ValidationReport
from normfuse.spec import AnyNorm


@dataclass(frozen=True, slots=True)
class NormRecord:
    """One norm of the model. plan: "fold into X", "emit X", or "keep"; of what moved in part, also what remains where."""

    norm: str
    spec: AnyNorm
    spelling: str
    nodes: tuple[str, ...]
    plan: str


@dataclass(frozen=True, slots=True)
class DeclinedRecord:
    """A norm that was left alone, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One change. The id is made of its kind and the value of its (first) norm in the original model.

    It stays from run to run, and does not depend on which other rewrites are made.
    """

    id: str
    kind: str
    nodes: tuple[str, ...]
    into: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity before and after."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Work:
    """What one run of a model takes: multiply-adds, parameters, and bytes that operators read and write.

    None: not known. symbolic: sizes that are known only when the model runs counted as 1.
    """

    multiply_adds: int | None
    parameters: int
    moved: int | None
    symbolic: bool


@dataclass(frozen=True, slots=True)
class FusionReport:
    """Everything that fuse found and did. ``nodes`` counts operators, ``size`` bytes of initializers.

    work_before, work_after: what one run takes.

    settings: what was asked for, by the names of the command line's flags; with them the rewrites can be replayed.
    """

    opset: int
    norms: tuple[NormRecord, ...]
    declined: tuple[DeclinedRecord, ...]
    rewrites: tuple[Rewrite, ...]
    nodes: Change
    size: Change
    notes: tuple[str, ...] = ()
    validation: ValidationReport | None = None
    settings: tuple[tuple[str, object], ...] = ()
    work_before: Work | None = None
    work_after: Work | None = None

    def json(self) -> dict[str, object]:
        """Return the report as the JSON object of the command line's contract."""
        from normfuse.report.schema import fusion_report

        return fusion_report(self)

    def table(self) -> str:
        """Return the report as text for a terminal."""
        from normfuse.report.table import fusion_report
        from normfuse.report.terminal import plain

        return plain(fusion_report(self))
