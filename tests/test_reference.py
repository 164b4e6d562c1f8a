"""The meaning of a NormSpec: against torch-free textbook values, and the identities between norms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from normfuse.reference import evaluate
from normfuse.spec import (
    Activation,
    AffineAxes,
    AffineLayout,
    Batch,
    NormSpec,
    PerChannel,
    PerGroup,
    Stored,
    Trailing,
)

BOTH = AffineLayout(True, True)
ROUNDING = 64 * np.finfo(np.float64).eps
"""Both sides of an identity take fewer than 64 roundings of values of size one."""


@pytest.fixture
def arrays() -> dict[str, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((3, 6, 4, 5)) * 2 + 1,
        "scale": rng.uniform(0.5, 1.5, 6),
        "bias": rng.standard_normal(6),
        "mean": rng.standard_normal(6),
        "var": rng.uniform(0.5, 1.5, 6),
    }


def test_two_channels_by_hand() -> None:
    # Group of both channels: mean 4, deviations -3 -1 1 3, variance 5; epsilon 4 makes the root 3.
    x = np.array([[[1.0, 3.0], [5.0, 7.0]]])
    y = evaluate(NormSpec(PerGroup(1), 4.0), {"x": x})
    np.testing.assert_allclose(y, [[[-1.0, -1 / 3], [1 / 3, 1.0]]], rtol=ROUNDING)
    # Each channel alone: deviations -1 1, variance 1; epsilon 3 makes the root 2.
    y = evaluate(NormSpec(PerChannel(), 3.0), {"x": x})
    np.testing.assert_allclose(y, [[[-0.5, 0.5], [-0.5, 0.5]]], rtol=ROUNDING)
    # RMS of a channel: mean squares 5 and 37; epsilon 4 and 12 would make 3 and 7.
    y = evaluate(NormSpec(Trailing((-1,)), 4.0, centred=False), {"x": x[:, :1]})
    np.testing.assert_allclose(y, [[[1 / 3, 1.0]]], rtol=ROUNDING)


def test_large_mean_does_not_cancel() -> None:
    x = 1e8 + np.array([[[-1.0, 1.0, -1.0, 1.0]]])
    np.testing.assert_array_equal(evaluate(NormSpec(PerChannel(), 0.0), {"x": x}), x - 1e8)


def test_identities(arrays: dict[str, npt.NDArray[np.float64]]) -> None:
    def same(one: NormSpec, other: NormSpec, **changes: npt.NDArray[np.float64]) -> None:
        np.testing.assert_allclose(evaluate(one, arrays), evaluate(other, arrays | changes), atol=ROUNDING)

    group = NormSpec(PerGroup(6), 1e-5, affine=BOTH)
    same(group, replace(group, statistics=PerChannel()))
    same(replace(group, statistics=PerGroup(1)), replace(group, statistics=Trailing((-3, -2, -1))))
    per_channel = {name: np.broadcast_to(arrays[name][:, None, None], (6, 4, 5)) for name in ("scale", "bias")}
    along = replace(group, statistics=Trailing((-3, -2, -1)), affine=AffineLayout(True, True, AffineAxes.NORMALISED))
    same(replace(group, statistics=PerGroup(1)), along, **per_channel)
    per_group = replace(group, statistics=PerGroup(3), affine=AffineLayout(True, True, AffineAxes.GROUP))
    repeated = {name: np.repeat(arrays[name][:3], 2) for name in ("scale", "bias")}
    halves = {name: arrays[name][:3] for name in ("scale", "bias")}
    np.testing.assert_allclose(
        evaluate(per_group, arrays | halves),
        evaluate(replace(group, statistics=PerGroup(3)), arrays | repeated),
        atol=ROUNDING,
    )


def test_batch_statistics_are_stored_ones_that_fit(arrays: dict[str, npt.NDArray[np.float64]]) -> None:
    x = arrays["x"]
    stored = evaluate(
        NormSpec(Stored(), 1e-5, affine=BOTH), arrays | {"mean": x.mean((0, 2, 3)), "var": x.var((0, 2, 3))}
    )
    np.testing.assert_allclose(evaluate(NormSpec(Batch(), 1e-5, affine=BOTH), arrays), stored, atol=ROUNDING)


@pytest.mark.parametrize("statistics", [Stored(), Batch(), PerGroup(3), PerChannel()])
def test_channels_last_is_a_transpose(
    arrays: dict[str, npt.NDArray[np.float64]], statistics: Stored | Batch | PerGroup | PerChannel
) -> None:
    spec = NormSpec(statistics, 1e-5, affine=BOTH)
    moved = arrays | {"x": np.moveaxis(arrays["x"], 1, -1)}
    last = evaluate(replace(spec, channel_axis=-1), moved)
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), evaluate(spec, arrays))


def test_residual_and_activations(arrays: dict[str, npt.NDArray[np.float64]]) -> None:
    spec = NormSpec(PerChannel(), 1e-5, affine=BOTH)
    half = {"x": arrays["x"] / 2, "residual": arrays["x"] / 4, "residual_bias": arrays["x"] / 4}
    y = evaluate(spec, arrays)
    np.testing.assert_array_equal(evaluate(spec, arrays | half), y)
    np.testing.assert_array_equal(evaluate(replace(spec, activation=Activation.RELU), arrays), np.maximum(y, 0))
    leaky = replace(spec, activation=Activation.LEAKY_RELU, slope=0.25)
    np.testing.assert_array_equal(evaluate(leaky, arrays), np.maximum(y, 0) + 0.25 * np.minimum(y, 0))
    silu = evaluate(replace(spec, activation=Activation.SILU), arrays)
    np.testing.assert_allclose(silu, y / (1 + np.exp(-y)), atol=ROUNDING)
    ends = evaluate(
        NormSpec(Stored(), 0.0, activation=Activation.GELU),
        {"x": np.array([[-40.0, 40.0]]), "mean": np.zeros(2), "var": np.ones(2)},
    )
    np.testing.assert_array_equal(ends, [[0.0, 40.0]])


def test_broken_input_is_named(arrays: dict[str, npt.NDArray[np.float64]]) -> None:
    with pytest.raises(ValueError, match="C divisible by the number of groups; got C=6, groups=4"):
        evaluate(NormSpec(PerGroup(4), 1e-5), arrays)
    with pytest.raises(ValueError, match="the arrays mean, var are missing"):
        evaluate(NormSpec(Stored(), 1e-5), {"x": arrays["x"]})
