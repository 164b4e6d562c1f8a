"""Two Reshapes in a row are one, two Transposes are one, and of a way there and back nothing is left."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import normfuse
from tests.folding import Array, assert_same, build, count, fuse, normal, parameters

SHAPES = {
    "flat": np.array([-1, 5]), "back": np.array([2, 3, 4, 5]), "rows": np.array([6, 20]), "copied": np.array([0, 5, 4]),
    "some": np.array([-1, 4, 5]), "last": np.array([3]), "zero": np.array([0, -1]), "two": np.array([2, 12, 5]),
    "t": np.array([-1, 3, 4, 5]), "keep": np.array([0, 0, -1]), "turn": np.array([0, 0, 5, 4]),
}  # fmt: skip


def model(body: str, y: str, x: str = "float[2,3,4,5] x") -> onnx.ModelProto:
    arrays: dict[str, Array] = {name: array for name, array in SHAPES.items() if f", {name})" in body}
    return build(f"g ({x}) => ({y}) {{ {body} }}", arrays)


@pytest.mark.parametrize(("body", "y", "left"), [
    ("a = Relu (x)  b = Reshape (a, flat)  c = Reshape (b, back)  y = Neg (c)", "float[2,3,4,5] y", ["Relu", "Neg"]),
    ("a = Reshape (x, flat)  y = Reshape (a, rows)", "float[6,20] y", ["Reshape"]),
    ("a = Reshape (x, flat)  y = Reshape (a, back)", "float[2,3,4,5] y", ["Reshape"]),  # an output needs a name of its own
    ("a = Flatten <axis = 2> (x)  b = Reshape (a, copied)  y = Relu (b)", "float[6,5,4] y", ["Reshape", "Relu"]),
    ("a = Unsqueeze (x, last)  b = Squeeze (a, last)  y = Relu (b)", "float[2,3,4,5] y", ["Relu"]),
    ("a = Transpose <perm = [0,2,3,1]> (x)  y = Transpose <perm = [0,3,1,2]> (a)  z = Relu (y)", "float[2,3,4,5] z", ["Relu"]),
    ("a = Transpose <perm = [0,2,3,1]> (x)  y = Transpose <perm = [0,2,1,3]> (a)", "float[2,5,4,3] y", ["Transpose"]),
    ("a = Transpose (x)  b = Transpose (a)  y = Relu (b)", "float[2,3,4,5] y", ["Relu"]),
    ("a = Reshape (x, flat)  b = Reshape (a, two)  c = Reshape (b, rows)  y = Reshape (c, back)  z = Neg (y)",
     "float[2,3,4,5] z", ["Neg"]),
])  # fmt: skip
def test_two_become_one_or_none(body: str, y: str, left: list[str]) -> None:
    original = model(body, y)
    fused, report = fuse(original)
    assert [node.op_type for node in fused.graph] == left
    assert {rewrite.kind for rewrite in report.rewrites} == {"join-layouts"}
    assert_same(original, fused)
    assert not normfuse.fuse(fused)[1].rewrites


@pytest.mark.parametrize(("body", "x", "y", "left"), [
    # As many elements, and one size that is not known: the same shape.
    ("b = Reshape (a, flat)  c = Reshape (b, t)", "float[N,3,4,5] x", "float[a,b,c,d] y", ["Relu", "Neg"]),
    # A 0 copies a size of the first one's result, here two of them.
    ("b = Reshape (a, keep)  c = Reshape (b, turn)", "float[N,M,4,5] x", "float[a,b,c,d] y", ["Relu", "Reshape", "Reshape", "Neg"]),
])  # fmt: skip
def test_sizes_that_are_not_known(body: str, x: str, y: str, left: list[str]) -> None:
    original = model(f"a = Relu (x)  {body}  y = Neg (c)", y, x)
    fused, _ = fuse(original)
    assert [node.op_type for node in fused.graph] == left
    assert_same(original, fused)


@pytest.mark.parametrize(("body", "y"), [
    ("a = Reshape (x, flat)  b = Relu (a)  y = Reshape (b, back)", "float[2,3,4,5] y"),  # something between
    ("a = Reshape (x, flat)  y = Reshape (a, rows)  z = Relu (a)", "float[6,20] y, float[24,5] z"),  # both are read
    ("a = Reshape (x, flat)  y = Reshape (a, rows)", "float[6,20] y, float[24,5] a"),  # the first is a result
    ("a = Reshape (x, rows)  y = Transpose (a)", "float[20,6] y"),
])  # fmt: skip
def test_what_does_not_join_stays(body: str, y: str) -> None:
    original = model(body, y)
    fused, report = fuse(original)
    kinds = [node.op_type for node in original.graph.node]
    assert [node.op_type for node in fused.graph] == (
        ["Reshape"] if "a, back" in body and "Relu" not in body else kinds
    )
    assert_same(original, fused)
    assert len(report.rewrites) == (len(kinds) != len(fused.graph))


def test_what_a_norm_leaves_behind_is_joined() -> None:
    """A BatchNorm1d of a sequence, as torch exports it: flattened before, shaped back behind."""
    body = "p = MatMul (x, W)  c = Reshape (p, t)  n = BatchNormalization (c, s, b, m, v)  r = Reshape (n, u)  y = Relu (r)"
    arrays = {"W": normal(5, 4), "t": np.array([-1, 4]), "u": np.array([2, 3, 4]), **parameters(4)}
    original = build(f"g (float[2,3,5] x) => (float[2,3,4] y) {{ {body} }}", arrays)
    fused, report = fuse(original)
    assert [node.op_type for node in fused.graph] == ["MatMul", "Add", "Relu"]
    assert [rewrite.kind for rewrite in report.rewrites] == ["move-batchnorm", "join-layouts"]
    assert_same(original, fused)


def test_the_reshapes_of_a_norm_are_its_own() -> None:
    body = (
        "a = Reshape (x, flat)  b = Reshape (a, back)  g = Reshape (b, t)  i = InstanceNormalization (g, one, nil)  "
        "r = Reshape (i, back)  y = Relu (r)"
    )
    arrays = {"flat": SHAPES["flat"], "back": SHAPES["back"], "t": np.array([0, 1, -1]),
              "one": np.ones(1, np.float32), "nil": np.zeros(1, np.float32)}  # fmt: skip
    original = build(f"g (float[2,3,4,5] x) => (float[2,3,4,5] y) {{ {body} }}", arrays)
    fused, report = fuse(original)
    assert [record.norm for record in report.norms] == ["group"]
    assert count(fused, "InstanceNormalization") == 1
    assert [record.norm for record in normfuse.inspect(fused).norms] == ["group"]
    assert_same(original, fused)


def test_a_size_that_is_stated_of_one_sample_is_not_written_down() -> None:
    """Inner values state the batch of the export; its inputs were made dynamic afterwards."""
    original = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,8] x, int64[2] s) => (float[N,8] y) <float[1,8] b> '
        "{ flat = Constant <value_ints = [-1, 4, 2]> ()  a = Reshape (x, flat)  b = Reshape (a, s)  y = Relu (b) }"
    )
    fused, _ = fuse(original)
    assert [node.op_type for node in fused.graph] == ["Reshape", "Relu"]
    x = np.arange(-12, 12, dtype=np.float32).reshape(3, 8)
    (y,) = ReferenceEvaluator(ir.to_proto(fused)).run(None, {"x": x, "s": np.array([3, 8])})
    np.testing.assert_array_equal(y, np.maximum(x, 0))
