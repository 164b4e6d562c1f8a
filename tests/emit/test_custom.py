"""The custom form: a node of ai.normfuse with its body, which runs wherever there is no kernel for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest

import normfuse
from normfuse.emit.custom import emit_custom
from normfuse.emit.target import Form, Provider, Target
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor, Replacement
from normfuse.graph.reading import bodies
from normfuse.graph.site import NormSite, Reading
from normfuse.passes.lower_norms import lower_norms
from normfuse.recognise import find_norms
from normfuse.recognise.surroundings import with_residual
from normfuse.spec import Activation, ComputeType, PerGroup
from tests.emit.test_standard import head
from tests.folding import assert_same, build, fuse, normal
from tests.graphs import Array, is_runnable, model_of, node_types, reading_of, run

GROUP = "{ y = GroupNormalization <num_groups = 2> (x, s, b) }"
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")


def customised(model: ir.Model, form: Form = Form.CUSTOM) -> tuple[str, ...]:
    """Write every norm of every graph of ``model`` in ``form``; return the notes."""
    editor, constants = Editor(model), Constants(model)
    for graph, opset in list(bodies(model)):
        reading = Reading(opset, constants, Ranks(constants))
        sites = [site for site in find_norms(graph, reading) if isinstance(site, NormSite)]
        lower_norms(graph, sites, form, reading, editor, lambda _: True)
    return editor.finish()


def calls(model: ir.Model) -> list[str]:
    """Return the operator of every node of ai.normfuse, subgraphs and functions included."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    nodes = [node for graph in graphs for node in graph.all_nodes()]
    assert not any(node.overload for node in nodes)
    return [node.op_type for node in nodes if node.domain == "ai.normfuse"]


def results(model: ir.Model, feeds: Mapping[str, Array]) -> list[npt.NDArray[np.float64]]:
    """Return the first output at onnxruntime's three optimization levels and on onnx.reference."""
    proto, outputs = ir.to_proto(model), []
    onnx.checker.check_model(proto, full_check=True)
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, dict(feeds))[0])
    outputs.append(next(iter(onnx.reference.ReferenceEvaluator(proto).run(None, dict(feeds)))))
    return [np.asarray(output).astype(np.float64) for output in outputs]


def test_one_node_with_its_body() -> None:
    model = model_of(head(21, ir_version=10) + GROUP)
    assert customised(model) == ()
    (node,) = model.graph
    assert (node.op_type, node.domain, node.overload) == ("GroupNorm", "ai.normfuse", "")
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "num_groups": 2,
        "epsilon": float(np.float32(1e-5)),
    }
    assert [value.name for value in node.inputs if value is not None] == ["x", "s", "b"]
    assert model.opset_imports["ai.normfuse"] == 1
    assert list(model.functions) == [("ai.normfuse", "GroupNorm", "")]
    assert model.graph.outputs[0].shape == ir.Shape(["N", 4, 6, 5])


@pytest.mark.parametrize(
    ("version", "notes"), [(7, ("IR version 7 → 8: the operators of ai.normfuse are functions",)), (8, ()), (9, ())]
)
def test_the_ir_version_is_one_that_has_functions(version: int, notes: tuple[str, ...]) -> None:
    model = model_of(head(21, ir_version=version) + GROUP)
    assert customised(model) == notes
    assert calls(model) == ["GroupNorm"]
    assert model.ir_version == max(version, 8)
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec.statistics == PerGroup(2)
    run(model, {"x": np.ones((2, 4, 6, 5), np.float32)})


def test_twice_changes_nothing_and_another_form_takes_the_body_away() -> None:
    model = model_of(head(21, ir_version=10) + GROUP)
    customised(model)
    before = ir.to_proto(model).SerializeToString()
    model = ir.from_proto(ir.to_proto(model))  # as from a file
    customised(model)
    assert ir.to_proto(model).SerializeToString() == before
    customised(model, Form.AUTO)
    assert ir.to_proto(model).SerializeToString() == before
    customised(model, Form.STANDARD)
    assert node_types(model) == ["GroupNormalization"]
    assert not model.functions
    assert "ai.normfuse" not in model.opset_imports


def test_norms_that_differ_in_numbers_alone_share_a_body() -> None:
    core = "{ a = GroupNormalization <num_groups = 2> (x, s, b) y = GroupNormalization <num_groups = 4> (a, b, s) }"
    model = model_of(head(21, ir_version=10) + core.replace("num_groups = 4", "num_groups = 1, epsilon = 0.5"))
    customised(model)
    assert len(calls(model)) == 2
    assert len(model.functions) == 1


HALF_TOO = """
    { a = GroupNormalization <num_groups = 2> (x, s, b)
       p = Cast <to = 10> (x) t = Cast <to = 10> (s) u = Cast <to = 10> (b)
       q = GroupNormalization <num_groups = 2> (p, t, u)
       z = Cast <to = 1> (q) y = Sub (a, z) }"""


