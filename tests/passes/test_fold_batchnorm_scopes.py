"""Folding in branches, loops and functions, and what callers may override."""

from __future__ import annotations

import onnx

from tests.folding import BN, assert_same, build, count, fuse, graph, normal, parameters, reasons


def test_folds_inside_branches_with_weights_of_the_outer_graph() -> None:
    text = """g (float[2,3,6,6] x, bool t) => (float[2,4,4,4] y) { y = If (t) <
        then_branch = u () => (float[2,4,4,4] p) { c = Conv (x, W)  p = BatchNormalization (c, s, b, m, v) },
        else_branch = w () => (float[2,4,4,4] q) { d = Conv (x, W)  e = BatchNormalization (d, s, b, m, v)  q = Neg (e) }> }"""
    model = build(text, {"W": normal(4, 3, 3, 3), **parameters(4)})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-batchnorm", "fold-batchnorm", "move-affine"]
    assert_same(model, fused)


def function_model(parameters_inside: bool) -> onnx.ModelProto:
    """Return a model whose Conv-BatchNormalization stands in a function, called twice."""
    constants = "".join(
        f"{name} = Constant <value = float[4] {{{','.join(f'{x:.4f}' for x in array)}}}> ()\n"
        for name, array in parameters(4).items()
    )
    weight = "W = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,-12}> ()"
    inside = f"{constants} {weight}" if parameters_inside else ""
    call = "x" if parameters_inside else "x, W, s, b, m, v"
    body = f"""<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
        g (float[2,3,6,6] x) => (float[2,4,6,6] y) {{ h = my.block ({call})  k = my.block ({call})  y = Mul (h, k) }}
        <domain: "my", opset_import: ["" : 17]> block ({call}) => (r) {{ {inside} c = Conv (x, W)  r = {BN} }}"""
    model = onnx.parser.parse_model(body)
    if not parameters_inside:
        for name, array in {"W": normal(4, 3, 1, 1), **parameters(4)}.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def test_folds_inside_a_function_that_has_its_own_constants() -> None:
    model = function_model(parameters_inside=True)
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["block", "block", "Mul"]
    assert count(fused, "BatchNormalization") == 0
    assert report.notes == ()
    assert_same(model, fused)


def test_inlines_a_function_whose_constants_come_from_the_caller() -> None:
    model = function_model(parameters_inside=False)
    fused, report = fuse(model)
    assert [node.op_type for node in fused.graph] == ["Conv", "Conv", "Mul"]
    assert report.notes[0] == "inlined functions whose norms take their parameters from the caller: my::block"
    assert_same(model, fused)


def test_initializers_that_callers_may_override() -> None:
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays, as_inputs=True)
    _, report = fuse(model)
    assert not report.rewrites
    assert "--freeze-inputs" in reasons(report)[0]
    frozen, report = fuse(model, freeze_inputs=True)
    assert [value.name for value in frozen.graph.inputs] == ["x"]
    assert count(frozen, "BatchNormalization") == 0
    assert_same(model, frozen)


def test_below_ir_4_listed_initializers_are_constants() -> None:
    arrays = {"W": normal(4, 3, 1, 1), **parameters(4)}
    model = build(graph(f"c = Conv (x, W)  y = {BN}"), arrays, opset=8, ir_version=3, as_inputs=True)
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert fused.ir_version == 4
    assert [value.name for value in fused.graph.inputs] == ["x"]
    assert set(fused.graph.initializers) == {"W_folded", "Conv.bias"}
    assert any("IR version 3 → 4" in note for note in report.notes)
    assert_same(model, fused)


def test_folds_inside_loop_bodies() -> None:
    text = """g (float[2,3,6,6] x) => (float[2,3,6,6] y, float[4,2,3,6,6] scan) {
        n = Constant <value_int = 4> ()  t = Constant <value = bool {1}> ()
        y, scan = Loop (n, t, x) <body = b (int64 i, bool go, float[2,3,6,6] state)
            => (bool on, float[2,3,6,6] next, float[2,3,6,6] out) {
            on = Identity (go)  c = Conv (state, W)  k = BatchNormalization (c, s, b, m, v)
            next = Tanh (k)  out = Neg (next) }> }"""
    model = build(text, {"W": normal(3, 3, 1, 1), **parameters(3)})
    fused, report = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:k"]
    assert_same(model, fused)


def test_folds_inside_scan_bodies() -> None:
    text = """g (float[2,3,6,6] x, float[5,2,3,6,6] steps) => (float[2,3,6,6] y, float[5,2,3,6,6] all) {
        y, all = Scan <num_scan_inputs = 1, body = b (float[2,3,6,6] state, float[2,3,6,6] step)
            => (float[2,3,6,6] next, float[2,3,6,6] out) {
            c = Conv (step, W)  k = BatchNormalization (c, s, b, m, v)  a = Add (k, state)
            next = Tanh (a)  out = Identity (next) }> (x, steps) }"""
    model = build(text, {"W": normal(3, 3, 1, 1), **parameters(3)})
    fused, _ = fuse(model)
    assert count(fused, "BatchNormalization") == 0
    assert_same(model, fused)
