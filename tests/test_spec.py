"""One spec stands for all specs of the same function."""

from __future__ import annotations

import pytest

from normfuse.spec import Activation, NormSpec, PerChannel, canonical

PLAIN = NormSpec(PerChannel(), 1e-5)


def leaky(slope: float) -> NormSpec:
    return NormSpec(PerChannel(), 1e-5, activation=Activation.LEAKY_RELU, slope=slope)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (leaky(0.25), leaky(0.25)),
        (leaky(0.0), NormSpec(PerChannel(), 1e-5, activation=Activation.RELU)),
        (leaky(1.0), PLAIN),
        (NormSpec(PerChannel(), 1e-5, slope=0.5), PLAIN),
    ],
)
def test_the_slope_of_a_leaky_relu(spec: NormSpec, expected: NormSpec) -> None:
    assert canonical(spec) == expected
