"""A validation for a terminal: one line a check, then what failed, then the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from normfuse.report.terminal import STYLES, Blocks, columns
from normfuse.report.verdict import Check, Leg, Location, ValidationReport, Verdict, how_local

# The verdict; then leg, inputs, what, and what was found there.
Row = tuple[Verdict, str, str, str, str]

_MARKS = {Verdict.EQUIVALENT: "✓", Verdict.DIVERGENT: "✗", Verdict.NOT_RUN: "–"}
_MOST_ROWS = 40
"""Tables longer than this are cut, what failed last; the JSON has every check."""
_MOST_FAILED = 10


def validation(report: ValidationReport) -> Blocks:
    """Return a line for each check (those of many segments or layers in one), then :func:`summary`."""
    rows = [row for leg in report.legs for row in _rows([check for check in report.checks if check.leg == leg.name])]
    shown = _most_telling(rows)
    table = columns("", "leg", "inputs", "what", "found", header=False)
    table.padding = (0, 1, 0, 0)
    for column in table.columns[:-1]:
        column.no_wrap, column.overflow = True, "ellipsis"
    for verdict, *cells in shown:
        # One line a check: where the window is narrow the figures are cut; those of failures are told below.
        words = Text(cells.pop(), no_wrap=True, overflow="ellipsis")
        table.add_row(Text(_MARKS[verdict], STYLES[verdict]), *(Text(cell) for cell in cells), words)
    blocks: list[str | Text | Table] = [table] if shown else []
    if len(rows) > len(shown):
        blocks.append(f"… and {len(rows) - len(shown)} more lines (--json lists every check)")
    return [*blocks, *summary(report)]


def summary(report: ValidationReport) -> Blocks:
    """Return a line a leg with the checks that failed, where the graphs part, what is open, and the verdict."""
    blocks: list[str | Text] = []
    for leg in report.legs:
        blocks.extend(_leg(leg, [check for check in report.checks if check.leg == leg.name]))
    blocks.extend(f"{item.leg}: {item.words}" for item in report.rankings)
    if report.location is not None:
        blocks.extend(_location(report.location))
    blocks.extend(Text(f"not verified: {item}", STYLES[Verdict.NOT_RUN]) for item in report.unreached)
    blocks.extend(f"note: {note}" for note in report.notes)
    blocks.append(_with_verdict("verdict: ", report.verdict, ""))
    return blocks


def _rows(checks: Sequence[Check]) -> list[Row]:
    """Return what each row holds: checks of one kind on the same inputs are one row, told by the worst of them."""
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        kind = next((kind for kind in ("segment", "norm") if check.subject.startswith(f"{kind} ")), "")
        groups.setdefault((check.inputs, kind or check.subject.partition("[")[0]), []).append(check)
    rows = []
    for (inputs, kind), group in groups.items():
        worst = _worst(group)
        what, words = worst.subject if len(group) == 1 else kind, _short(worst)
        if kind in ("segment", "norm") and len(group) > 1:
            parts = {check.subject.partition("[")[0] for check in group}
            failed = {check.subject.partition("[")[0] for check in group if check.verdict is Verdict.DIVERGENT}
            what = f"{len(parts)} {kind}s"
            words = f"{len(failed)} failed" if failed else f"{words} at {worst.subject.partition(' ')[2]}"
        rows.append((worst.verdict, worst.leg, inputs, what, words))
    return rows


def _short(check: Check) -> str:
    """Return what a check found in the words of one cell."""
    return check.detail.partition(" (nodes ")[0].replace("the original's own is", "original")


def _worst(checks: Sequence[Check]) -> Check:
    order = {Verdict.DIVERGENT: 2, Verdict.NOT_RUN: 1, Verdict.EQUIVALENT: 0}
    return max(checks, key=lambda check: (order[check.verdict], check.share))


def _most_telling(rows: Sequence[Row]) -> Sequence[Row]:
    """Return at most ``_MOST_ROWS`` rows in their order; where some must go, those that did not fail go first."""
    if len(rows) <= _MOST_ROWS:
        return rows
    by_need = sorted(range(len(rows)), key=lambda index: (rows[index][0] is not Verdict.DIVERGENT, index))
    return [rows[index] for index in sorted(by_need[:_MOST_ROWS])]


def _leg(leg: Leg, checks: Sequence[Check]) -> list[str | Text]:
    if leg.verdict is Verdict.NOT_RUN:
        return [_with_verdict(f"{leg.name}: ", leg.verdict, f": {leg.reason}")]
    families = len({check.inputs.split(", ")[0] for check in checks})
    kinds = "family" if families == 1 else "families"
    count = f"{len(checks)} check{'' if len(checks) == 1 else 's'} on {families} input {kinds}"
    lines: list[str | Text] = [
        _with_verdict(f"{leg.name}: ", leg.verdict, f" ({count}){': ' + leg.reason if leg.reason else ''}")
    ]
    failed = sorted((check for check in checks if check.verdict is Verdict.DIVERGENT), key=how_local)
    shown = (
        failed or sorted((check for check in checks if check.share), key=lambda check: check.share, reverse=True)[:1]
    )
    lines.extend(f"  {check.inputs} · {check.subject}: {check.detail}" for check in shown[:_MOST_FAILED])
    if len(shown) > _MOST_FAILED:
        lines.append(f"  … and {len(shown) - _MOST_FAILED} more")
    return lines


def _location(location: Location) -> list[str | Text]:
    lines: list[str | Text] = [f"where: {location.words}"] if location.words else []
    if location.rewrite:
        lines.append(f"  before: {', '.join(location.before)}; after: {', '.join(location.after) or 'nothing'}")
    if location.tensor:
        lines.append(f"  first value beyond its budget: {location.tensor}")
    return lines


def _with_verdict(before: str, verdict: Verdict, after: str) -> Text:
    return Text.assemble(before, (verdict.value, STYLES[verdict]), after)
