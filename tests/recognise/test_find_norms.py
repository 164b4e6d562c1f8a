"""Which recogniser has a node: norms as operators, in primitive operators, as arithmetic on constants, side by side."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Form, Target
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.spec import AffineAxes, AffineLayout, Batch, NormSpec, PerChannel, PerGroup, Stored, Trailing, kind
from tests.graphs import model_of, reading_of

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
ROWS = "<float[4] w = {1,2,3,4}, float[4] b = {4,3,2,1}, float[1,4,1,1] W = {1,2,3,4}, float[1,4,1,1] B = {4,3,2,1}, float e = {0.001}, int64[3] s = {0,4,-1}>"
IMAGE = f"g (float[2,4,3,3] x) => (float[2,4,3,3] y) {ROWS}"


def outcomes(body: str, *, head: str = IMAGE, lift_flagged: bool = False) -> list[tuple[str, str] | str]:
    """Return (kind, operators) of each norm, or the reason."""
    model = model_of(f"{HEAD}{head} {{ {body} }}")
    return [
        (kind(each.spec), each.spelling) if isinstance(each, NormSite) else each.reason
        for each in find_norms(model.graph, reading_of(model, lift_flagged=lift_flagged))
    ]


DEVIATION = "m = ReduceMean <axes = [2, 3]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [2, 3]> (q)"
CANCELS = "its variance is E[x²] − E[x]², which cancels at large means (--lift-flagged lifts it)"
FAST = """m = ReduceMean <axes = [2, 3]> (x)  q = Mul (x, x)  t = ReduceMean <axes = [2, 3]> (q)  u = Mul (m, m)
    v = Sub (t, u)  a = Add (v, e)  r = Sqrt (a)  d = Sub (x, m)  y = Div (d, r)"""
SIDE_BY_SIDE = [
    ("arithmetic alone is a batch norm", "a = Mul (x, W)  y = Add (a, B)", [("batch", "Mul·Add")]),
    (
        "the affine of a batch norm is no second one",
        "n = BatchNormalization (x, w, b, b, w)  a = Mul (n, W)  y = Add (a, B)",
        [("batch", "BatchNormalization-15")],
    ),
    (
        "nor is that of a near miss",
        f"{DEVIATION}  r = Sqrt (v)  a = Add (r, e)  n = Div (d, a)  c = Mul (n, W)  y = Add (c, B)",
        ["its epsilon is added to the deviation, outside the root"],
    ),
    (
        "nor that of a near miss which was moved",
        f"{DEVIATION}  r = Sqrt (v)  a = Add (r, e)  n = Div (d, a)  t = Transpose <perm = [0, 1, 3, 2]> (n)  "
        "c = Mul (t, W)  y = Add (c, B)",
        ["its epsilon is added to the deviation, outside the root"],
    ),
    (
        "a decomposed norm and arithmetic behind a ReLU",
        f"{DEVIATION}  a = Add (v, e)  r = Sqrt (a)  n = Div (d, r)  k = Relu (n)  c = Mul (k, W)  y = Add (c, B)",
        [("instance", "ReduceMean·Sub·Mul·ReduceMean·Add·Sqrt·Div"), ("batch", "Mul·Add")],
    ),
    ("a difference of means is flagged", FAST, [CANCELS]),
    (
        "a floor is no epsilon",
        f"{DEVIATION}  a = Max (v, e)  r = Sqrt (a)  y = Div (d, r)",
        ["its variance is held above 0.001, and no epsilon is added to it"],
    ),
]


@pytest.mark.parametrize(("name", "body", "expected"), SIDE_BY_SIDE, ids=[case[0] for case in SIDE_BY_SIDE])
def test_each_norm_is_found_once(name: str, body: str, expected: list[tuple[str, str] | str]) -> None:
    assert outcomes(body) == expected, name


def test_flagged_spellings_are_lifted_when_asked_and_said() -> None:
    assert outcomes(FAST, lift_flagged=True) == [("instance", "ReduceMean·Mul·ReduceMean·Mul·Sub·Add·Sqrt·Sub·Div")]
    model = onnx.parser.parse_model(f"{HEAD}{IMAGE} {{ {FAST} }}")
    fused, report = normfuse.fuse(model, Target(Form.STANDARD), lift_flagged=True, validate=True)
    assert [node.op_type for node in fused.graph] == ["InstanceNormalization"]
    assert (
        "'Div → y' counts as a norm, as asked, although its variance is E[x²] − E[x]², which cancels at large means"
        in report.notes
    )
    assert report.validation is not None
    assert report.validation.verdict is normfuse.Verdict.EQUIVALENT


def test_integers_are_no_norm() -> None:
    head = "g (int64[2,4,3,3] x) => (int64[2,4,3,3] y) <int64[4,1,1] w = {1,2,3,4}, int64[4,1,1] b = {4,3,2,1}>"
    assert outcomes("a = Mul (x, w)  y = Add (a, b)", head=head) == []


def test_arithmetic_stays_arithmetic_in_every_form() -> None:
    """Sub, Mul is exact where a mean is a thousand deviations from zero; one BatchNormalization would not be."""
    model = onnx.parser.parse_model(f"{HEAD}{IMAGE} {{ a = Sub (x, W)  y = Mul (a, B) }}")
    for form in Form:
        _, report = normfuse.fuse(model, Target(form))
        assert [record.norm for record in report.norms] == ["batch"]
        assert report.rewrites == (), form


PARTS = [
    ("LayerNormalization of a view", "v = Reshape (x, s)  n = LayerNormalization (v, o)  t = Shape (x)  y = Reshape (n, t)",
     "g (float[2,4,3,3] x) => (float[2,4,3,3] y) <float[9] o = {1,1,1,1,1,1,1,1,1}, int64[3] s = {0,4,-1}>", PerChannel()),
    ("InstanceNormalization along the last axis", "n = InstanceNormalization (x, o, z)  y = Mul (n, w)",
     "g (float[2,3,4] x) => (float[2,3,4] y) <float[3] o = {1,1,1}, float[3] z = {0,0,0}, float[4] w = {1,2,3,4}>", Trailing((-1,))),
]  # fmt: skip


@pytest.mark.parametrize(("body", "head", "statistics"), [case[1:] for case in PARTS], ids=[case[0] for case in PARTS])
def test_what_stands_around_an_operator_belongs_to_its_norm(body: str, head: str, statistics: object) -> None:
    model = model_of(f"{HEAD}{head} {{ {body} }}")
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec.statistics == statistics
    assert site.output.name == "y"
    assert set(site.interior) == set(model.graph) - {node for node in model.graph if node.op_type == "Shape"}


def test_a_file_without_value_info_reads_like_one_with_it() -> None:
    """Whether γ fits exactly is known only from the shape behind the Reshape."""
    text = f"""{HEAD}g (float[2,6,5,4] x) => (float[2,6,5,4] y) <int64[5] s = {{2,6,5,2,2}}, int64[4] t = {{2,6,5,4}},
        float[1,1,1,2,2] w = {{1,2,3,4}}, float e = {{0.001}}> {{
        v = Reshape (x, s)  m = ReduceMean <axes = [1, 2, 4]> (v)  d = Sub (v, m)  q = Mul (d, d)
        k = ReduceMean <axes = [1, 2, 4]> (q)  a = Add (k, e)  r = Sqrt (a)  h = Div (w, r)  n = Mul (d, h)  y = Reshape (n, t) }}"""
    (record,) = normfuse.inspect(onnx.parser.parse_model(text)).norms
    assert record.norm == "group"


def test_batch_statistics_are_those_of_the_batch() -> None:
    body = f"{DEVIATION.replace('[2, 3]', '[0, 2, 3]')}  a = Add (v, e)  r = Sqrt (a)  y = Div (d, r)"
    model = model_of(f"{HEAD}{IMAGE} {{ {body} }}")
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec.statistics == Batch()


def test_a_declined_norm_is_not_found_again_as_another() -> None:
    model = model_of(f"{HEAD}{IMAGE} {{ y = MeanVarianceNormalization <axes = [2, 3]> (x) }}")
    (declined,) = find_norms(model.graph, reading_of(model))
    assert isinstance(declined, Declined)
    (site,) = find_norms(model.graph, reading_of(model, lift_flagged=True))
    assert isinstance(site, NormSite)
    assert not isinstance(site.spec.statistics, Stored)
    assert np.isclose(site.spec.epsilon, 1e-18)


KERAS = """t = Reshape (x, s)  m = ReduceMean <axes = [0, 2, 3]> (t)  k = Squeeze <axes = [0, 2, 3]> (m)  d = Sub (t, m)
    q = ReduceSumSquare <axes = [0, 2, 3], keepdims = 0> (d)  h = Shape (t)  c = Gather (h, a)
    p = ReduceProd <keepdims = 0> (c)  f = Cast <to = 1> (p)  v = Div (q, f)
    n = BatchNormalization <epsilon = 0.001> (t, o, z, k, v)  r = Reshape (n, u)  e = Mul (r, w)  y = Add (e, w)"""


def keras(view: str = "{1,10,4,1}", ones: str = "{1,1,1,1,1,1,1,1,1,1}", body: str = KERAS) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": 11]> g (float[2,5,4] x) => (float[2,5,4] y) <int64[4] s = {view},
        int64[3] u = {{2,5,4}}, int64[3] a = {{0,2,3}}, float[10] o = {ones},
        float[10] z = {{0,0,0,0,0,0,0,0,0,0}}, float[4] w = {{1,2,3,4}}> {{ {body} }}"""
    return model_of(text)


