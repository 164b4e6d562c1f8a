"""Random graphs: whatever the graph, what moved means the same, and every rule has its turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfuse.passes.affine_rules import RULES
from tests.passes.random_graphs import count_rules, difference, move_all, random_graph

GRAPHS = 2000

LARGEST_DIFFERENCE = 1e-9
"""The graphs are float64 and at most 40 operators deep: rounding is near 1e-15, and a wrong map shows at once."""


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(GRAPHS, 2**32 - 1))
def test_any_graph(seed: int) -> None:
    """Hypothesis chooses the graphs: each run sees others than the fixed ones."""
    proto = random_graph(seed)
    moved, _, _ = move_all(proto)
    assert difference(proto, moved) < LARGEST_DIFFERENCE
    assert len(moved.graph) <= len(proto.graph.node)


@pytest.fixture(scope="module")
def outcomes() -> tuple[Counter[str], int, list[int]]:
    """Return in how many graphs each operator was passed, how many absorbed something, and which went wrong."""
    fired: Counter[str] = Counter()
    absorbed, wrong = 0, []
    for seed in range(GRAPHS):
        proto = random_graph(seed)
        moved, moves, _ = move_all(proto)
        absorbed += bool(moves)
        fired.update({name.split()[-1] for name in count_rules(moves)})
        if not difference(proto, moved) < LARGEST_DIFFERENCE or len(moved.graph) > len(proto.graph.node):
            wrong.append(seed)
    return fired, absorbed, wrong


def test_none_is_wrong(outcomes: tuple[Counter[str], int, list[int]]) -> None:
    assert outcomes[2] == []


def test_most_absorb_something(outcomes: tuple[Counter[str], int, list[int]]) -> None:
    assert outcomes[1] >= 0.6 * GRAPHS


@pytest.mark.parametrize(
    "rule", sorted({*RULES, "Add", "Sub", "Conv", "ConvTranspose", "Gemm", "MatMul", "halves", "rest"})
)
def test_every_rule_fires(rule: str, outcomes: tuple[Counter[str], int, list[int]]) -> None:
    """A generator that no longer reaches a rule would prove nothing about it."""
    assert outcomes[0][rule] >= 50
