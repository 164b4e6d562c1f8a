"""Reports as JSON objects: the contract of ``inspect --json``, ``fuse --report`` and ``validate --json``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normfuse.report.records import Change, FusionReport, NormRecord, Work
from normfuse.report.verdict import Check, Location, ValidationReport
from normfuse.spec import AnyNorm, Batch, LocalResponseNorm, LpNorm, NormSpec, PerChannel, PerGroup, Statistics, Stored

SCHEMA = 1
"""The version of the JSON. It grows when a field changes its meaning or goes; new fields do not change it."""


def statistics(value: Statistics) -> dict[str, Any]:
    """Return what shares statistics: ``kind`` and, where it has one, its parameter."""
    if isinstance(value, Stored):
        return {"kind": "stored"}
    if isinstance(value, Batch):
        return {"kind": "batch"}
    if isinstance(value, PerGroup):
        return {"kind": "per_group", "groups": value.groups}
    if isinstance(value, PerChannel):
        return {"kind": "per_channel"}
    return {"kind": "trailing", "axes": list(value.axes)}


def extent(spec: AnyNorm) -> dict[str, Any]:
    """Return over what the norm is taken: its statistics, or the norm that divides."""
    if isinstance(spec, NormSpec):
        return statistics(spec.statistics)
    if isinstance(spec, LpNorm):
        return {"kind": "lp", "p": spec.p, "axes": list(spec.axes)}
    if isinstance(spec, LocalResponseNorm):
        return {"kind": "neighbours", "size": spec.size}
    return {"kind": "global", "axes": list(spec.axes)}


def affine(spec: NormSpec) -> dict[str, Any]:
    """Return which of γ and β are present, and along what they vary."""
    layout = spec.affine
    return {"scale": layout.scale, "bias": layout.bias, "axes": layout.axes.value}


def shortest(value: float) -> float:
    """Return the shortest decimal of ``value`` as a float32: 1e-05 for what ONNX stores as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def norm(record: NormRecord) -> dict[str, Any]:
    """Return one norm; what norms of other kinds do not have is null."""
    spec = record.spec if isinstance(record.spec, NormSpec) else None
    return {
        "norm": record.norm,
        "statistics": extent(record.spec),
        "epsilon": None if spec is None else shortest(spec.epsilon),
        "affine": None if spec is None else affine(spec),
        "centred": None if spec is None else spec.centred,
        "channel_axis": None if spec is None else spec.channel_axis,
        "compute_type": None if spec is None else spec.compute_type.value,
        "activation": None if spec is None else spec.activation.value,
        "spelling": record.spelling,
        "nodes": list(record.nodes),
        "plan": record.plan,
    }


def inspection(report: FusionReport) -> dict[str, Any]:
    """Return what a model holds, and what fuse would do with it."""
    return {
        "schema": SCHEMA,
        "opset": report.opset,
        "norms": [norm(record) for record in report.norms],
        "declined": [{"node": entry.node, "op": entry.op, "reason": entry.reason} for entry in report.declined],
        "notes": list(report.notes),
    }


def fusion_report(report: FusionReport) -> dict[str, Any]:
    """Return the inspection with what was done."""
    return {
        **inspection(report),
        "rewrites": [
            {
                "id": rewrite.id,
                "kind": rewrite.kind,
                "nodes": list(rewrite.nodes),
                "into": list(rewrite.into),
                "note": rewrite.note,
            }
            for rewrite in report.rewrites
        ],
        "nodes": _change(report.nodes),
        "bytes": _change(report.size),
        "work": _work(report.work_before, report.work_after),
        "settings": dict(report.settings),
        "validation": None if report.validation is None else validation(report.validation),
    }


def _work(before: Work | None, after: Work | None) -> dict[str, Any] | None:
    """Return what one run takes, before and after; what is not known is null."""
    if before is None or after is None:
        return None
    return {
        "multiply_adds": {"before": before.multiply_adds, "after": after.multiply_adds},
        "parameters": {"before": before.parameters, "after": after.parameters},
        "bytes_moved": {"before": before.moved, "after": after.moved},
        "symbolic_sizes_count_as_one": before.symbolic or after.symbolic,
    }


def _change(change: Change) -> dict[str, int]:
    return {"before": change.before, "after": change.after}


def validation(report: ValidationReport) -> dict[str, Any]:
    """Return a verdict with its legs and checks; figures that do not apply are null."""
    return {
        "schema": SCHEMA,
        "verdict": report.verdict.value,
        "legs": [{"name": leg.name, "verdict": leg.verdict.value, "reason": leg.reason} for leg in report.legs],
        "checks": [_check(check) for check in report.checks],
        "unreached": list(report.unreached),
        "notes": list(report.notes),
        "latencies": [
            {
                "leg": item.leg,
                "level": item.level,
                "original": _finite(item.original),
                "candidate": _finite(item.candidate),
            }
            for item in report.latencies
        ],
        "rankings": [
            {
                "leg": item.leg,
                "output": item.output,
                "samples": item.samples,
                "same_first": item.top,
                "same_order": item.order,
                "depth": item.depth,
            }
            for item in report.rankings
        ],
        "curve": [
            {"name": point.name, "op": point.op, "error": _finite(point.error), "allowed": _finite(point.allowed)}
            for point in report.curve
        ],
        "location": None if report.location is None else _location(report.location),
        "environment": dict(report.environment),
    }


def _location(location: Location) -> dict[str, Any]:
    return {
        "rewrite": location.rewrite,
        "before": list(location.before),
        "after": list(location.after),
        "tensor": location.tensor,
        "words": location.words,
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "leg": check.leg,
        "inputs": check.inputs,
        "subject": check.subject,
        "verdict": check.verdict.value,
        "error": _finite(check.error),
        "original_error": _finite(check.original_error),
        "allowed": _finite(check.allowed),
        "detail": check.detail,
        "nodes": list(check.nodes),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