def test_a_layer_norm_by_the_kernel_of_a_batch_norm() -> None:
    model = keras()
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(
        Trailing((-1,)), float(np.float32(1e-3)), affine=AffineLayout(True, True, AffineAxes.NORMALISED)
    )
    assert site.output.name == "y"
    assert set(site.interior) == set(model.graph)
    for form in (Form.PRIMITIVE, Form.ORT):
        _, report = normfuse.fuse(model, Target(form), validate=True)
        assert report.rewrites
        assert report.validation is not None
        assert report.validation.verdict is normfuse.Verdict.EQUIVALENT


@pytest.mark.parametrize(
    "model",
    [
        keras(view="{1,10,2,2}"),
        keras(ones="{1,1,1,1,1,1,1,1,1,2}"),
        keras(body=KERAS.replace("Div (q, f)", "Mul (q, f)")),
        keras(body=KERAS.replace("(t, o, z, k, v)", "(t, o, z, v, k)")),
    ],
    ids=["another view", "scale", "another variance", "mean and variance exchanged"],
)
def test_computed_statistics_of_another_kind_stay(model: ir.Model) -> None:
    results = find_norms(model.graph, reading_of(model))
    assert any(
        isinstance(each, Declined) and each.reason.startswith("its running mean is computed by") for each in results
    )
    assert not [each for each in results if isinstance(each, NormSite)]


