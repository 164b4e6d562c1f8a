"""A model at another opset: the operators it is made of, the same numbers, and what is refused, word for word."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import normfuse
from normfuse.emit.target import Form, Target
from normfuse.errors import UnsupportedForm
from normfuse.passes.convert_opset import Conversion, convert_opset
from tests.folding import Array, assert_same, build, normal, parameters
from tests.graphs import node_types, run

NEWEST = onnx.defs.onnx_opset_version()
IMAGE = "(float[2,4,5,6] x) => (float[d,e,f,g] y)"
I64 = np.int64


def ints(*entries: int) -> Array:
    return np.asarray(entries, I64)


def converted(proto: onnx.ModelProto, target: int) -> ir.Model:
    model = ir.from_proto(proto)
    convert_opset(model, target)
    return model


def check(text: str, arrays: Mapping[str, Array], source: int, target: int, expected: str) -> None:
    """Assert the operators at ``target``, that the result is valid, and that it computes the same."""
    proto = build(text, arrays, opset=source)
    onnx.checker.check_model(proto)
    model = converted(proto, target)
    assert " ".join(node_types(model)) == expected
    assert model.opset_imports[""] == target
    assert_same(proto, model)


X = f"g {IMAGE} {{ [n] y = "
CASES: list[tuple[str, str, dict[str, Array], int, int, str]] = [
    # what moved between attribute and input
    ("reduce-up", X + "ReduceMean <axes=[-1,2],keepdims=1> (x) }", {}, 17, 18, "ReduceMean"),
    ("reduce-down", X + "ReduceMean (x, a) }", {"a": ints(-1, 1)}, 18, 9, "ReduceMean"),
    ("reduce-all", "g (float[2,3] x) => (float y) { [n] y = ReduceMax <keepdims=0> (x) }", {}, 20, 7, "ReduceMax"),
    ("reduce-none", X + "ReduceSum <noop_with_empty_axes=1> (x) }", {}, 13, 12, "Identity"),
    ("sum-up", X + "ReduceSum <axes=[1]> (x) }", {}, 11, 13, "ReduceSum"),
    ("sum-down", X + "ReduceSum (x, a) }", {"a": ints(-3)}, 13, 8, "ReduceSum"),
    ("squeeze-up", "g (float[2,1,3] x) => (float[2,3] y) { [n] y = Squeeze <axes=[1]> (x) }", {}, 11, 21, "Squeeze"),
    ("squeeze-down", "g (float[2,1,3] x) => (float[2,3] y) { [n] y = Squeeze (x, a) }", {"a": ints(-2)}, 13, 7, "Squeeze"),
    ("unsqueeze", "g (float[2,3] x) => (float[2,1,3,1] y) { [n] y = Unsqueeze (x, a) }", {"a": ints(-1, -3)}, 13, 7, "Unsqueeze"),
    ("clip-nothing", X + "Clip (x, ,) }", {}, 13, 7, "Clip"),
    ("pool-ceil", X + "MaxPool <kernel_shape=[2,2],strides=[2,2],ceil_mode=1> (x) }", {}, 22, 12, "MaxPool"),
    ("split-up", "g (float[2,6] x) => (float[2,2] y, float[2,4] z) { [n] y, z = Split <axis=1,split=[2,4]> (x) }", {}, 11, 18, "Split"),
    ("split-down", "g (float[2,6] x) => (float[2,2] y, float[2,4] z) { [n] y, z = Split <axis=-1> (x, s) }", {"s": ints(2, 4)}, 18, 7, "Split"),
    ("split-uneven", "g (float[2,5] x) => (float[2,3] y, float[2,2] z) { [n] y, z = Split <axis=1,num_outputs=2> (x) }", {}, 18, 11, "Split"),
    ("split-equal", "g (float[2,6] x) => (float[2,3] y, float[2,3] z) { [n] y, z = Split <axis=1> (x) }", {}, 13, 18, "Split"),
    ("clip-up", X + "Clip <min=-0.5,max=0.5> (x) }", {}, 7, 13, "Clip"),
    ("clip-down", X + "Clip (x, a) }", {"a": np.asarray(-0.5, np.float32)}, 13, 7, "Clip"),
    ("clip-int", "g (int64[3] x) => (int64[3] y) { [n] y = Clip (x, a, b) }", {"a": np.asarray(0, I64), "b": np.asarray(1, I64)}, 13, 9, "Less Where Greater Where"),
    ("pad-up", X + "Pad <pads=[0,0,1,1,0,0,2,0],value=1.5> (x) }", {}, 9, 19, "Pad"),
    ("pad-down", X + "Pad (x, p, v, a) }", {"p": ints(1, 2, 0, 1), "v": np.asarray(1.5, np.float32), "a": ints(-1, 2)}, 18, 7, "Pad"),
    ("slice-up", X + "Slice <axes=[2],starts=[1],ends=[-1]> (x) }", {}, 9, 13, "Slice"),
    ("slice-down", X + "Slice (x, s, e, a) }", {"s": ints(1), "e": ints(9), "a": ints(-1)}, 13, 7, "Slice"),
    ("slice-steps", X + "Slice (x, s, e, a, t) }", {"s": ints(-1, 0), "e": ints(-99, 9), "a": ints(2, 3), "t": ints(-1, 2)}, 13, 9, "Gather Gather"),
    ("topk-up", "g (float[3,9] x) => (float[3,2] y, int64[3,2] i) { [n] y, i = TopK <k=2> (x) }", {}, 9, 13, "TopK"),
    ("topk-down", "g (float[3,9] x) => (float[3,2] y, int64[3,2] i) { [n] y, i = TopK (x, k) }", {"k": ints(2)}, 13, 7, "TopK"),
    ("topk-least", "g (float[3,9] x) => (float[3,2] y, int64[3,2] i) { [n] y, i = TopK <largest=0> (x, k) }", {"k": ints(2)}, 13, 10, "Neg TopK Neg"),
    ("dropout-up", X + "Dropout <ratio=0.3> (x) }", {}, 7, 13, "Dropout"),
    ("dropout-down", X + "Dropout (x, r) }", {"r": np.asarray(0.3, np.float32)}, 22, 7, "Dropout"),
    ("shape-part", "g (float[2,3,4] x) => (int64[2] y) { [n] y = Shape <start=1> (x) }", {}, 15, 9, "Shape Slice"),
    ("reshape-zero", "g (float[2,3] x) => (float[6] y) { [n] y = Reshape <allowzero=1> (x, s) }", {"s": ints(6)}, 14, 13, "Reshape"),
    ("constant-list", "g (float[2] x) => (float[2] y) { c = Constant <value_floats=[1.0,2.0]> () y = Add(x, c) }", {}, 13, 9, "Constant Add"),
    ("constant-int", "g (float[2] x) => (float[1,2] y) { c = Constant <value_ints=[1,2]> () y = Reshape(x, c) }", {}, 13, 7, "Reshape"),
    # axes
    ("softmax-up", X + "Softmax <axis=1> (x) }", {}, 11, 13, "Flatten Softmax Shape Reshape"),
    ("softmax-up-last", X + "Softmax <axis=3> (x) }", {}, 11, 13, "Softmax"),
    ("softmax-down", X + "LogSoftmax <axis=1> (x) }", {}, 13, 11, "Transpose LogSoftmax Transpose"),
    ("softmax-down-last", X + "Softmax (x) }", {}, 13, 7, "Softmax"),
    ("concat", "g (float[2,3] x) => (float[2,6] y) { [n] y = Concat <axis=-1> (x, x) }", {}, 13, 7, "Concat"),
    ("gather", "g (float[2,3] x) => (float[2,2] y) { [n] y = Gather <axis=-1> (x, i) }", {"i": ints(-1, 0)}, 13, 7, "Gather"),
    ("broadcast-axis", "g (float[2,3,4] x) => (float[2,3,4] y) { [n] y = Add <broadcast=1,axis=1> (x, b) }", {"b": normal(3)}, 6, 7, "Add"),
    ("one-hot", "g (float[2] v) => (float[2,10,3] y) { [n] y = OneHot <axis=-2> (i, d, v) }", {"i": ints(0, 1, 9, 4, 5, 2).reshape(2, 3), "d": np.asarray(10, I64)}, 11, 9, "OneHot"),
    # resizing
    ("resize-sizes", X + "Resize <mode=\"nearest\",coordinate_transformation_mode=\"asymmetric\",nearest_mode=\"floor\",axes=[2,3]> (x, , , s) }", {"s": ints(10, 12)}, 18, 11, "Resize"),
    ("grid-sample", "g (float[2,3,4,5] x, float[2,6,7,2] t) => (float[2,3,6,7] y) { [n] y = GridSample <mode=\"cubic\"> (x, t) }", {}, 20, 16, "GridSample"),
    ("grid-sample-up", "g (float[2,3,4,5] x, float[2,6,7,2] t) => (float[2,3,6,7] y) { [n] y = GridSample (x, t) }", {}, 16, 22, "GridSample"),
    # operators that did not exist
    ("gelu", X + "Gelu (x) }", {}, 20, 9, "Div Erf Mul Add Mul"),
    ("gelu-tanh", X + "Gelu <approximate=\"tanh\"> (x) }", {}, 20, 7, "Mul Mul Mul Add Mul Tanh Mul Add Mul"),
    ("hardswish", X + "HardSwish (x) }", {}, 14, 13, "HardSigmoid Mul"),
    ("mish", X + "Mish (x) }", {}, 22, 17, "Softplus Tanh Mul"),
    ("swish", X + "Swish <alpha=0.5> (x) }", {}, 24, 23, "Mul Sigmoid Mul"),
    ("celu", X + "Celu <alpha=2.0> (x) }", {}, 12, 11, "Div Elu Mul"),
    ("cast-like", "g (float[3] x, double[1] t) => (double[3] y) { [n] y = CastLike (x, t) }", {}, 15, 9, "Cast"),
    ("at-least", "g (float[4] x, float[4] z) => (bool[4] y) { [n] y = GreaterOrEqual (x, z) }", {}, 16, 11, "Greater Equal Or"),
    ("at-most", "g (float[4] x, float[4] z) => (bool[4] y) { [n] y = LessOrEqual (x, z) }", {}, 16, 7, "Less Greater Or Less Greater Or And Greater Not And"),
    ("sign", X + "Sign (x) }", {}, 13, 8, "Greater Cast Less Cast Sub"),
    ("expand", "g (float[1,3] x) => (float[2,3] y) { [n] y = Expand (x, s) }", {"s": ints(2, 3)}, 8, 7, "Tile Mul"),
    ("mvn", X + "MeanVarianceNormalization (x) }", {}, 13, 8, "ReduceMean Sub Mul ReduceMean Sqrt Add Div"),
    # types
    ("max-int", "g (int64[3] x, int64[3] z) => (int64[3] y) { [n] y = Max (x, z) }", {}, 13, 11, "Greater Where"),
    ("max-broadcast", "g (float[2,3] x) => (float[2,3] y) { [n] y = Max (x, c) }", {"c": normal(3)}, 8, 7, "Shape Tile Mul Max"),
    ("pow-mixed", "g (float[3] x) => (float[3] y) { [n] y = Pow (x, p) }", {"p": np.asarray(2, I64)}, 13, 9, "Pow"),
    ("gemm", "g (float[2,3] x) => (float[2,4] y) { [n] y = Gemm (x, w) }", {"w": normal(3, 4)}, 13, 9, "Gemm"),
    ("einsum", "g (float[2,3,4] x) => (float[4,2,3] y) { [n] y = Einsum <equation=\"ijk -> kij\"> (x) }", {}, 12, 8, "Transpose"),
    ("mod", "g (float[2,5] x) => (float[2,5] y) { [n] y = Mod (x, m) }", {"m": np.asarray([1.5, -2.0, 0.3, -0.7, 5.0], np.float32)}, 28, 13, "Mod Less Greater Less Greater And And Or Add Where Where Or IsNaN Or Where"),
    ("dropout-mask", "g (float[2,3] x) => (float[2,3] y, bool[2,3] z) { [n] y, z = Dropout (x) }", {}, 13, 10, "Identity Shape Tile"),
    ("split-computed", "g (float[2,n] x) => (float[a,b] y, float[c,d] z) { [n] y, z = Split <axis=-1,num_outputs=2> (x) }", {}, 18, 17, "Shape Slice Add Div Mul Sub Concat Split"),
    ("split-sliced", "g (float[n,4] x) => (float[a,b] y, float[c,d] z) { [n] y, z = Split <num_outputs=2> (x) }", {}, 18, 10, "Shape Slice Add Div Mul Slice Slice"),
    # norms
    ("layer-down", X + "LayerNormalization <axis=-1> (x, s, b) }", {"s": normal(6), "b": normal(6)}, 17, 16, "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add"),
    ("layer-same", X + "LayerNormalization <axis=-1> (x, s, b) }", {"s": normal(6), "b": normal(6)}, 17, 21, "LayerNormalization"),
    ("group-down", X + "GroupNormalization <num_groups=2> (x, s, b) }", {"s": normal(4), "b": normal(4)}, 21, 20, "Reshape InstanceNormalization Shape Reshape BatchNormalization"),
    ("rms-down", X + "RMSNormalization <axis=-1> (x, s) }", {"s": normal(6)}, 23, 22, "Pow ReduceMean Add Sqrt Div Mul"),
    ("batch", X + "BatchNormalization <momentum=0.8> (x, s, b, m, v) }", parameters(4), 15, 7, "BatchNormalization"),
    ("batch-up", X + "BatchNormalization <spatial=1> (x, s, b, m, v) }", parameters(4), 8, 15, "BatchNormalization"),
    ("instance", X + "InstanceNormalization (x, s, b) }", {"s": normal(4), "b": normal(4)}, 22, 7, "InstanceNormalization"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "source", "target", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])  # fmt: skip
def test_operator(text: str, arrays: dict[str, Array], source: int, target: int, expected: str) -> None:
    check(text, arrays, source, target, expected)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[3] > case[4] and case[4] >= 7], ids=lambda case: case[0]
)
def test_what_went_down_comes_up_again(case: tuple[str, str, dict[str, Array], int, int, str]) -> None:
    _, text, arrays, source, target, _ = case
    proto = build(text, arrays, opset=source)
    model = converted(proto, target)
    convert_opset(model, NEWEST)
    assert model.opset_imports[""] == NEWEST
    assert_same(proto, model)


RESIZES = [
    (X + "Upsample <mode=\"nearest\"> (x, s) }", {"s": np.asarray([1, 1, 2, 1.5], np.float32)}, 9, 13, "Resize"),
    (X + "Upsample <mode=\"linear\",scales=[1.0,1.0,2.0,2.0]> (x) }", {}, 8, 19, "Resize"),
    (X + "Resize <mode=\"nearest\"> (x, , s) }", {"s": np.asarray([1, 1, 2, 3], np.float32)}, 19, 7, "Upsample"),
    (X + "Resize <mode=\"linear\",coordinate_transformation_mode=\"asymmetric\"> (x, , s) }", {"s": np.asarray([1, 1, 1.5, 0.5], np.float32)}, 13, 10, "Resize"),
    (X + "Resize <mode=\"nearest\"> (x, s) }", {"s": np.asarray([1, 1, 2.5, 0.5], np.float32)}, 10, 13, "Resize"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "source", "target", "expected"), RESIZES)
def test_resizing(text: str, arrays: dict[str, Array], source: int, target: int, expected: str) -> None:
    """On onnxruntime: the reference evaluator knows Upsample by whole factors only."""
    proto = build(text, arrays, opset=source)
    model = converted(proto, target)
    assert " ".join(node_types(model)) == expected
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feeds = {"x": normal(2, 4, 5, 6)}
    (before,), (after,) = run(ir.from_proto(proto), feeds), run(model, feeds)
    np.testing.assert_array_equal(after, before)


def test_group_norm_per_group_becomes_per_channel() -> None:
    proto = build(X + "GroupNormalization <num_groups=2> (x, s, b) }", {"s": normal(2), "b": normal(2)}, opset=18)
    model = converted(proto, 21)
    assert node_types(model) == ["GroupNormalization"]
    assert [value.shape == ir.Shape([4]) for value in model.graph.node(0).inputs[1:] if value] == [True, True]
    assert_same(proto, model)


def test_training_mode_goes_down_as_its_formula_and_up_as_an_attribute() -> None:
    text = "g (float[2,4,5] x) => (float[2,4,5] y, float[4] rm, float[4] rv) {{ [n] y, rm, rv = BatchNormalization{} (x, s, b, m, v) }}"
    down = build(text.format("<training_mode=1,momentum=0.7>"), parameters(4), opset=15)
    model = converted(down, 9)
    assert "BatchNormalization" not in node_types(model)
    assert_same(down, model)
    up = build(text.format("<momentum=0.7>"), parameters(4), opset=9)
    model = converted(up, 15)
    assert model.graph.node(0).attributes["training_mode"].value == 1
    assert_same(up, model)


REFUSALS = [
    (X + "Gelu (x) }", {}, 20, 8, "Gelu at node 'n' has no equivalent at opset 8: Erf, which it is made of, came with opset 9"),
    ("g (float[2,3] x) => (float[6] y) { [n] y = Einsum <equation=\"ij->i\"> (x) }", {}, 12, 11, "Einsum at node 'n' has no equivalent at opset 11"),
    ("g (float[2,3] x, int64[1] a) => (float[m,k] y) { [n] y = ReduceMean (x, a) }", {}, 18, 17, "ReduceMean at node 'n' has no equivalent at opset 17: its axes must be constant; 'a' is an input of the graph"),
    ("g (float[5] x) => (float[a] y) { [n] y, b, c, d = Split <num_outputs=4> (x) }", {}, 18, 12, "Split at node 'n' has no equivalent at opset 12: its parts are of sizes [2, 2, 2, -1]"),
    ("g (float[3] x, float[3] z) => (float[3] y) { [n] y = Mod (x, z) }", {}, 28, 9, "Mod at node 'n' has no equivalent at opset 9: Mod, which it is made of, came with opset 10"),
    (X + "Pad <mode=\"wrap\"> (x, p) }", {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, 19, 18, "Pad at node 'n' has no equivalent at opset 18: mode \"wrap\" came with version 19"),
    (X + "AveragePool <kernel_shape=[2,2],dilations=[2,2]> (x) }", {}, 19, 18, "AveragePool at node 'n' has no equivalent at opset 18: its dilations is (2, 2), which version 11 cannot say"),
    ("g (float[1,1,2,4] x) => (float[1,1,a,b] y) { [n] y = MaxPool <kernel_shape=[1,1],strides=[2,2],pads=[0,0,1,0],ceil_mode=1> (x) }", {}, 22, 21, "MaxPool at node 'n' has no equivalent at opset 21: its ceil_mode makes a window of padding only, which versions count differently"),
    ("g (float[3] x, uint4[1] t) => (uint4[3] y) { [n] y = CastLike (x, t) }", {}, 21, 13, "CastLike at node 'n' has no equivalent at opset 13: it would be made of Cast, and opset 13 does not take tensor(uint4) there"),
    ("g (bfloat16[3] x) => (bfloat16[3] y) { [n] y = Add (x, x) }", {}, 13, 11, "Add at node 'n' has no equivalent at opset 11: bfloat16 came with opset 13"),
    (X + "Resize <mode=\"cubic\"> (x, , s) }", {"s": np.asarray([1, 1, 2, 2], np.float32)}, 13, 10, "Resize at node 'n' has no equivalent at opset 10: version 10 has no mode \"cubic\""),
    ("g (float[1,1,3,4,5] x, float[1,2,2,2,3] t) => (float[1,1,2,2,2] y) { [n] y = GridSample (x, t) }", {}, 20, 16, "GridSample at node 'n' has no equivalent at opset 16: before version 20 it takes images only"),
    ("g (int64[2] x, int64 d, float[2] v) => (float[2,a] y) { [n] y = OneHot (x, d, v) }", {}, 11, 9, "OneHot at node 'n' has no equivalent at opset 9: version 9 has no negative indices, and 'x' is not known to hold none"),
    (X + "MaxPool <kernel_shape=[2,2],ceil_mode=1> (x) }", {}, 10, 8, "MaxPool at node 'n' has no equivalent at opset 8: its ceil_mode is 1, which version 8 cannot say"),
    ("g (float[n,3] x) => (float[m,3] y) { [n] y = Add (x, x) }", {}, 13, 6, f"opset 6 cannot be written; known: 7 to {NEWEST}"),
    ("g (float[n,3] x) => (float[m,3] y) { [n] y = Add (x, x) }", {}, 13, 99, f"opset 99 cannot be written; known: 7 to {NEWEST}"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "source", "target", "message"), REFUSALS)
def test_a_refusal_names_the_node_and_leaves_the_model_alone(
    text: str, arrays: dict[str, Array], source: int, target: int, message: str
) -> None:
    # A node that could be converted stands before the one that cannot.
    text = (
        text.replace("{ [n] y", "{ unread = ReduceSum <keepdims=0> (x) [n] y", 1)
        if "float[" in text and "Add" not in text
        else text
    )
    model = ir.from_proto(build(text, arrays, opset=source))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedForm, match=f"^{re.escape(message)}$"):
        convert_opset(model, target)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert all(user.graph is not None for value in model.graph.inputs for user, _ in value.uses())


def test_the_same_opset_changes_nothing() -> None:
    model = ir.from_proto(
        build(X + "GroupNormalization <num_groups=2> (x, s, b) }", {"s": normal(2), "b": normal(2)}, opset=18)
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert convert_opset(model, 18).nodes == ()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_notes_say_what_was_done() -> None:
    model = ir.from_proto(build(X + "ReduceMean <axes=[1]> (x) }", {}, opset=17, ir_version=8))
    assert convert_opset(model, 21) == Conversion(
        "opset 17 → 21: rewrote 1 ReduceMean", nodes=("n",), notes=("IR version 8 → 10",)
    )
    assert model.ir_version == 10


ONE_HOT = "g (int64[2] x, int64 d, float[2] v) => (float[2,a] y) { [n] y = OneHot (x, d, v) }"
KNOWN_ROWS = "g (int64 d, float[2] v) => (float[2,a] y) { [n] y = OneHot (i, d, v) }"


@pytest.mark.parametrize(
    ("text", "arrays", "target", "notes"),
    [
        (
            ONE_HOT, {}, 11,
            ("n: indices below 0 count from the end from version 11 on, as onnxruntime had it; by version 9 they are in no row",),
        ),
        (ONE_HOT, {}, 9, ()),
        (KNOWN_ROWS, {"i": ints(0, 2)}, 11, ()),
        (
            "g (float[2] x) => (float[2] y, bool[2] z) { [n] y, z = Dropout (x) }", {}, 12,
            ("n: its mask, which is read, is all true from version 12 on; earlier versions leave it open",),
        ),
    ],
)  # fmt: skip
def test_a_node_that_stays_as_it_is_may_mean_something_else(
    text: str, arrays: dict[str, Array], target: int, notes: tuple[str, ...]
) -> None:
    model = ir.from_proto(build(text, arrays, opset=10, ir_version=8))
    assert convert_opset(model, target) == Conversion(f"opset 10 → {target}: no node changed", notes=notes)


def test_initializers_that_were_inputs_leave_them_when_ir_4_is_needed() -> None:
    proto = build(X + "BatchNormalization (x, s, b, m, v) }", parameters(4), opset=8, ir_version=3, as_inputs=True)
    model = converted(proto, 9)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert_same(proto, model)


BRANCHES = """g (float[2,3] x, bool c) => (float[2,1] y) {
    y = If (c) <then_branch = t () => (float[2,1] p) { p = ReduceMean (x, a) },
                else_branch = e () => (float[2,1] q) { q = ReduceMax (x, a) }> }"""


def test_subgraphs_are_converted() -> None:
    proto = build(BRANCHES, {"a": ints(-1)}, opset=18)
    model = converted(proto, 9)
    inner = [node for graph in model.graphs() for node in graph if node.op_type.startswith("Reduce")]
    assert [node.attributes["axes"].value for node in inner] == [(1,), (1,)]
    assert "a" not in model.graph.initializers
    assert_same(proto, model)


FUNCTION = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[2,3,4] x, float[4] s) => (float[2,3,4] y) { y = local.block (x, s) }
    <domain: "local", opset_import: ["" : 18]>
    block (x, s) => (y) {
        n = LayerNormalization <axis=-1> (x, s)
        a = Constant <value_ints=[-1]> ()
        m = ReduceMax (n, a)
        y = Sub (n, m)
    }"""