def test_two_types_are_two_names() -> None:
    model = model_of(head(21, ir_version=10) + HALF_TOO)
    customised(model)
    assert calls(model) == ["GroupNorm", "GroupNorm_opset21_float16_scale_bias"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)}
    for actual in results(model, feeds):
        # The rounding to float16 of x, γ, β and the result, below 8: with one body for both the difference is 0 or NaN.
        assert 0 < np.abs(actual).max() < 4 * 8 * 2.0**-10


@pytest.mark.parametrize("opset", [9, 11, 12, 17, 21])
def test_two_groupings_are_two_bodies_only_where_a_body_holds_numbers(opset: int) -> None:
    shape = "[2,4,6,5]"
    text = f"""<ir_version: 10, opset_import: ["": {opset}]> g (float{shape} x) => (float{shape} y)
        <int64[3] two = {{0, 2, -1}}, int64[3] one = {{0, 1, -1}}, int64[4] all = {{2, 4, 6, 5}}, float[2] s2 = {{1, 1}},
         float[2] b2 = {{0, 0}}, float[1] s1 = {{1}}, float[1] b1 = {{0}}>
        {{ r = Reshape (x, two) i = InstanceNormalization (r, s2, b2) a = Reshape (i, all)
           q = Reshape (x, one) j = InstanceNormalization <epsilon = 0.5> (q, s1, b1) c = Reshape (j, all)
           y = Sub (a, c) }}"""
    model = model_of(text)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32) + np.arange(4).reshape(4, 1, 1)
    feeds = {"x": x.astype(np.float32)}
    (expected,) = run(model, feeds)
    customised(model)
    assert len(set(calls(model))) == len(model.functions) == (2 if opset < 12 else 1)
    for actual in results(model, feeds):
        assert np.abs(actual - expected).max() < 2**8 * np.finfo(np.float32).eps


def test_activation_and_affine_are_part_of_it() -> None:
    text = (
        head(21, "float[N,6,5,4]", ir_version=10)
        + "{ y = com.microsoft.GroupNorm <groups = 2, activation = 1> (x, s, b) }"
    )
    model = ir.from_onnx_text(text)
    customised(model)
    assert calls(model) == ["GroupNormSiluChannelsLast"]
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec.activation is Activation.SILU
    assert site.spec.channel_axis == -1


