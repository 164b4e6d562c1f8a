"""The algebra of stencils, against sums written out tap by tap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfuse.affine import ChannelAffine, Float64, FoldError
from normfuse.passes.stencil import Grid, Stencil, diagonal, succession, total, total_work


def evaluate(stencil: Stencil, x: Float64) -> Float64:
    """Return the stencil's value on x (C, size), one spatial axis, straight from its definition."""
    (grid,) = stencil.grids
    read = stencil.weight.shape[1]
    positions = grid.stride * np.arange(grid.positions(x.shape[1]))
    y = np.tile(stencil.bias[:, None], positions.size)
    for m, c, i in np.ndindex(stencil.weight.shape):
        at = positions + grid.dilation * i - grid.begin
        row = x[m // (stencil.outputs // stencil.group) * read + c]
        inside = (at >= 0) & (at < x.shape[1])
        y[m, inside] += stencil.weight[m, c, i] * row[at[inside]]
    return y


@st.composite
def stencils(draw: st.DrawFn, grid: Grid | None = None) -> Stencil:
    """Draw a stencil of 4 channels to 4 over one axis."""
    group = draw(st.sampled_from([1, 2, 4]))
    if grid is None:
        kernel = draw(st.integers(1, 4))
        grid = Grid(
            kernel,
            draw(st.integers(1, 3)),
            draw(st.integers(1, 2)) if kernel > 1 else 1,
            draw(st.integers(0, 3)),
            draw(st.integers(0, 3)),
        )
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    bias = random.normal(size=4) * draw(st.booleans())
    return Stencil(random.normal(size=(4, 4 // group, grid.kernel)), bias, group, (grid,))


X = np.random.default_rng(0).normal(size=(4, 13))


@given(stencils(), stencils())
@settings(max_examples=150, deadline=None)
def test_a_total_is_the_sum_or_is_refused(first: Stencil, second: Stencil) -> None:
    (one,), (other,) = first.grids, second.grids
    sizes_agree = one.stride == other.stride and one.positions(13) == other.positions(13)
    if not sizes_agree:
        with pytest.raises(FoldError, match=r"their strides differ|their outputs differ in size"):
            total(first, second, (13,))
        return
    result = total(first, second, (13,))
    np.testing.assert_allclose(evaluate(result, X), evaluate(first, X) + evaluate(second, X), atol=1e-13)
    assert result.work == total_work(first, second, (13,))
    assert min(result.grids[0].begin, result.grids[0].end) >= 0


@given(stencils(), stencils())
@settings(max_examples=100, deadline=None)
def test_without_a_known_size_only_equal_slack_is_summed(first: Stencil, second: Stencil) -> None:
    (one,), (other,) = first.grids, second.grids
    if one.stride == other.stride and one.slack == other.slack:
        for size in (5, 12, 13):
            x = X[:, :size]
            expected = evaluate(first, x) + evaluate(second, x)
            np.testing.assert_allclose(evaluate(total(first, second, (None,)), x), expected, atol=1e-13)
    else:
        with pytest.raises(FoldError, match=r"their strides differ|for some sizes of the input"):
            total(first, second, (None,))


@given(stencils(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_point_behind_a_kernel_is_one_kernel(first: Stencil, data: st.DataObject) -> None:
    second = data.draw(stencils(Grid(1, data.draw(st.integers(1, 3)))))
    result = succession(first, second)
    np.testing.assert_allclose(evaluate(result, X), evaluate(second, evaluate(first, X)), atol=1e-12)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_kernel_behind_a_point_is_one_kernel_or_is_refused(data: st.DataObject) -> None:
    begin, end = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    first = data.draw(stencils(Grid(1, data.draw(st.integers(1, 3)), begin=begin, end=end)))
    second = data.draw(stencils())
    (grid,) = second.grids
    if first.bias.any() and (grid.begin or grid.end):
        with pytest.raises(FoldError, match="the padding lies between two convolutions, of which the first has a bias"):
            succession(first, second)
        return
    result = succession(first, second)
    np.testing.assert_allclose(evaluate(result, X), evaluate(second, evaluate(first, X)), atol=1e-12)


def test_two_kernels_in_succession_are_refused() -> None:
    wide = Stencil(np.ones((4, 4, 3)), np.zeros(4), 1, (Grid(3),))
    with pytest.raises(FoldError, match="two kernels larger than 1 follow each other"):
        succession(wide, wide)
    padding = Stencil(np.ones((4, 1, 1)), np.zeros(4), 4, (Grid(1, begin=1),))
    with pytest.raises(FoldError, match="a kernel larger than 1 and padding follow each other"):
        succession(wide, padding)


def test_an_affine_map_behind_scales_and_shifts() -> None:
    stencil = Stencil(np.ones((4, 4, 1)), np.arange(4.0), 1, (Grid(1),))
    affine = ChannelAffine(np.array([1.0, -2.0, 0.0, 3.0]), np.arange(4.0))
    expected = affine.scale[:, None] * evaluate(stencil, X) + affine.shift[:, None]
    np.testing.assert_allclose(evaluate(stencil.then(affine), X), expected, atol=1e-13)


def test_a_diagonal_in_a_grouped_sum_stands_at_the_channel_of_its_own() -> None:
    """W[c, c mod C/g] = 1: the identity beside a convolution of two groups."""
    grouped = Stencil(np.zeros((4, 2, 3)), np.zeros(4), 2, (Grid(3, begin=1, end=1),))
    identity = diagonal(ChannelAffine.identity(4), (Grid(1),))
    weight = total(grouped, identity, (None,)).weight
    assert [tuple(at) for at in np.argwhere(weight)] == [(0, 0, 1), (1, 1, 1), (2, 0, 1), (3, 1, 1)]


TAPS = [
    ("centre", Grid(3, begin=1, end=1), Grid(1), slice(1, 2)),
    ("not the centre", Grid(3, begin=2, end=0), Grid(1), slice(2, 3)),
    ("even kernel", Grid(4, begin=1, end=2), Grid(2, begin=0, end=1), slice(1, 3)),
    ("dilated", Grid(3, dilation=2, begin=2, end=2), Grid(1), slice(1, 2)),
    ("dilated in a dense one", Grid(5, begin=2, end=2), Grid(3, dilation=2, begin=2, end=2), slice(0, 5, 2)),
]


@pytest.mark.parametrize(("large", "small", "taps"), [case[1:] for case in TAPS], ids=[case[0] for case in TAPS])
def test_the_smaller_kernel_lies_where_its_padding_says(large: Grid, small: Grid, taps: slice) -> None:
    zero = Stencil(np.zeros((1, 1, large.kernel)), np.zeros(1), 1, (large,))
    one = Stencil(np.ones((1, 1, small.kernel)), np.zeros(1), 1, (small,))
    result = total(zero, one, (None,))
    assert result.grids == (large,)
    expected = np.zeros(large.kernel)
    expected[taps] = 1.0
    np.testing.assert_array_equal(result.weight[0, 0], expected)


def test_one_channel_beside_many_would_broadcast() -> None:
    many = Stencil(np.ones((4, 1, 1)), np.zeros(4), 1, (Grid(1),))
    with pytest.raises(FoldError, match="they map 1 to 4 and 4 to 4 channels"):
        total(many, diagonal(ChannelAffine.identity(4), (Grid(1),)), (None,))