def test_statistics_that_a_whole_network_computes_are_no_obstacle() -> None:
    chain = "  ".join(f"h{index + 1} = Relu (h{index})" for index in range(3000))
    body = f"""h0 = Identity (x)  {chain}  k = Reshape (h3000, a)  t = Reshape (x, s)
        n = BatchNormalization (t, o, z, k, z)  y = Reshape (n, u)"""
    model = keras(body=body)
    (declined,) = find_norms(model.graph, reading_of(model))
    assert isinstance(declined, Declined)
    assert declined.reason == "its running mean is computed by Reshape 'k'"


@pytest.mark.parametrize("shape", ["2,4,6,5", "N,4,H,5"])
def test_an_affine_whose_shape_is_computed(shape: str) -> None:
    """mxnet brings γ and β to axis 1 by (range(rank) == 1) · (C − 1) + 1 and an Expand to the shape of x."""
    text = f"""{HEAD}g (float[{shape}] x) => (float[{shape}] y) <float e = {{1e-5}}, float two = {{2}}, float[4] w = {{1,2,3,4}},
        int64 z = {{0}}, int64 o = {{1}}, int64[1] i = {{1}}, int64[1] j = {{2}}> {{
        m = ReduceMean <axes = [1]> (x)  d = Sub (x, m)  q = Pow (d, two)  v = ReduceMean <axes = [1]> (q)  a = Add (v, e)
        r = Sqrt (a)  n = Div (d, r)  S = Shape (x)  R = Shape (S)  k = Squeeze (R)  l = Range (z, k, o)  p = Equal (l, i)
        c = Cast <to = 7> (p)  C = Slice (S, i, j)  K = Squeeze (C)  L = Sub (K, o)  M = Mul (c, L)  N_ = Add (M, o)
        W = Reshape (w, N_)  X = Expand (W, S)  f = Mul (n, X)  B = Reshape (w, N_)  D = Expand (B, S)  y = Add (f, D) }}"""
    model = onnx.parser.parse_model(text)
    (record,) = normfuse.inspect(model).norms
    assert isinstance(record.spec, NormSpec)
    assert record.spec.statistics == Trailing((-3,))
    assert (record.spec.affine.scale, record.spec.affine.bias) == (True, True)
    _, report = normfuse.fuse(model, Target(Form.PRIMITIVE), validate=True)
    assert report.rewrites
    assert report.validation is not None
    assert report.validation.verdict is normfuse.Verdict.EQUIVALENT


