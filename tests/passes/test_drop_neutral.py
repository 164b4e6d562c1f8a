"""Arithmetic that changes nothing goes, whatever it stands between, and nothing else does."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

import normfuse
from tests.folding import assert_same, build, fuse, normal

X, Y = "float[2,3,4] x", "float[2,3,5] y"
ARRAYS = {
    "W": normal(4, 5, seed=1), "zeros": np.zeros(5, np.float32), "ones": np.ones(5, np.float32), "zero": np.float32(0) * np.ones((), np.float32),
    "one": np.ones((1,), np.float32), "wide": np.zeros((2, 1, 1, 5), np.float32), "nearly": np.array([0, 0, 0, 0, 1e-30], np.float32),
    "grown": np.zeros((7, 1, 1), np.float32), "first": np.zeros(4, np.float32),
}  # fmt: skip


def model(body: str, *, inputs: str = X, outputs: str = Y) -> onnx.ModelProto:
    used = {name: array for name, array in ARRAYS.items() if name in re.findall(r"\w+", body)}
    return build(f"g ({inputs}) => ({outputs}) {{ {body} }}", used)


@pytest.mark.parametrize("term", [
    "Add (p, zeros)", "Add (zeros, p)", "Sub (p, zeros)", "Mul (ones, p)", "Div (p, ones)", "Add (p, zero)", "Mul (p, one)",
])  # fmt: skip
@pytest.mark.parametrize("last", ["y = {0}", "q = {0}  y = Relu (q)"])
def test_what_changes_nothing_goes(term: str, last: str) -> None:
    original = model(f"p = MatMul (x, W)  {last.format(term)}")
    fused, report = fuse(original)
    assert [node.op_type for node in fused.graph] == ["MatMul", "Relu"][: 2 if "Relu" in last else 1]
    assert [rewrite.kind for rewrite in report.rewrites] == ["drop-neutral"]
    assert [value.name for value in fused.graph.outputs] == ["y"]
    assert_same(original, fused)
    assert normfuse.fuse(fused)[1].rewrites == ()


@pytest.mark.parametrize(("body", "inputs", "outputs"), [
    ("p = Tanh (x)  y = Sub (zeros, p)", "float[2,3,5] x", Y),  # the other sign
    ("p = Tanh (x)  y = Add (p, nearly)", "float[2,3,5] x", Y),
    ("p = Tanh (x)  y = Div (one, p)", "float[2,3,5] x", Y),
    ("p = Tanh (x)  y = Add (p, wide)", "float[2,3,5] x", "float[2,2,3,5] y"),  # its rank grows
    ("p = Tanh (x)  y = Add (p, grown)", "float[1,1,5] x", "float[7,1,5] y"),  # its shape grows
    ("p = Tanh (x)  y = Add (p, zeros)", "float[2,3,N] x", "float[2,3,5] y"),  # or may grow, from N = 1
    ("y = Add (x, first)", X, "float[2,3,4] y"),  # an input cannot be an output by another name
])  # fmt: skip
def test_what_changes_something_stays(body: str, inputs: str, outputs: str) -> None:
    _, report = fuse(model(body, inputs=inputs, outputs=outputs))
    assert report.rewrites == ()


def test_of_two_results_that_are_one_value_one_keeps_its_operator() -> None:
    original = model("p = MatMul (x, W)  y = Add (p, zeros)  z = Mul (p, ones)", outputs=f"{Y}, float[2,3,5] z")
    fused, _ = fuse(original)
    assert [node.op_type for node in fused.graph] == ["MatMul", "Mul"]
    assert_same(original, fused)


def test_a_chain_of_them_up_to_an_input_keeps_its_last() -> None:
    original = model("p = Add (x, first)  y = Mul (p, one)", outputs="float[2,3,4] y")
    fused, _ = fuse(original)
    assert [node.op_type for node in fused.graph] == ["Mul"]
    assert_same(original, fused)


def test_what_a_branch_captures_reads_the_operand() -> None:
    original = model(
        "p = MatMul (x, W)  q = Add (p, zeros)  "
        "y = If (c) <then_branch = t () => (float[2,3,5] a) { a = Relu (q) }, else_branch = e () => (float[2,3,5] a) { a = Neg (q) }>",
        inputs=f"{X}, bool c",
    )  # fmt: skip
    fused, _ = fuse(original)
    assert [node.op_type for node in fused.graph] == ["MatMul", "If"]
    assert_same(original, fused)


def test_the_parameters_of_a_norm_stay_with_it() -> None:
    body = (
        "M = ReduceMean <axes = [-1]> (p)  d = Sub (p, M)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)  a = Add (v, eps)  "
        "s = Sqrt (a)  n = Div (d, s)  k = Mul (n, ones)  y = Add (k, zeros)"
    )
    original = model(f"p = MatMul (x, W)  {body}")
    original.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e-5, np.float32), "eps"))
    fused, report = fuse(original)
    assert [node.op_type for node in fused.graph] == ["MatMul", "LayerNormalization"]
    assert [rewrite.kind for rewrite in report.rewrites] == ["emit"]
    assert_same(original, fused)
