"""Mutations of every spelling: what is almost a norm is left alone, and where it looks like one the reason is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from normfuse.graph.site import Declined, NormSite
from normfuse.recognise.primitive import find_decomposed
from tests.graphs import model_of, reading_of
from tests.spellings import FAMILIES, Spelling, graph_of, spellings

REASONS = {
    "exponent": ("raised to 4, not squared",),
    "unbiased": ("its variance is unbiased: the sum of squares is divided by N − 1",),
    "epsilon outside": ("its epsilon is added to the deviation, outside the root",),
    "axes": ("its mean is over axes",),
    "keepdims": ("a mean without kept dimensions broadcasts along another axis than it averages over",),
    "shared": ("is also a graph output",),
}
CENTRED = [family for family in FAMILIES if family.centred]


def outcomes(spelling: Spelling) -> tuple[NormSite | Declined, ...]:
    model = model_of(graph_of(spelling).text)
    return find_decomposed(model.graph, reading_of(model), set())


def check(spelling: Spelling, kind: str) -> None:
    results = outcomes(spelling)
    assert not [result for result in results if isinstance(result, NormSite)], str(spelling)
    reasons = [result.reason for result in results if isinstance(result, Declined)]
    assert any(part in reason for reason in reasons for part in REASONS[kind]), (str(spelling), reasons)


@pytest.mark.parametrize("mutation", ["exponent", "unbiased", "epsilon outside", "axes"])
def test_mutations_are_refused(mutation: str) -> None:
    for index, spelling in enumerate(spellings(400, seed=2)):
        if index % 3 or not spelling.family.centred:
            continue
        check(replace(spelling, mutation=mutation), mutation)


@pytest.mark.parametrize("value", ["mean", "deviation", "square", "variance", "sum"])
def test_shared_inner_values_are_refused(value: str) -> None:
    for index, spelling in enumerate(spellings(300, seed=3)):
        if index % 4 or (not spelling.family.centred and value in ("mean", "deviation")):
            continue
        check(replace(spelling, mutation=f"shared {value}"), "shared")


def test_mean_along_another_axis_is_refused() -> None:
    square = replace(FAMILIES[0], shape=(8, 8, 8))
    for spelling in spellings(300, seed=4):
        if spelling.family.name == "layer" and spelling.mean == "mean":
            check(replace(spelling, family=square, mutation="keepdims", dynamic=False), "keepdims")


def test_rms_exponent_is_refused() -> None:
    rms = next(family for family in FAMILIES if not family.centred)
    (result,) = outcomes(Spelling(rms, mutation="exponent"))
    assert isinstance(result, Declined)
    assert result.reason == "x is raised to 4, not squared"