def test_the_sum_of_the_residual_is_the_second_output() -> None:
    text = """<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,6,5] x, float[N,6,5] r, float[5] s, float[5] b) => (float[N,6,5] y, float[N,6,5] sum)
        { y, "", "", sum = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, r, s, b) }"""
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 5)).astype(np.float32) for name in ("x", "r")}
    feeds |= {name: rng.standard_normal(5).astype(np.float32) for name in ("s", "b")}
    before = run(model, feeds)
    customised(model)
    assert calls(model) == ["AddLayerNormWithSum"]
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.operands.residual is not None
    assert [value.name for value in site.extra_outputs] == ["sum"]
    for old, new in zip(before, run(model, feeds), strict=True):
        # Fewer than 32 roundings of values below 16.
        assert np.abs(old - new).max() < 32 * 16 * np.finfo(np.float32).eps
    customised(model, Form.PRIMITIVE)
    assert [value.name for value in model.graph.outputs] == ["y", "sum"]


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_in_a_branch(opset: int) -> None:
    model = model_of(f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[N,4,6,5] x, bool c) => (float[N,4,6,5] y)
        <float[4] s = {{1, 2, 3, 4}}, float[4] b = {{5, 6, 7, 8}}>
        {{ y = If (c) <
            then_branch = t () => (float[N,4,6,5] p) {{ p = InstanceNormalization (x, s, b) }},
            else_branch = e () => (float[N,4,6,5] q) {{ q = Relu (x) }}> }}""")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32), "c": np.array(True)}
    (expected,) = run(model, feeds)
    customised(model)
    assert calls(model) == ["InstanceNorm"]
    for actual in results(model, feeds):
        assert np.abs(actual - expected).max() < 2**8 * 16 * np.finfo(np.float32).eps


def test_in_another_function() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[N,4,6,5] x, float[4] s) => (float[N,4,6,5] y) { y = local.F (x, s) }
        <domain: "local", opset_import: ["": 18]> F (x, s) => (y)
        { c = Cast <to = 1> (x) d = Cast <to = 1> (s) y = InstanceNormalization (c, d, d) }""")
    (function,) = model.functions.values()
    for node in list(function)[:2]:
        node.outputs[0].dtype = ir.DataType.FLOAT
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    feeds = {"x": x, "s": np.ones(4, np.float32)}
    (expected,) = run(model, feeds)
    customised(model)
    assert calls(model) == ["InstanceNorm"]
    assert function.opset_imports["ai.normfuse"] == 1
    for actual in results(model, feeds):
        assert np.abs(actual - expected).max() < 2**8 * np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_types_run_without_a_library(dtype: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 18]> g (float[N,4,6,5] x, float[4] s) => (float[N,4,6,5] y)
        {{ h = Cast <to = {int(ir.DataType[dtype.upper()])}> (x) k = Cast <to = {int(ir.DataType[dtype.upper()])}> (s)
           n = InstanceNormalization (h, k, k) y = Cast <to = 1> (n) }}"""
    model = model_of(text)
    customised(model)
    assert calls(model) == ["InstanceNorm"]
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec.compute_type is (ComputeType.INPUT if dtype == "double" else ComputeType.FLOAT)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    expected = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5) + 1
    units = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "double": 2.0**-23}
    for actual in results(model, {"x": x, "s": np.ones(4, np.float32)})[:3]:
        # x, the result and in between: three roundings of values below 8.
        assert np.abs(actual - expected).max() < 2**5 * units[dtype]


@pytest.mark.parametrize("opset", [21, 22, 23])
@pytest.mark.parametrize("provider", Provider)
@pytest.mark.parametrize("text", [GROUP, "{ y = InstanceNormalization (x, s, b) }"])
def test_a_body_for_cuda_has_no_instance_normalization_from_opset_22_on(
    text: str, provider: Provider, opset: int
) -> None:
    """CUDA has no kernel for version 22: it would run on the CPU, between two copies."""
    model, _ = normfuse.fuse(model_of(head(opset) + text), target=Target(Form.CUSTOM, provider))
    (function,) = model.functions.values()
    by_kernel = "InstanceNormalization" in [node.op_type for node in function]
    assert by_kernel is (provider is Provider.CPU or opset < 22)


def test_what_has_no_operator_is_standard() -> None:
    model = model_of(head(17) + "{ y = BatchNormalization (x, s, b, s, b) }")
    customised(model)
    assert node_types(model) == ["BatchNormalization"]


def test_bodies_are_no_graphs_of_the_model() -> None:
    model = model_of(head(21, ir_version=10) + GROUP)
    customised(model)
    assert [graph.name for graph, _ in bodies(model)] == ["g"]


def test_a_scale_that_differs_from_position_to_position_stays_outside() -> None:
    """And one that does not is a scale of the norm: torch writes an RMSNorm without weight with ones of the shape of x."""
    rows = {"x": "float[2,5,8]", "N": "float[N,5,8]"}
    for shape, scale, operator in (
        ("x", np.ones((2, 5, 8), np.float32), "RMSNorm"),
        ("x", np.broadcast_to(normal(8), (2, 5, 8)).copy(), "RMSNorm"),
        ("x", normal(2, 5, 8), "RMSNormalization"),
        ("N", np.ones((2, 5, 8), np.float32), "RMSNormalization"),
    ):
        text = f"g ({rows[shape]} x) => (float[2,5,8] y) {{ y = RMSNormalization <axis = -1> (x, s) }}"
        model = build(text, {"s": scale}, opset=23, ir_version=10)
        fused, _ = fuse(model, target=Target(Form.CUSTOM))
        assert [node.op_type for node in fused.graph] == [operator]
        if shape == "x":
            assert_same(model, fused)


@pytest.mark.parametrize("norm", ["RMSNormalization (x, g)", "LayerNormalization (x, g, h)"])
@pytest.mark.parametrize(("scale", "views"), [("Add (a, one)", "Add"), ("Unsqueeze (d, zero)", "")])
def test_a_scale_that_is_computed_with_axes_of_size_one(scale: str, views: str, norm: str) -> None:
    """The modulation of a diffusion transformer for a batch of one; what is written is read as the same norm again."""
    text = f"""g (float[1,5,8] x, float[1,1,8] a, float[8] c) => (float[1,5,8] y)
        {{ d = Exp (c) g = {scale} h = Neg (a) y = {norm} }}"""
    constants: dict[str, Array] = {"one": np.ones(1, np.float32), "zero": np.array([0, 1], np.int64)}
    model = onnx.shape_inference.infer_shapes(build(text, constants, opset=23, ir_version=10))
    fused, _ = fuse(model, target=Target(Form.CUSTOM))
    assert calls(fused) == ["RMSNorm" if "RMS" in norm else "LayerNorm"]
    reshapes = [node.inputs[0].producer().op_type for node in fused.graph if node.op_type == "Reshape"]  # type: ignore[union-attr]
    assert reshapes == [*([views] if views else []), *(["Neg"] if "Layer" in norm else [])]
    assert_same(model, fused)
    again, report = normfuse.fuse(fused, target=Target(Form.CUSTOM))
    assert not report.rewrites
    assert node_types(again) == node_types(fused)


CODES = {"float16": 10, "bfloat16": 16}
WIDENED = {
    "LayerNorm": (17, "n = LayerNormalization (u, g, b)"),
    "RMSNorm": (23, "n = RMSNormalization (u, g)"),
    "InstanceNorm": (22, "n = InstanceNormalization (u, h, h)"),
    "GroupNorm": (21, "n = GroupNormalization <num_groups = 2> (u, h, h)"),
}


def widened(dtype: str, operator: str, after: str = "") -> str:
    """Return the text of a norm that runs in float32 between Casts of a half type."""
    outputs = f"{dtype}[2,4,8] y" + (", float[2,4,8] z" if after else "")
    return f"""g ({dtype}[2,4,8] x, {dtype}[2,4,8] r) => ({outputs}) {{
        s = Add (x, r) u = Cast <to = 1> (s) {WIDENED[operator][1]} y = Cast <to = {CODES[dtype]}> (n) {after} }}"""


def of_half(*shape: int, dtype: str = "float16") -> Array:
    """Return random numbers of a half type, as float32."""
    return normal(*shape).astype(ir.DataType[dtype.upper()].numpy()).astype(np.float32)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("operator", WIDENED)
def test_a_norm_widened_for_its_operator_is_one_of_the_half_type(operator: str, dtype: str) -> None:
    arrays = {"g": of_half(8, dtype=dtype), "b": of_half(8, dtype=dtype), "h": of_half(4, dtype=dtype)}
    model = build(widened(dtype, operator), arrays, opset=WIDENED[operator][0], ir_version=10)
    fused, _ = fuse(model, target=Target(Form.CUSTOM))
    assert [node.op_type for node in fused.graph] == [f"Add{operator}"]
    assert {value.dtype for value in fused.graph.node(0).inputs if value is not None} == {ir.DataType[dtype.upper()]}
    assert_same(model, fused)
    again, report = normfuse.fuse(fused, target=Target(Form.CUSTOM))
    assert not report.rewrites
    assert node_types(again) == node_types(fused)


@pytest.mark.parametrize("operator", WIDENED)
def test_a_norm_whose_parameters_are_no_numbers_of_the_half_type_stays_wide(operator: str) -> None:
    large = np.full(8, 1e6, np.float32)
    for g, b in ((normal(8), of_half(8)), (large, of_half(8))):
        model = build(
            widened("float16", operator), {"g": g, "b": b, "h": g[:4]}, opset=WIDENED[operator][0], ir_version=10
        )
        fused, _ = fuse(model, target=Target(Form.CUSTOM))
        assert [node.op_type for node in fused.graph] == ["Add", "Cast", operator, "Cast"]
        assert calls(fused) == [operator]
        assert_same(model, fused)


@pytest.mark.parametrize("first", [True, False])
def test_norms_of_one_operator_have_one_type_where_one_has_no_choice(first: bool) -> None:
    """The name that kernels go by has room for one type."""
    other = "v = Cast <to = 1> (r) z = LayerNormalization (v, g)"
    text = widened("float16", "LayerNorm", other).replace("Add (x, r)", "Neg (x)")
    if first:
        text = text.replace(f" {other}", "").replace("s = Neg", f"{other} s = Neg")
    model = build(text, {"g": of_half(8), "b": of_half(8)}, opset=17, ir_version=10)
    fused, _ = fuse(model, target=Target(Form.CUSTOM))
    assert calls(fused) == ["LayerNorm", "LayerNorm"]
    assert_same(model, fused)


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("residual", ["float16[2,4,8]", "float16[8]"])
def test_the_residual_of_a_norm_that_is_widened(residual: str, is_read: bool) -> None:
    """Whoever wrote the sum into the norm: its operands come in the type of the operator."""
    text = f"""g (float16[2,4,8] x, {residual} r) => (float16[2,4,8] y, float16[2,4,8] z) {{
        s = Add (x, r) u = Cast <to = 1> (s) n = RMSNormalization (u, g) y = Cast <to = 10> (n) z = Neg ({"s" if is_read else "x"}) }}"""
    model = build(text, {"g": normal(8)}, opset=23, ir_version=10)
    written = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    reading = reading_of(written)
    (site,) = find_norms(written.graph, reading)
    assert isinstance(site, NormSite)
    grown = with_residual(site, reading)
    replacement = emit_custom(grown, reading, 23)
    assert isinstance(replacement, Replacement)
    editor = Editor(written)
    editor.apply(replacement, grown.root)
    editor.finish()
    written.graph.sort()
    assert is_runnable(written)
    assert_same(model, written)
