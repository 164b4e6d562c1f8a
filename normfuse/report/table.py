"""Reports as text for a terminal."""

from __future__ import annotations

import io
from collections import Counter

from rich.console import Console
from rich.table import Table

from normfuse.report.records import FusionReport, NormRecord
from normfuse.report.schema import affine, extent
from normfuse.report.verdict import Check, Location, ValidationReport, Verdict
from normfuse.spec import NormSpec

_MOST_ROWS = 40
"""Tables longer than this are cut; the JSON has every row."""


def inspection(report: FusionReport) -> str:
    """Return the norms of a model, what fuse would do with each, and what it declines with the reason."""
    if not report.norms and not report.declined:
        return "no normalization layers found\n"
    lines = [f"{_counts(report.norms)} at opset {report.opset}"]
    if report.norms:
        table = _table("norm", "node", "spelling", "statistics", "epsilon", "affine", "plan")
        for record in report.norms[:_MOST_ROWS]:
            table.add_row(
                record.norm,
                record.nodes[-1] if record.nodes else "",
                record.spelling,
                _statistics(record),
                f"{record.spec.epsilon:.3g}" if isinstance(record.spec, NormSpec) else "",
                _affine(record),
                record.plan,
            )
        lines.append(_text(table).rstrip("\n"))
        if len(report.norms) > _MOST_ROWS:
            lines.append(f"… and {len(report.norms) - _MOST_ROWS} more (--json lists all)")
    lines.extend(_declined(report))
    lines.extend(f"note: {note}" for note in report.notes)
    return "\n".join(lines) + "\n"


def fusion_report(report: FusionReport) -> str:
    """Return what was done, what was declined with the reason, and the verdict."""
    kinds = Counter(rewrite.kind for rewrite in report.rewrites)
    what = {
        "fold-batchnorm": "fold of batch norms",
        "move-batchnorm": "move of batch norms",
        "move-affine": "move of constant factors and terms",
        "fold-weight-norm": "fold of weight norms",
        "merge-branches": "merge of branches",
        "fold-norm-affine": "fold of scale and bias",
        "emit": "norm written anew",
        "convert-opset": "change of opset",
    }
    done = ", ".join(_plural(count, what.get(kind, kind)) for kind, count in kinds.items()) or "nothing to do"
    lines = [
        f"{done}; {report.nodes.before} → {report.nodes.after} nodes, "
        f"{_bytes(report.size.before)} → {_bytes(report.size.after)} of weights"
    ]
    kept = [record for record in report.norms if record.plan == "keep"]
    if kept:
        lines.append(f"kept as they are: {_counts(tuple(kept))}")
    lines.extend(_declined(report))
    lines.extend(f"note: {note}" for note in report.notes)
    if report.validation is not None:
        lines.append(validation(report.validation).rstrip("\n"))
    return "\n".join(lines) + "\n"


def validation(report: ValidationReport) -> str:
    """Return the verdict: one line a leg, then the checks that failed, or those that came closest to their limit."""
    lines = []
    for leg in report.legs:
        checks = [check for check in report.checks if check.leg == leg.name]
        families = len({check.inputs.split(", ")[0] for check in checks})
        if leg.verdict is Verdict.NOT_RUN:
            lines.append(f"{leg.name}: NOT_RUN: {leg.reason}")
            continue
        summary = f"{len(checks)} checks on {families} input {'family' if families == 1 else 'families'}"
        lines.append(f"{leg.name}: {leg.verdict.value} ({summary}){': ' + leg.reason if leg.reason else ''}")
        shown = [check for check in checks if check.verdict is Verdict.DIVERGENT] or _closest(checks)
        lines.extend(f"  {check.inputs} · {check.subject}: {check.detail}" for check in shown[:10])
        if len(shown) > 10:
            lines.append(f"  … and {len(shown) - 10} more")
    if report.location is not None:
        lines.extend(_location(report.location))
    lines.extend(f"not verified: {item}" for item in report.unreached)
    lines.extend(f"note: {note}" for note in report.notes)
    lines.append(f"verdict: {report.verdict.value}")
    return "\n".join(lines) + "\n"


def _location(location: Location) -> list[str]:
    lines = [f"where: {location.words}"] if location.words else []
    if location.rewrite:
        lines.append(f"  before: {', '.join(location.before)}; after: {', '.join(location.after) or 'nothing'}")
    if location.tensor:
        lines.append(f"  first value beyond its budget: {location.tensor}")
    return lines


def _closest(checks: list[Check]) -> list[Check]:
    scored = [check for check in checks if check.allowed > 0 and check.error == check.error]
    return sorted(scored, key=lambda check: check.error / check.allowed, reverse=True)[:1]


def _declined(report: FusionReport) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for entry in report.declined:
        reasons.setdefault(entry.reason, []).append(f"{entry.op} '{entry.node}'")
    lines = [f"left alone, {len(report.declined)}:"] if report.declined else []
    for index, (reason, nodes) in enumerate(reasons.items()):
        if index == _MOST_ROWS:
            lines.append(f"  … and {len(reasons) - _MOST_ROWS} more reasons (the JSON lists all)")
            break
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        lines.append(f"  {nodes[0]}{more}: {reason}")
    return lines


def _counts(records: tuple[NormRecord, ...]) -> str:
    counts = Counter(record.norm for record in records)
    return ", ".join(_plural(count, f"{name} norm") for name, count in counts.items()) or "no norms"


def _plural(count: int, what: str) -> str:
    first, _, rest = what.partition(" ")
    if rest.startswith(("of ", "written ")):
        return f"{count} {first}{'s' if count != 1 else ''} {rest}"
    return f"{count} {what}{'s' if count != 1 else ''}"


def _statistics(record: NormRecord) -> str:
    fields = extent(record.spec)
    rest = [f"{name} {value}" for name, value in fields.items() if name != "kind"]
    return " ".join([str(fields["kind"]), *rest])


def _affine(record: NormRecord) -> str:
    if not isinstance(record.spec, NormSpec):
        return ""
    fields = affine(record.spec)
    present = [name for name in ("scale", "bias") if fields[name]]
    return f"{'+'.join(present)} per {fields['axes']}" if present else "none"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(table: Table) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=160, no_color=True, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
