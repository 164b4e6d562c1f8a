"""What counts as constant, and that its value is what a runtime would compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.graph.constants import Constants
from tests.folding import Array, build, normal

EXPRESSIONS = [
    ("y = Identity (A)", lambda a: a),
    ("y = Transpose <perm = [2,0,1]> (A)", lambda a: a.transpose(2, 0, 1)),
    ("y = Transpose (A)", lambda a: a.T),
    ("s = Constant <value = int64[2] {0,-1}> ()  y = Reshape (A, s)", lambda a: a.reshape(2, -1)),
    ("s = Constant <value_ints = [1,-1]> ()  y = Unsqueeze (A, s)", lambda a: a.reshape(2, 1, 3, 4, 1)),
    ("s = Constant <value_ints = [0]> ()  u = Unsqueeze (A, s)  y = Squeeze (u, s)", lambda a: a),
    ("y = Flatten <axis = 2> (A)", lambda a: a.reshape(6, 4)),
    ("y = Concat <axis = -1> (A, A)", lambda a: np.concatenate([a, a], -1)),
    ("s = Constant <value_ints = [5,2,3,4]> ()  y = Expand (A, s)", lambda a: np.broadcast_to(a, (5, 2, 3, 4))),
    ("s = Constant <value_ints = [1,2,1]> ()  y = Tile (A, s)", lambda a: np.tile(a, (1, 2, 1))),
    ("s = Constant <value_ints = [2,1]> ()  y = Gather <axis = 1> (A, s)", lambda a: a[:, [2, 1]]),
    ("b=Constant<value_ints=[1]>() e=Constant<value_ints=[-1]>() i=Constant<value_ints=[2]>() y=Slice (A, b, e, i)",
     lambda a: a[:, :, 1:-1]),
    ("y = Cast <to = 10> (A)", lambda a: a.astype(np.float16)),
    ("y = CastLike (A, x)", lambda a: a.astype(np.float64)),
    ("y = Add (A, A)", lambda a: a + a),
    ("y = Sub (A, A)", lambda a: a - a),
    ("y = Mul (A, A)", lambda a: a * a),
    ("y = Div (A, A)", lambda a: a / a),
    ("s = Constant <value_float = 2.0> ()  y = Pow (A, s)", lambda a: a * a),
    ("b = Abs (A)  c = Sqrt (b)  d = Neg (c)  y = Reciprocal (d)", lambda a: 1 / -np.sqrt(np.abs(a))),
    ("s = Constant <value_ints = [2,3]> ()  y = ConstantOfShape <value = float[1] {7.0}> (s)",
     lambda a: np.full((2, 3), 7.0, np.float32)),
    ("s = Constant <value_int = 1> ()  y = Gather <axis = 0> (K, s)", lambda a: np.array(7, np.int64)),
    ("y = Shape (A)", lambda a: np.array([2, 3, 4])),
    ("y = Shape <start = 1> (x)", lambda a: np.array([5])),
    ("s = Constant <value_ints = [-1]> ()  y = ReduceMean (A, s)", lambda a: a.mean(-1, keepdims=True)),
    ("s = Constant <value_ints = [0,2]> ()  y = ReduceSum <keepdims = 0> (A, s)", lambda a: a.sum((0, 2))),
    ("y = ReduceL2 (A)", lambda a: np.sqrt((a * a).sum(keepdims=True))),
    ("s = Constant <value_ints = [1]> ()  y = ReduceL1 (A, s)", lambda a: np.abs(a).sum(1, keepdims=True)),
    ("s = Constant <value_ints = [2,1]> ()  y = ReduceSumSquare (A, s)", lambda a: (a * a).sum((1, 2), keepdims=True)),
    ("s = Constant <value_ints = [0]> ()  y = ReduceMax <keepdims = 0> (A, s)", lambda a: a.max(0)),
    ("s = Constant <value_ints = [0]> ()  y = ReduceMin <keepdims = 0> (A, s)", lambda a: a.min(0)),
    ("s = Shape (A)  y = ReduceProd <keepdims = 0> (s)", lambda a: np.array(24)),
    ("y = Size (A)", lambda a: np.array(24)),
    ("t = Transpose <perm = [0,2,1]> (A)  y = MatMul (A, t)", lambda a: a @ a.transpose(0, 2, 1)),
    ("z = Constant <value_float = 0.0> ()  y = Max (A, z)", lambda a: np.maximum(a, 0)),
    ("z = Constant <value_float = 0.0> ()  y = Min (z, A)", lambda a: np.minimum(a, 0)),
    ("z = Constant <value_float = 0.25> ()  y = Clip (A, z)", lambda a: np.maximum(a, 0.25)),
    ("z = Constant <value_float = 0.25> ()  y = Clip (A, , z)", lambda a: np.minimum(a, 0.25)),
    ("a=Constant<value_int=1>() b=Constant<value_int=8>() c=Constant<value_int=3>() y = Range (a, b, c)",
     lambda a: np.array([1, 4, 7])),
    ("s = Constant <value_ints = [7,7]> ()  y = Equal (K, s)", lambda a: np.array([False, True])),
]  # fmt: skip


@pytest.mark.parametrize(("body", "truth"), EXPRESSIONS, ids=[case[0] for case in EXPRESSIONS])
def test_constant_expressions(body: str, truth: object) -> None:
    array = normal(2, 3, 4)
    model = ir.from_proto(
        build(f"g (double[3,5] x) => (float y) {{ {body} }}", {"A": array, "K": np.array([5, 7])}, opset=18)
    )
    found = Constants(model).array(model.graph.outputs[0])
    expected = truth(array)  # type: ignore[operator]
    assert found is not None
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(float), expected, rtol=1e-6)


def test_axes_as_attributes() -> None:
    body = "a = Unsqueeze <axes = [0]> (A)  y = Squeeze <axes = [0]> (a)"
    model = ir.from_proto(build(f"g (float[1] x) => (float y) {{ {body} }}", {"A": normal(2, 3)}, opset=11))
    np.testing.assert_array_equal(Constants(model).array(model.graph.outputs[0]), normal(2, 3))


NOT_CONSTANT = [
    "y = Add (A, x)",
    "y = RandomNormalLike (A)",
    "y = DequantizeLinear (Q, s, z)",
    "y = Shape (d)  d = Relu (x)",
    "y = my.Identity (A)",
]


@pytest.mark.parametrize("body", NOT_CONSTANT)
def test_what_is_not_constant(body: str) -> None:
    arrays: dict[str, Array] = {
        "A": normal(2), "Q": np.zeros(2, np.int8), "s": np.array(1, np.float32), "z": np.array(0, np.int8),
    }  # fmt: skip
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[N] x) => (float y) {{ {body} }}'
    )
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    model.graph.sort()
    assert Constants(model).array(model.graph.outputs[0]) is None


def test_an_initializer_that_is_an_input_is_constant_below_ir_4_only() -> None:
    for ir_version, expected in ((3, True), (4, False), (10, False)):
        proto = build(
            "g (float[2] x) => (float[2] y) { y = Add (x, A) }", {"A": normal(2)}, ir_version=ir_version, as_inputs=True
        )
        model = ir.from_proto(proto)
        value = model.graph.initializers["A"]
        assert (Constants(model).array(value) is not None) is expected
        assert Constants(model, freeze_inputs=True).array(value) is not None


def test_huge_constants_are_not_computed() -> None:
    body = "s = Constant <value_ints = [100000,100000]> ()  y = ConstantOfShape (s)"
    model = ir.from_proto(build(f"g (float[1] x) => (float y) {{ {body} }}", {}))
    assert Constants(model).array(model.graph.outputs[0]) is None


def test_ill_formed_expressions_are_no_constants() -> None:
    body = "s = Constant <value_ints = [5,5]> ()  y = Reshape (A, s)"
    model = ir.from_proto(build(f"g (float[1] x) => (float y) {{ {body} }}", {"A": normal(2, 3)}))
    assert Constants(model).array(model.graph.outputs[0]) is None