@pytest.mark.parametrize("target", [NEWEST, 17, 13, 11, 9])
def test_functions_are_converted(target: int) -> None:
    proto = onnx.parser.parse_model(FUNCTION)
    model = converted(proto, target)
    (function,) = model.functions.values()
    assert function.opset_imports[""] == target
    assert_same(proto, model)


@pytest.mark.parametrize("target", [NEWEST, 13, 9])
def test_operators_of_ours_get_a_body_of_the_new_opset(target: int) -> None:
    text = X + "GroupNormalization <num_groups=2> (x, s, b) }"
    proto = build(text, {"s": normal(4), "b": normal(4)}, opset=21, ir_version=10)
    fused, _ = normfuse.fuse(proto, Target(Form.CUSTOM))
    convert_opset(fused, target)
    # The name for which kernels are registered, as before.
    assert [(node.domain, node.op_type) for node in fused.graph] == [("ai.normfuse", "GroupNorm")]
    (function,) = fused.functions.values()
    assert function.opset_imports[""] == target
    assert_same(proto, fused)


def test_dynamic_sizes_stay_dynamic() -> None:
    text = "g (float[N,4,H,6] x) => (float[N,4,H,6] y) { n = LayerNormalization <axis=-1> (x, s) y = Softmax <axis=1> (n) }"
    proto = build(text, {"s": normal(6)}, opset=17)
    model = converted(proto, 9)
    assert model.graph.outputs[0].shape == ir.Shape(["N", 4, "H", 6])
    assert_same(proto, model)


