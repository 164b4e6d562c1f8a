"""Norms of other domains: onnxruntime's own are read, plugins are known by name."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.spec import Activation, AffineAxes, AffineLayout, NormSpec, PerGroup, Trailing
from tests.graphs import reading_of

HALF = 0.5
ALONG = AffineLayout(True, True, AffineAxes.NORMALISED)
SCALE = AffineLayout(True, False, AffineAxes.NORMALISED)


def only(nodes: str, outputs: str = "y") -> NormSite | Declined:
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "org.pytorch.aten": 1, "org.pytorch._caffe2": 1,
                                           "trt.plugins": 1]>
        g (float[N,6,5,4] x, float[N,6,5,4] r, float[N,4] short, float[4] s, float[4] b, float[4] k) => ({outputs})
        {{ {nodes} }}"""
    )
    (found,) = find_norms(model.graph, reading_of(model))
    return found


@pytest.mark.parametrize(
    ("nodes", "spec", "operands"),
    [
        (
            "y = SimplifiedLayerNormalization <epsilon = 0.5, axis = -1> (x, s)",
            NormSpec(Trailing((-1,)), HALF, centred=False, affine=SCALE),
            "x s - - -",
        ),
        (
            "y = com.microsoft.SkipLayerNormalization <epsilon = 0.5> (x, r, s, b, k)",
            NormSpec(Trailing((-1,)), HALF, affine=ALONG),
            "x s b r k",
        ),
        (
            "y = com.microsoft.SkipLayerNormalization <epsilon = 0.5> (x, r, s)",
            NormSpec(Trailing((-1,)), HALF, affine=SCALE),
            "x s - r -",
        ),
        (
            "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.5> (x, r, s, k)",
            NormSpec(Trailing((-1,)), HALF, centred=False, affine=SCALE),
            "x s - r k",
        ),
        (
            "y = com.microsoft.GroupNorm <epsilon = 0.5, groups = 2, activation = 1> (x, s, b)",
            NormSpec(PerGroup(2), HALF, affine=AffineLayout(True, True), channel_axis=-1, activation=Activation.SILU),
            "x s b - -",
        ),
        (
            "y = com.microsoft.GroupNorm <epsilon = 0.5, groups = 2, activation = 0, channels_last = 0> (x, s, b)",
            NormSpec(PerGroup(2), HALF, affine=AffineLayout(True, True)),
            "x s b - -",
        ),
        (
            "y = com.microsoft.SkipGroupNorm <epsilon = 0.5, groups = 2, activation = 0> (x, s, b, r, k)",
            NormSpec(PerGroup(2), HALF, affine=AffineLayout(True, True), channel_axis=-1),
            "x s b r k",
        ),
    ],
)
def test_reads(nodes: str, spec: NormSpec, operands: str) -> None:
    site = only(nodes)
    assert isinstance(site, NormSite)
    assert site.spec == spec
    o = site.operands
    found = [None if value is None else value.name for value in (o.x, o.scale, o.bias, o.residual, o.residual_bias)]
    assert " ".join(name or "-" for name in found) == operands


def test_the_sum_is_an_extra_output() -> None:
    site = only('y, "", "", sum = com.microsoft.SkipLayerNormalization (x, r, s)', "y, sum")
    assert isinstance(site, NormSite)
    assert [value.name for value in site.extra_outputs] == ["sum"]
    assert site.spec.epsilon == pytest.approx(1e-12, rel=1e-7)  # the default of the Skip operators, as float32


BY_NAME = "is recognised by name only: no runtime here runs it"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            'y = org.pytorch.aten.ATen <operator = "group_norm"> (x, s, b)',
            f"ATen group_norm of domain org.pytorch.aten {BY_NAME}",
        ),
        ("y = org.pytorch._caffe2.GroupNorm (x, s, b)", f"GroupNorm of domain org.pytorch._caffe2 {BY_NAME}"),
        (
            "y = trt.plugins.InstanceNormalization_TRT (x, s, b)",
            f"InstanceNormalization_TRT of domain trt.plugins {BY_NAME}",
        ),
        ("y = trt.plugins.GroupNormalizationPlugin (x)", f"GroupNormalizationPlugin of domain trt.plugins {BY_NAME}"),
        ("y = trt.plugins.LayerNorm (x)", f"LayerNorm of domain trt.plugins {BY_NAME}"),
        ("y = trt.plugins.RMSNorm (x)", f"RMSNorm of domain trt.plugins {BY_NAME}"),
        (
            "y = com.microsoft.QOrderedLayerNormalization (x)",
            f"QOrderedLayerNormalization of domain com.microsoft {BY_NAME}",
        ),
        (
            "y = com.microsoft.EmbedLayerNormalization (x)",
            "EmbedLayerNormalization of domain com.microsoft is recognised by name only: it is an embedding too",
        ),
        (
            "y = com.microsoft.SkipGroupNorm <groups = 2, activation = 0> (x, s, b, short)",
            "the rank of skip 'short' is not known to be 4",
        ),
        (
            "y = com.microsoft.GroupNorm <groups = 2, activation = 2> (x, s, b)",
            "activation 2 is unknown: onnxruntime defines 0, none, and 1, SiLU",
        ),
        ("y = com.microsoft.GroupNorm <activation = 0> (x, s, b)", "groups must be positive; it is 0"),
        ("y = com.microsoft.SkipLayerNormalization (x, r)", "input 2 is missing"),
    ],
)
def test_declines(nodes: str, reason: str) -> None:
    found = only(nodes)
    assert isinstance(found, Declined)
    assert found.reason == reason