UNBIASED = "its variance is unbiased: the sum of squares is divided by N − 1"
SIZES = """S = Shape (x)  G = Gather (S, last)  P = ReduceProd <keepdims = 0> (G)  f = Cast <to = 1> (P)
    m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)"""
TORCH_VARIANCES = [
    ("times N through N − 1", "u = Mul (v, f)  h = Sub (f, one)  k = Div (u, h)  a = Add (k, e)  r = Sqrt (a)  y = Div (d, r)", UNBIASED),
    ("std + ε", "u = Mul (v, f)  h = Sub (f, one)  k = Div (u, h)  r = Sqrt (k)  a = Add (r, e)  y = Div (d, a)",
     "its epsilon is added to the deviation, outside the root"),
    ("sum not divided", "u = Mul (v, f)  a = Add (u, e)  r = Sqrt (a)  y = Div (d, r)",
     "its sum of squares is not divided by the number of its entries"),
]  # fmt: skip


@pytest.mark.parametrize("case", TORCH_VARIANCES, ids=[case[0] for case in TORCH_VARIANCES])
@pytest.mark.parametrize("shape", ["2,5,8", "N,5,L"])
def test_variances_by_sizes(case: tuple[str, str, str], shape: str) -> None:
    """N is constant or not, as the shape of x is: the reason is the same where the shape leaves one."""
    _, body, reason = case
    head = (
        f"g (float[{shape}] x) => (float[{shape}] y) <float e = {{0.001}}, float one = {{1}}, int64[1] last = {{-1}}>"
    )
    (found,) = outcomes(f"{SIZES}  {body}", head=head)
    if shape == "2,5,8" and reason.startswith("its sum"):
        reason = "its result is scaled by 0.353553"
    assert found == reason


def test_sizes_cast_to_a_complex_type_are_sizes() -> None:
    """torch.onnx writes COMPLEX128 where it means BFLOAT16: a file that no runtime takes, and no reason to crash."""
    body = TORCH_VARIANCES[0][1].replace("u = Mul (v, f)", "F = Cast <to = 15> (f)  u = Mul (v, F)")
    head = "g (float[2,5,8] x) => (float[2,5,8] y) <float e = {0.001}, float one = {1}, int64[1] last = {-1}>"
    model = ir.from_proto(onnx.parser.parse_model(f"{HEAD}{head} {{ {SIZES}  {body} }}"))
    assert [record.reason for record in normfuse.inspect(model).declined] == [UNBIASED]


def test_sizes_cast_like_x_are_sizes() -> None:
    body = (
        TORCH_VARIANCES[0][1]
        .replace("u = Mul (v, f)", "F = CastLike (P, x)  u = Mul (v, F)")
        .replace("Sub (f,", "Sub (F,")
    )
    head = "g (float[N,5,L] x) => (float[N,5,L] y) <float e = {0.001}, float one = {1}, int64[1] last = {-1}>"
    assert outcomes(f"{SIZES}  {body}", head=head) == [UNBIASED]


