"""Norms written in primitive operators: every spelling is the same norm, and what only looks like one is refused."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Form, Target, Verdict
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.spec import AffineAxes, AffineLayout, NormSpec, Trailing, canonical
from tests.folding import Array, assert_same, build, normal
from tests.graphs import reading_of

EPSILON = float(np.float32(1e-3))
SHAPE = "float[2,3,8]"


def found(model: onnx.ModelProto) -> list[NormSite | Declined]:
    """Return what is found in the main graph."""
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    return list(find_norms(inferred.graph, reading_of(inferred)))


def model_of(body: str, *, opset: int, y: str = SHAPE) -> onnx.ModelProto:
    """Return the model of ``body`` with the constants that it names."""
    constants: dict[str, Array] = {
        "g": normal(8, seed=2), "b": normal(8, seed=3), "e": np.array([1e-3], np.float32), "e0": np.array(1e-3, np.float32),
        "two": np.array(2, np.float32), "half": np.array(0.5, np.float32), "mhalf": np.array(-0.5, np.float32),
        "one": np.array(1, np.float32), "n": np.array(8, np.float32), "last": np.array([-1]), "pos": np.array([2]),
        "four": np.array(4, np.float32), "seven": np.array(7, np.float32), "first": np.array([1]),
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if any(f"{sign}{name}{end}" in body for sign in "( " for end in ",)")}  # fmt: skip
    return build(f"g ({SHAPE} x) => ({y} y) {{ {body} }}", used, opset=opset)


def mean(result: str, x: str, opset: int, axis: str) -> str:
    """Spell a mean over the last axis as the opset wants it."""
    if opset >= 18:
        return f"{result} = ReduceMean ({x}, {axis})"
    return f"{result} = ReduceMean <axes = [{-1 if axis == 'last' else 2}]> ({x})"


SQUARES = ("q = Pow (d, two)", "q = Mul (d, d)")
ROOTS = (
    "r = Sqrt (w)  h = Div (d, r)",
    "r = Sqrt (w)  i = Reciprocal (r)  h = Mul (i, d)",
    "r = Sqrt (w)  i = Div (one, r)  h = Mul (d, i)",
    "i = Pow (w, mhalf)  h = Mul (d, i)",
    "r = Pow (w, half)  h = Div (d, r)",
)
EPSILONS = ("w = Add (v, e)", "w = Add (e0, v)")
AFFINES = ("s = Mul (h, g)  y = Add (s, b)", "s = Mul (g, h)  y = Add (b, s)")
CENTRES = ("d = Sub (x, m)", "k = Neg (m)  d = Add (x, k)")
CHOICES = list(itertools.product((11, 17, 18), ("last", "pos"), CENTRES, SQUARES, EPSILONS, ROOTS, AFFINES))


def test_every_spelling_of_layer_norm_is_one_norm() -> None:
    both = AffineLayout(True, True, AffineAxes.NORMALISED)
    expected = canonical(NormSpec(Trailing((-1,)), EPSILON, affine=both))
    for opset, axis, centre, square, epsilon, root, affine in CHOICES:
        body = (
            f"{mean('m', 'x', opset, axis)} {centre} {square} {mean('v', 'q', opset, axis)} {epsilon} {root} {affine}"
        )
        sites = found(model_of(body, opset=opset))
        assert len(sites) == 1, body
        assert isinstance(sites[0], NormSite), (body, sites[0])
        assert canonical(sites[0].spec) == expected, body


def test_every_spelling_of_rms_norm_is_one_norm() -> None:
    expected = canonical(NormSpec(Trailing((-1,)), EPSILON, False, AffineLayout(True, False, AffineAxes.NORMALISED)))
    for opset, axis, square, epsilon, root in itertools.product((13, 18), ("last", "pos"), SQUARES, EPSILONS, ROOTS):
        for scale in ("y = Mul (h, g)", "y = Mul (g, h)"):
            body = f"{square} {mean('v', 'q', opset, axis)} {epsilon} {root} {scale}".replace(" (d", " (x")
            body = body.replace(", d)", ", x)")
            sites = found(model_of(body, opset=opset))
            assert len(sites) == 1, body
            assert isinstance(sites[0], NormSite), (body, sites[0])
            assert canonical(sites[0].spec) == expected, body


@pytest.mark.parametrize("form", [Form.AUTO, Form.STANDARD, Form.PRIMITIVE, Form.CUSTOM])
@pytest.mark.parametrize("choice", CHOICES[7::97], ids=str)
def test_written_anew_it_means_the_same(choice: tuple[int, str, str, str, str, str, str], form: Form) -> None:
    opset, axis, centre, square, epsilon, root, affine = choice
    body = f"{mean('m', 'x', opset, axis)} {centre} {square} {mean('v', 'q', opset, axis)} {epsilon} {root} {affine}"
    model = model_of(body, opset=opset)
    fused, _ = normfuse.fuse(model, Target(form))
    assert normfuse.validate(model, fused, providers=()).verdict is Verdict.EQUIVALENT
    again, report = normfuse.fuse(fused, Target(form))
    assert not report.rewrites
    assert ir.to_proto(again).SerializeToString(deterministic=True) == ir.to_proto(fused).SerializeToString(
        deterministic=True
    )


CORE = "m = ReduceMean (x, last)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, last)  w = Add (v, e0)"

VARIANTS = [
    ("no affine", f"{CORE} r = Sqrt (w)  y = Div (d, r)", AffineLayout()),
    ("bias only", f"{CORE} r = Sqrt (w)  h = Div (d, r)  y = Add (h, b)", AffineLayout(False, True, AffineAxes.NORMALISED)),
    ("reversed subtraction", "m = ReduceMean (x, last)  d = Sub (m, x)  q = Mul (d, d)  v = ReduceMean (q, last)  w = Add (v, e0) "
     "r = Sqrt (w)  h = Div (d, r)  s = Mul (h, g)  y = Sub (b, s)", AffineLayout(True, True, AffineAxes.NORMALISED)),
    ("batch form", f"{CORE} r = Sqrt (w)  i = Reciprocal (r)  a = Mul (i, g)  p = Mul (x, a)  c = Mul (m, a)  t = Sub (b, c)  y = Add (p, t)",
     AffineLayout(True, True, AffineAxes.NORMALISED)),
    ("repeated subtraction", "m = ReduceMean (x, last)  d = Sub (x, m)  f = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, last) "
     "w = Add (v, e0)  r = Sqrt (w)  y = Div (f, r)", AffineLayout()),
    ("sums", "t = ReduceSum (x, last)  m = Div (t, n)  d = Sub (x, m)  u = ReduceSumSquare (d, last)  v = Div (u, n) "
     "w = Add (v, e0)  r = Sqrt (w)  y = Div (d, r)", AffineLayout()),
    ("dynamic affine stays outside", f"{CORE} r = Sqrt (w)  h = Div (d, r)  a = Abs (x)  y = Mul (h, a)", AffineLayout()),
]  # fmt: skip


@pytest.mark.parametrize(("body", "affine"), [case[1:] for case in VARIANTS], ids=[case[0] for case in VARIANTS])
def test_variants(body: str, affine: AffineLayout) -> None:
    model = model_of(body, opset=18)
    (site,) = found(model)
    assert isinstance(site, NormSite), site
    assert canonical(site.spec) == canonical(NormSpec(Trailing((-1,)), EPSILON, affine=affine))
    fused, _ = normfuse.fuse(model, Target(Form.STANDARD))
    assert_same(model, fused)


NEAR_MISSES = [
    ("exponent 4", CORE.replace("q = Mul (d, d)", "q = Pow (d, four)") + " r = Sqrt (w)  y = Div (d, r)"),
    ("epsilon outside the root", "m = ReduceMean (x, last)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, last) "
     "r = Sqrt (v)  w = Add (r, e0)  y = Div (d, w)"),
    ("unbiased variance", "m = ReduceMean (x, last)  d = Sub (x, m)  u = ReduceSumSquare (d, last)  v = Div (u, seven) "
     "w = Add (v, e0)  r = Sqrt (w)  y = Div (d, r)"),
    ("axes that differ", CORE.replace("v = ReduceMean (q, last)", "v = ReduceMean (q, first)") + " r = Sqrt (w)  y = Div (d, r)"),
    ("another mean", "m = ReduceMean (x, first)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, last)  w = Add (v, e0) "
     "r = Sqrt (w)  y = Div (d, r)"),
    ("E[x²] − E[x]²", "m = ReduceMean (x, last)  s = Mul (x, x)  t = ReduceMean (s, last)  u = Mul (m, m)  v = Sub (t, u) "
     "w = Add (v, e0)  r = Sqrt (w)  d = Sub (x, m)  y = Div (d, r)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [case[1] for case in NEAR_MISSES], ids=[case[0] for case in NEAR_MISSES])
def test_near_misses_are_left_alone_with_a_reason(body: str) -> None:
    model = model_of(body, opset=18)
    results = found(model)
    assert results, "a reason is owed"
    for result in results:
        # Of two norms that share parts, one may be real: what is lifted must still mean the same.
        if isinstance(result, NormSite):
            assert not isinstance(result.spec.statistics, Trailing) or result.spec.statistics.axes != (-1,)
    assert any(isinstance(result, Declined) and result.reason for result in results)
    for form in (Form.STANDARD, Form.PRIMITIVE):
        fused, _ = normfuse.fuse(model, Target(form))
        assert_same(model, fused)


def test_keepdims_0_along_another_axis_is_no_norm() -> None:
    """On a square input the means line up with the wrong axis and nothing complains."""
    text = """g (float[6,6] x) => (float[6,6] y) { m = ReduceMean <axes = [-1], keepdims = 0> (x)  d = Sub (x, m)
        q = Mul (d, d)  v = ReduceMean <axes = [-1], keepdims = 0> (q)  w = Add (v, e0)  r = Sqrt (w)  y = Div (d, r) }"""
    model = build(text, {"e0": np.array(1e-3, np.float32)}, opset=13)
    assert not [result for result in found(model) if isinstance(result, NormSite)]
    fused, report = normfuse.fuse(model, Target(Form.STANDARD))
    assert not report.rewrites
    assert_same(model, fused)


@pytest.mark.parametrize("value", ["m", "v", "d", "h"])
def test_an_inner_value_that_something_reads_stops_the_lift_of_what_it_needs(value: str) -> None:
    """The value stays readable: whatever is written anew, the extra output keeps its numbers."""
    text = f"g ({SHAPE} x) => ({SHAPE} y, float[p,o,k] {value}) {{ {CORE} r = Sqrt (w)  h = Div (d, r)  s = Mul (h, g)  y = Add (s, b) }}"
    model = build(text, {"g": normal(8, seed=2), "b": normal(8, seed=3), "e0": np.array(1e-3, np.float32), "last": np.array([-1])}, opset=18)  # fmt: skip
    for form in (Form.STANDARD, Form.PRIMITIVE, Form.CUSTOM):
        fused, _ = normfuse.fuse(model, Target(form))
        assert_same(model, fused)


def test_affine_that_widens_the_result_stays_outside() -> None:
    text = f"g (float[2,5,1] x) => (float[2,5,8] y) {{ {CORE} r = Sqrt (w)  h = Div (d, r)  s = Mul (h, g)  y = Add (s, b) }}"
    arrays = {"g": normal(8, seed=2), "b": normal(8, seed=3), "e0": np.array(1e-3, np.float32), "last": np.array([-1])}
    model = build(text, arrays, opset=18)
    fused, _ = normfuse.fuse(model, Target(Form.STANDARD))
    assert_same(model, fused)
    assert [node.op_type for node in fused.graph][-2:] == ["Mul", "Add"]
