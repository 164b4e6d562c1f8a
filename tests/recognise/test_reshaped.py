"""GroupNorm as Reshape-InstanceNormalization-Reshape: every variant is read, and every unproven step is declined."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import normfuse
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.reference import evaluate
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerChannel, PerGroup, canonical
from tests.folding import assert_same, normal
from tests.graphs import model_of, reading_of, run

HALF = 0.5
NONE, BOTH = AffineLayout(), AffineLayout(True, True)
CORE = "g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, one, zero) y = Reshape (n, back)"


def found_in(
    nodes: str,
    *,
    x: str = "float[N,4,6,5]",
    to: str = "{0, 2, -1}",
    back: str = "Shape (x)",
    opset: int = 18,
    more: str = "",
) -> list[NormSite | Declined]:
    count = to.count(",") + 1
    model = model_of(f"""<ir_version: 8, opset_import: ["": {opset}]> g ({x} x{more}) => (out)
        <int64[{count}] to = {to}, float[2] one = {{1, 1}}, float[2] zero = {{0, 0}}, float[2] s2 = {{1, 2}},
         float[4,1,1] w = {{1, 2, 3, 4}}, float[4,1,1] b = {{5, 6, 7, 8}}, float[4] w1 = {{1, 2, 3, 4}},
         float[1,4,1,1] w4 = {{1, 2, 3, 4}}, float[1,1,5] last = {{1, 2, 3, 4, 5}}, float[4] m0 = {{0, 0, 0, 0}},
         float[4] v1 = {{1, 1, 1, 1}}, int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[2] hw = {{6, 5}},
         int64[1] c4 = {{4}}, int64[1] g2 = {{2}}, int64[1] rest = {{-1}}, int64[2] axes = {{1, 2}},
         int64[4] zeros = {{0, 0, 0, 0}},
         int64[4] fixed = {{0, 4, 6, 5}}, int64[4] batch = {{2, 4, 6, 5}}, int64[4] swapped = {{0, 4, 5, 6}}>
        {{ back = {back} {nodes} }}""")
    # The shape that inference would find for the result is taken away: the proof has to come from the target.
    for node in model.graph:
        if node.op_type == "Reshape" and node.outputs[0].name == "y":
            node.outputs[0].shape = None
    return list(find_norms(model.graph, reading_of(model)))


def only(nodes: str, **arguments: str) -> NormSite | Declined:
    (found,) = found_in(nodes, **arguments)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("tail", "affine", "spelling"),
    [
        ("out = Relu (y)", NONE, ""),
        ("a = Mul (y, w) out = Add (a, b)", BOTH, "·Mul·Add"),
        ("a = Mul (w, y) out = Add (b, a)", BOTH, "·Mul·Add"),
        ("a = Mul (y, w4) out = Sub (a, b)", BOTH, "·Mul·Sub"),
        ("a = Mul (y, w) out = Relu (a)", AffineLayout(scale=True), "·Mul"),
        ("a = Add (y, b) out = Relu (a)", AffineLayout(bias=True), "·Add"),
        ("u = Unsqueeze (w1, axes) a = Mul (y, u) v = Unsqueeze (w1, axes) out = Add (a, v)", BOTH, "·Mul·Add"),
        (
            "u = CastLike (w, y) a = Mul (y, u) v = Cast <to = 1> (b) i = Identity (v) out = Add (a, i)",
            BOTH,
            "·Mul·Add",
        ),
        ("out = BatchNormalization <epsilon = 0.0> (y, w1, w1, m0, v1)", BOTH, "·BatchNormalization"),
        # What is not an affine per channel stays where it is.
        ("a = Mul (y, last) out = Add (a, b)", NONE, ""),
        ("out = Sub (b, y)", NONE, ""),
        ("a = Mul (y, y) out = Add (a, b)", NONE, ""),
        ("d = GlobalAveragePool (x) a = Mul (y, d) out = Add (a, b)", NONE, ""),
    ],
)
def test_affine(tail: str, affine: AffineLayout, spelling: str) -> None:
    site = only(f"{CORE} {tail}")
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(PerGroup(2), HALF, affine=affine)
    assert site.spelling == f"Reshape·InstanceNormalization·Reshape{spelling}"
    assert site.operands.x.name == "x"


def test_a_subtracted_bias_is_negated() -> None:
    site = only(f"{CORE} a = Mul (y, w) out = Sub (a, b)")
    assert isinstance(site, NormSite)
    assert site.operands.bias is not None
    assert site.operands.bias.const_value is not None
    np.testing.assert_array_equal(site.operands.bias.const_value.numpy().reshape(-1), [-5, -6, -7, -8])


def test_rank_two_has_an_affine_of_rank_one() -> None:
    site = only(f"{CORE} a = Mul (y, w1) out = Add (a, w1)", x="float[N,4]")
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(PerGroup(2), HALF, affine=BOTH)


@pytest.mark.parametrize(
    ("x", "to", "back"),
    [
        ("float[N,4,6,5]", "{0, 2, -1}", "Identity (fixed)"),
        ("float[N,4,6,5]", "{0, 2, -1}", "Shape (x)"),
        ("float[N,4,H,W]", "{0, 2, -1}", "Shape (x)"),
        ("float[2,4,6,5]", "{2, 2, -1}", "Identity (batch)"),
        ("float[2,4,6,5]", "{2, 2, 60}", "Identity (batch)"),
        ("float[2,4,6,5]", "{-1, 2, 60}", "Identity (batch)"),
        ("float[N,4,6,5]", "{-1, 2, 60}", "Shape (x)"),
        ("float[2,4,6,5]", "{0, 2, 2, 6, 5}", "Identity (batch)"),
    ],
)
def test_targets(x: str, to: str, back: str) -> None:
    site = only(f"{CORE} a = Mul (y, w) out = Add (a, b)", x=x, to=to, back=back)
    assert isinstance(site, NormSite)
    assert site.spec.statistics == PerGroup(2)


@pytest.mark.parametrize(
    "shapes",
    [
        # torch.onnx, dynamic: the batch from Shape with start and end, the rest constant
        "sh = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (sh, g2, rest) bk = Concat <axis = 0> (sh, c4, hw)",
        "sh = Shape (x) n0 = Gather <axis = 0> (sh, i0) t = Concat <axis = 0> (n0, g2, rest) "
        "bk = Concat <axis = 0> (n0, c4, hw)",
        "sh = Shape (x) n0 = Slice (sh, i0, i1, i0) t = Concat <axis = 0> (n0, g2, rest) bk = Identity (sh)",
        "sh = Shape (x) one0 = Squeeze (i0) n0 = Gather <axis = 0> (sh, one0) n1 = Unsqueeze (n0, i0) "
        "t = Concat <axis = 0> (n1, g2, rest) bk = Concat <axis = 0> (rest, c4, hw)",
    ],
)
def test_computed_targets(shapes: str) -> None:
    core = "g = Reshape (x, t) n = InstanceNormalization <epsilon = 0.5> (g, one, zero) y = Reshape (n, bk)"
    site = only(f"{shapes} {core} a = Mul (y, w) out = Add (a, b)")
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(PerGroup(2), HALF, affine=BOTH)


def test_the_shape_may_be_that_of_a_cast() -> None:
    core = "c = Cast <to = 1> (x) g = Reshape (c, to) n = InstanceNormalization (g, one, zero) y = Reshape (n, back)"
    (site,) = found_in(f"{core} out = Cast <to = 10> (y)", x="float16[N,4,H,W]")
    assert isinstance(site, NormSite)
    # The Cast up and the Cast back belong to the norm: statistics in float32.
    assert site.spec.compute_type is ComputeType.FLOAT
    assert site.operands.x.name == "x"
    assert site.spelling == "Cast·Reshape·InstanceNormalization·Reshape·Cast"
    assert site.output.name == "out"


def test_as_many_groups_as_channels_is_instance_norm() -> None:
    core = "g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, v1, m0) y = Reshape (n, back)"
    for to in ("{0, 4, -1}", "{0, 0, -1}"):
        site = only(f"{core} a = Mul (y, w) out = Add (a, b)", to=to)
        assert isinstance(site, NormSite)
        assert site.spec.statistics == PerGroup(4)
        assert canonical(site.spec, channels=4) == NormSpec(PerChannel(), HALF, affine=BOTH)


def test_an_affine_per_group_belongs_to_the_instance_normalization() -> None:
    core = "g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, s2, s2) y = Reshape (n, back)"
    site = only(f"{core} out = Mul (y, w)")
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(PerGroup(2), HALF, affine=AffineLayout(True, True, AffineAxes.GROUP))
    assert [node.op_type for node in site.interior] == ["Reshape", "InstanceNormalization", "Reshape"]


def test_a_batch_normalization_with_statistics_is_a_norm_of_its_own() -> None:
    found = found_in(f"{CORE} out = BatchNormalization <epsilon = 0.5> (y, w1, w1, m0, v1)")
    assert [site.spelling for site in found if isinstance(site, NormSite)] == [
        "Reshape·InstanceNormalization·Reshape",
        "BatchNormalization-15",
    ]


NOT_BACK = "the Reshape after InstanceNormalization is not proven to restore the shape of 'x'"
NOT_BATCH = "the Reshape before InstanceNormalization is not proven to keep the batch axis"


@pytest.mark.parametrize(
    ("x", "to", "back", "reason"),
    [
        ("float[N,3,8,5]", "{0, 2, -1}", "Shape (x)", "2 groups do not divide the 3 channels of 'x'"),
        (
            "float[N,C,8,5]",
            "{0, 2, -1}",
            "Shape (x)",
            "the number of channels of 'x' is unknown, so the groups may cut one (run shape inference)",
        ),
        ("float[N,4,6,5]", "{1, 2, -1}", "Shape (x)", NOT_BATCH),
        ("float[N,4,6,5]", "{-1, 2, 30}", "Shape (x)", NOT_BATCH),
        ("float[4,4,6,5]", "{2, 2, -1}", "Shape (x)", NOT_BATCH),
        ("float[N,4,6,5]", "{0, 2, -1}", "Identity (swapped)", NOT_BACK),
        ("float[N,4,6,5]", "{0, 2, -1}", "Identity (batch)", NOT_BACK),
        ("float[N,4,6,5]", "{0, 2, -1}", "Identity (zeros)", NOT_BACK),
    ],
)
def test_declines(x: str, to: str, back: str, reason: str) -> None:
    found = only(f"{CORE} out = Relu (y)", x=x, to=to, back=back)
    assert isinstance(found, Declined)
    assert found.reason == reason
    assert found.at.op_type == "InstanceNormalization"


def test_a_number_of_groups_that_is_computed() -> None:
    core = "g = Reshape (x, t) n = InstanceNormalization (g, one, zero) y = Reshape (n, back)"
    found = only(f"t = Concat <axis = 0> (i0, k, rest) {core} out = Relu (y)", more=", int64[1] k")
    assert isinstance(found, Declined)
    assert found.reason == (
        "the number of groups is not constant: it is computed for the Reshape before InstanceNormalization"
    )


def test_without_two_reshapes_it_is_an_instance_norm() -> None:
    site = only("g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, one, zero) out = Relu (n)")
    assert isinstance(site, NormSite)
    assert site.spec == NormSpec(PerChannel(), HALF, affine=BOTH)


def test_own_affine_and_unproven_reshapes_make_an_instance_norm() -> None:
    core = "g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, s2, s2) y = Reshape (n, back)"
    site = only(f"{core} out = Relu (y)", x="float[N,3,8,5]")
    assert isinstance(site, NormSite)
    assert site.spec.statistics == PerChannel()


def test_a_reshape_that_something_else_reads_stays() -> None:
    site = only(f"{CORE} z = Relu (g) q = Reshape (z, back) out = Add (y, q)")
    assert isinstance(site, NormSite)
    assert [node.op_type for node in site.interior] == ["InstanceNormalization", "Reshape"]
    assert isinstance(site.operands.x, ir.Value)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_what_is_read_is_what_is_computed(data: st.DataObject) -> None:
    """Any two Reshapes around an InstanceNormalization: where a group norm is read, the graph computes that."""
    batch, channels = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([2, 3, 4, 6]))
    shape = [batch, channels, *data.draw(st.lists(st.integers(1, 5), max_size=2))]
    groups = data.draw(st.sampled_from([1, 2, 3, channels]))
    rest = math.prod(shape) // (batch * groups)
    to = data.draw(
        st.sampled_from(
            [
                [0, groups, -1],
                [batch, groups, -1],
                [-1, groups, max(rest, 1)],
                [1, groups, -1],
                [0, 0, -1],
                [0, groups, 1, -1],
            ]
        )
    )
    back = data.draw(st.permutations(shape) | st.just(shape))
    back = [0, *back[1:]] if data.draw(st.booleans()) else list(back)
    first = data.draw(st.sampled_from(["N", str(batch)]))
    normed = channels if to[1] == 0 else groups
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[{first},{",".join(map(str, shape[1:]))}] x) => (float[{",".join(f"o{axis}" for axis in back)}] out)
        <int64[{len(to)}] to = {{{",".join(map(str, to))}}}, int64[{len(back)}] back = {{{",".join(map(str, back))}}},
         float[{normed}] one = {{{",".join("1" * normed)}}}, float[{normed}] zero = {{{",".join("0" * normed)}}}>
        {{ g = Reshape (x, to) n = InstanceNormalization <epsilon = 0.5> (g, one, zero) out = Reshape (n, back) }}"""
    model = ir.from_onnx_text(text)
    (found,) = find_norms(model.graph, reading_of(model))
    assume(isinstance(found, NormSite))
    assert isinstance(found, NormSite)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (actual,) = run(model, {"x": x})
    expected = evaluate(found.spec, {"x": x})
    # Ten roundings and a mean of at most 150 elements, amplified by |x| / sqrt(0.5) < 8, of values below 8.
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 2**8 * 8 * np.finfo(np.float32).eps


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_norms_behind_a_norm_of_a_dynamic_batch_are_read(opset: int) -> None:
    """torch's older exporter goes back to the shape of x, which states no shape: C is known there all the same."""
    block = (
        "{0}s = Shape ({0}) {0}g = Reshape ({0}, to) {0}n = InstanceNormalization ({0}g, one, zero)"
        " {0}r = Reshape ({0}n, {0}s) {0}m = Mul ({0}r, w) {0}y = Add ({0}m, b)"
    )
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,3,H,W] x) => (float[N,6,P,Q] out)
        <int64[3] to = {{0, 2, -1}}, float[2] one = {{1, 1}}, float[2] zero = {{0, 0}}>
        {{ k = Conv (x, K) {block.format("k")} l = Relu (ky) {block.format("l")} o = Add (ly, ky) {block.format("o")}
           out = Neg (oy) }}"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("K", (6, 3, 1, 1)), ("w", (6, 1, 1)), ("b", (6, 1, 1))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(*shape), name))
    fused, report = normfuse.fuse(proto, normfuse.Target(normfuse.Form.CUSTOM))
    assert [record.norm for record in report.norms] == ["group"] * 3
    assert " ".join(node.op_type for node in fused.graph) == "Conv GroupNorm Relu GroupNorm AddGroupNormWithSum Neg"
    assert not normfuse.fuse(fused, normfuse.Target(normfuse.Form.CUSTOM))[1].rewrites
    assert_same(proto, fused)
