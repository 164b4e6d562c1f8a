"""The standard form: which operators it writes at which opset, and what stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.emit.target import Form
from normfuse.graph.editing import Editor
from normfuse.graph.site import Declined, NormSite
from normfuse.passes.lower_norms import lower_norms
from normfuse.recognise import find_norms
from normfuse.reference import evaluate
from normfuse.spec import ComputeType
from tests.graphs import model_of, node_types, reading_of, run


def emitted(text: str, form: Form = Form.STANDARD) -> tuple[ir.Model, list[Declined]]:
    """Return the model of ``text`` with every norm in ``form``."""
    model = model_of(text)
    reading = reading_of(model)
    sites = [site for site in find_norms(model.graph, reading) if isinstance(site, NormSite)]
    assert sites
    _, declined = lower_norms(model.graph, sites, form, reading, Editor(model), lambda _: True)
    return model, declined


def head(opset: int, x: str = "float[N,4,6,5]", y: str = "", ir_version: int = 8) -> str:
    return f"""<ir_version: {ir_version}, opset_import: ["": {opset}, "com.microsoft": 1]>
        g ({x} x) => ({y or x} y)
        <int64[3] to = {{0, 2, -1}}, float[2] one = {{1, 1}}, float[2] zero = {{0, 0}}, float[4] s = {{1, 2, 3, 4}},
         float[4] b = {{5, 6, 7, 8}}, float[2] s2 = {{1, 2}}, float[2] b2 = {{0, 1}}, float[5] s5 = {{1, 2, 3, 4, 5}},
         float[5] b5 = {{5, 6, 7, 8, 9}}, float[4,1,1] w = {{1, 2, 3, 4}}, float[4,1,1] c = {{5, 6, 7, 8}}>"""


RESHAPED = """{ g = Reshape (x, to) n = InstanceNormalization (g, one, zero) sh = Shape (x) r = Reshape (n, sh)
              a = Mul (r, w) y = Add (a, c) }"""
GROUP_18 = "{ y = GroupNormalization <num_groups = 2> (x, s2, b2) }"
NHWC = "{ y = com.microsoft.GroupNorm <groups = 2, activation = 1> (x, s, b) }"
RIR = ["Reshape", "InstanceNormalization", "Shape", "Reshape"]


@pytest.mark.parametrize(
    ("nodes", "opset", "x", "expected"),
    [
        (RESHAPED, 21, "float[N,4,6,5]", ["GroupNormalization"]),
        (GROUP_18, 18, "float[N,4,6,5]", RIR),
        ("{ y = SimplifiedLayerNormalization (x, s5) }", 23, "float[N,4,6,5]", ["RMSNormalization"]),
        ("{ y = SimplifiedLayerNormalization (x, s5) }", 18, "float[N,4,6,5]", None),
        ("{ y = LayerNormalization (x, s5, b5) }", 16, "float[N,4,6,5]", None),
        (
            "{ y = com.microsoft.SkipLayerNormalization (x, x, s5, b5) }",
            17,
            "float[N,6,5]",
            ["Add", "LayerNormalization"],
        ),
        (
            NHWC,
            21,
            "float[N,6,5,4]",
            ["Transpose", "GroupNormalization", "Transpose", "Sigmoid", "Mul"],
        ),
        (NHWC, 17, "float[N,6,5,4]", ["Transpose", *RIR, "BatchNormalization", "Transpose", "Sigmoid", "Mul"]),
    ],
)
def test_operators(nodes: str, opset: int, x: str, expected: list[str] | None) -> None:
    model, declined = emitted(head(opset, x) + nodes)
    assert not declined
    if expected is not None:
        assert node_types(model) == expected
    else:  # the opset has no operator: elementary ones
        assert not any("Normalization" in op_type for op_type in node_types(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("nodes", "opset", "x"),
    [
        (RESHAPED, 18, "float[N,4,6,5]"),
        ("{ y = GroupNormalization <num_groups = 2> (x, s, b) }", 21, "float[N,4,6,5]"),
        ("{ y = GroupNormalization <num_groups = 4> (x, s, b) }", 21, "float[N,4,6,5]"),
        ("{ y = InstanceNormalization (x, s, b) }", 9, "float[N,4,6,5]"),
        ("{ y = BatchNormalization (x, s, b, s, b) }", 9, "float[N,4,6,5]"),
        ("{ y = LayerNormalization (x, s5, b5) }", 17, "float[N,4,6,5]"),
        ("{ y = RMSNormalization (x, s5) }", 23, "float[N,4,6,5]"),
    ],
)
def test_what_is_standard_stays(nodes: str, opset: int, x: str) -> None:
    text = head(opset, x) + nodes
    before = ir.to_proto(model_of(text)).SerializeToString()
    model, declined = emitted(text)
    assert not declined
    assert ir.to_proto(model).SerializeToString() == before


def test_before_and_after_as_text() -> None:
    model, _ = emitted(head(21) + RESHAPED)
    (line,) = [line for line in onnx.printer.to_text(ir.to_proto(model)).splitlines() if "Normalization" in line]
    # The parameters of Mul and Add are (4, 1, 1); the operator's are (4).
    assert line.split("] ")[-1] == "y = GroupNormalization <epsilon: float = 1e-05, num_groups: int = 2> (x, w_1, c_1)"
    assert [tuple(value.shape or ()) for value in model.graph.initializers.values()][-2:] == [(4,), (4,)]


def test_as_many_groups_as_channels_become_instance_normalization() -> None:
    core = "{ g = Reshape (x, to4) n = InstanceNormalization (g, s, b) sh = Shape (x) y = Reshape (n, sh) }"
    text = head(18).replace("<int64[3] to", "<int64[3] to4 = {0, 4, -1}, int64[3] to") + core
    model, _ = emitted(text)
    assert node_types(model) == ["InstanceNormalization"]


def test_rank_two_has_no_instance_normalization() -> None:
    core = "{ g = Reshape (x, to4) n = InstanceNormalization (g, s, b) sh = Shape (x) y = Reshape (n, sh) }"
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for opset, expected in ((18, RIR), (21, ["GroupNormalization"])):
        text = head(opset, "float[N,4]").replace("<int64[3] to", "<int64[3] to4 = {0, 4, -1}, int64[3] to") + core
        model, _ = emitted(text)
        assert node_types(model) == expected
        # One channel a group, one position: what is left is the bias.
        np.testing.assert_array_equal(run(model, {"x": x})[0], np.tile(np.array([5, 6, 7, 8], np.float32), (3, 1)))


def test_half_types_get_an_island_of_float32() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float16[N,4,6,5] x, float16[2] s, float16[2] b) =>
        (float16[N,4,6,5] y) { y = GroupNormalization <num_groups = 2> (x, s, b) }"""
    model, _ = emitted(text)
    assert node_types(model) == ["Cast", "Cast", "Cast", *RIR, "Cast"]
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.operands.x.name == "x"
    assert site.spec.compute_type is ComputeType.FLOAT
    before = ir.to_proto(model).SerializeToString()
    lower_norms(model.graph, [site], Form.STANDARD, reading_of(model), Editor(model), lambda _: True)
    assert ir.to_proto(model).SerializeToString() == before


