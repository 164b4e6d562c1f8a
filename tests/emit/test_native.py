"""`auto` where the native operators are found: one node for the norm with its residual and activation."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Form, Provider, Target
from tests.folding import build, normal, parameters
from tests.graphs import node_types
from tests.native.grid import needs_library

GROUP = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[2, 4, 5, 5] x) => (float[2, 4, 5, 5] y)
<float[4] scale = {1, 2, 3, 4}, float[4] bias = {1, 0, 0, 2}>
{ n = GroupNormalization <num_groups = 2> (x, scale, bias)  s = Sigmoid (n)  y = Mul (n, s) }
"""
LAYER = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[2, 3, 12] x, float[2, 3, 12] r) => (float[2, 3, 12] y, float[2, 3, 12] z)
<float[12] scale = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[12] bias = {1, 0, 0, 2, 3, 0, 0, 4, 5, 0, 0, 6}>
{ t = Add (x, r)  y = LayerNormalization <axis = -1> (t, scale, bias)  z = Relu (t) }
"""
NATIVE, PLAIN = Target(native=True), Target(native=False)


@pytest.mark.parametrize(
    ("text", "operators"),
    [(GROUP, ["GroupNormSilu"]), (LAYER, ["AddLayerNormWithSum", "Relu"])],
    ids=["group norm and SiLU", "add and layer norm"],
)
def test_norms_become_one_node(text: str, operators: list[str]) -> None:
    model, _ = normfuse.fuse(onnx.parser.parse_model(text), NATIVE)
    assert node_types(model) == operators
    assert len(model.functions) == 1


@pytest.mark.parametrize("text", [GROUP, LAYER], ids=["group norm and SiLU", "add and layer norm"])
def test_the_numbers_stay_with_and_without_the_library(text: str) -> None:
    import onnxruntime

    original = onnx.parser.parse_model(text)
    fused, _ = normfuse.fuse(original, NATIVE)
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal([axis.dim_value for axis in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in original.graph.input
    }
    content = ir.to_proto(fused).SerializeToString()
    plain = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = onnxruntime.InferenceSession(original.SerializeToString(), providers=["CPUExecutionProvider"])
    for session in (plain, normfuse.session(content)):
        for result, truth in zip(session.run(None, feeds), expected.run(None, feeds), strict=True):
            np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", [GROUP, LAYER], ids=["group norm and SiLU", "add and layer norm"])
def test_doing_it_twice_changes_nothing(text: str) -> None:
    once, _ = normfuse.fuse(onnx.parser.parse_model(text), NATIVE)
    twice, report = normfuse.fuse(once, NATIVE)
    assert not report.rewrites
    assert ir.to_proto(twice).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_a_norm_whose_scale_and_bias_folded_is_one_node_too() -> None:
    """What the fold writes is lowered like any other norm, with the residual before it."""
    text = """g (float[2,3,6] x, float[2,3,6] r) => (float[2,3,4] p, float[2,3,6] z) {
        t = Add (x, r)  n = LayerNormalization (t, s, b)  q = MatMul (n, W)  p = Add (q, C)  z = Relu (t) }"""
    rows = {name: row for name, row in parameters(6).items() if name in "sb"}
    original = build(text, {**rows, "W": normal(6, 4), "C": normal(4, seed=2)})
    once, report = normfuse.fuse(original, NATIVE, fold_norm_affine=True)
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-norm-affine", "emit"]
    assert node_types(once) == ["AddLayerNormWithSum", "MatMul", "Add", "Relu"]
    assert report.norms[0].plan.startswith("fold into ")
    assert normfuse.validate(original, once).verdict is normfuse.Verdict.EQUIVALENT
    assert not normfuse.fuse(once, NATIVE, fold_norm_affine=True)[1].rewrites
    (fold, _) = report.rewrites
    assert node_types(normfuse.fuse(original, NATIVE, fold_norm_affine=True, only=[fold.id])[0]) == [
        "Add", "LayerNormalization", "MatMul", "Add", "Relu",
    ]  # fmt: skip


def test_without_the_library_auto_writes_standard_operators() -> None:
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP), PLAIN)
    assert all(node.domain == "" for node in model.graph)
    assert not model.functions


def test_other_forms_do_not_ask_for_it() -> None:
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP), Target(Form.STANDARD, native=True))
    assert all(node.domain == "" for node in model.graph)


def test_on_cuda_it_is_the_library_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP), Target(provider=Provider.CUDA, native=True))
    assert node_types(model) == ["GroupNormSilu"]
    monkeypatch.setenv("NORMFUSE_CUDA_OPS_LIBRARY", "/no/such/file")
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP), Target(provider=Provider.CUDA))
    assert all(node.domain == "" for node in model.graph)


def test_by_default_it_is_where_the_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library()
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP))
    assert node_types(model) == ["GroupNormSilu"]
    monkeypatch.setenv("NORMFUSE_OPS_LIBRARY", "/no/such/file")
    model, _ = normfuse.fuse(onnx.parser.parse_model(GROUP))
    assert "GroupNormSilu" not in node_types(model)


def sized(nodes: str, shape: str, opset: int, dtype: str = "float", length: int = 64) -> onnx.ModelProto:
    """Return a norm of x with ``length`` scales and biases."""
    numbers = ", ".join(["1"] * length)
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : {opset}]>
        net ({dtype}{shape} x, {dtype}{shape} r) => ({dtype}{shape} y)
        <{dtype}[{length}] scale = {{{numbers}}}, {dtype}[{length}] bias = {{{numbers}}}> {{ {nodes} }}""")


