"""Whether a classifier decides alike: extra information beside the verdict, which is on the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Ranking
from normfuse.validate.rounding import Array

_FIRST = 5


def rankings(
    leg: str, outputs: Sequence[ir.Value], original: Sequence[dict[str, Array]], candidate: Sequence[dict[str, Array]]
) -> tuple[Ranking, ...]:
    """Return how often both name the same class first, and the same five in the same order.

    Outputs of scores: floats (N, C), or (…, C) where the name says logits; C at least 2. Rows that are not finite are
    left out. Equal scores keep the order of their classes.
    """
    found = []
    for value in outputs:
        name = value.name or ""
        pairs = [(a[name], b[name]) for a, b in zip(original, candidate, strict=True)]
        if not all(_are_scores(name, a) and np.shape(a) == np.shape(b) for a, b in pairs):
            continue
        rows = [_ordered(a, b) for a, b in pairs]
        total = sum(len(first) for first, _ in rows)
        if not total:
            continue
        top = sum(int((a[:, 0] == b[:, 0]).sum()) for a, b in rows)
        order = sum(int((a == b).all(axis=1).sum()) for a, b in rows)
        found.append(Ranking(leg, name, total, top, order, rows[0][0].shape[1]))
    return tuple(found)


def pooled(found: Iterable[Ranking]) -> tuple[Ranking, ...]:
    """Return one ranking for each output: those of several input families of one leg count together."""
    sums: dict[str, Ranking] = {}
    for item in found:
        so_far = sums.get(item.output)
        if so_far is not None:
            samples, top, order = item.samples + so_far.samples, item.top + so_far.top, item.order + so_far.order
            item = replace(item, samples=samples, top=top, order=order)
        sums[item.output] = item
    return tuple(sums.values())


def _are_scores(name: str, array: object) -> bool:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fV" or array.ndim < 2 or array.shape[-1] < 2:
        return False
    return array.ndim == 2 or "logits" in name.lower()


def _ordered(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the first classes of every row (rows, at most 5) of both."""
    wide = [np.asarray(array, dtype=np.float64).reshape(-1, array.shape[-1]) for array in (a, b)]
    finite = np.isfinite(wide[0]).all(axis=1) & np.isfinite(wide[1]).all(axis=1)
    first, second = (np.argsort(-array[finite], axis=1, kind="stable")[:, :_FIRST] for array in wide)
    return first, second
