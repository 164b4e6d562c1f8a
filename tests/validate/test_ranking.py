"""How two graphs rank classes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.report.verdict import Ranking, Verdict
from normfuse.validate import validate
from normfuse.validate.ranking import pooled, rankings
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


def test_families_of_one_leg_count_together() -> None:
    found = [Ranking("oracle", "y", 2, 2, 1, 5), Ranking("oracle", "z", 4, 0, 0, 2), Ranking("oracle", "y", 3, 2, 2, 5)]
    assert pooled(found) == (Ranking("oracle", "y", 5, 4, 3, 5), Ranking("oracle", "z", 4, 0, 0, 2))


LINEAR = body("y = MatMul (x, w)", "float[N,64] x", "float[N,10] y", w=normal(64, 10))


def test_report_has_it_for_the_oracle_and_each_provider() -> None:
    pytest.importorskip("onnxruntime")
    for quick in (True, False):
        report = validate(LINEAR, LINEAR, quick=quick)
        assert report.verdict is Verdict.EQUIVALENT
        legs = {item.leg: (item.output, item.samples, item.depth) for item in report.rankings}
        assert legs["oracle"] == legs["cpu"]
        assert all(item.output == "y" and item.top == item.order == item.samples > 0 for item in report.rankings)
        assert report.table().count("output 'y' has the same class first for") == 2


def test_a_graph_that_ranks_otherwise() -> None:
    other = body("y = MatMul (x, w)", "float[N,64] x", "float[N,10] y", w=normal(64, 10)[:, ::-1].copy())
    (ranking,) = validate(LINEAR, other, quick=True, providers=()).rankings
    assert ranking.leg == "oracle"
    assert ranking.top < ranking.samples
    assert ranking.order == 0


def test_a_torch_module_is_ranked_too() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    import normfuse

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 10)).eval()
    model = normfuse.export(module, [torch.randn(4, 16)])
    report = validate(module, model)
    assert report.verdict is Verdict.EQUIVALENT
    assert [item.leg for item in report.rankings] == ["oracle", "cpu"]
    assert len({item.samples for item in report.rankings}) == 1
    assert all(item.top == item.order == item.samples > 0 for item in report.rankings)
    with torch.no_grad():
        module[1].weight.neg_()
    assert all(item.top < item.samples for item in validate(module, model, quick=True).rankings)
