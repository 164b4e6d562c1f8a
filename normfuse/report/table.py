"""What a model holds and what fuse did, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from normfuse.report.records import FusionReport, NormRecord, Work
from normfuse.report.schema import affine, extent
from normfuse.report.terminal import Blocks, columns
from normfuse.report.verdict_table import summary
from normfuse.spec import NormSpec

_MOST_ROWS = 40
"""Tables longer than this are cut; the JSON has every row."""


def inspection(report: FusionReport) -> Blocks:
    """Return the norms of a model, what fuse would do with each, and what it declines with the reason."""
    if not report.norms and not report.declined:
        return ["no normalization layers found"]
    lines: list[str | Text | Table] = [f"{_counts(report.norms)} at opset {report.opset}"]
    if report.norms:
        table = columns("norm", "node", "spelling", "statistics", "epsilon", "affine", "plan")
        for record in report.norms[:_MOST_ROWS]:
            cells = (
                record.norm,
                record.nodes[-1] if record.nodes else "",
                record.spelling,
                _statistics(record),
                f"{record.spec.epsilon:.3g}" if isinstance(record.spec, NormSpec) else "",
                _affine(record),
                record.plan,
            )
            table.add_row(*(Text(cell) for cell in cells))
        lines.append(table)
        if len(report.norms) > _MOST_ROWS:
            lines.append(f"… and {len(report.norms) - _MOST_ROWS} more (--json lists all)")
    lines.extend(_declined(report))
    lines.extend(f"note: {note}" for note in report.notes)
    return lines


def fusion_report(report: FusionReport) -> Blocks:
    """Return what was done, what was declined with the reason, and the verdict."""
    kinds = Counter(rewrite.kind for rewrite in report.rewrites)
    what = {
        "fold-batchnorm": "fold of batch norms",
        "move-batchnorm": "move of batch norms",
        "move-affine": "move of constant factors and terms",
        "drop-neutral": "removal of arithmetic that changes nothing",
        "join-layouts": "join of Reshapes and Transposes",
        "fold-weight-norm": "fold of weight norms",
        "merge-branches": "merge of branches",
        "fold-norm-affine": "fold of scale and bias",
        "emit": "norm written anew",
        "convert-opset": "change of opset",
    }
    done = ", ".join(_plural(count, what.get(kind, kind)) for kind, count in kinds.items()) or "nothing to do"
    lines: list[str | Text | Table] = [
        f"{done}; {report.nodes.before} → {report.nodes.after} nodes, "
        f"{_bytes(report.size.before)} → {_bytes(report.size.after)} of weights"
    ]
    if report.work_before is not None and report.work_after is not None:
        lines.append(_work(report.work_before, report.work_after))
    kept = [record for record in report.norms if record.plan == "keep"]
    if kept:
        lines.append(f"kept as they are: {_counts(tuple(kept))}")
    lines.extend(_declined(report))
    lines.extend(f"note: {note}" for note in report.notes)
    if report.validation is not None:
        lines.extend(summary(report.validation))
    return lines


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


def _work(before: Work, after: Work) -> str:
    """Say what one run takes, before and after."""

    def change(one: int | None, other: int | None, what: str, write: Callable[[int], str]) -> str:
        if one is None or other is None:
            return f"unknown {what}"
        return f"{write(one)} → {write(other)} {what}"

    sample = "; sizes that are not known count as 1" if before.symbolic or after.symbolic else ""
    return (
        f"one run: {change(before.multiply_adds, after.multiply_adds, 'multiply-adds', _number)}, "
        f"{change(before.parameters, after.parameters, 'parameters', _number)}, "
        f"{change(before.moved, after.moved, 'bytes moved' if None in (before.moved, after.moved) else 'moved', _bytes)}"
        f"{sample}"
    )


def _number(count: int) -> str:
    size = float(count)
    for unit in ("", " K", " M"):
        if size < 1000:
            return f"{size:.3g}{unit}" if unit else f"{count}"
        size /= 1000
    return f"{size:.3g} G"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
