"""The verdict on one value, from arrays alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.report.verdict import Check, Verdict
from normfuse.validate import tolerance
from normfuse.validate.compare import Sample, judge
from tests.validate.nets import Array

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
U = 2.0**-24
RNG = np.random.default_rng(0)
T = RNG.normal(size=(2, 4, 32))


def rounding(times: float = 1.0, seed: int = 1) -> Array:
    """Errors of ``times`` u, per element."""
    return times * U * np.random.default_rng(seed).normal(size=T.shape)


NOISE = tuple(T + rounding(seed=seed) for seed in range(2, 6))


def checks(
    candidate: Array,
    reference: Array | None = None,
    truth: Array = T,
    noise: Sequence[Array] = NOISE,
    dtype: ir.DataType = FLOAT,
) -> tuple[Check, ...]:
    return judge(
        [Sample(truth, tuple(noise), reference, candidate)], dtype, leg="cpu", inputs="i", subject="output 'y'"
    )


def verdict(candidate: Array, **more: Any) -> Verdict:
    return checks(candidate, **more)[0].verdict


@pytest.mark.parametrize(
    ("times", "reference_times", "expected"),
    [
        (0.0, 1.0, Verdict.EQUIVALENT),  # more accurate than the original
        (2.0, 1.0, Verdict.EQUIVALENT),
        (4.0, 1.0, Verdict.DIVERGENT),  # 3·B per output
        (4.0, 2.0, Verdict.EQUIVALENT),  # … B follows the original's own error
        (2.0, 0.0, Verdict.EQUIVALENT),  # an original that is luckily right leaves the floor
    ],
)
def test_rms_against_the_budget(times: float, reference_times: float, expected: Verdict) -> None:
    assert verdict(T + rounding(times, 7), reference=T + rounding(reference_times, 8)) is expected


def test_one_channel_is_judged_alone() -> None:
    """Six budgets in one of four channels are within 3·B of the whole, and not within 5·B_g of the channel."""
    candidate = T + rounding(0.3, 7)
    candidate[:, 2] += 5.7 * U * np.sign(RNG.normal(size=(2, 32)))
    found = checks(candidate, T + rounding(0.3, 8), noise=[T + rounding(0.9, seed) for seed in range(4)])
    assert found[0].verdict is Verdict.DIVERGENT
    assert [check.subject for check in found] == ["output 'y'", "output 'y'[channel 2]"]
    assert found[0].detail.startswith("1 of 4 channels are off; error ")


def test_one_element_is_judged_alone() -> None:
    candidate = T + rounding(0.5, 7)
    candidate[0, 0, 0] += 40 * U
    found = checks(candidate, T + rounding(0.5, 8))
    assert found[0].verdict is Verdict.DIVERGENT
    assert found[0].detail.startswith("at one element: error ")


def test_words_are_in_units_in_the_last_place() -> None:
    unit = T / np.abs(T) * np.sqrt(np.mean(T**2)) * 2 * U
    check = checks(T + 1.0 * unit, T + 0.5 * unit, noise=())[0]
    assert check.detail == "error 1 ulp, the original's own is 0.5, allowed 1.5"


def test_dead_output_has_a_floor() -> None:
    zero = np.zeros_like(T)
    assert verdict(zero, truth=zero, reference=zero, noise=[zero]) is Verdict.EQUIVALENT
    assert verdict(zero + 1e-20, truth=zero, reference=zero, noise=[zero]) is Verdict.DIVERGENT


def at(value: float, base: Array = T) -> Array:
    changed = base.copy()
    changed[0, 0, 0] = value
    return changed


@pytest.mark.parametrize(
    ("truth", "reference", "candidate", "dtype", "expected"),
    [
        (1.0, 1.0, np.nan, FLOAT, Verdict.DIVERGENT),
        (1.0, 1.0, np.inf, FLOAT, Verdict.DIVERGENT),
        (1.0, np.inf, np.nan, FLOAT, Verdict.EQUIVALENT),  # the original fails there: c is free
        (np.nan, np.nan, np.nan, FLOAT, Verdict.EQUIVALENT),
        (np.nan, np.nan, 1.0, FLOAT, Verdict.DIVERGENT),
        (np.inf, np.inf, np.inf, FLOAT, Verdict.EQUIVALENT),
        (np.inf, np.inf, -np.inf, FLOAT, Verdict.DIVERGENT),
        (1e5, np.inf, np.inf, HALF, Verdict.EQUIVALENT),  # beyond the type's range
    ],
)
def test_classes(truth: float, reference: float, candidate: float, dtype: ir.DataType, expected: Verdict) -> None:
    noise = [at(truth, array) for array in NOISE]
    found = verdict(at(candidate), truth=at(truth), reference=at(reference), noise=noise, dtype=dtype)
    assert found is expected


def test_original_that_fails_everywhere_says_nothing() -> None:
    found = checks(T, np.full_like(T, np.nan))[0]
    assert found.verdict is Verdict.NOT_RUN
    assert found.detail.startswith("the original itself fails here")


def test_original_that_is_far_off_is_no_licence() -> None:
    """r off by 20 %: a candidate may be right, or wrong in the same way; anything else is not judged."""
    wrong = T * 1.2
    assert verdict(T + rounding(), reference=wrong) is Verdict.EQUIVALENT
    assert verdict(wrong * (1 + U), reference=wrong) is Verdict.EQUIVALENT
    found = checks(T * 0.9, wrong)[0]
    assert found.verdict is Verdict.NOT_RUN
    assert "the original itself fails here: its error is 20.0%" in found.detail


def test_ill_conditioned_input_is_neither_proof_nor_accusation() -> None:
    noise = [T + 0.05 * RNG.normal(size=T.shape) for _ in range(4)]
    found = checks(T + 1.0, T, noise=noise)[0]
    assert found.verdict is Verdict.NOT_RUN
    assert found.detail.startswith("ill-conditioned: rounding alone changes")


def test_shapes() -> None:
    found = checks(T[:, :3], T)
    assert found[0].verdict is Verdict.DIVERGENT
    assert found[0].detail == "the shape is [2, 3, 32]; the original gives [2, 4, 32]"
    assert verdict(T, reference=T[:1]) is Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("candidate", "reference", "noise", "expected", "words"),
    [
        ([1, 2, 3], [1, 2, 3], [1, 2, 3], Verdict.EQUIVALENT, "all 3 decided elements are equal"),
        ([1, 2, 4], [1, 2, 3], [1, 2, 3], Verdict.DIVERGENT, "1 of 3 elements differ"),
        (
            [1, 2, 4],
            [1, 2, 4],
            [1, 2, 3],
            Verdict.EQUIVALENT,
            "all 2 decided elements are equal; 1 lie within rounding",
        ),
        ([1, 2, 4], [1, 2, 3], [1, 2, 4], Verdict.EQUIVALENT, "all 2 decided"),
        ([9, 9, 9], [9, 9, 9], [0, 0, 0], Verdict.NOT_RUN, "every element lies within rounding of a tie"),
    ],
)
def test_integers(candidate: list[int], reference: list[int], noise: list[int], expected: Verdict, words: str) -> None:
    sample = Sample(np.array([1, 2, 3]), (np.array(noise),), np.array(reference), np.array(candidate))
    check = judge([sample], ir.DataType.INT64, leg="cpu", inputs="i", subject="y")[0]
    assert (check.verdict, check.detail.startswith(words)) == (expected, True)


def test_samples_are_pooled() -> None:
    """Two samples of 8 elements per channel make a group; one alone does not."""
    truth = RNG.normal(size=(1, 2, 2, 4))
    noise = tuple(truth + U * RNG.normal(size=truth.shape) for _ in range(4))
    candidate = truth.copy()
    candidate[:, 1] += 8 * U * np.where(RNG.random((1, 2, 4)) < 0.5, 1, -1)
    sample = Sample(truth, noise, None, candidate)
    counts = [len(judge([sample] * count, FLOAT, leg="oracle", inputs="i", subject="y")) for count in (1, 2)]
    assert counts == [1, 2]


def test_constants_are_those_of_the_definition() -> None:
    assert (tolerance.OUTPUT_FACTOR, tolerance.CHANNEL_FACTOR, tolerance.MAXIMUM_FACTOR) == (3.0, 5.0, 8.0)
    assert (tolerance.MAXIMUM_OF_NOISE, tolerance.PERTURBED_RUNS, tolerance.GROUP_ELEMENTS) == (4.0, 4, 16)


@pytest.mark.parametrize(
    ("truth", "candidate", "expected", "words"),
    [
        (None, None, Verdict.EQUIVALENT, "all of 0 tensors agree"),
        (None, T, Verdict.DIVERGENT, "1 tensor; the original gives 0 tensors"),
        ([T], None, Verdict.DIVERGENT, "0 tensors; the original gives 1 tensor"),
        ([T, T], [T, T], Verdict.EQUIVALENT, "all of 2 tensors agree"),
        ([T, T], [T, T + 1], Verdict.DIVERGENT, "error "),
        ([np.array([1, 2])], [np.array([1, 3])], Verdict.DIVERGENT, "1 of 2 elements differ"),
    ],
)
def test_sequences_and_optionals(truth: Any, candidate: Any, expected: Verdict, words: str) -> None:
    sample = Sample(truth, (truth,), truth, candidate)
    found = judge([sample], FLOAT, leg="cpu", inputs="i", subject="y")
    assert (found[0].verdict, found[0].detail.startswith(words)) == (expected, True)


@pytest.mark.parametrize(("candidate", "expected"), [(4, Verdict.EQUIVALENT), (5, Verdict.DIVERGENT)])
def test_quanta_may_be_off_by_one_where_they_are_undecided(candidate: int, expected: Verdict) -> None:
    """The perturbed runs give 2 or 3 for the last; an index that is undecided may be any."""
    sample = Sample(np.array([1, 2, 3]), (np.array([1, 2, 2]),), np.array([1, 2, 3]), np.array([1, 2, candidate]))
    quanta = judge([sample], ir.DataType.UINT8, leg="cpu", inputs="i", subject="y", quantised=True)
    indices = judge([sample], ir.DataType.INT64, leg="cpu", inputs="i", subject="y")
    assert (quanta[0].verdict, indices[0].verdict) == (expected, Verdict.EQUIVALENT)


@pytest.mark.parametrize(
    ("family", "lost", "wrong"),
    [
        ("standard normal", Verdict.DIVERGENT, Verdict.DIVERGENT),
        ("NaN", Verdict.DIVERGENT, Verdict.DIVERGENT),
        ("infinity", Verdict.EQUIVALENT, Verdict.DIVERGENT),  # ∞ − ∞ in one order of a sum and not in another
    ],
)
def test_what_is_not_finite_by_family(family: str, lost: Verdict, wrong: Verdict) -> None:
    """lost: an element that is NaN where the original is finite; wrong: an error elsewhere, beside it."""
    truth, candidate = T.copy(), T.copy()
    candidate[0, 0, 0] = np.nan
    sample = Sample(truth, NOISE, None, candidate)
    assert judge([sample], FLOAT, leg="oracle", inputs=family, subject="y")[0].verdict is lost
    far = candidate.copy()
    far[1, 2, 3] += 1e-3
    sample = Sample(truth, NOISE, None, far)
    assert judge([sample], FLOAT, leg="oracle", inputs=family, subject="y")[0].verdict is wrong
