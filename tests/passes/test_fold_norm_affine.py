"""Folding scale and bias of norms into what reads them: all readers at once, or none, with the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normfuse
from normfuse import Form, Target
from tests.folding import PLAIN, Array, assert_same, build, count, fuse, normal, parameters

G, BETA = (parameters(6, seed=3)[name] for name in "sb")
LN = "n = LayerNormalization (x, g, b)"
STAY = "its scale and bias stay: "


def graph(body: str, x: str = "float[2,5,6]", y: str = "float[2,5,4]") -> str:
    """Return the text of a graph from x to y."""
    return f"g ({x} x) => ({y} y) {{ {body} }}"


def used(body: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return those of ``arrays`` that ``body`` names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in arrays.items() if name in words}


ARRAYS = {
    "g": G, "b": BETA, "W": normal(6, 4), "B": normal(4, seed=2), "V": normal(6, 4, seed=5), "T": normal(4, 6, seed=6),
    "C": normal(4, 6, 1, 1, seed=7), "D": normal(4, 3, 1, 1, seed=8), "K": normal(4, 6, 3, 3, seed=9),
    "gc": G.reshape(6, 1, 1), "bc": BETA.reshape(6, 1, 1), "e": np.asarray(1e-5, np.float32),
    "two": np.asarray(2.0, np.float32), "one": np.ones(6, np.float32), "zero": np.zeros(6, np.float32),
    "gs": np.ones(2, np.float32), "bs": np.zeros(2, np.float32), "s1": np.array([0, 2, -1]), "s2": np.array([2, 6, 5, 4]),
}  # fmt: skip
IMAGE = {"x": "float[2,6,5,4]", "y": "float[2,4,h,w]"}
MATRIX = {"x": "float[5,6]", "y": "float[5,4]"}
RESHAPED = (
    "r = Reshape (x, s1)  i = InstanceNormalization (r, gs, bs)  k = Reshape (i, s2)  m = Mul (k, gc)  n = Add (m, bc)"
)
RMS = "q = Pow (x, two)  v = ReduceMean <axes = [-1]> (q)  w = Add (v, e)  r = Sqrt (w)  d = Div (x, r)  n = Mul (d, g)"
FIRES = [
    ("LayerNorm, MatMul and Add", f"{LN}  p = MatMul (n, W)  y = Add (p, B)", {}, ["LayerNormalization", "MatMul", "Add"]),
    ("bias on the left", f"{LN}  p = MatMul (n, W)  y = Add (B, p)", {}, ["LayerNormalization", "MatMul", "Add"]),
    ("no bias", "n = LayerNormalization (x, g)  y = MatMul (n, W)", {}, ["LayerNormalization", "MatMul"]),
    ("matrix", f"{LN}  y = MatMul (n, W)", MATRIX, ["LayerNormalization", "Gemm"]),
    ("Gemm", f"{LN}  y = Gemm <alpha = 0.5, beta = 2.0> (n, W, B)", MATRIX, ["LayerNormalization", "Gemm"]),
    ("Gemm, transposed", f"{LN}  y = Gemm <transB = 1> (n, T)", MATRIX, ["LayerNormalization", "Gemm"]),
    ("Gemm, bias kept", "n = LayerNormalization (x, g)  y = Gemm <beta = 2.0> (n, W, B)", MATRIX, ["LayerNormalization", "Gemm"]),
    ("two readers", f"{LN}  p = MatMul (n, W)  q = Add (p, B)  o = MatMul (n, V)  k = Add (o, B)  y = Mul (q, k)", {},
     ["LayerNormalization", "MatMul", "Add", "MatMul", "Add", "Mul"]),
    ("decomposed RMSNorm", f"{RMS}  y = MatMul (n, W)", {}, ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "MatMul"]),
    ("GroupNorm with Reshape, 1×1 Conv", f"{RESHAPED}  y = Conv (n, C)", IMAGE,
     ["Reshape", "InstanceNormalization", "Shape", "Reshape", "Conv"]),
    ("grouped Conv", f"{RESHAPED}  y = Conv <group = 2, strides = [2,2]> (n, D, B)", IMAGE,
     ["Reshape", "InstanceNormalization", "Shape", "Reshape", "Conv"]),
    ("unpadded kernel", f"{RESHAPED}  y = Conv (n, K)", IMAGE, ["Reshape", "InstanceNormalization", "Shape", "Reshape", "Conv"]),
    ("padding under a scale", "n = InstanceNormalization (x, g, zero)  y = Conv <pads = [1,1,1,1]> (n, K)", IMAGE,
     ["InstanceNormalization", "Conv"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "types", "left"), [case[1:] for case in FIRES], ids=[case[0] for case in FIRES])
def test_folds_into_what_reads_it(body: str, types: dict[str, str], left: list[str]) -> None:
    model = build(graph(body, **types), used(body, ARRAYS))
    fused, report = fuse(model, fold_norm_affine=True)
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-norm-affine"]
    assert [node.op_type for node in fused.graph if node.op_type != "Constant"] == left
    assert report.norms[0].plan.startswith("fold into ")
    assert_same(model, fused)
    again, nothing = normfuse.fuse(fused, PLAIN, fold_norm_affine=True)
    assert not nothing.rewrites
    assert ir.to_proto(again).SerializeToString(deterministic=True) == ir.to_proto(fused).SerializeToString(
        deterministic=True
    )


def test_is_off_by_default() -> None:
    body = f"{LN}  p = MatMul (n, W)  y = Add (p, B)"
    _, report = fuse(build(graph(body), used(body, ARRAYS)))
    assert not report.rewrites
    assert not report.declined


def test_the_scale_is_in_the_weight_and_the_bias_behind_it() -> None:
    body = f"{LN}  p = MatMul (n, W)  y = Add (p, B)"
    fused, _ = fuse(build(graph(body), used(body, ARRAYS)), fold_norm_affine=True)
    norm, product, total = fused.graph
    arrays = [node.inputs[1].const_value.numpy() for node in (norm, product, total)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(arrays[0], np.ones(6, np.float32))
    assert len(norm.inputs) == 2
    weight = ARRAYS["W"].astype(np.float64)
    np.testing.assert_array_equal(arrays[1], (G.astype(np.float64)[:, None] * weight).astype(np.float32))
    np.testing.assert_array_equal(arrays[2], (BETA.astype(np.float64) @ weight + ARRAYS["B"]).astype(np.float32))


@pytest.mark.parametrize("form", list(Form))
def test_in_every_form(form: Form) -> None:
    body = f"{RESHAPED}  y = Conv (n, C)"
    model = build(graph(body, **IMAGE), used(body, ARRAYS), opset=21, ir_version=10)
    fused, report = fuse(model, target=Target(form, native=False), fold_norm_affine=True)
    assert "fold-norm-affine" in {rewrite.kind for rewrite in report.rewrites}
    assert_same(model, fused)
    assert not normfuse.fuse(fused, Target(form, native=False), fold_norm_affine=True)[1].rewrites


RESIDUAL = "p = MatMul (n, S)  y = Add (n, p)"
DECLINES = [
    ("a residual", f"{LN}  {RESIDUAL}", {"y": "float[2,5,6]"},
     "Add 'Add → y', which reads it, is not linear along axis 2 of 3"),
    ("no bias to take it", f"{LN}  y = MatMul (n, W)", {}, "MatMul 'MatMul → y' has no bias that could take the norm's"),
    ("padding under a bias", f"{RESHAPED}  y = Conv <pads = [1,1,1,1]> (n, K)", IMAGE,
     "Conv 'Conv → y' pads its input: at the border the bias would be missing"),
    ("another axis", "n = LayerNormalization <axis = 2> (x, gw)  y = Conv (n, K1)", {"x": "float[2,6,6]", "y": "float[2,4,6]"},
     "Conv 'Conv → y', which reads it, is not linear along axis 2 of 3"),
    ("channels that are not contracted", "n = InstanceNormalization (x, g, b)  y = MatMul (n, W)",
     {"x": "float[2,6,6]", "y": "float[2,6,4]"}, "MatMul 'MatMul → y', which reads it, is not linear along axis 1 of 3"),
    ("several axes", "n = LayerNormalization <axis = 1> (x, G2)  y = MatMul (n, W)", {}, "they vary along several axes"),
    ("tied weight", f"{LN}  p = MatMul (n, W)  q = Add (p, B)  k = MatMul (x, W)  y = Mul (q, k)", {},
     "the weight 'W' of MatMul 'MatMul → p' is also read by 'MatMul → k'"),
    ("tied through Transpose", f"{LN}  t = Transpose (T)  p = MatMul (n, t)  q = Add (p, B)  t2 = Transpose (T)  k = MatMul (x, t2)  y = Mul (q, k)",
     {}, "the weight 't' of MatMul 'MatMul → p' is also read by 'Transpose → t2'"),
    ("from the left", f"{LN}  y = MatMul (L, n)", {"y": "float[2,4,6]"},
     "MatMul 'MatMul → y', which reads it, is not linear along axis 2 of 3"),
    ("transposed Gemm", f"{LN}  y = Gemm <transA = 1> (n, M)", {"x": "float[6,6]", "y": "float[6,4]"},
     "Gemm 'Gemm → y', which reads it, is not linear along axis 1 of 2"),
    ("a computed weight", f"{LN}  w = Relu (x)  y = MatMul (n, w)", {"x": "float[6,6]", "y": "float[6,6]"},
     "the weight 'w' of MatMul 'MatMul → y' is computed by Relu 'w'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "types", "reason"), [case[1:] for case in DECLINES], ids=[case[0] for case in DECLINES]
)
def test_is_left_alone_with_the_reason(body: str, types: dict[str, str], reason: str) -> None:
    more = {
        "S": normal(6, 6), "L": normal(4, 5), "M": normal(6, 4), "K1": normal(4, 6, 1), "G2": normal(5, 6),
        "gw": G,
    }  # fmt: skip
    model = build(graph(body, **types), used(body, {**ARRAYS, **more}))
    fused, report = fuse(model, fold_norm_affine=True)
    assert "fold-norm-affine" not in {rewrite.kind for rewrite in report.rewrites}
    if report.rewrites:  # a norm that is written anew has a plan, and the reason is a note
        assert any(note.endswith(STAY + reason) for note in report.notes)
    else:
        assert [entry.reason for entry in report.declined] == [STAY + reason]
    assert [node.op_type for node in fused.graph] == [node.op_type for node in fuse(model)[0].graph]


def test_a_graph_output_and_a_subgraph_stop_it() -> None:
    body = f"{LN}  y = MatMul (n, W)"
    text = f"g (float[2,5,6] x) => (float[2,5,4] y, float[2,5,6] n) {{ {body} }}"
    _, report = fuse(build(text, used(body, ARRAYS)), fold_norm_affine=True)
    assert [entry.reason for entry in report.declined] == [STAY + "its result is a graph output"]
    inside = f"""g (float[2,5,6] x, bool k) => (float[2,5,4] y) {{ {LN}
        y = If (k) <then_branch = t () => (float[2,5,4] z) {{ p = MatMul (n, W)  z = Add (p, B) }},
                    else_branch = f () => (float[2,5,4] w) {{ w = MatMul (n, V) }}> }}"""
    _, report = fuse(build(inside, {name: ARRAYS[name] for name in ("g", "b", "W", "V", "B")}), fold_norm_affine=True)
    assert [entry.reason for entry in report.declined] == [STAY + "MatMul 'MatMul → p' of a subgraph reads it"]


def test_an_activation_of_the_norm_stops_it() -> None:
    body = f"{RESHAPED}  s = Sigmoid (n)  a = Mul (n, s)  y = Conv (a, C)"
    custom, _ = fuse(build(graph(body, **IMAGE), used(body, ARRAYS)), target=Target(Form.CUSTOM))
    assert [node.op_type for node in custom.graph] == ["GroupNormSilu", "Conv"]
    _, report = normfuse.fuse(custom, Target(Form.CUSTOM), fold_norm_affine=True)
    assert [entry.reason for entry in report.declined] == [STAY + "an activation belongs to it"]


def test_a_scale_beyond_float16_stays() -> None:
    body = "n = LayerNormalization (x, g)  y = MatMul (n, W)"
    arrays = {"g": np.full(6, 1000.0, np.float16), "W": np.full((6, 4), 100.0, np.float16)}
    _, report = fuse(build(graph(body, "float16[2,5,6]", "float16[2,5,4]"), arrays), fold_norm_affine=True)
    assert [entry.reason for entry in report.declined] == [
        STAY + "the folded weight overflows float16 in channel 0: largest weight 100 times scale 1e+03"
    ]


def test_ids_are_replayed_and_skip_is_respected() -> None:
    body = f"{LN}  p = MatMul (n, W)  y = Add (p, B)"
    model = build(graph(body), used(body, ARRAYS))
    _, report = fuse(model, fold_norm_affine=True)
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-norm-affine:n"]
    assert "1 fold of scale and bias" in report.table()
    _, replay = fuse(model, fold_norm_affine=True, only=["fold-norm-affine:n"])
    assert [rewrite.id for rewrite in replay.rewrites] == ["fold-norm-affine:n"]
    model.graph.node[1].name = "mine"
    fused, report = fuse(model, fold_norm_affine=True, skip="mine")
    assert not report.rewrites
    assert count(fused, "LayerNormalization") == 1


def test_two_norms_in_a_row_each_fold() -> None:
    """The second norm takes in the Add that holds the bias of the first one's reader, and reads what the fold left."""
    body = f"""{LN}  p = MatMul (n, S)  q = Add (p, b)  r = Add (q, x)  k = LayerNormalization (r, g, b)
               o = MatMul (k, W)  y = Add (o, B)"""
    model = build(graph(body), used(body, {**ARRAYS, "S": normal(6, 6)}))
    fused, report = fuse(model, fold_norm_affine=True)
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-norm-affine:n", "fold-norm-affine:k"]
    assert_same(model, fused)


