"""Locally: cones, what counts as the same definition, dead channels; regions where the whole graph cannot run."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.report.verdict import Verdict
from normfuse.validate.call import OracleCannotRun
from normfuse.validate.cones import cone_of, paired_cones, same_definition
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.regions import check_regions
from normfuse.validate.segment import enlivened
from normfuse.validate.segments import changed_names, check_segments, shared_names
from tests.validate.nets import blocks, folded, network

HEAD = (
    '<ir_version: 8, opset_import: ["" : {opset}, "somebody" : 1]> net (float[2, 3, 8, 8] x) => (float[2, 3, 8, 8] y) '
)


def oracle(body: str, opset: int = 17) -> Oracle:
    return Oracle(ir.from_proto(onnx.parser.parse_model(HEAD.format(opset=opset) + "{" + body + "}")))


PLAIN = "a = Relu(x)  k = Constant <value = float {2.0}> ()  b = Mul(a, k)  y = Neg(b)"


@pytest.mark.parametrize(
    ("body", "opset", "changed"),
    [
        (PLAIN, 17, ()),
        (PLAIN, 14, ()),  # the operators are the same since opset 14
        (PLAIN.replace("k", "factor"), 17, ()),  # a constant of another name
        (PLAIN.replace("2.0", "2.5"), 17, ("k",)),  # b is the same product of a shared factor
        (PLAIN.replace("Relu", "Abs"), 17, ("a",)),
        ("a = Relu(x)  c = Add(a, a)  y = Neg(c)", 17, ("y",)),  # b is gone: one segment from a to y
        (
            "h = Relu(x)  k = Constant <value = float {2.0}> ()  b = Mul(h, k)  y = Neg(b)",
            17,
            (),
        ),  # a value of another name
    ],
)
def test_which_values_have_changed(body: str, opset: int, changed: tuple[str, ...]) -> None:
    found = changed_names(oracle(PLAIN), oracle(body, opset))[0]
    assert set(found) == set(changed)


def test_cone_stops_at_shared_values() -> None:
    graph = oracle(PLAIN)
    cone = cone_of(graph, "y", {"x", "a", "y"})
    assert ([node.op_type for node in cone.nodes], cone.frontier) == (["Constant", "Mul", "Neg"], ("a",))


def test_value_that_one_side_reads_is_looked_through() -> None:
    """The mean keeps its name in both, but only the reference's y is computed from it."""
    mean = "m = ReduceMean <axes = [2, 3]> (x) "
    reference, candidate = oracle(mean + "y = Sub(x, m)"), oracle(mean + "n = GlobalAveragePool(x)  y = Sub(x, n)")
    cones = paired_cones(reference, candidate, "y", set(shared_names(reference, candidate)))
    assert [cone.frontier for cone in cones] == [("x",), ("x",)]
    assert not same_definition(reference, candidate, "y", {"x", "m", "y"})


def test_dead_channels_are_filled() -> None:
    data = np.abs(np.random.default_rng(0).normal(size=(2, 3, 8, 8)))
    data[:, 1] = 0.0
    live = enlivened(data, "relu")
    assert live[:, 1].std() > 0.1
    assert live.min() >= 0
    assert np.array_equal(live[:, [0, 2]], data[:, [0, 2]])
    assert np.array_equal(enlivened(data, "relu"), live)


def test_fault_behind_a_dead_channel_is_found() -> None:
    """Channel 1 of the first block is dead, so its weights in the second have no effect end to end."""
    first, second = blocks(2)
    bias = first.bias.copy()
    bias[1] = -1e3
    first = type(first)(first.weight, first.scale, bias, first.mean, first.var)
    weight = second.weight.copy()
    weight[:, 1] *= 1.1
    wrong = type(second)(weight, second.scale, second.bias, second.mean, second.var)
    reference, good, bad = (
        Oracle(ir.from_proto(proto))
        for proto in (network((first, second)), folded((first, second)), folded((first, wrong)))
    )
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("f")
    outputs = [graph.run({"x": x})["relu1"].data for graph in (reference, bad)]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)

    def supply(names: object) -> list[dict[str, Held]]:
        return [reference.run({"x": x}, capture=["x", *reference.values])]

    for candidate, expected in ((good, Verdict.EQUIVALENT), (bad, Verdict.DIVERGENT)):
        report = check_segments(
            reference,
            candidate,
            lambda names: [{name: values[name] for name in names} for values in supply(names)],
            leg="oracle",
            inputs="i",
        )
        assert report.verdict is expected


def test_region_that_cannot_be_evaluated_stays_open() -> None:
    reference = oracle("a = somebody.Mystery(x)  y = Relu(a)")
    candidate = oracle("y = somebody.Other(x)")
    report = check_regions(reference, candidate, None)
    assert report.verdict is Verdict.NOT_RUN
    assert "the float64 oracle cannot run Mystery" in report.unverified[0]


def test_unchanged_unknown_operator_needs_nothing() -> None:
    graph = "a = somebody.Mystery(x)  y = Relu(a)"
    report = check_regions(oracle(graph), oracle(graph), None)
    assert (report.verdict, report.checks) == (Verdict.EQUIVALENT, ())
    with pytest.raises(OracleCannotRun):
        oracle(graph).run({"x": np.zeros((2, 3, 8, 8))})
