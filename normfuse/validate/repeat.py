"""Whether the same inputs give the same outputs: each side runs twice on the first of them.

What no name tells (a custom operator that draws, a module that counts its calls) shows there. Two runs that differ by
rounding alone, as sums in another order do, are one result. Where the original's differ by more, a comparison of one
run of each side says nothing: such an output is left open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Check, Verdict
from normfuse.validate.compare import Sample, judge
from normfuse.validate.decisions import is_quantised
from normfuse.validate.rounding import Array, widen
from normfuse.validate.truth import Truth, moved, output_type


def unsteady(
    truth: Truth, outputs: Sequence[ir.Value], first: Mapping[str, Array], again: Mapping[str, Array] | None, role: str
) -> dict[str, str]:
    """Return the outputs that two runs of one side have otherwise, each with a sentence that says so.

    first, again: both on the first feed of ``truth``; again None: equal bit by bit. The first run stands for the truth:
    what rounding does, and how far apart two runs may be, is as for a candidate.
    """
    found: dict[str, str] = {}
    for value in outputs if again is not None else ():
        name = value.name or ""
        exact = truth.outputs[0][name]
        dtype = output_type(value, exact)
        one, other = (widen(np.asarray(run[name])) for run in (first, again or {}))
        perturbed = tuple(moved(run[name], exact, one).data for run in truth.perturbed[0])
        how = {"by_channel": truth.family.by_channel, "quantised": is_quantised(value)}
        checks = judge(
            [Sample(one, perturbed, None, other)], dtype, leg="", inputs=truth.family.name, subject=name, **how
        )
        if any(check.verdict is Verdict.DIVERGENT for check in checks):
            found[name] = _sentence(name, role, one, other)
    return found


def differing(first: Mapping[str, Array], again: Mapping[str, Array] | None, role: str) -> dict[str, str]:
    """Return what two runs of one side have otherwise, however little, each with its sentence: where there is no truth."""
    pairs = {} if again is None else {name: (array, again[name]) for name, array in first.items()}
    return {name: _sentence(name, role, *pair) for name, pair in pairs.items() if not _is_same(*pair)}


def left_open(words: str, leg: str, inputs: str, subject: str) -> Check:
    """Return the check of an output that is not the same from run to run."""
    return Check(leg, inputs, subject, Verdict.NOT_RUN, math.nan, math.nan, math.nan, words)


def _sentence(name: str, role: str, first: Array, again: Array) -> str:
    return f"output '{name}' of the {role} differs from run to run ({_how_far(first, again)})"


def _is_same(first: Array, again: Array) -> bool:
    same = np.shape(first) == np.shape(again) and (first == again) | ((first != first) & (again != again))
    return bool(np.all(same))


def _how_far(first: Array, again: Array) -> str:
    if np.shape(first) != np.shape(again):
        return f"its shape is {list(np.shape(first))}, then {list(np.shape(again))}"
    if first.dtype.kind in "biuOUS":
        return f"in {int(np.count_nonzero(first != again))} of {first.size} elements"
    one, other = (widen(np.asarray(array)) for array in (first, again))
    finite = np.isfinite(one) & np.isfinite(other)
    if (np.isfinite(one) != np.isfinite(other)).any():
        return "in which elements are finite"
    one, other = one[finite], other[finite]
    apart, size = (math.sqrt(float(np.square(item).sum())) for item in (one - other, one))
    return f"by {apart / size:.2g} of its size" if size else "from zero"