def test_parameters_per_group_are_repeated() -> None:
    core = "{ g = Reshape (x, to) n = InstanceNormalization (g, s2, b2) sh = Shape (x) y = Reshape (n, sh) }"
    model, _ = emitted(head(21) + core)
    (node,) = model.graph
    scale = node.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    np.testing.assert_array_equal(scale.const_value.numpy(), [1, 1, 2, 2])


def test_parameters_that_are_inputs_are_used_as_they_are() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[N,4,6,5] x, float[2] s, float[2] b) => (float[N,4,6,5] y)
        { y = GroupNormalization <num_groups = 2> (x, s, b) }"""
    model, _ = emitted(text)
    norm = next(node for node in model.graph if node.op_type == "InstanceNormalization")
    assert [value.name for value in norm.inputs if value is not None][1:] == ["s", "b"]
    lifted = text.replace("18]", "21]").replace("float[2]", "float[4]")
    model, _ = emitted(lifted)
    assert node_types(model) == ["GroupNormalization"]


def test_extra_outputs_are_kept() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,6,5] x, float[N,6,5] r, float[5] s, float[5] b, float[5] k) => (float[N,6,5] y, float[N,6,5] sum)
        { y, "", "", sum = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, r, s, b, k) }"""
    original = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 5)).astype(np.float32) for name in ("x", "r")}
    feeds |= {name: rng.standard_normal(5).astype(np.float32) for name in ("s", "b", "k")}
    (site,) = find_norms(original.graph, reading_of(original))
    assert isinstance(site, NormSite)
    names = {"x": "x", "residual": "r", "scale": "s", "bias": "b", "residual_bias": "k"}
    expected = evaluate(site.spec, {name: feeds[feed] for name, feed in names.items()})
    total = feeds["x"].astype(np.float64) + feeds["r"] + feeds["k"]
    for form in (Form.STANDARD, Form.PRIMITIVE):
        model, declined = emitted(text, form)
        assert not declined
        assert [value.name for value in model.graph.outputs] == ["y", "sum"]
        y, added = run(model, feeds)
        # Fewer than 32 roundings of values below 16.
        bound = 32 * 16 * float(np.finfo(np.float32).eps)
        assert np.abs(y - expected).max() < bound
        assert np.abs(added - total).max() < bound


