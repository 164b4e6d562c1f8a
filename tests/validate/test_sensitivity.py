"""What cannot be judged part by part says so, and how small a fault could be seen."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from normfuse.report.verdict import ValidationReport, Verdict
from normfuse.validate import tolerance, validate
from tests.validate.nets import blocks, folded, network

LAYERS = 4


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with other names for all values inside it, as many tools leave them."""
    kept = {model.graph.input[0].name, model.graph.output[0].name, *(item.name for item in model.graph.initializer)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"value_{name}" for name in names]
    return model


def reason(report: ValidationReport) -> str:
    return next(leg.reason for leg in report.legs if leg.name == "oracle")


def test_graph_without_common_values_is_not_local_and_says_what_it_could_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance, "LOCAL_NODES", 8)
    reference, candidate = network(blocks(LAYERS)), renamed(folded(blocks(LAYERS)))
    report = validate(reference, candidate, providers=(), quick=True)
    assert report.verdict is Verdict.EQUIVALENT
    found = re.fullmatch(
        r"not local: no value of one name divides the 12 nodes before 'relu3'; "
        r"end to end, a channel of '(\w+)' that is off by less than (\S+) of its value is not seen",
        reason(report),
    )
    assert found is not None, reason(report)
    name, amount = found[1], float(found[2])
    assert 1e-9 < amount < 0.1
    spoilt = network(blocks(LAYERS))
    tensor = next(item for item in spoilt.graph.initializer if item.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array *= np.float32(1 + 4 * amount)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    assert validate(reference, renamed(spoilt), providers=(), quick=True).verdict is Verdict.DIVERGENT


def test_what_is_lost_on_the_way_is_said() -> None:
    """A long chain of Relu forgets its input, so that the output does not tell a fault at its head."""
    report = validate(network(blocks(30)), renamed(folded(blocks(30))), providers=(), quick=True)
    assert reason(report).endswith("end to end, no fault of one channel of 'weight0' is seen")


@pytest.mark.parametrize("layers", [1, 30])
def test_graph_with_common_values_is_local(layers: int) -> None:
    report = validate(network(blocks(layers)), folded(blocks(layers)), providers=(), quick=True)
    assert (report.verdict, reason(report)) == (Verdict.EQUIVALENT, "")
