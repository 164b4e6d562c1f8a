"""Operators that a lower opset lacks, as the bodies by which onnx defines them."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.errors import UnsupportedForm
from normfuse.passes.convert_opset import convert_opset
from tests.folding import Array, assert_same, build, normal
from tests.graphs import node_types, run

ATTENTION = (
    "g (float[2,3,4,8] x, float[2,3,6,8] k, float[2,3,6,8] v) => (float[a,b,c,d] y) { [n] y = Attention %s (x, k, v) }"
)
BODIES: list[tuple[str, str, dict[str, Array], int, tuple[int, ...]]] = [
    ("attention", ATTENTION % "", {}, 24, (22, 17, 13, 9)),
    ("causal", ATTENTION % "<is_causal=1,scale=0.3,softcap=2.0>", {}, 23, (22, 13)),
    ("windowed", ATTENTION % "<left_window_size=2,right_window_size=0>", {}, 25, (24, 23, 17)),
    (
        "rotary",
        "g (float[2,3,4,8] x) => (float[a,b,c,d] y) { [n] y = RotaryEmbedding (x, p, q) }",
        {"p": normal(2, 4, 4), "q": normal(2, 4, 4)}, 23, (22, 17, 11),
    ),
    ("padded", "g (float[4,5,2] x) => (float[a,b,c] y) { [n] y = CenterCropPad <axes=[0,-2]> (x, s) }", {"s": np.asarray([6, 3])}, 18, (17, 13)),
    ("in a branch", "g (float[3,5] x, bool c) => (float y) { y = If (c) <then_branch = t () => (float p) "
     "{ p = NegativeLogLikelihoodLoss (x, l) }, else_branch = e () => (float q) { q = ReduceMax <keepdims=0> (x) }> }",
     {"l": np.asarray([0, 4, 2])}, 12, (11,)),
]  # fmt: skip
CASES = [
    pytest.param(text, arrays, source, target, id=f"{name}-{target}")
    for name, text, arrays, source, targets in BODIES
    for target in targets
]


@pytest.mark.parametrize(("text", "arrays", "source", "target"), CASES)
def test_the_body_computes_the_same(text: str, arrays: dict[str, Array], source: int, target: int) -> None:
    proto = build(text, arrays, opset=source)
    model = ir.from_proto(proto)
    done = convert_opset(model, target)
    assert [note for note in done.notes if note.endswith("written as its function body")]
    names = {node.op_type for node in model.graph.all_nodes()}
    assert not names & {"Attention", "RotaryEmbedding", "CenterCropPad", "NegativeLogLikelihoodLoss"}
    assert model.opset_imports == {"": target}
    assert not model.functions
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_same(proto, model)


def test_a_body_that_the_opset_cannot_say_is_refused_and_the_model_stays() -> None:
    model = ir.from_proto(build(ATTENTION % "", {}, opset=23))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    message = (
        "Where at node 'n/Where_2' has no equivalent at opset 7: a sum of products would not keep infinities and NaN"
    )
    with pytest.raises(UnsupportedForm, match=f"^{re.escape(message)}$"):
        convert_opset(model, 7)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_inside_a_function_the_body_depends_on_its_calls() -> None:
    text = """<ir_version: 10, opset_import: ["": 23, "my": 1]> g (float[2,3,4,8] x, float[2,3,6,8] k) => (float[2,3,4,8] y)
        { y = my.layer (x, k) }
        <domain: "my", opset_import: ["": 23]> layer (q, k) => (r) { a = Attention <is_causal = 1> (q, k, k)  r = Relu (a) }"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    assert convert_opset(model, 18).notes == ("Attention → a: written as its function body",)
    (function,) = model.functions.values()
    assert function.opset_imports == {"": 18}
    assert "Attention" not in {node.op_type for node in function}
    assert_same(proto, model)


def test_bodies_within_bodies() -> None:
    """On onnxruntime: the reference evaluator's logarithm of a softmax is infinite for outliers."""
    text = "g (float[3,5] x) => (float y) { [n] y = SoftmaxCrossEntropyLoss (x, l) }"
    proto = build(text, {"l": np.asarray([0, 4, 2])}, opset=13)
    model = ir.from_proto(proto)
    assert convert_opset(model, 11).notes == (
        "n: written as its function body", "n/NegativeLogLikelihoodLoss: written as its function body",
    )  # fmt: skip
    feeds = {"x": normal(3, 5)}
    np.testing.assert_allclose(run(model, feeds)[0], run(ir.from_proto(proto), feeds)[0], rtol=1e-6)


def test_an_operator_whose_body_is_ill_formed_is_refused() -> None:
    text = "g (float[2,2,3] x, int64[4] s) => (float[a,b,c,d] y) { [n] y = AffineGrid (x, s) }"
    with pytest.raises(UnsupportedForm, match=r"^AffineGrid at node 'n' has no equivalent at opset 19$"):
        convert_opset(ir.from_proto(build(text, {}, opset=20)), 19)


def test_a_graph_does_not_move_into_a_body() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (seq(float[2]) x) => (seq(float[2]) y)
        { [n] y = SequenceMap <body = b (float[2] p) => (float[2] q) { q = Relu (p) }> (x) }"""
    with pytest.raises(UnsupportedForm, match=r"^SequenceMap at node 'n' has no equivalent at opset 16$"):
        convert_opset(ir.from_onnx_text(text), 16)


def test_a_body_depends_on_types_that_must_be_known() -> None:
    text = '<ir_version: 10, opset_import: ["": 23, "my": 1]> g (float[2,3,4,8] x) => (y) { k = my.Keys (x)  [n] y = Attention (x, k, k) }'
    model = ir.from_onnx_text(text)
    with pytest.raises(UnsupportedForm, match=r"^Attention at node 'n' has no equivalent at opset 22$"):
        convert_opset(model, 22)
    assert node_types(model) == ["Keys", "Attention"]


def test_what_the_file_does_not_state_stays_unstated() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,3,4,8] x) => (y) { a = Attention (x, x, x)  y = Relu (a) }"""
    model = ir.from_onnx_text(text)
    convert_opset(model, 18)
    assert all(value.type is None and value.shape is None for node in model.graph for value in node.outputs)


def test_what_the_body_computes_in_vain_is_left_out() -> None:
    model = ir.from_proto(build(ATTENTION % "", {}, opset=23))
    convert_opset(model, 22)
    read = {value for node in model.graph for value in node.inputs} | set(model.graph.outputs)
    assert all(read & set(node.outputs) for node in model.graph)