@pytest.mark.parametrize("channels", ["4", "6"])
def test_groups_by_division_of_sizes(channels: str) -> None:
    """A group norm by hand, C / G computed from the shape of x, batch and height unknown."""
    text = f"""{HEAD}g (float[N,{channels},H,5] x) => (float[N,{channels},H,5] y) <float e = {{0.001}}, int64 z = {{0}},
        int64 i = {{1}}, int64 j = {{2}}, int64 k = {{3}}, int64[1] Z = {{0}}, int64[1] G = {{2}}> {{
        S = Shape (x)  a = Gather (S, z)  b = Gather (S, i)  c = Gather (S, j)  d = Gather (S, k)  f = Div (b, j)
        A = Unsqueeze (a, Z)  B = Unsqueeze (b, Z)  C = Unsqueeze (c, Z)  D = Unsqueeze (d, Z)  F = Unsqueeze (f, Z)
        T = Concat <axis = 0> (A, G, F, C, D)  U = Concat <axis = 0> (A, B, C, D)  v = Reshape (x, T)
        m = ReduceMean <axes = [2, 3, 4]> (v)  n = Sub (v, m)  q = Mul (n, n)  p = ReduceMean <axes = [2, 3, 4]> (q)
        o = Add (p, e)  r = Sqrt (o)  t = Div (n, r)  y = Reshape (t, U) }}"""
    (record,) = normfuse.inspect(onnx.parser.parse_model(text)).norms
    assert isinstance(record.spec, NormSpec)
    assert record.spec.statistics == PerGroup(2)


WEIGHT_SIDE = [
    "i = InstanceNormalization (W, w, b)  y = Add (x, i)",
    "i, m, v = BatchNormalization <training_mode = 1> (W, w, b, b, w)  y = Add (x, i)",
    "m = ReduceMean <axes = [1]> (W)  d = Sub (W, m)  q = Mul (d, d)  v = ReduceMean <axes = [1]> (q)  a = Add (v, e)  "
    "r = Sqrt (a)  n = Div (d, r)  y = Add (x, n)",
]


@pytest.mark.parametrize("body", WEIGHT_SIDE)
def test_the_norm_of_a_weight_is_no_layer(body: str) -> None:
    assert outcomes(body) == []


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("shape", ["6,8", "N,8", "2,5,8"])
@pytest.mark.parametrize("last", ["Identity (n)", "Mul (n, k)"], ids=["no affine", "a number as scale"])
def test_a_layer_norm_without_affine_is_right_in_every_form(form: Form, shape: str, last: str) -> None:
    """At rank 2 it is a group norm in one group too, and InstanceNormalization says neither."""
    text = f"""{HEAD}g (float[{shape}] x) => (float[{shape}] y) <float e = {{0.001}}, float[1] k = {{2}}> {{
        m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean <axes = [-1]> (q)  a = Add (v, e)
        r = Sqrt (a)  n = Div (d, r)  y = {last} }}"""
    model = onnx.parser.parse_model(text)
    fused, report = normfuse.fuse(model, Target(form))
    assert [record.norm for record in report.norms] == ["layer"]
    verdict = normfuse.validate(model, fused, providers=(), quick=True)
    assert verdict.verdict is normfuse.Verdict.EQUIVALENT


@pytest.mark.parametrize("weight", ["k = Identity (K)", "k = Mul (K, x)"], ids=["constant weight", "computed weight"])
def test_a_frozen_batch_norm_folds_into_the_conv_before_it(weight: str) -> None:
    """torchvision's FrozenBatchNorm2d reaches the file as Mul and Add of constants behind the Conv."""
    text = f"""{HEAD}g (float[4,4,1,1] x) => (float[4,4,1,1] y) <float[4,4,1,1] K = {{1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}},
        float[4,1,1] w = {{1,2,3,4}}, float[4,1,1] b = {{4,3,2,1}}> {{
        {weight}  c = Conv (x, k)  a = Mul (c, w)  y = Add (a, b) }}"""
    model = onnx.parser.parse_model(text)
    fused, report = normfuse.fuse(model, validate=True)
    (record,) = report.norms
    assert record.norm == "batch"
    if "Mul" in weight:
        assert record.plan == "keep"
        assert [entry.reason for entry in report.declined] == [
            "the weight 'k' of Conv 'Conv → c' is computed by Mul 'k'"
        ]
        return
    assert "Add" not in [node.op_type for node in fused.graph]
    assert record.plan == "fold into Conv → c"
    assert report.validation is not None
    assert report.validation.verdict is normfuse.Verdict.EQUIVALENT