LAYER_ALONE = "y = LayerNormalization <axis = -1> (x, scale, bias)"
LAYER_SUM = "t = Add (x, r) y = LayerNormalization <axis = -1> (t, scale, bias)"
RMS = "y = RMSNormalization <axis = -1> (x, scale)"
INSTANCE = "y = InstanceNormalization (x, scale, bias)"
INSTANCE_RELU = "n = InstanceNormalization (x, scale, bias) y = Relu (n)"
RESHAPED = ["Reshape", "InstanceNormalization", "Shape", "Reshape", "BatchNormalization"]
GROUPS = "y = GroupNormalization <num_groups = 2> (x, scale, bias)"


@pytest.mark.parametrize(
    ("nodes", "shape", "opset", "operators"),
    [
        (LAYER_ALONE, "[1, 64]", 17, ["LayerNorm"]),
        (LAYER_ALONE, "[N, 64]", 17, ["LayerNorm"]),
        (RMS, "[1, 64]", 23, ["RMSNorm"]),
        (INSTANCE, "[1, 64, 8, 8]", 17, ["InstanceNormalization"]),
        (INSTANCE, "[1, 64, 8, 9]", 17, ["InstanceNorm"]),
        (INSTANCE, "[N, 64, 8, 7]", 17, ["InstanceNormalization"]),
        (INSTANCE, "[N, 64, 8, 8]", 17, ["InstanceNorm"]),
        (INSTANCE, "[1, 64, H, 2]", 17, ["InstanceNorm"]),
        (INSTANCE_RELU, "[1, 64, 1, 19]", 17, ["InstanceNormalization", "Relu"]),
        (INSTANCE_RELU, "[1, 64, 4, 5]", 17, ["InstanceNormRelu"]),
        (GROUPS, "[1, 64, 1, 3]", 21, RESHAPED),
        (GROUPS, "[1, 64, 1, 4]", 21, ["GroupNorm"]),
    ],
)
def test_a_tensor_too_small_for_the_call_keeps_its_operator(
    nodes: str, shape: str, opset: int, operators: list[str]
) -> None:
    model, _ = normfuse.fuse(sized(nodes, shape, opset), NATIVE)
    assert node_types(model) == operators


def test_a_small_tensor_of_a_type_without_a_fast_kernel_is_taken() -> None:
    model, _ = normfuse.fuse(sized(LAYER_ALONE, "[64, 16]", 17, "double", length=16), NATIVE)
    assert node_types(model) == ["LayerNorm"]


def test_primitives_on_a_small_tensor_become_the_standard_operator() -> None:
    nodes = """axes = Constant <value_ints = [-1]> () m = ReduceMean (x, axes) d = Sub (x, m) q = Mul (d, d)
        v = ReduceMean (q, axes) eps = Constant <value_float = 1e-5> () e = Add (v, eps) s = Sqrt (e) n = Div (d, s)
        t = Mul (n, scale) y = Add (t, bias)"""
    for rows, operator in ((33, "LayerNormalization"), (32, "LayerNorm")):
        model, _ = normfuse.fuse(sized(nodes, f"[{rows}, 16]", 18, length=16), NATIVE)
        assert node_types(model) == [operator]


def test_short_rows_keep_their_operator_where_there_are_many() -> None:
    """A call is saved where a residual is taken in; a row of sixteen costs more than the operator's own."""
    for rows, operators in ((32, ["AddLayerNorm"]), (33, ["Add", "LayerNormalization"])):
        model, _ = normfuse.fuse(sized(LAYER_SUM, f"[{rows}, 16]", 17, length=16), NATIVE)
        assert node_types(model) == operators
    for length, operators in ((24, ["LayerNorm"]), (23, ["LayerNormalization"])):
        model, _ = normfuse.fuse(sized(LAYER_ALONE, f"[N, {length}]", 17, length=length), NATIVE)
        assert node_types(model) == operators


def test_small_norms_are_left_on_the_cpu_only() -> None:
    target = Target(provider=Provider.CUDA, native=True)
    model, _ = normfuse.fuse(sized(LAYER_ALONE, "[64, 16]", 17, length=16), target)
    assert node_types(model) == ["LayerNorm"]
