"""What onnx infers, told without touching the model: the same as onnx_ir's own way says on a copy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from normfuse.graph.inference import infer

MODELS = {
    "computed shapes": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4, 6] x) => (y) <int64[3] s = {0, -1, 2}, int64 two = {2}> {
            a = Shape (x)  b = Gather (a, two)  c = Reshape (x, s)  d = Relu (c)  y = Transpose <perm = [0, 2, 1]> (d) }""",
    "stated values": """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[2, 3] x) => (float[A, B] y) <float[A, 3] a> { a = my.Strange (x)  b = Relu (a)  y = Neg (b) }""",
    "a branch": """<ir_version: 8, opset_import: ["": 17]>
        g (bool flag, float[2, 3] x) => (y) {
            y = If (flag) <
                then_branch = t () => (u) <float[3] k = {1, 2, 3}> { v = Add (x, k)  u = Relu (v) },
                else_branch = e () => (w) { w = Neg (x) }> }""",
    "a loop": """<ir_version: 8, opset_import: ["": 17]>
        g (int64 n, bool go, float[2, 3] x) => (y, z) {
            y, z = Loop (n, go, x) <body = b (int64 i, bool c, float[2, 3] s) => (d, t, u)
                { d = Identity (c)  t = Relu (s)  u = Neg (t) }> }""",
    "a function": """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[2, 3] x) => (y) { a = my.twice (x)  y = Relu (a) }
        <domain: "my", opset_import: ["": 17]> twice (p) => (q) { q = Add (p, p) }""",
    "outputs without a name": """<ir_version: 8, opset_import: ["": 17]>
        g (float[4, 9] x) => (y) { a, , c = Split <axis = 1> (x)  y = Relu (a) }""",
}


def told(model: ir.Model) -> dict[str, tuple[object, object]]:
    return {
        str(value.name): (value.dtype, None if value.shape is None else tuple(map(str, value.shape)))
        for graph in model.graphs()
        for node in graph
        for value in node.outputs
        if value.name
    }


@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS)
def test_it_tells_what_onnx_infers_and_leaves_the_model_alone(text: str) -> None:
    model = ir.from_onnx_text(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    found = list(infer(model))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert found
    wanted = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False)(wanted)
    for each in found:
        each.value.type = each.type if each.value.type is None else each.value.type
        each.value.shape = each.shape if each.value.shape is None else each.value.shape
    stated = told(ir.from_onnx_text(text))
    assert told(model) == {
        name: entry if stated[name][1] is None else stated[name] for name, entry in told(wanted).items()
    }


def test_weights_are_not_handed_over() -> None:
    """A tensor whose data cannot be read is no obstacle: its type and shape say enough."""

    def unreadable() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 64] x) => (y) { a = MatMul (x, w)  y = Relu (a) }"""
    )
    tensor = ir.LazyTensor(unreadable, ir.DataType.FLOAT, ir.Shape([64, 32]), name="w")
    weight = ir.Value(name="w", const_value=tensor)
    model.graph.register_initializer(weight)
    model.graph[0].replace_input_with(1, weight)
    assert {each.value.name: str(each.shape) for each in infer(model)} == {"a": "[N,32]", "y": "[N,32]"}


def test_texts_are_no_obstacle() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 20]> g (string[2] x) => (y) { a = StringConcat (x, w)  y = Identity (a) }"""
    )
    weight = ir.Value(name="w", const_value=ir.tensor(["a"], name="w"))
    model.graph.register_initializer(weight)
    model.graph[0].replace_input_with(1, weight)
    assert {each.value.name: str(each.shape) for each in infer(model)} == {"a": "[2]", "y": "[2]"}


def test_values_share_shapes_that_cannot_change_and_no_types() -> None:
    model = ir.from_onnx_text(MODELS["a branch"])
    shapes = [each.shape for each in infer(model)]
    assert all(shape is not None and shape.frozen for shape in shapes)
    types = [id(each.type) for each in infer(model)]
    assert len({id(shape) for shape in shapes}) == 1
    assert len(set(types)) == len(types)