def test_saved_statistics_are_kept() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,6,5] x, float[5] s) =>
        (float[N,6,5] y, float[N,6,1] mean, float[N,6,1] inverse)
        { y, mean, inverse = LayerNormalization <epsilon = 0.5> (x, s) }"""
    x = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    model, declined = emitted(text, Form.PRIMITIVE)
    assert not declined
    _, mean, inverse = run(model, {"x": x, "s": np.ones(5, np.float32)})
    # A mean of five and its variance: fewer than 32 roundings of values below 4.
    bound = 32 * 4 * float(np.finfo(np.float32).eps)
    assert np.abs(mean[..., 0] - x.mean(-1)).max() < bound
    assert np.abs(inverse[..., 0] - 1 / np.sqrt(x.var(-1) + 0.5)).max() < bound


def test_an_rms_norm_has_no_means() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,6,5] x, float[5] s) => (float[N,6,5] y, float[N,6,1] mean)
        { y, mean = com.microsoft.SkipSimplifiedLayerNormalization (x, x, s) }"""
    model, declined = emitted(text)
    assert [entry.reason for entry in declined] == ["its output of means is read, and an RMS norm has none"]
    assert node_types(model) == ["SkipSimplifiedLayerNormalization"]
    # What was drafted and dropped is no reader any more.
    assert all(user.graph is model.graph for user, _ in model.graph.inputs[0].uses())


@pytest.mark.parametrize(("shape", "expected"), [("[N,4,6,5]", ["LayerNormalization"]), ("[N,4,6,M]", None)])
def test_a_layer_norm_without_affine_gets_ones(shape: str, expected: list[str] | None) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (float{shape} x) => (float{shape} y)
        <int64[1] axes = {{-1}}, float eps = {{0.5}}>
        {{ m = ReduceMean (x, axes) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, axes) e = Add (v, eps) r = Sqrt (e)
          y = Div (d, r) }}"""
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    (before,) = run(model_of(text), {"x": x})
    model, declined = emitted(text)
    assert not declined
    assert node_types(model) == (expected or node_types(model_of(text)))  # sizes unknown: no shape for the ones
    (after,) = run(model, {"x": x})
    # Ten roundings on both sides, amplified by |x|/σ < 8, of values below 4.
    assert np.abs(after - before).max() < 2 * 10 * 8 * 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("form", [Form.STANDARD, Form.CUSTOM, Form.ORT, Form.PRIMITIVE])
@pytest.mark.parametrize("axes", ["-1", "-2, -1"], ids=["layer", "instance"])
def test_a_result_that_is_wider_than_x_is_not_rounded_to_its_type(axes: str, form: Form) -> None:
    count = len(axes.split(","))
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (float16[2,3,4,8] x) => (float[2,3,4,8] y)
        <int64[{count}] axes = {{{axes}}}, float e = {{0.001}}> {{
          f = Cast <to = 1> (x) m = ReduceMean (f, axes) d = Sub (f, m) q = Mul (d, d)
          v = ReduceMean (q, axes) s = Add (v, e) r = Sqrt (s) y = Div (d, r) }}"""
    model, declined = emitted(text, form)
    assert not declined
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8)).astype(np.float16)
    # Values below 8; float16 would be off by 2^-9.
    assert np.abs(run(model, {"x": x})[0] - run(model_of(text), {"x": x})[0]).max() < 2.0**-18
