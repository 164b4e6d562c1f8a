"""Norms that are operators of the standard: what is read, and what is declined with which words."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.recognise import find_norms
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerChannel, PerGroup, Stored, Trailing
from tests.graphs import model_of, reading_of

BOTH = AffineLayout(True, True)
ALONG = AffineLayout(True, True, AffineAxes.NORMALISED)
HALF = 0.5  # exact in float32, in which ONNX stores epsilon


def model(nodes: str, opset: int, *, x: str = "float[N,4,6,5]", outputs: str = "float[N,4,6,5] y") -> ir.Model:
    return model_of(f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g ({x} x) => ({outputs})
        <float[4] s = {{1, 2, 3, 4}}, float[4] b = {{0, 1, 0, 1}}, float[4] m = {{1, 1, 0, 1}},
         float[4] v = {{1, 1, 2, 1}}, float[2] s2 = {{1, 2}}, float[2] b2 = {{0, 1}},
         float[5] s5 = {{1, 2, 3, 4, 5}}, float[5] b5 = {{1, 2, 3, 4, 5}}>
        {{ {nodes} }}""")


def only(model: ir.Model) -> NormSite | Declined:
    (found,) = find_norms(model.graph, reading_of(model))
    return found


@pytest.mark.parametrize(
    ("nodes", "opset", "spec", "spelling"),
    [
        (
            "y = BatchNormalization <epsilon = 0.5> (x, s, b, m, v)",
            9,
            NormSpec(Stored(), HALF, affine=BOTH),
            "BatchNormalization-9",
        ),
        (
            "y = BatchNormalization <epsilon = 0.5, training_mode = 0> (x, s, b, m, v)",
            18,
            NormSpec(Stored(), HALF, affine=BOTH),
            "BatchNormalization-15",
        ),
        (
            "y = BatchNormalization <epsilon = 0.5, spatial = 1> (x, s, b, m, v)",
            7,
            NormSpec(Stored(), HALF, affine=BOTH),
            "BatchNormalization-7",
        ),
        (
            "y = InstanceNormalization <epsilon = 0.5> (x, s, b)",
            9,
            NormSpec(PerChannel(), HALF, affine=BOTH),
            "InstanceNormalization-6",
        ),
        (
            "y = InstanceNormalization <epsilon = 0.5> (x, s, b)",
            23,
            NormSpec(PerChannel(), HALF, affine=BOTH),
            "InstanceNormalization-22",
        ),
        (
            "y = GroupNormalization <epsilon = 0.5, num_groups = 2> (x, s2, b2)",
            18,
            NormSpec(PerGroup(2), HALF, affine=AffineLayout(True, True, AffineAxes.GROUP)),
            "GroupNormalization-18",
        ),
        (
            "y = GroupNormalization <epsilon = 0.5, num_groups = 2> (x, s, b)",
            21,
            NormSpec(PerGroup(2), HALF, affine=BOTH),
            "GroupNormalization-21",
        ),
        (
            "y = LayerNormalization <epsilon = 0.5, axis = -1> (x, s5, b5)",
            17,
            NormSpec(Trailing((-1,)), HALF, affine=ALONG),
            "LayerNormalization-17",
        ),
        (
            "y = LayerNormalization <epsilon = 0.5, axis = 2> (x, s5)",
            17,
            NormSpec(Trailing((-2, -1)), HALF, affine=AffineLayout(True, False, AffineAxes.NORMALISED)),
            "LayerNormalization-17",
        ),
        (
            "y = LayerNormalization <epsilon = 0.5> (x, s5, b5)",
            12,
            NormSpec(Trailing((-1,)), HALF, affine=ALONG),
            "LayerNormalization",
        ),
        (
            "y = RMSNormalization <epsilon = 0.5> (x, s5)",
            23,
            NormSpec(Trailing((-1,)), HALF, centred=False, affine=AffineLayout(True, False, AffineAxes.NORMALISED)),
            "RMSNormalization-23",
        ),
    ],
)
def test_reads(nodes: str, opset: int, spec: NormSpec, spelling: str) -> None:
    graph = (
        ir.from_onnx_text(text(nodes, opset)) if "LayerNormalization" in nodes and opset < 17 else model(nodes, opset)
    )
    site = only(graph)
    assert isinstance(site, NormSite)
    assert (site.spec, site.spelling) == (spec, spelling)
    assert site.operands.x.name == "x"
    assert site.interior == (site.root,)
    assert (site.operands.scale is not None, site.operands.bias is not None) == (spec.affine.scale, spec.affine.bias)


