"""Lowering the norms of a graph: all, a part of them, twice, and leaving everything else alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.emit.target import Form
from normfuse.graph.editing import Editor, Replacement
from normfuse.graph.site import Declined, NormSite
from normfuse.passes.lower_norms import lower_norms
from normfuse.recognise import find_norms
from normfuse.report.records import Rewrite
from tests.graphs import model_of, node_types, reading_of, run

CHAIN = """<ir_version: 8, opset_import: ["": 17]> g (float[N,4,6,5] x) => (float[N,4,6,5] y)
    <float[4] s = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}, float[5] s5 = {1, 2, 3, 4, 5}, float[5] b5 = {1, 2, 3, 4, 5}>
    {
      [first] h = InstanceNormalization (x, s, b)
      [middle] r = Relu (h)
      [second] l = LayerNormalization (r, s5, b5)
      [third] y = InstanceNormalization (l, s, b)
    }"""


def lowered(
    model: ir.Model, form: Form, wanted: Callable[[str], bool] = lambda _: True
) -> tuple[list[Rewrite], list[Declined]]:
    reading = reading_of(model)
    sites = [site for site in find_norms(model.graph, reading) if isinstance(site, NormSite)]
    return lower_norms(model.graph, sites, form, reading, Editor(model), wanted)


def test_norms_in_a_row_keep_the_numbers_and_the_names() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    (before,) = run(model_of(CHAIN), {"x": x})
    model = model_of(CHAIN)
    rewrites, declined = lowered(model, Form.PRIMITIVE)
    assert not declined
    assert [(entry.id, entry.kind, entry.nodes) for entry in rewrites] == [
        ("emit:h", "emit", ("first",)),
        ("emit:l", "emit", ("second",)),
        ("emit:y", "emit", ("third",)),
    ]
    assert rewrites[1].into == tuple(
        f"second/{name}"
        for name in ("ReduceMean", "Sub", "Mul", "ReduceMean_1", "Add", "Sqrt", "Div", "Mul_1", "Add_1")
    )
    assert rewrites[1].note == "LayerNormalization-17 as primitive"
    values = {value.name for node in model.graph for value in node.outputs}
    assert {"h", "r", "l", "y"} <= values
    assert next(node for node in model.graph if node.name == "middle").op_type == "Relu"
    (after,) = run(model, {"x": x})
    # Three norms of some ten roundings each, amplified by less than 8, of values below 32.
    assert np.abs(after - before).max() < 3 * 10 * 8 * 32 * np.finfo(np.float32).eps


AROUND = """<ir_version: 10, opset_import: ["": 20]> g (float[N,6,8] x, float[N,6,8] r) => (float[N,6,8] y, float[N,6,8] z)
    <float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {5, 6, 7, 8, 1, 2, 3, 4}>
    {
      sum = Add (x, r)
      [early] e = Neg (sum)
      n = LayerNormalization (sum, s, b)
      [gelu] a = Gelu (n)
      t = Add (a, e)
      m = LayerNormalization (t, s, b)
      [sigmoid] g = Sigmoid (m)
      y = Mul (m, g)
      z = Add (sum, t)
    }"""


def test_custom_takes_in_what_stands_around_a_norm() -> None:
    feeds = {name: np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32) for name in ("x", "r")}
    before = run(model_of(AROUND), feeds)
    model = model_of(AROUND)
    rewrites, declined = lowered(model, Form.CUSTOM)
    assert not declined
    assert [entry.id for entry in rewrites] == ["emit:n", "emit:m"]
    assert node_types(model) == ["AddLayerNormGeluWithSum", "Neg", "AddLayerNormSiluWithSum", "Add"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for old, new in zip(before, run(model, feeds), strict=True):
        # Two norms of some twenty roundings each, amplified by less than 8, of values below 32.
        assert np.abs(new - old).max() < 2 * 20 * 8 * 32 * np.finfo(np.float32).eps
    assert lowered(model, Form.CUSTOM) == ([], [])


def test_what_is_to_be_left_alone_stays_around_the_norm() -> None:
    model = model_of(AROUND)
    reading = reading_of(model)
    sites = [site for site in find_norms(model.graph, reading) if isinstance(site, NormSite)]
    spared = {node for node in model.graph if node.name in ("gelu", "sigmoid")}
    lower_norms(
        model.graph, sites, Form.CUSTOM, reading, Editor(model), lambda _: True, spared=lambda node: node in spared
    )
    assert node_types(model) == [
        "AddLayerNormWithSum", "Neg", "Gelu", "AddLayerNormWithSum", "Sigmoid", "Mul", "Add",
    ]  # fmt: skip


def test_a_sum_on_which_the_scale_depends_stays_outside() -> None:
    text = AROUND.replace("n = LayerNormalization (sum, s, b)", "k = ReduceMax <keepdims = 0> (e) q = Mul (s, k) "
                          "n = LayerNormalization (sum, q, b)")  # fmt: skip
    feeds = {name: np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32) for name in ("x", "r")}
    before = run(model_of(text), feeds)
    model = model_of(text)
    lowered(model, Form.CUSTOM)
    assert node_types(model)[:5] == ["Add", "Neg", "ReduceMax", "Mul", "LayerNormGelu"]
    for old, new in zip(before, run(model, feeds), strict=True):
        # As above, with γ up to 32 times as large.
        assert np.abs(new - old).max() < 32 * 2 * 20 * 8 * 32 * np.finfo(np.float32).eps


def test_a_part_is_replayed_by_id() -> None:
    model = model_of(CHAIN)
    rewrites, _ = lowered(model, Form.PRIMITIVE, wanted=lambda identifier: identifier == "emit:l")
    assert [entry.id for entry in rewrites] == ["emit:l"]
    assert node_types(model).count("InstanceNormalization") == 2
    assert "LayerNormalization" not in node_types(model)


def test_auto_leaves_everything_and_so_does_the_second_time() -> None:
    model = model_of(CHAIN)
    before = ir.to_proto(model).SerializeToString()
    assert lowered(model, Form.AUTO) == ([], [])
    assert ir.to_proto(model).SerializeToString() == before
    lowered(model, Form.PRIMITIVE)
    before = ir.to_proto(model).SerializeToString()
    assert lowered(model, Form.PRIMITIVE) == ([], [])
    assert ir.to_proto(model).SerializeToString() == before


def test_the_result_is_the_same_every_time() -> None:
    one, other = model_of(CHAIN), model_of(CHAIN)
    lowered(one, Form.PRIMITIVE)
    lowered(other, Form.PRIMITIVE)
    assert ir.to_proto(one).SerializeToString() == ir.to_proto(other).SerializeToString()


def test_an_interior_value_that_is_read_elsewhere_is_declined() -> None:
    model = model_of("""<ir_version: 10, opset_import: ["": 21]> g (float[N,4,6,5] x) =>
        (float[N,4,6,5] y, float[N,4,6,5] n)
        <int64[3] to = {0, 2, -1}, float[2] one = {1, 1}, float[2] zero = {0, 0}, float[4,1,1] w = {1, 2, 3, 4}>
        { g = Reshape (x, to) i = InstanceNormalization (g, one, zero) sh = Shape (x) n = Reshape (i, sh)
          y = Mul (n, w) }""")
    # A result that is a graph output ends the norm: the affine after it stays.
    rewrites, declined = lowered(model, Form.STANDARD)
    assert not declined
    assert [entry.id for entry in rewrites] == ["emit:n"]
    assert node_types(model) == ["GroupNormalization", "Mul"]
    model = model_of("""<ir_version: 10, opset_import: ["": 21]> g (float[N,4,6,5] x) =>
        (float[N,4,6,5] y, float[N,2,60] i)
        <int64[3] to = {0, 2, -1}, float[2] one = {1, 1}, float[2] zero = {0, 0}>
        { g = Reshape (x, to) i = InstanceNormalization (g, one, zero) sh = Shape (x) y = Reshape (i, sh) }""")
    before = ir.to_proto(model).SerializeToString()
    assert lowered(model, Form.STANDARD) == ([], [])
    assert ir.to_proto(model).SerializeToString() == before


def test_a_norm_in_a_subgraph() -> None:
    model = model_of("""<ir_version: 8, opset_import: ["": 17]> g (float[N,4,6,5] x, bool c) => (float[N,4,6,5] y)
        <float[4] s = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}>
        { y = If (c) <
            then_branch = t () => (float[N,4,6,5] p) { p = InstanceNormalization (x, s, b) },
            else_branch = e () => (float[N,4,6,5] q) { q = Relu (x) }> }""")
    reading, editor = reading_of(model), Editor(model)
    (branch,) = [graph for graph in model.graphs() if graph.name == "t"]
    sites = [site for site in find_norms(branch, reading) if isinstance(site, NormSite)]
    rewrites, declined = lower_norms(branch, sites, Form.PRIMITIVE, reading, editor, lambda _: True)
    assert not declined
    assert [entry.id for entry in rewrites] == ["emit:p"]
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    (y,) = run(model, {"x": x, "c": np.array(True)})
    # The fourth channel has scale 4 and bias 8.
    assert abs(float(y[:, 3].mean()) - 8) < 2**8 * 16 * np.finfo(np.float32).eps


def test_a_norm_whose_input_a_fold_has_replaced() -> None:
    model = model_of(CHAIN)
    reading, editor = reading_of(model), Editor(model)
    sites = [site for site in find_norms(model.graph, reading) if isinstance(site, NormSite)]
    relu = next(node for node in model.graph if node.op_type == "Relu")
    new = ir.node("Relu", [relu.inputs[0]])
    editor.apply(Replacement((relu,), (new,), ((relu.outputs[0], new.outputs[0]),)), relu)
    rewrites, _ = lower_norms(model.graph, sites, Form.PRIMITIVE, reading_of(model), editor, lambda _: True)
    assert [entry.id for entry in rewrites] == ["emit:h", "emit:l", "emit:y"]
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    (before,), (after,) = run(model_of(CHAIN), {"x": x}), run(model, {"x": x})
    # Three norms of some ten roundings each, amplified by less than 8, of values below 32.
    assert np.abs(after - before).max() < 3 * 10 * 8 * 32 * np.finfo(np.float32).eps


def test_a_norm_in_a_function_holds_its_constants_as_nodes() -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 18, "local": 1]>
        g (float[N,4,6,5] x, float[4] s) => (float[N,4,6,5] y) { y = local.F (x, s) }
        <domain: "local", opset_import: ["": 18]> F (x, s) => (y)
        { c = Cast <to = 1> (x) d = Cast <to = 1> (s) y = InstanceNormalization (c, d, d) }""")
    (function,) = model.functions.values()
    c, d = (node.outputs[0] for node in list(function)[:2])
    c.dtype = d.dtype = ir.DataType.FLOAT
    reading = reading_of(model)
    sites = [site for site in find_norms(function.graph, reading) if isinstance(site, NormSite)]
    rewrites, declined = lower_norms(function.graph, sites, Form.PRIMITIVE, reading, Editor(model), lambda _: True)
    assert not declined
    assert len(rewrites) == 1
    assert {"Constant", "ReduceMean"} <= {node.op_type for node in function}
    assert not function.graph.initializers
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
    (y,) = run(model, {"x": x, "s": np.ones(4, np.float32)})
    # The bias is the scale: every channel has mean one.
    assert np.abs(y.mean((2, 3)) - 1).max() < 2**8 * np.finfo(np.float32).eps


def test_symbolic_axes_of_the_result_keep_their_names() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 21]> g (float[N,4,H,W] x, float[4] s, float[4] b)
        => (float[batch,4,rows,columns] y) { y = GroupNormalization <num_groups = 2> (x, s, b) }""")
    before = str(model.graph.outputs[0].shape)
    rewrites, _ = lowered(model, Form.PRIMITIVE)
    assert len(rewrites) == 1
    assert str(model.graph.outputs[0].shape) == before == "[batch,4,rows,columns]"
