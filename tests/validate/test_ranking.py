"""How two graphs rank classes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.report.verdict import Ranking, Verdict
from normfuse.validate import validate
from normfuse.validate.ranking import rankings
from tests.validate.nets import Array
from tests.validate.planted import body, normal

SCORES = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
SWAPPED_TAIL = SCORES[:, [0, 1, 2, 4, 3, 5]]


def ranked(a: Array, b: Array, name: str = "y") -> tuple[Ranking, ...]:
    return rankings("cpu", [ir.Value(name=name)], [{name: a}], [{name: b}])


def test_same_first_and_same_order() -> None:
    assert ranked(SCORES, SCORES) == (Ranking("cpu", "y", 2, 2, 2, 5),)
    assert ranked(SCORES, SWAPPED_TAIL) == (Ranking("cpu", "y", 2, 2, 0, 5),)
    assert ranked(SCORES, -SCORES) == (Ranking("cpu", "y", 2, 0, 0, 5),)
    assert ranked(SCORES[:, :2], SCORES[:, :2]) == (Ranking("cpu", "y", 2, 2, 2, 2),)


def test_rows_that_are_not_finite_are_left_out() -> None:
    other = SCORES.copy()
    other[0, 0] = np.nan
    assert ranked(SCORES, other) == (Ranking("cpu", "y", 1, 1, 1, 5),)
    assert ranked(other[:1], other[:1]) == ()


def test_what_is_no_score_is_not_ranked() -> None:
    volume = SCORES.reshape(1, 2, 6)
    assert ranked(volume, volume) == ()
    assert ranked(volume, volume, "logits") == (Ranking("cpu", "logits", 2, 2, 2, 5),)
    assert ranked(SCORES.astype(int), SCORES.astype(int)) == ()
    assert ranked(SCORES[:, :1], SCORES[:, :1]) == ()


def test_report_has_it_for_each_provider() -> None:
    pytest.importorskip("onnxruntime")
    linear = body("y = MatMul (x, w)", "float[N,64] x", "float[N,10] y", w=normal(64, 10))
    report = validate(linear, linear, quick=True)
    assert report.verdict is Verdict.EQUIVALENT
    assert [(item.leg, item.output, item.top == item.order == item.samples) for item in report.rankings] == [
        ("cpu", "y", True)
    ]
