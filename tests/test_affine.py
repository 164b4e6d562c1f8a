"""The algebra of per-channel affine maps, against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfuse.affine import (
    ChannelAffine,
    FoldError,
    check_range,
    conv_inputs,
    conv_outputs,
    fold_shift,
    largest_per_channel,
    through_weight,
)

rows = st.lists(st.floats(-100, 100), min_size=3, max_size=3)
positive = st.lists(st.floats(1e-3, 100), min_size=3, max_size=3)


@given(rows, rows, rows, positive, st.floats(1e-12, 1.0), rows)
def test_from_batchnorm_is_the_formula(
    gamma: list[float], beta: list[float], mean: list[float], var: list[float], epsilon: float, x: list[float]
) -> None:
    g, b, m, v, value = (np.array(entries) for entries in (gamma, beta, mean, var, x))
    affine = ChannelAffine.from_batchnorm(g, b, m, v, epsilon)
    expected = (value - m) / np.sqrt(v + epsilon) * g + b
    scale = np.abs(affine.scale) * (np.abs(value) + np.abs(m)) + np.abs(b) + 1e-300
    assert np.all(np.abs(affine.scale * value + affine.shift - expected) <= 8 * np.finfo(float).eps * scale)


@given(rows, rows, rows, rows, rows)
def test_then_is_composition(a: list[float], b: list[float], c: list[float], d: list[float], x: list[float]) -> None:
    first, second = ChannelAffine(np.array(a), np.array(b)), ChannelAffine(np.array(c), np.array(d))
    both, value = first.then(second), np.array(x)
    expected = second.scale * (first.scale * value + first.shift) + second.shift
    size = np.abs(second.scale) * (np.abs(first.scale * value) + np.abs(first.shift)) + np.abs(second.shift) + 1e-300
    assert np.all(np.abs(both.scale * value + both.shift - expected) <= 8 * np.finfo(float).eps * size)


def test_identity_changes_nothing() -> None:
    affine = ChannelAffine.identity(4)
    np.testing.assert_array_equal(affine.scale, np.ones(4))
    np.testing.assert_array_equal(affine.shift, np.zeros(4))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gamma": np.array([1.0, np.nan])}, "its scale is nan in channel 1"),
        ({"mean": np.array([np.inf, 0.0])}, "its mean is inf in channel 0"),
        ({"var": np.array([1.0, -1.0])}, "variance + epsilon is -1 in channel 1; it must be positive"),
        ({"var": np.array([1.0, 0.0]), "epsilon": 0.0}, "variance + epsilon is 0 in channel 1; it must be positive"),
        ({"beta": np.zeros(3)}, "its parameters differ in length: scale 2, bias 3, mean 2, variance 2"),
    ],
)
def test_parameters_that_are_no_affine_map(change: dict[str, object], reason: str) -> None:
    arguments: dict[str, object] = {
        "gamma": np.ones(2), "beta": np.zeros(2), "mean": np.zeros(2), "var": np.ones(2), "epsilon": 1e-5,
    }  # fmt: skip
    with pytest.raises(FoldError) as caught:
        ChannelAffine.from_batchnorm(**{**arguments, **change})  # type: ignore[arg-type]
    assert str(caught.value) == reason


def test_overflow_is_found_in_its_channel() -> None:
    weight = np.ones((3, 2, 1, 1), np.float16)
    layout = conv_outputs(weight.shape)
    check_range(weight, ChannelAffine(np.array([1.0, -65504.0, 1.0]), np.zeros(3)), layout)
    with pytest.raises(FoldError, match="overflows float16 in channel 1: largest weight 1 times"):
        check_range(weight, ChannelAffine(np.array([1.0, -65600.0, 1.0]), np.zeros(3)), layout)
    with pytest.raises(FoldError, match="the folded bias overflows float16 in channel 2"):
        fold_shift(np.ones(3, np.float16), ChannelAffine(np.array([1.0, 1.0, 7e4]), np.zeros(3)), weight.dtype)


def test_flush_counts_only_where_it_can_be_seen() -> None:
    weight = np.full((1, 8, 1, 1), 1e-3, np.float16)
    layout = conv_outputs(weight.shape)
    visible = ChannelAffine(np.array([1e-3]), np.array([0.1]))
    hidden = ChannelAffine(np.array([1e-3]), np.array([5000.0]))
    with pytest.raises(FoldError, match="flushed in float16, channel 0"):
        check_range(weight, visible, layout)
    check_range(weight, hidden, layout)
    check_range(weight.astype(np.float32), visible, layout)


@given(st.integers(0, 2**31))
def test_largest_per_channel_is_the_maximum(seed: int) -> None:
    random = np.random.default_rng(seed)
    group = int(random.integers(1, 4))
    weight = random.standard_normal((group * int(random.integers(1, 4)), int(random.integers(1, 5)), 3)).astype(
        np.float32
    )
    found = largest_per_channel(weight, conv_inputs(weight.shape, group))
    grouped = np.abs(weight.reshape(group, -1, weight.shape[1], 3)).max(axis=(1, 3)).reshape(-1)
    np.testing.assert_array_equal(found, grouped)


def test_largest_per_channel_of_a_large_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 200, 20, 10)).astype(np.float32)
    found = largest_per_channel(weight, conv_inputs(weight.shape, 2))
    expected = np.abs(weight.reshape(2, 3, 200, 200)).max(axis=(1, 3)).reshape(-1)
    np.testing.assert_array_equal(found, expected)


def test_through_weight_sums_over_each_group() -> None:
    random = np.random.default_rng(1)
    weight, shift = random.standard_normal((4, 3, 2)), random.standard_normal(6)
    expected = [np.sum(weight[m].sum(axis=1) * shift[(m // 2) * 3 : (m // 2) * 3 + 3]) for m in range(4)]
    np.testing.assert_allclose(through_weight(weight, shift, conv_inputs(weight.shape, 2)), expected, rtol=1e-13)