def test_the_value_of_computed_axes_is_found() -> None:
    text = "g (float[2,3,4] x) => (float[2,1,1] y) { r = Range (o, t, o) y = ReduceMean (x, r) }"
    proto = build(text, {"o": np.asarray(1, I64), "t": np.asarray(3, I64)}, opset=18)
    model = converted(proto, 9)
    assert node_types(model) == ["ReduceMean"]
    assert_same(proto, model)


STEPS = [
    ("Softmax <axis=1> ({})", {}), ("ReduceMean ({}, a)", {"a": ints(-1)}), ("Clip ({}, lo)", {"lo": np.asarray(-0.2, np.float32)}),
    ("Pad ({}, p)", {"p": ints(0, 0, 1, 0, 0, 0, 0, 1)}), ("Slice ({}, z, o, a)", {"z": ints(0), "o": ints(1), "a": ints(-1)}),
    ("HardSwish ({})", {}), ("Celu ({})", {}),
]  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), target=st.sampled_from([9, 11, 13, 21, NEWEST]))
def test_any_chain_of_operators(steps: list[tuple[str, dict[str, Array]]], target: int) -> None:
    lines, arrays, last = [], {}, "x"
    for index, (template, constants) in enumerate(steps):
        lines.append(f"v{index} = {template.format(last)}")
        arrays.update(constants)
        last = f"v{index}"
    proto = build(f"g {IMAGE} {{ {' '.join(lines)} y = Identity ({last}) }}", arrays, opset=18)
    assert_same(proto, converted(proto, target))


