"""Locally: cones, what counts as the same definition, dead channels; regions where the whole graph cannot run."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from normfuse.report.verdict import Verdict
from normfuse.validate import tolerance
from normfuse.validate.call import OracleCannotRun
from normfuse.validate.cones import cone_of, paired_cones, same_definition
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.regions import check_regions
from normfuse.validate.segment import enlivened
from normfuse.validate.segments import changed_names, check_segments, shared_names
from tests.validate.nets import Array, blocks, folded, info, model, network

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


def test_segment_whose_reference_takes_no_such_values_stays_open() -> None:
    reference, candidate = (
        oracle(f"i = Constant <value_ints = [0]> ()  {name} = Squeeze(x, i)  y = {op}({name})")
        for name, op in (("a", "Neg"), ("b", "Abs"))
    )
    x = np.ones((2, 3, 8, 8))  # only a size of 1 can be squeezed
    report = check_segments(
        reference, candidate, lambda names: [{"x": Held(x, ir.DataType.FLOAT)}], leg="oracle", inputs="i"
    )
    assert len(report.unverified) == 1
    assert "Squeeze" in report.unverified[0]
    assert not report.checks


def test_unchanged_unknown_operator_needs_nothing() -> None:
    graph = "a = somebody.Mystery(x)  y = Relu(a)"
    report = check_regions(oracle(graph), oracle(graph), None)
    assert (report.verdict, report.checks) == (Verdict.EQUIVALENT, ())
    with pytest.raises(OracleCannotRun):
        oracle(graph).run({"x": np.zeros((2, 3, 8, 8))})


def _common(fold: bool, fault: float = 0.0) -> Oracle:
    """h = x + 50, then Conv and BatchNormalization of 400 channels in float16, whose weights sum to nearly zero.

    Almost all of 50 cancels, but not what rounding a weight makes of it: that moves all elements of a channel alike.
    """
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(400, 3, 1, 1))
    weight = (weight - weight.mean(axis=1, keepdims=True)).astype(np.float16)
    mean = (50.0 * weight.astype(np.float64).sum(axis=(1, 2, 3))).astype(np.float16)
    scale, var, zeros = (
        rng.uniform(0.5, 1.5, size=400).astype(np.float16),
        np.ones(400, np.float16),
        np.zeros(400, np.float16),
    )
    factor = scale / np.sqrt(1.0 + 1e-5)
    constants: dict[str, Array] = {"fifty": np.asarray(50.0, np.float16)}
    nodes = [helper.make_node("Add", ["x", "fifty"], ["h"])]
    if fold:
        bias = -mean * factor
        bias[7] += fault
        constants |= {"w": (weight * factor[:, None, None, None]).astype(np.float16), "b": bias.astype(np.float16)}
        nodes.append(helper.make_node("Conv", ["h", "w", "b"], ["y"]))
    else:
        constants |= {"w": weight, "scale": scale, "zeros": zeros, "mean": mean, "var": var}
        nodes.append(helper.make_node("Conv", ["h", "w"], ["c"]))
        nodes.append(helper.make_node("BatchNormalization", ["c", "scale", "zeros", "mean", "var"], ["y"]))
    inputs, outputs = info("x", "float16", ["n", 3, 8, 8]), info("y", "float16", ["n", 400, 8, 8])
    return Oracle(ir.from_proto(model(nodes, [inputs], [outputs], constants)))


def _verdict(candidate: Oracle) -> Verdict:
    reference, x = _common(fold=False), np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float16)
    values = reference.run({"x": x}, capture=["x", *reference.values])
    return check_segments(
        reference, candidate, lambda names: [{name: values[name] for name in names}], leg="oracle", inputs="i"
    ).verdict


def test_no_channel_is_accused_by_the_luck_of_one_perturbed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _verdict(_common(fold=True)) is Verdict.EQUIVALENT
    # Eight times what rounding a weight of one makes of 50, in one channel of 400.
    assert _verdict(_common(fold=True, fault=8 * 2.0**-11 * 50.0)) is Verdict.DIVERGENT
    monkeypatch.setattr(tolerance, "ACCUSING_RUNS", 1)
    assert _verdict(_common(fold=True)) is Verdict.DIVERGENT