def test_an_operator_may_be_taken_for_an_identity() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "my": 1]> g (float[2, 3] x) => (y) { a = my.Strange (x)  y = Relu (a) }"""

    def seen() -> Iterator[str]:
        return (str(each.value.name) for each in infer(model, lambda node: node.op_type == "Strange"))

    model = ir.from_onnx_text(text)
    assert list(infer(model)) == []
    assert list(seen()) == ["a", "y"]


SHAPED_LIKE = """<ir_version: 8, opset_import: ["": %d]>
    g (float[N, 4, 6] v, float16[N, 2, 12] x, bool flag) => (y, z) {
        s = Shape (v)  r = Reshape (x, s)  n = Relu (r)
        y = If (flag) <then_branch = t () => (a) { a = Neg (n) }, else_branch = e () => (b) { b = Abs (n) }>
        z = Neg (y) }"""


@pytest.mark.parametrize("opset", [7, 11, 13, 17])
def test_a_reshape_to_the_shape_of_a_value_has_its_shape(opset: int) -> None:
    """The type is that of what is reshaped; below opset 13 onnx knows not even the rank. What follows is known too."""
    model = ir.from_onnx_text(SHAPED_LIKE % opset)
    found = {str(each.value.name): each for each in infer(model)}
    for name in ("r", "n", "a", "b", "y", "z"):
        dtype = None if found[name].type is None else found[name].type.dtype  # type: ignore[union-attr]
        assert (str(found[name].shape), dtype) == ("[N,4,6]", ir.DataType.FLOAT16), name


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("s = Shape <start = 1> (v)", "[4,6]"),
        ("u = ReduceMax <keepdims = 0> (v)  s = Shape (u)", "[]"),
        ("u = my.Strange (v)  s = Shape (u)", "None"),
    ],
)
def test_a_part_of_a_shape_a_scalar_and_a_shape_that_is_not_known(target: str, shape: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 15, "my": 1]> g (float[N, 4, 6] v, float[P] x) => (y)
        {{ {target}  r = Reshape (x, s)  y = Relu (r) }}"""
    told_of = {str(each.value.name): str(each.shape) for each in infer(ir.from_onnx_text(text))}
    assert told_of["r"] == shape


def test_nothing_is_told_of_what_onnx_does_not_take() -> None:
    model = ir.from_onnx_text(MODELS["a branch"])
    sparse = ir.Attr("value", ir.AttributeType.SPARSE_TENSOR, np.zeros(1))
    model.graph.append(ir.Node("", "Constant", [], [sparse], num_outputs=1))
    assert list(infer(model)) == []


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_computed_shapes_are_followed_from_opset_11_on(opset: int) -> None:
    """What became an operand in opset 13 is one for inference, and what is no shape is inferred as before."""
    unsqueeze, squeeze, split, total = (
        (
            "Unsqueeze <axes = [0]> (c)",
            "Squeeze <axes = [0]> (row)",
            "Split <axis = 0, split = [2, 4]> (r)",
            "ReduceSum <axes = [2], keepdims = 0> (r)",
        )
        if opset < 13
        else (
            "Unsqueeze (c, zero)",
            "Squeeze (row, zero)",
            "Split <axis = 0> (r, parts)",
            "ReduceSum <keepdims = 0> (r, two)",
        )
    )
    text = f"""<ir_version: 7, opset_import: ["": {opset}]> g (float[N,6,8,8] x, float[1,6] row) => (float[a,b,c] y)
        <int64 one = {{1}}, int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] rest = {{-1}}, int64[1] eight = {{8}}, int64[2] parts = {{2, 4}}>
        {{ s = Shape (x)  c = Gather (s, one)  u = {unsqueeze}  target = Concat <axis = 0> (u, rest, eight)
          r = Reshape (x, target)  a, b = {split}  t = {total}  q = {squeeze}  every = ReduceSum (r)
          y = Identity (r) }}"""
    model = ir.from_onnx_text(text)
    found = {str(each.value.name): each.shape for each in infer(model)}
    assert [size if isinstance(size, int) else None for size in found["r"] or ()] == [6, None, 8]
    assert [str(found[name]).split(",")[0] for name in "ab"] == ["[2", "[4"]
    assert (str(found["t"]).count(","), str(found["q"]), str(found["every"])) == (1, "[6]", "[1,1,1]")


def test_functions_keep_the_opset_of_their_callers() -> None:
    text = """<ir_version: 8, opset_import: ["": 11, "own": 1]> g (float[1,6] x) => (float[6] y) { y = own.flat (x) }
        <domain: "own", opset_import: ["": 11]> flat (v) => (w) { w = Squeeze <axes = [0]> (v) }"""
    model = ir.from_onnx_text(text.replace("(float[6] y)", "(y)"))
    assert {str(each.value.name): str(each.shape) for each in infer(model)} == {"y": "[6]"}
