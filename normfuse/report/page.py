"""A validation as one HTML page without scripts or network: verdict first, then what failed, then the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normfuse.report.verdict import Check, DepthPoint, ValidationReport, Verdict, how_local

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_MOST_CHECKS = 400
_MOST_FAILED = 20
_MOST_HISTOGRAMS = 12
# The drawing of the error over depth, in its own units.
_WIDTH, _HEIGHT, _MARGIN = 640.0, 220.0, 44.0


def page(report: ValidationReport, norms: Sequence[Mapping[str, Any]] = (), names: tuple[str, str] = ("", "")) -> str:
    """Return the page. norms: those of the original as ``inspect --json`` writes them, with their plan. names: of the
    two models."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = figure
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    failed = [check for check in report.checks if check.verdict is Verdict.DIVERGENT]
    failed.sort(key=how_local)
    ordered = [*failed, *(check for check in report.checks if check.verdict is not Verdict.DIVERGENT)]
    return template.render(
        report=report,
        names=names,
        failed=failed[:_MOST_FAILED],
        more=max(0, len(failed) - _MOST_FAILED),
        checks=ordered[:_MOST_CHECKS],
        omitted=max(0, len(ordered) - _MOST_CHECKS),
        norms=[_norm_row(norm, report.checks) for norm in norms],
        plot=_plot(report.curve),
        histograms=[_bars(check) for check in ordered if check.histogram and _is_whole(check)][:_MOST_HISTOGRAMS],
        summary=_summary(report),
    )


def figure(value: float) -> str:
    """Return three digits, or a dash where there is no number."""
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _is_whole(check: Check) -> bool:
    return check.subject.startswith("output") and "[" not in check.subject


def _summary(report: ValidationReport) -> str:
    counts = {verdict: sum(check.verdict is verdict for check in report.checks) for verdict in Verdict}
    if report.verdict is Verdict.EQUIVALENT:
        return f"The candidate computes what the original does: {counts[Verdict.EQUIVALENT]} checks passed."
    if report.verdict is Verdict.DIVERGENT:
        return (
            f"The candidate computes something else: {counts[Verdict.DIVERGENT]} of {len(report.checks)} checks failed."
        )
    return "Nothing can be said: what has changed could not be judged."


def _norm_row(norm: Mapping[str, Any], checks: Sequence[Check]) -> dict[str, Any]:
    nodes = set(norm["nodes"])
    own = [check for check in checks if nodes & set(check.nodes)]
    worst = max(own, key=lambda check: (check.verdict is Verdict.DIVERGENT, check.share), default=None)
    return {
        "node": norm["nodes"][-1] if norm["nodes"] else "",
        "norm": norm["norm"],
        "spelling": norm["spelling"],
        "plan": norm["plan"],
        "verdict": worst.verdict.value if worst else "",
        "detail": worst.detail.partition(" (nodes ")[0] if worst else "unchanged, or judged with its neighbours",
    }


def _plot(curve: Sequence[DepthPoint]) -> dict[str, Any] | None:
    """Return the error and the budget over depth as polylines on a logarithmic scale."""
    values = [value for point in curve for value in (point.error, point.allowed) if value > 0]
    if len(curve) < 2 or not values:
        return None
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def place(index: int, value: float) -> str:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * index / (len(curve) - 1)
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return f"{x:.1f},{_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share:.1f}"

    ticks = [
        (f"1e{power}", f"{_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (power - low) / (high - low):.1f}")
        for power in range(low, high + 1, max(1, (high - low) // 5))
    ]
    beyond = [
        (*place(index, point.error).split(","), point.name)
        for index, point in enumerate(curve)
        if point.error > point.allowed
    ]
    return {
        "error": " ".join(place(index, point.error) for index, point in enumerate(curve)),
        "allowed": " ".join(place(index, point.allowed) for index, point in enumerate(curve)),
        "ticks": ticks,
        "beyond": beyond,
        "first": curve[0].name,
        "last": curve[-1].name,
    }


def _bars(check: Check) -> dict[str, Any]:
    candidate, original = check.histogram
    highest = max(*candidate, *original, 1)
    labels = [f"< 1/{2**-power}" if power < 0 else f"< {2**power}" for power in range(-6, 6)] + ["more"]
    rows = [
        (label, f"{100 * ours / highest:.1f}", f"{100 * theirs / highest:.1f}", ours, theirs)
        for label, ours, theirs in zip(labels, candidate, original, strict=True)
    ]
    return {"title": f"{check.leg}: {check.inputs}, {check.subject}", "rows": rows}
