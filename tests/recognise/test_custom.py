"""The operators of ai.normfuse as norms, whatever body stands behind them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from normfuse.graph.site import Declined, NormSite
from normfuse.recognise.custom import custom_norm
from normfuse.spec import (
    Activation,
    AffineAxes,
    AffineLayout,
    ComputeType,
    NormSpec,
    PerChannel,
    PerGroup,
    Trailing,
)
from tests.graphs import reading_of

BOTH, ALONG = AffineLayout(True, True), AffineLayout(True, False, AffineAxes.NORMALISED)


def outcome(call: str, dtype: str = "float", x: str = "[N,4,6,5]") -> NormSite | Declined | None:
    """Return what is read of one node of ai.normfuse."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18, "ai.normfuse": 1]>
        g ({dtype}{x} x, {dtype}[4] s, {dtype}[4] b, {dtype}{x} r) => ({dtype}{x} y) {{ y = ai.normfuse.{call} }}""")
    return custom_norm(model.graph[0], reading_of(model))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("GroupNorm <num_groups = 2, epsilon = 0.5> (x, s, b)", NormSpec(PerGroup(2), 0.5, affine=BOTH)),
        (
            "GroupNormSiluChannelsLast_opset18_float <num_groups = 2, epsilon = 0.5> (x)",
            NormSpec(PerGroup(2), 0.5, channel_axis=-1, activation=Activation.SILU),
        ),
        (
            "GroupNorm_opset18_float_bias <num_groups = 2, epsilon = 0.5> (x, , b)",
            NormSpec(PerGroup(2), 0.5, affine=AffineLayout(bias=True)),
        ),
        ("InstanceNorm <epsilon = 0.5> (x, s, b)", NormSpec(PerChannel(), 0.5, affine=BOTH)),
        ("LayerNorm <axis = -2, epsilon = 0.5> (x, s)", NormSpec(Trailing((-2, -1)), 0.5, affine=ALONG)),
        ("RMSNorm <axis = 3, epsilon = 0.5> (x, s)", NormSpec(Trailing((-1,)), 0.5, centred=False, affine=ALONG)),
    ],
)
def test_specs(call: str, expected: NormSpec) -> None:
    site = outcome(call)
    assert isinstance(site, NormSite)
    assert site.spec.affine.scale == expected.affine.scale
    assert site.spec.affine.bias == expected.affine.bias
    if not (expected.affine.scale or expected.affine.bias):
        expected = NormSpec(
            expected.statistics,
            expected.epsilon,
            affine=site.spec.affine,
            channel_axis=expected.channel_axis,
            activation=expected.activation,
        )
    assert site.spec == expected


def test_half_types_have_statistics_in_float32() -> None:
    site = outcome("InstanceNorm (x, s, b)", "float16")
    assert isinstance(site, NormSite)
    assert site.spec.compute_type is ComputeType.FLOAT


def test_a_residual() -> None:
    site = outcome("AddLayerNormWithSum_opset18_float (x, r)")
    assert isinstance(site, NormSite)
    assert site.operands.residual is not None
    assert site.operands.residual.name == "r"
    assert site.operands.scale is None


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("GroupNorm <num_groups = 0> (x)", "num_groups must be positive; it is 0"),
        ('GroupNorm <activation = "silu"> (x)', "version 1 of GroupNorm has no attribute 'activation'"),
        ("LayerNorm <axis = 7> (x)", "axis 7 counts from the front, and the rank of its input is unknown"),
    ],
)
def test_declines(call: str, reason: str) -> None:
    result = outcome(call)
    assert isinstance(result, Declined)
    assert result.reason == reason


@pytest.mark.parametrize("name", ["Twice", "InstanceNormMish", "LayerNormChannelsLast", "MyGroupNorm"])
def test_other_operators_of_the_domain_are_no_norms(name: str) -> None:
    assert outcome(f"{name} (x)") is None
