"""The bound on a mean that is subtracted behind the products: what it lets pass keeps the budget, what errs more it stops."""

from __future__ import annotations

import numpy as np
import pytest

from normfuse.passes.cancellation import Moments, Products, energy_of, growth, is_accurate
from tests.folding import build, count, fuse, normal, parameters, reasons

CHANNELS, SAMPLES = 512, 4096


def moments(mean: float, result: float = 0.0) -> Moments:
    """Return what a norm with variance 1, scale 1 and shift ``result`` knows of channels around ``mean``."""
    wide = np.full(CHANNELS, mean)
    return Moments(wide, np.ones(CHANNELS), np.full(CHANNELS, result), abs(mean) / np.hypot(1.0, result))


def measured(mean: float, result: float) -> float:
    """Return the error of the folded product over that of the original, both in float32, added up one by one."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((CHANNELS, SAMPLES)) + mean).astype(np.float32)
    w = random.standard_normal(CHANNELS).astype(np.float32)
    shift = np.float32(result - mean)
    bias = np.float32((w.astype(np.float64) * (result - mean)).sum())
    folded, original = np.full(SAMPLES, bias), np.zeros(SAMPLES, np.float32)
    for c in range(CHANNELS):
        folded += w[c] * x[c]
        original += w[c] * (x[c] + shift)
    truth = w.astype(np.float64) @ (x.astype(np.float64) + (result - mean))
    errors = [np.sqrt(np.mean((row - truth) ** 2)) for row in (folded, original)]
    return float(errors[0] / errors[1])


@pytest.mark.parametrize("result", [0.0, 1.0])
@pytest.mark.parametrize("mean", [0.0, 1.0, 2.0])
def test_a_near_mean_keeps_the_budget(mean: float, result: float) -> None:
    assert is_accurate(moments(mean, result), (Products(CHANNELS),))
    assert measured(mean, result) < 3.0


@pytest.mark.parametrize("result", [0.0, 1.0])
@pytest.mark.parametrize("mean", [100.0, 10000.0])
def test_a_far_mean_does_not(mean: float, result: float) -> None:
    assert not is_accurate(moments(mean, result), (Products(CHANNELS),))
    assert measured(mean, result) > 3.0


def test_by_hand() -> None:
    """Of 60 products of values around 4 ± 1 whose image lies around 0: 10·17 over 10·1 + (32 + 1)/3, the bound nine times."""
    one = Moments(np.full(1, 4.0), np.ones(1), np.zeros(1), 4.0)
    assert growth(one, Products(60)) == pytest.approx(np.sqrt(170.0 / 21.0) / 3.0)
    averaged = (10 * (16 + 0.25)) / (10 * 0.25 + (32 / 4 + 1 / 4) / 3)
    assert growth(one, Products(60, averaged=4.0)) == pytest.approx(np.sqrt(averaged) / 3.0)


def test_channels_count_by_their_weights() -> None:
    """A far mean that hardly any weight reads does no harm, and one that a single output reads is that output's."""
    one = Moments(np.array([30.0, 0.0]), np.ones(2), np.zeros(2), 0.0)
    assert growth(one, Products(600, energy=np.array([[1e-6, 1.0]]))) < 1.0
    assert growth(one, Products(600, energy=np.array([[1.0, 1.0]]))) > 1.0
    spread = np.concatenate([[[1.0, 0.0]], np.tile([[0.0, 1.0]], (1000, 1))])
    assert growth(one, Products(600, energy=spread)) > 1.0


def test_energy_of_groups() -> None:
    node = next(
        node
        for node in fuse(
            build(
                "g (float[2,4,5,5] x) => (float[a,b,c,d] y) { y = Conv <group = 2> (x, W) }", {"W": normal(6, 2, 3, 3)}
            )
        )[0].graph
    )
    weight = normal(6, 2, 3, 3)
    energy = energy_of(weight, node)
    assert energy is not None
    own = np.square(weight.astype(np.float64)).sum(axis=(2, 3))
    np.testing.assert_allclose(energy[:3], np.hstack([own[:3], np.zeros((3, 2))]))
    np.testing.assert_allclose(energy[3:], np.hstack([np.zeros((3, 2)), own[3:]]))


@pytest.mark.parametrize("mean", [100.0, 10000.0])
@pytest.mark.parametrize(
    "behind",
    ["y = Conv (n, W)", "r = AveragePool <kernel_shape = [2,2]> (n) y = Conv (r, W)"],
    ids=["Conv", "AveragePool"],
)
def test_the_norm_stays(mean: float, behind: str) -> None:
    rows = {**parameters(64), "m": np.full(64, mean, np.float32), "v": np.ones(64, np.float32)}
    text = f"g (float[1,64,6,6] x) => (float[a,b,c,d] y) {{ n = BatchNormalization (x, s, b, m, v) {behind} }}"
    fused, report = fuse(build(text, {"W": normal(4, 64, 3, 3), **rows}))
    assert count(fused, "BatchNormalization") == 1
    assert f"its mean lies up to {mean:.3g} deviations from zero" in reasons(report)[0]