@given(st.sampled_from(["LayerNormalization", "RMS"]), st.booleans(), st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_random_readers_mean_the_same(norm: str, bias: bool, count_: int, seed: int) -> None:
    """One to three readers of random kinds: all fold, or the norm keeps its scale and bias."""
    random = np.random.default_rng(seed)
    head = (LN if bias else "n = LayerNormalization (x, g)") if norm == "LayerNormalization" else RMS
    lines, arrays = [head], dict(ARRAYS)
    foldable = True
    for index in range(count_):
        kind = ("matmul", "biased", "biased", "residual")[random.integers(4 if index else 3)]
        arrays[f"R{index}"] = normal(6, 6, seed=seed + index)
        lines.append(f"t{index} = MatMul (n, R{index})")
        if kind == "matmul":
            foldable &= norm == "RMS" or not bias
            lines.append(f"o{index} = Relu (t{index})")
        elif kind == "biased":
            lines.append(f"o{index} = Add ({', '.join(random.permutation([f't{index}', 'b']))})")
        else:
            foldable = False
            lines.append(f"o{index} = Add (t{index}, n)")
    lines.append(f"y = Sum ({', '.join(f'o{index}' for index in range(count_))})")
    body = "  ".join(lines)
    model = build(graph(body, y="float[2,5,6]"), used(body, arrays))
    fused, report = fuse(model, fold_norm_affine=True)
    assert ("fold-norm-affine" in {rewrite.kind for rewrite in report.rewrites}) == foldable
    assert_same(model, fused)
