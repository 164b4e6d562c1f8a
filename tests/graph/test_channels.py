"""Ranks that the graph proves without shape inference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.graph.channels import Ranks, channels
from normfuse.graph.constants import Constants
from tests.folding import build, normal

INTEGERS = {"O": np.array(0), "A": np.array([0]), "T": np.array([-1, 2])}

BODIES = [
    ("y = Relu (x)", 4),
    ("y = Conv (u, W)", 4),
    ("y = Gemm (u, M)", 2),
    ("y = Flatten (u)", 2),
    ("y = MatMul (x, M)", 4),
    ("y = MatMul (u, M)", None),
    ("y = Add (x, M)", 4),
    ("y = Add (u, M)", None),
    ("s = Constant <value_ints = [0,-1,2]> ()  y = Reshape (u, s)", 3),
    ("a = Shape (x)  y = Reshape (u, a)", 4),
    ("a = Shape (u)  y = Reshape (x, a)", None),
    ("a = Shape <start = 1> (x)  y = Reshape (u, a)", None),
    (
        "a = Shape (x)  p = Gather (a, O)  q = Cast <to = 7> (p)  r = Unsqueeze (q, A)  t = Concat <axis = 0> (r, T)  y = Reshape (u, t)",
        3,
    ),
    ("t = Concat <axis = 0> (u, T)  y = Reshape (x, t)", None),
    ("y = ReduceSum (x, A)", 4),
    ("y = ReduceSum <keepdims = 0> (x, A)", 3),
    ("y = ReduceMax <keepdims = 0, axes = [1, 2]> (x)", 2),
    ("y = ReduceSum <keepdims = 0> (x)", None),
    ("y = Squeeze (x, A)", 3),
    ("y = Squeeze (x)", None),
    ("y = Unsqueeze (x, A)", 5),
    ("a = Relu (x)  b = Sigmoid (a)  c = Mul (a, b)  y = MaxPool <kernel_shape = [2,2]> (c)", 4),
    ("y = ConstantOfShape (T)", 2),
    ("a = Shape (x)  y = ConstantOfShape (a)", 4),
    ("a = Shape (u)  y = ConstantOfShape (a)", None),
    ("a = Shape (x)  y = Expand (M, a)", 4),
    ("y = Expand (x, T)", 4),
    ("a = Shape (u)  y = Expand (x, a)", None),
    ("y = Expand (u, T)", None),
    ("y = NonZero (x)", None),
]


@pytest.mark.parametrize(("body", "rank"), BODIES, ids=[case[0] for case in BODIES])
def test_ranks(body: str, rank: int | None) -> None:
    text = f"g (float[N,3,H,W] x, float u) => (float y) {{ {body} }}"
    model = ir.from_proto(build(text, {"W": normal(4, 3, 1, 1), "M": normal(5, 4), **INTEGERS}))
    model.graph.inputs[1].shape = None
    model.graph.outputs[0].shape = None
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    assert Ranks(Constants(model)).of(model.graph.outputs[0]) == rank


def test_long_chains_need_no_recursion() -> None:
    body = " ".join(f"v{i + 1} = Add (v{i}, v{i})" for i in range(3000))
    model = ir.from_proto(build(f"g (float[2,3] v0) => (float v3000) {{ {body} }}", {}))
    model.graph.outputs[0].shape = None
    assert Ranks(Constants(model)).of(model.graph.outputs[0]) == 2


def test_channels_are_what_the_file_states() -> None:
    model = ir.from_proto(build("g (float[N,3,8] x) => (float y) { y = Relu (x) }", {}))
    x = model.graph.inputs[0]
    assert (channels(x), channels(x, -1), channels(x, 0), channels(x, 5)) == (3, 8, None, None)
