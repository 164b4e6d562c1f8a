"""Norms that an operator says in part, batch norms left as arithmetic, other kinds, and what stands around a norm."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import normfuse
from normfuse.emit.target import Form, Target
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import recognise
from normfuse.recognise.channel_maps import find_channel_maps
from normfuse.recognise.mean_variance import mean_variance_norm
from normfuse.recognise.other import find_other
from normfuse.recognise.refined import refined, tiled_batch_norm
from normfuse.recognise.surroundings import with_activation, with_residual
from normfuse.spec import Activation, ComputeType, GlobalResponseNorm, LpNorm, PerChannel, Stored, Trailing
from tests.graphs import model_of, reading_of, run


def model(text: str, opset: int = 17) -> ir.Model:
    return model_of(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def operator_site(built: ir.Model, op_type: str) -> NormSite:
    reading = reading_of(built)
    (node,) = (node for node in built.graph if node.op_type == op_type)
    site = recognise(node, reading)
    assert isinstance(site, NormSite)
    return refined(site, reading)


EIGHT = "{1,2,3,4,5,6,7,8}"


def test_centred_rms_is_a_layer_norm() -> None:
    built = model(
        f"""g (float[2, 5, 8] x) => (float[2, 5, 8] y) <float[8] w = {EIGHT}, float[8] b = {EIGHT}, int64[1] a = {{-1}}> {{
          m = ReduceMean (x, a)
          d = Sub (x, m)
          n = RMSNormalization <axis = -1> (d, w)
          y = Add (n, b) }}""",
        23,
    )
    site = operator_site(built, "RMSNormalization")
    assert site.spec.centred
    assert site.spec.affine.bias
    assert site.operands.x.name == "x"
    assert [node.op_type for node in site.interior] == ["ReduceMean", "Sub", "RMSNormalization", "Add"]


def test_rms_centred_over_other_axes_stays_rms() -> None:
    built = model(
        f"""g (float[2, 8, 8] x) => (float[2, 8, 8] y) <float[8] w = {EIGHT}, int64[1] a = {{1}}> {{
          m = ReduceMean (x, a)
          d = Sub (x, m)
          y = RMSNormalization <axis = -1> (d, w) }}""",
        23,
    )
    assert not operator_site(built, "RMSNormalization").spec.centred


IN_AS_LN = """g (float[2, 4, 8] x) => (float[2, 4, 8] y)
    <float[4] one = {1,1,1,1}, float[4] zero = {0,0,0,0}, float[%s] w = %s> {
      n = InstanceNormalization (x, one, zero)
      y = Mul (n, w) }"""


def test_instance_norm_used_as_layer_norm() -> None:
    site = operator_site(model(IN_AS_LN % ("8", EIGHT)), "InstanceNormalization")
    assert site.spec.statistics == Trailing((-1,))
    assert site.root.op_type == "Mul"


def test_instance_norm_with_an_affine_per_channel_stays() -> None:
    site = operator_site(model(IN_AS_LN % ("4, 1", "{1,2,3,4}")), "InstanceNormalization")
    assert site.spec.statistics == PerChannel()


def test_layer_norm_of_a_view_is_an_instance_norm() -> None:
    built = model(
        """g (float[2, 4, 3, 2] x) => (float[2, 4, 3, 2] y)
        <float[6] one = {1,1,1,1,1,1}, float[4, 1, 1] w = {1,2,3,4}, int64[3] s = {2,4,6}, int64[4] t = {2,4,3,2}> {
          v = Reshape (x, s)
          n = LayerNormalization (v, one)
          r = Reshape (n, t)
          y = Mul (r, w) }"""
    )
    site = operator_site(built, "LayerNormalization")
    assert site.spec.statistics == PerChannel()
    assert site.operands.scale is not None
    assert site.root.op_type == "Mul"


TILED = """g (float[N, 4, 3] x) => (float[N, 4, 3] y)
    <float[4] w = {1,2,3,4}, int64[3] s = {1,-1,3}, int64[3] t = {-1,4,3}, int64[1] zero = {0}> {
      n = Shape <start = 0, end = 1> (x)
      k = Tile (w, n)
      v = Reshape (x, s)
      b = BatchNormalization (v, k, k, k, k)
      y = Reshape (b, t) }"""


HALF = """g (float16[2, 4, 8] x, float16[2, 4, 8] r) => (%s[2, 4, 8] y) <float[8] w = {1,2,3,4,5,6,7,8}> {
    s = Add (x, r)
    u = Cast <to = 1> (s)
    n = LayerNormalization (u, w, w)
    %s }"""


def test_an_operator_between_casts_is_the_norm_of_a_half_type() -> None:
    site = operator_site(model(HALF % ("float16", "y = Cast <to = 10> (n)")), "LayerNormalization")
    assert site.spelling == "Cast·LayerNormalization-17·Cast"
    assert (site.operands.x.name, site.output.name) == ("s", "y")
    assert site.spec.compute_type is ComputeType.FLOAT
    assert [node.op_type for node in site.interior] == ["Cast", "LayerNormalization", "Cast"]


@pytest.mark.parametrize(
    ("dtype", "body"),
    [
        ("float", "y = Neg (n)"),
        ("bfloat16", "y = Cast <to = 16> (n)"),
        ("float16", "z = Add (n, u)\ny = Cast <to = 10> (z)"),
        ("float16", "t = Add (n, u)\nc = Cast <to = 10> (n)\nd = Cast <to = 10> (t)\ny = Add (c, d)"),
        ("float16", "c = Cast <to = 10> (n)\nd = Cast <to = 10> (u)\ny = Add (c, d)"),
    ],
    ids=["no Cast back", "another type", "summed in float32", "read in float32", "the widened x read"],
)
def test_an_operator_whose_float32_something_else_reads_stays_one_of_float32(dtype: str, body: str) -> None:
    site = operator_site(model(HALF % (dtype, body), 18), "LayerNormalization")
    assert [node.op_type for node in site.interior] == ["LayerNormalization"]


def test_instance_norm_with_running_statistics_is_a_batch_norm() -> None:
    built = model(TILED)
    (node,) = (node for node in built.graph if node.op_type == "BatchNormalization")
    site = tiled_batch_norm(node, reading_of(built))
    assert isinstance(site, NormSite)
    assert site.spec.statistics == Stored()
    assert site.operands.x.name == "x"
    assert site.operands.mean is not None
    assert site.operands.mean.name == "w"


def test_statistics_of_another_period_are_no_tiles() -> None:
    built = model(TILED.replace("float[4] w = {1,2,3,4}", "float[2] w = {1,2}"))
    (node,) = (node for node in built.graph if node.op_type == "BatchNormalization")
    assert tiled_batch_norm(node, reading_of(built)) is None


MAPS = [
    ("a = Mul (x, w)\ny = Add (a, b)", True),
    ("a = Sub (x, w)\nc = Div (a, b)\nd = Mul (c, w)\ny = Add (d, b)", True),
    ("a = Add (w, x)\ny = Mul (b, a)", True),
    ("y = Mul (x, w)", False),
    ("y = Add (x, b)", False),
    ("a = Mul (x, x)\ny = Add (a, b)", False),
]


@pytest.mark.parametrize(("body", "expected"), MAPS)
def test_affine_chain_of_constants(body: str, expected: bool) -> None:
    built = model(
        f"""g (float[2, 4, 3, 3] x) => (float[2, 4, 3, 3] y)
        <float[4, 1, 1] w = {{1,2,3,4}}, float[1, 4, 1, 1] b = {{4,3,2,1}}> {{ {body} }}"""
    )
    assert bool(find_channel_maps(built.graph, reading_of(built), set())) == expected


FROZEN = [
    ("c = Conv (x, k)\na = Mul (c, w)\ny = Add (a, b)", ["Mul", "Add"]),
    ("c = Conv (x, k)\nd = Add (c, b)\na = Mul (d, w)\ny = Sub (a, b)", ["Mul", "Sub"]),
    ("c = Conv (x, k)\na = Add (c, b)\ny = Mul (a, w)", None),
    ("c = Conv (x, k)\na = Mul (c, w)\nd = Add (a, x)\ny = Relu (d)", None),
    ("c = Conv (x, k)\nt = Transpose <perm = [0, 1, 3, 2]> (c)\na = Mul (t, w)\ny = Add (a, b)", None),
]


@pytest.mark.parametrize(("body", "expected"), FROZEN)
def test_affine_chain_after_a_conv(body: str, expected: list[str] | None) -> None:
    """FrozenBatchNorm; a bias and a layer scale are none."""
    built = model(
        f"""g (float[2, 4, 3, 3] x, float[4, 4, 1, 1] k) => (float[2, 4, 3, 3] y)
        <float[4, 1, 1] w = {{1,2,3,4}}, float[1, 4, 1, 1] b = {{4,3,2,1}}> {{ {body} }}"""
    )
    sites = find_channel_maps(built.graph, reading_of(built), set())
    assert [node.op_type for site in sites for node in site.interior] == (expected or [])


OTHERS = [
    (
        "n = ReduceL2 <axes = [1]> (x)\nm = Clip (n, e)\nt = Shape (x)\nf = Expand (m, t)\ny = Div (x, f)",
        LpNorm(2, (-2,)),
    ),
    ("n = ReduceL1 <axes = [-1]> (x)\nm = Add (n, e)\ny = Div (x, m)", LpNorm(1, (-1,))),
    ("y = LpNormalization <axis = -1, p = 2> (x)", LpNorm(2, (-1,))),
    (
        "n = ReduceL2 <axes = [1]> (x)\nm = ReduceMean <axes = [-1]> (n)\na = Add (m, e)\nd = Div (n, a)\ny = Mul (x, d)",
        GlobalResponseNorm((-2,)),
    ),
]


@pytest.mark.parametrize(("body", "spec"), OTHERS)
def test_other_kinds(body: str, spec: LpNorm | GlobalResponseNorm) -> None:
    built = model(f"g (float[2, 5, 8] x) => (float[2, 5, 8] y) <float e = {{0.001}}> {{ {body} }}")
    (site,) = find_other(built.graph, reading_of(built), set())
    assert site.spec == spec


@pytest.mark.parametrize(
    "denominator",
    [
        "p = Mul (x, x)\nn = ReduceMean <axes = [-1]> (p)\nm = Add (n, e)",
        "p = Mul (x, x)\nn = ReduceMean <axes = [-1]> (p)\na = Add (n, e)\nr = Sqrt (a)\nm = Sqrt (r)",
        "p = Mul (x, x)\nn = ReduceSum (p)\na = Sub (n, e)\nm = Sqrt (a)",
        "p = Mul (x, x)\nn = ReduceSum (p)\na = Add (n, e)\nr = Sqrt (a)\nm = Add (r, e)",
        "p = Abs (x)\nn = ReduceMean <axes = [-1]> (p)\na = Add (n, e)\nm = Sqrt (a)",
        "n = ReduceL2 <axes = [-1]> (x)\nm = Mul (n, n)",
    ],
    ids=["no root", "root of a root", "minus epsilon", "two epsilons", "root of |x|", "square"],
)
def test_what_divides_by_no_norm_is_none(denominator: str) -> None:
    built = model(f"g (float[2, 8] x) => (float[2, 8] y) <float e = {{0.001}}> {{ {denominator}\ny = Div (x, m) }}")
    assert find_other(built.graph, reading_of(built), set()) == ()


def test_softmax_is_no_norm() -> None:
    built = model(
        """g (float[2, 8] x) => (float[2, 8] y) {
          m = ReduceMax <axes = [-1]> (x)
          d = Sub (x, m)
          e = Exp (d)
          s = ReduceSum (e)
          y = Div (e, s) }"""
    )
    assert find_other(built.graph, reading_of(built), set()) == ()


MVN = """g (float[2, 4, 3, 3] x) => (float[2, 4, 3, 3] y) <float[4, 1, 1] w = {1,2,3,4}> {
      n = MeanVarianceNormalization <axes = [2, 3]> (x)
      y = Mul (n, w) }"""


def test_mean_variance_normalization_is_flagged() -> None:
    built = model(MVN)
    node = built.graph[0]
    declined = mean_variance_norm(node, reading_of(built))
    assert isinstance(declined, Declined)
    assert declined.reason == "its epsilon, 1e-9, is added to the deviation, outside the root (--lift-flagged lifts it)"
    site = mean_variance_norm(node, reading_of(built, lift_flagged=True))
    assert isinstance(site, NormSite)
    assert site.spec.statistics == PerChannel()
    assert site.spec.affine.scale


AROUND = """g (float[2, 4, 8] p, float[2, 4, 8] q) => (float[2, 4, 8] y)
    <float[8] w = %s, float zero = {0.0}, float root = {1.4142135}, float one = {1.0}, float half = {0.5}> {
      x = Add (p, q)
      n = LayerNormalization (x, w)
      %s }"""

LEAKY = Activation.LEAKY_RELU
ACTIVATIONS = [
    ("y = Relu (n)", Activation.RELU),
    ("s = Sigmoid (n)\ny = Mul (s, n)", Activation.SILU),
    ("d = Div (n, root)\ne = Erf (d)\na = Add (e, one)\nm = Mul (n, a)\ny = Mul (m, half)", Activation.GELU),
    ("d = Div (n, root)\ne = Erf (d)\na = Add (e, one)\nm = Mul (n, half)\ny = Mul (m, a)", Activation.GELU),
    ("d = Div (n, one)\ne = Erf (d)\na = Add (e, one)\nm = Mul (n, half)\ny = Mul (m, a)", Activation.NONE),
    ("s = Sigmoid (n)\ny = Mul (s, x)", Activation.NONE),
    ("y = LeakyRelu <alpha = 0.5> (n)", LEAKY),
    ("y = PRelu (n, half)", LEAKY),
    ("y = PRelu (n, w)", Activation.NONE),
    ("y = PRelu (half, n)", Activation.NONE),
    ("a = Mul (half, n)\ny = Max (a, n)", LEAKY),
    ("a = Mul (n, half)\ny = Max (n, a)", LEAKY),
    ("a = Mul (n, half)\ny = Min (n, a)", Activation.NONE),
    ("a = Mul (n, root)\ny = Max (n, a)", Activation.NONE),
    ("a = Mul (n, half)\ny = Max (n, a, x)", Activation.NONE),
    ("a = Mul (n, half)\nc = Greater (n, zero)\ny = Where (c, n, a)", LEAKY),
    ("a = Mul (n, half)\nc = LessOrEqual (zero, n)\ny = Where (c, n, a)", LEAKY),
    ("a = Mul (n, half)\nc = Less (n, zero)\ny = Where (c, a, n)", LEAKY),
    ("a = Mul (n, half)\nc = GreaterOrEqual (zero, n)\ny = Where (c, a, n)", LEAKY),
    ("a = Mul (n, half)\nc = Greater (zero, n)\ny = Where (c, n, a)", Activation.NONE),
    ("a = Mul (n, half)\nc = Less (n, zero)\ny = Where (c, n, a)", Activation.NONE),
    ("a = Mul (n, half)\nc = Greater (n, one)\ny = Where (c, n, a)", Activation.NONE),
    ("a = Mul (n, half)\nc = Greater (x, zero)\ny = Where (c, n, a)", Activation.NONE),
]


@pytest.mark.parametrize(("body", "activation"), ACTIVATIONS)
def test_activation_and_residual(body: str, activation: Activation) -> None:
    built = model(AROUND % (EIGHT, body))
    site = operator_site(built, "LayerNormalization")
    reading = reading_of(built)
    followed = with_activation(site, reading)
    assert followed.spec.activation is activation
    assert followed.spec.slope == (0.5 if activation is LEAKY else 0.0)
    assert (followed.output.name == "y") is (activation is not Activation.NONE)
    summed = with_residual(site, reading)
    assert (summed.operands.x.name, summed.operands.residual) != ("x", None)
    is_read = len(list(site.operands.x.uses())) > 1
    assert [value.name for value in summed.extra_outputs] == (["x"] if is_read else [])


def test_a_leaky_relu_stays_behind_the_operator_that_has_a_kernel() -> None:
    """And a spelling of several nodes does, since no norm takes it in."""
    built = model(AROUND % (EIGHT, "a = Mul (n, half)\ny = Max (n, a)"))
    fused, _ = normfuse.fuse(built, Target(Form.CUSTOM))
    assert [node.op_type for node in fused.graph] == ["AddLayerNorm", "Mul", "Max"]
    fused, _ = normfuse.fuse(model(AROUND % (EIGHT, "y = LeakyRelu (n)")), Target(Form.CUSTOM))
    assert [node.op_type for node in fused.graph] == ["AddLayerNorm", "LeakyRelu"]


def test_running_a_lifted_affine_chain() -> None:
    import numpy as np

    from normfuse.reference import evaluate

    built = model(
        """g (float[2, 4, 3] x) => (float[2, 4, 3] y) <float[4, 1] w = {1,2,3,4}, float[1, 4, 1] b = {4,3,2,1}> {
          a = Sub (b, x)
          c = Div (a, w)
          y = Add (c, b) }"""
    )
    (site,) = find_channel_maps(built.graph, reading_of(built), set())
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    arrays = {"x": x}
    for name in ("scale", "bias", "mean", "var"):
        value = getattr(site.operands, name)
        arrays[name] = value.const_value.numpy()
    assert np.abs(evaluate(site.spec, arrays) - run(built, {"x": x})[0]).max() < 1e-5