def text(nodes: str, opset: int) -> str:
    """The operator is not in the standard at ``opset``: no shape inference."""
    return f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,6,5] x) => (float[N,4,6,5] y)
        <float[5] s5 = {{1, 2, 3, 4, 5}}, float[5] b5 = {{1, 2, 3, 4, 5}}> {{ {nodes} }}"""


TRAINING = (
    "training mode: it normalises with the statistics of the batch (--assume-inference folds it with the running ones)"
)


@pytest.mark.parametrize(
    ("nodes", "opset", "reason"),
    [
        ("y, rm, rv = BatchNormalization <training_mode = 1> (x, s, b, m, v)", 15, TRAINING),
        ("y, rm, rv, sm, sv = BatchNormalization (x, s, b, m, v)", 9, TRAINING),
        ("y, rm, rv, sm, sv = BatchNormalization (x, s, b, m, v)", 7, TRAINING),
        ("y, rm, rv, sm, sv = BatchNormalization (x, s, b, m, v)", 15, TRAINING),  # ill-formed, and written
        (
            "y = BatchNormalization <spatial = 0> (x, s, b, m, v)",
            7,
            "spatial=0 keeps one statistic per element, not per channel",
        ),
        (
            "mean = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x) y = BatchNormalization (x, s, b, mean, v)",
            15,
            "its running mean is computed by ReduceMean 'mean'",
        ),
        (
            "r = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x) var = Exp (r) "
            "y = BatchNormalization (x, s, b, m, var)",
            15,
            "its running variance is computed by Exp 'var'",
        ),
    ],
)
def test_declines(nodes: str, opset: int, reason: str) -> None:
    graph = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,6,5] x) => (float[N,4,6,5] y)
        <float[4] s = {{1, 2, 3, 4}}, float[4] b = {{0, 1, 0, 1}}, float[4] m = {{1, 1, 0, 1}},
         float[4] v = {{1, 1, 2, 1}}> {{ {nodes} }}"""
    )
    found = only(graph)
    assert isinstance(found, Declined)
    assert found.reason == reason
    assert found.at.op_type == "BatchNormalization"


@pytest.mark.parametrize(
    ("attributes", "opset", "trains"),
    [
        ("", 6, True),
        ("<is_test = 0>", 6, True),
        ("<is_test = 1>", 6, False),
        ("<is_test = 1>", 1, False),
        ("", 7, False),
    ],
)
def test_training_by_attribute_of_old_versions(attributes: str, opset: int, trains: bool) -> None:
    graph = model(f"y = BatchNormalization {attributes} (x, s, b, m, v)", opset)
    assert isinstance(only(graph), Declined) is trains


def test_an_axis_from_the_front_needs_the_rank() -> None:
    graph = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17, "other": 1]> g (float[N,4,6,5] x) => (y)
        <float[5] s = {1, 2, 3, 4, 5}> { z = other.Thing (x) y = LayerNormalization <axis = 3> (z, s) }"""
    )
    found = only(graph)
    assert isinstance(found, Declined)
    assert found.reason == "axis 3 counts from the front, and the rank of 'z' is unknown"


def test_saved_statistics_that_are_read_are_extra_outputs() -> None:
    outputs = "float[N,4,6,5] y, float[N,4,6,1] i"
    graph = model("y, unread, i = LayerNormalization (x, s5)", 17, outputs=outputs)
    site = only(graph)
    assert isinstance(site, NormSite)
    assert [value.name for value in site.extra_outputs] == ["i"]


@pytest.mark.parametrize(
    ("x", "operator", "stash", "compute_type"),
    [
        ("float16", "LayerNormalization", 1, ComputeType.FLOAT),
        ("bfloat16", "LayerNormalization", 16, ComputeType.INPUT),
        ("double", "LayerNormalization", 1, ComputeType.INPUT),  # not narrowed by any kernel
        ("double", "GroupNormalization", 1, ComputeType.FLOAT),  # inlined, and narrowed
        ("double", "GroupNormalization", 11, ComputeType.INPUT),
        ("float", "GroupNormalization", 11, ComputeType.DOUBLE),
    ],
)
def test_type_of_the_statistics(x: str, operator: str, stash: int, compute_type: ComputeType) -> None:
    groups = ", num_groups = 2" if operator == "GroupNormalization" else ""
    graph = model_of(f"""<ir_version: 10, opset_import: ["": 21]> g ({x}[N,4,6] x, {x}[K] s, {x}[K] b) => ({x}[N,4,6] y)
        {{ y = {operator} <stash_type = {stash}{groups}> (x, s, b) }}""")
    site = only(graph)
    assert isinstance(site, NormSite)
    assert site.spec.compute_type is compute_type


def test_attributes_that_a_caller_binds_are_declined() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N,4,6,5] x, float[4] s) => (float[N,4,6,5] y)
        { y = local.F <epsilon = 0.5> (x, s) }
        <domain: "local", opset_import: ["": 17]> F <epsilon> (x, s) => (y)
        { y = InstanceNormalization <epsilon: float = @epsilon> (x, s, s) }"""
    )
    (function,) = model.functions.values()
    constants = Constants(model)
    (found,) = find_norms(function.graph, Reading(17, constants, Ranks(constants)))
    assert isinstance(found, Declined)
    assert found.reason == "attribute 'epsilon' is a parameter of the function"


@pytest.mark.parametrize(
    ("operator", "stash"), [("LayerNormalization", -1), ("RMSNormalization", 7), ("GroupNormalization", 99)]
)
def test_statistics_of_no_type_of_floats(operator: str, stash: int) -> None:
    """onnxruntime takes any number there."""
    groups = ", num_groups = 2" if operator == "GroupNormalization" else ""
    graph = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]> g (float[2,4,4] x, float[4] s) => (float[2,4,4] y)
        {{ y = {operator} <stash_type = {stash}{groups}> (x, s, s) }}"""
    )
    found = only(graph)
    assert isinstance(found, Declined)
    assert found.reason == f"stash_type {stash} is no type of floats"