def test_the_remainder_of_python_is_made_of_that_of_c() -> None:
    """Zeros, infinities and NaN included, signs too: by the reference, since onnxruntime's Where loses that of a zero."""
    values = np.asarray([0.0, -0.0, 1.5, -1.5, 3.0, -3.0, 7.25, np.inf, -np.inf, np.nan], np.float32)
    x, y = (axis.reshape(-1) for axis in np.meshgrid(values, values))
    proto = build("g (float[100] x, float[100] z) => (float[100] y) { [n] y = Mod (x, z) }", {}, opset=28)
    with np.errstate(all="ignore"):
        (after,) = ReferenceEvaluator(ir.to_proto(converted(proto, 13))).run(None, {"x": x, "z": y})
        wanted = np.mod(x, y)
    np.testing.assert_array_equal(after, wanted)
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(np.asarray(after)[known]), np.signbit(wanted[known]))


def test_texts_are_refused_where_they_were_unknown() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 20]> g (string[2] x) => (string[2] y) { [n] y = StringConcat (x, w) }'
    )
    weight = ir.Value(name="w", const_value=ir.tensor(["a"], name="w"))
    model.graph.register_initializer(weight)
    model.graph[0].replace_input_with(1, weight)
    with pytest.raises(UnsupportedForm, match=r"^StringConcat at node 'n' has no equivalent at opset 19$"):
        convert_opset(model, 19)
