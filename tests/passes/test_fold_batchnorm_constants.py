"""Where a fold reads its constants and what it calls them: made by operators, shared, named like others."""

from __future__ import annotations

import onnx
import pytest

from tests.folding import BN, assert_same, build, count, fuse, graph, normal, parameters

CONSTANTS = [
    ("Constant", "W1 = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,12}> ()", "W1"),
    ("Identity", "W1 = Identity (W)", "W1"),
    ("five Identities", "a=Identity(W) e=Identity(a) f=Identity(e) g=Identity(f) W1=Identity(g)", "W1"),
    ("Cast", "a = Cast <to = 11> (W)  W1 = Cast <to = 1> (a)", "W1"),
    ("Transpose", "a = Transpose <perm = [1,0,2,3]> (W)  W1 = Transpose <perm = [1,0,2,3]> (a)", "W1"),
    ("Reshape", "h = Constant <value = int64[4] {4,3,1,1}> ()  W1 = Reshape (W, h)", "W1"),
    (
        "Sign",
        "h = Constant <value = float {0.125}> ()  a = Transpose <perm = [1,0,2,3]> (W)  e = Sign (a)  f = Transpose <perm = [1,0,2,3]> (e)  W1 = Mul (f, h)",
        "W1",
    ),
]


@pytest.mark.parametrize(("made", "weight"), [case[1:] for case in CONSTANTS], ids=[case[0] for case in CONSTANTS])
def test_reads_constants_through_operators(made: str, weight: str) -> None:
    model = build(graph(f"{made} c = Conv (x, {weight})  y = {BN}"), {"W": normal(4, 3, 1, 1), **parameters(4)})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_parameters_from_nodes() -> None:
    """ConstantOfShape, Expand and CastLike, as exporters write BatchNorm without affine."""
    body = """one = Constant <value = float[1] {1.0}> ()  four = Constant <value = int64[1] {4}> ()
              s1 = Expand (one, four)  z = ConstantOfShape (four)  b1 = CastLike (z, x)
              c = Conv (x, W)  y = BatchNormalization (c, s1, b1, m, v)"""
    arrays = {name: array for name, array in parameters(4).items() if name in "mv"}
    model = build(graph(body), {"W": normal(4, 3, 1, 1), **arrays})
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_shared_weights_get_private_copies() -> None:
    """One weight and one bias, three uses: two norms with other statistics, one without."""
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    text = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z, float[2,4,4,4] t) {
        c = Conv (x, W, B)  y = BatchNormalization (c, s, b, m, v)
        d = Conv (x, W, B)  z = BatchNormalization (d, s2, b2, m2, v2)
        t = Conv (x, W, B) }"""
    model = build(text, {"W": normal(4, 3, 3, 3), "B": normal(4, seed=2), **parameters(4), **second})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)
    assert report.size.after > report.size.before
    assert any("grew by" in note for note in report.notes)
    assert "'W' and 'B' shared with other nodes: private copies are written" in report.rewrites[0].note


def test_one_block_applied_twice() -> None:
    """The same convolution and the same norm behind each other: every tensor has two readers."""
    text = """g (float[2,4,6,6] x) => (float[2,4,6,6] y) {
        c = Conv (x, W)  k = BatchNormalization (c, s, b, m, v)
        d = Conv (k, W)  y = BatchNormalization (d, s, b, m, v) }"""
    model = build(text, {"W": normal(4, 4, 1, 1), **parameters(4)})
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Conv"]
    assert len(report.rewrites) == 2
    assert_same(model, fused)


def test_one_bias_for_two_operators() -> None:
    text = """g (float[2,3,6,6] x) => (float[2,4,6,6] y, float[2,4,6,6] z) {
        c = Conv (x, W, B)  y = BatchNormalization (c, s, b, m, v)
        d = Conv (x, V, B)  z = BatchNormalization (d, s, b, m, v) }"""
    arrays = {"W": normal(4, 3, 1, 1), "V": normal(4, 3, 1, 1, seed=8), "B": normal(4, seed=2), **parameters(4)}
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert len(fused.graph.initializers) == 4
    assert_same(model, fused)


def test_names_that_are_numbers() -> None:
    """Old exporters number every tensor; a new name is one that no tensor has."""
    arrays = dict(zip("12345", [normal(4, 3, 1, 1), *parameters(4).values()], strict=True))
    model = build("g (float[2,3,6,6] x) => (float[2,4,6,6] y) { y = Relu (x) }", {})
    del model.graph.node[:]
    model.graph.input[0].name, model.graph.output[0].name = "0", "7"
    model.graph.node.append(onnx.helper.make_node("Conv", ["0", "1"], ["6"]))
    model.graph.node.append(onnx.helper.make_node("BatchNormalization", ["6", "2", "3", "4", "5"], ["7"]))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    fused, _ = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert_same(model, fused)


def test_new_names_clash_with_nothing() -> None:
    """Two bias-free convolutions of one input, tensors named like the ones a fold would write."""
    second = {f"{name}2": array for name, array in parameters(4, seed=9).items()}
    text = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) {
        c = Conv (x, W)  W_folded_1 = BatchNormalization (c, s, b, m, v)  y = Relu (W_folded_1)
        d = Conv (x, W)  n = BatchNormalization (d, s2, b2, m2, v2)  z = Add (n, W_folded) }"""
    arrays = {"W": normal(4, 3, 3, 3), "W_folded": normal(4, 4), **parameters(4), **second}
    model = build(text, arrays)
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    names = [value.name for value in fused.graph.initializers.values()]
    names += [output.name for node in fused.graph for output in node.outputs]
    assert len(names) == len(set(names))
    assert_same(model, fused)


def test_output_name_and_node_name_stay() -> None:
    text = (
        "g (float[2,3,6,6] x) => (float[2,4,4,4] prob) { c = Conv (x, W)  prob = BatchNormalization (c, s, b, m, v) }"
    )
    model = build(text, {"W": normal(4, 3, 3, 3), **parameters(4)})
    model.graph.node[0].name, model.graph.node[1].name = "/conv", "/bn"
    model.graph.node[0].metadata_props.add(key="scope", value="block")
    fused, report = fuse(model)
    (node,) = fused.graph
    assert (node.name, node.outputs[0].name, node.metadata_props) == ("/conv", "prob", {"scope": "block"})
    assert report.norms[0].plan == "fold into /conv"
    assert report.rewrites[0].id == "fold-batchnorm:prob"
