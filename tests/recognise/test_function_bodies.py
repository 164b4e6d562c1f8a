"""onnx's own function bodies: what an operator expands to is read as that operator."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.node import collect_testcases

import normfuse
from normfuse import Form, Target
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.spec import NormSpec, kind
from tests.graphs import model_of, reading_of, run

EXPANSIONS = {
    "layer_normalization": "layer",
    "group_normalization": "group",
    "rms_normalization": "rms",
    "mvn": "batch",
}


@functools.cache
def cases() -> dict[str, tuple[str, onnx.ModelProto]]:
    """Return onnx's node tests of expanded norms, with what they are: at opset 17 and 18, or where the operator began."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    return {
        case.name: (norm, case.model)
        for case in collected
        for part, norm in EXPANSIONS.items()
        if part in case.name and "expanded" in case.name and case.model is not None
    }


def test_every_expansion_is_read_as_its_operator() -> None:
    """LayerNormalization, GroupNormalization and MeanVarianceNormalization expand to E[x²] − E[x]²: lifted when asked."""
    assert len(cases()) > 50
    for name, (wanted, model) in cases().items():
        report = normfuse.inspect(model, lift_flagged=True)
        assert [record.norm for record in report.norms] == [wanted], name
        assert report.declined == (), name
        plain = normfuse.inspect(model)
        if wanted != "rms":
            assert plain.norms == (), name
            assert all(entry.reason.endswith("(--lift-flagged lifts it)") for entry in plain.declined), name


@pytest.mark.parametrize("form", [Form.STANDARD, Form.PRIMITIVE])
def test_expansions_with_their_saved_statistics_are_written_anew(form: Form) -> None:
    """Y, Mean and InvStdDev are outputs of the graph, and keep their numbers.

    On inputs with deviations near 1: where they are tiny, the body's own variance becomes negative, and it returns NaN.
    """
    for name in (
        "test_layer_normalization_4d_axis_negative_2_expanded_ver18",
        "test_group_normalization_epsilon_expanded",
        "test_mvn_expanded_ver18",
    ):
        _, model = cases()[name]
        fused, report = normfuse.fuse(model, Target(form), lift_flagged=True)
        assert report.rewrites, name
        rng = np.random.default_rng(5)
        feeds = {
            value.name: rng.standard_normal([size.dim_value for size in value.type.tensor_type.shape.dim]).astype(
                np.float32
            )
            for value in model.graph.input
        }
        # Results are below 8: 2^5 roundings of that size, in float32.
        for before, after in zip(run(ir.from_proto(model), feeds), run(fused, feeds), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=2.0**-16, err_msg=name)


BODY = """<ir_version: 8, opset_import: ["": 17]> g (float[2,5,8] x) => (%s) <float e = {0.001}, float[8] w = {1,2,3,4,5,6,7,8}> {
    m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)  a = Add (v, e)
    r = Sqrt (a)  n = Div (d, r)  y = Mul (n, w)  i = Reciprocal (r)  k = Identity (m)  j = Identity (i) }"""
Y, K, J, R = "float[2,5,8] y", "float[2,5,1] k", "float[2,5,1] j", "float[2,5,1] r"
OUTPUTS = [
    (f"{Y}, {K}, {J}", ("m", "i")),
    (Y, ()),
    (f"{Y}, {K}", "the result of ReduceMean 'ReduceMean → m' is also used by 'Identity → k'"),
    (f"{Y}, {K}, {J}, {R}", "the result of ReduceMean 'ReduceMean → m' is also used by 'Identity → k'"),
]


@pytest.mark.parametrize(("outputs", "expected"), OUTPUTS)
def test_mean_and_inverse_deviation_are_outputs_where_both_are_read(
    outputs: str, expected: tuple[str, ...] | str
) -> None:
    model = model_of(BODY % outputs)
    (found,) = find_norms(model.graph, reading_of(model))
    if isinstance(expected, str):
        assert isinstance(found, Declined)
        assert found.reason == expected
        return
    assert isinstance(found, NormSite)
    assert tuple(value.name for value in found.extra_outputs) == expected
    for form in (Form.STANDARD, Form.CUSTOM, Form.ORT):
        fused, report = normfuse.fuse(model, Target(form), validate=True)
        assert report.rewrites, form
        assert next(iter(fused.graph)).op_type.startswith("LayerNorm"), form
        assert report.validation is not None
        assert report.validation.verdict is normfuse.Verdict.EQUIVALENT, form


def test_what_an_inlined_body_leaves_behind_goes_with_the_norm() -> None:
    fused, _ = normfuse.fuse(model_of(BODY % Y), Target(Form.STANDARD))
    assert [node.op_type for node in fused.graph] == ["LayerNormalization"]


def test_a_tiny_epsilon_outside_the_root_is_flagged_and_a_real_one_is_none() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,5,8] x) => (float[2,5,8] y) <float e = {%s}> {
        m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)  r = Sqrt (v)
        a = Add (r, e)  y = Div (d, a) }"""
    for epsilon, reason in (
        ("1e-9", "its epsilon, 1e-09, is added to the deviation, outside the root (--lift-flagged lifts it)"),
        ("1e-5", "its epsilon is added to the deviation, outside the root"),
    ):
        model = model_of(text % epsilon)
        (declined,) = find_norms(model.graph, reading_of(model))
        assert isinstance(declined, Declined)
        assert declined.reason == reason
        (asked,) = find_norms(model.graph, reading_of(model, lift_flagged=True))
        assert isinstance(asked, NormSite) is (epsilon == "1e-9")
        if isinstance(asked, NormSite):
            assert isinstance(asked.spec, NormSpec)
            assert kind(asked.spec) == "layer"
