"""Norms in primitive operators: every spelling reads back as the same norm, with the same numbers."""

from __future__ import annotations

import sys
from types import FrameType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.recognise.primitive import find_decomposed
from normfuse.recognise.surroundings import with_activation
from normfuse.reference import evaluate
from normfuse.spec import Activation, ComputeType, NormSpec, Trailing, canonical
from tests.graphs import model_of, reading_of
from tests.norm_chains import layer_norms
from tests.spellings import FOLLOWERS, SLOPE, Spelling, Written, graph_of, spellings

CHUNKS = 8
RANDOM = 4000


def found(model: ir.Model, *, lift_flagged: bool = False) -> tuple[NormSite | Declined, ...]:
    return find_decomposed(model.graph, reading_of(model, lift_flagged=lift_flagged), set())


def the_site(model: ir.Model, *, lift_flagged: bool = False) -> NormSite:
    sites = found(model, lift_flagged=lift_flagged)
    assert len(sites) == 1, sites
    (site,) = sites
    assert isinstance(site, NormSite), site
    return site


def normal_form(spec: NormSpec, spelling: Spelling) -> NormSpec:
    shape = spelling.family.shape
    return canonical(spec, channels=shape[1], rank=len(shape))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_spelling_reads_back(chunk: int) -> None:
    for index, spelling in enumerate(spellings(RANDOM)):
        if index % CHUNKS != chunk:
            continue
        written = graph_of(spelling)
        model = model_of(written.text)
        site = the_site(model)
        expected = normal_form(written.spec, spelling)
        if spelling.dtype != "float":
            assert site.spec.compute_type is ComputeType.FLOAT, spelling
            assert site.operands.x.dtype == ir.DataType.FLOAT16, spelling
            assert site.operands.x.name == "x", spelling
        actual = normal_form(site.spec, spelling)
        for name in ("statistics", "epsilon", "centred", "affine", "channel_axis"):
            assert getattr(actual, name) == getattr(expected, name), (str(spelling), name, actual, written.text)
        followed = with_activation(site, reading_of(model)).spec
        wanted = FOLLOWERS[spelling.follower]
        slope = SLOPE if wanted is Activation.LEAKY_RELU else 0.0
        assert (followed.activation, followed.slope) == (wanted, slope), (str(spelling), written.text)
        if index % 3 == 0:
            check_numbers(spelling, written, model, site)


def check_numbers(spelling: Spelling, written: Written, model: ir.Model, site: NormSite) -> None:
    """What the site says, with the operands that it holds, is what the graph computes at the site's output."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(spelling.family.shape) + 0.5
    x[0] *= 3e-2
    x = x.astype(np.float32 if spelling.dtype == "float" else np.float16)
    proto = ir.to_proto(model)
    assert site.output.name is not None
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=site.output.name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    actual = session.run(None, {"x": x})[0].astype(np.float64)
    arrays = {"x": x, **operands(model, site)}
    expected = evaluate(site.spec, arrays)
    # Results are below 8. Float32: 2^8 units of 2^-24 for the means and the cancellation in x − μ. Float16: one rounding
    # of the result, half a unit of 2^-10 · 4, and the same again for values that lie between two numbers.
    allowed = 2.0**-16 if spelling.dtype == "float" else 2.0**-8
    assert np.abs(actual - expected).max() <= allowed, str(spelling)


def operands(model: ir.Model, site: NormSite) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    constants = reading_of(model).constants
    arrays = {}
    for name in ("scale", "bias"):
        value = getattr(site.operands, name)
        if value is None:
            continue
        detached = value.graph is None and value.const_value is not None
        array = value.const_value.numpy() if detached else constants.array(value)
        assert array is not None
        arrays[name] = np.asarray(array)
    return arrays


HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def test_batch_form() -> None:
    site = the_site(
        model_of(
            HEAD
            + """g (float[2, 5, 8] x, float[8] unused) => (float[2, 5, 8] y)
            <float e = {0.001}, float[8] w = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}> {
              m = ReduceMean <axes = [2]> (x)
              d = Sub (x, m)
              q = Mul (d, d)
              v = ReduceMean <axes = [2]> (q)
              s = Add (v, e)
              r = Sqrt (s)
              i = Reciprocal (r)
              g = Mul (i, w)
              xg = Mul (x, g)
              mg = Mul (m, g)
              c = Sub (b, mg)
              y = Add (xg, c) }"""
        )
    )
    assert site.spec.centred
    assert (site.spec.affine.scale, site.spec.affine.bias) == (True, True)
    assert len(site.interior) == 12


def test_weight_before_the_norm() -> None:
    site = the_site(
        model_of(
            HEAD
            + """g (float[2, 8] x) => (float[2, 8] y) <float e = {0.001}, float[8] w = {1,2,3,4,5,6,7,8}> {
              a = Mul (x, w)
              q = Mul (x, x)
              v = ReduceMean <axes = [-1]> (q)
              s = Add (v, e)
              r = Sqrt (s)
              i = Reciprocal (r)
              y = Mul (a, i) }"""
        )
    )
    assert not site.spec.centred
    assert site.operands.scale is not None
    assert site.operands.x.name == "x"


FAST = """g (float[2, 5, 8] x) => (float[2, 5, 8] y) <float e = {0.001}, float z = {0.0}> {
      m = ReduceMean <axes = [2]> (x)
      xx = Mul (x, x)
      mm = ReduceMean <axes = [2]> (xx)
      q = Mul (m, m)
      u = Sub (mm, q)
      v = Max (z, u)
      s = Add (v, e)
      r = Sqrt (s)
      d = Sub (x, m)
      y = Div (d, r) }"""


def test_difference_of_means_is_flagged() -> None:
    (declined,) = found(model_of(HEAD + FAST))
    assert isinstance(declined, Declined)
    assert declined.reason == "its variance is E[x²] − E[x]², which cancels at large means (--lift-flagged lifts it)"
    assert the_site(model_of(HEAD + FAST), lift_flagged=True).spec.centred


def test_dynamic_affine_stays_outside() -> None:
    site = the_site(
        model_of(
            HEAD
            + """g (float[2, 5, 8] x, float[2, 1, 8] w, float[2, 1, 8] b) => (float[2, 5, 8] y) <float e = {0.001}> {
              m = ReduceMean <axes = [2]> (x)
              d = Sub (x, m)
              q = Mul (d, d)
              v = ReduceMean <axes = [2]> (q)
              s = Add (v, e)
              r = Sqrt (s)
              n = Div (d, r)
              t = Mul (n, w)
              y = Add (t, b) }"""
        )
    )
    assert site.output.name == "n"
    assert site.operands.scale is None


def test_affine_that_enlarges_stays_outside() -> None:
    site = the_site(
        model_of(
            HEAD
            + """g (float[2, 5, 1] x) => (float[2, 5, 8] y) <float e = {0.001}, float[8] w = {1,2,3,4,5,6,7,8}> {
              m = ReduceMean <axes = [2]> (x)
              d = Sub (x, m)
              q = Mul (d, d)
              v = ReduceMean <axes = [2]> (q)
              s = Add (v, e)
              r = Sqrt (s)
              n = Div (d, r)
              y = Mul (n, w) }"""
        )
    )
    assert site.output.name == "n"


def test_finding_is_linear_and_takes_few_steps() -> None:
    def calls(count: int) -> int:
        """Return how many calls of Python functions finding takes: a measure of time that is the same everywhere."""
        proto, blocks = layer_norms(12 * count)
        assert blocks == count
        model, made = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)), 0
        reading = reading_of(model)

        def count_call(_: FrameType, event: str, __: object) -> None:
            nonlocal made
            made += event == "call"

        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            sites = find_norms(model.graph, reading)
        finally:
            sys.setprofile(before)
        assert sum(isinstance(site, NormSite) for site in sites) == count
        return made

    small, large = calls(250), calls(750)
    assert small < 120 * 3000, small  # of these 3000 nodes a twelfth is norms, which is more than any network has
    assert large < 3.05 * small, (small, large)


@pytest.mark.parametrize(("axes", "statistics"), [("[0]", Trailing((-1,))), ("[-1]", Trailing((-1,)))])
def test_a_vector_has_neither_samples_nor_channels(axes: str, statistics: Trailing) -> None:
    """Its norm is a layer norm, not one over a batch."""
    site = the_site(
        model_of(
            HEAD
            + f"""g (float[8] x) => (float[8] y) <float e = {{0.001}}, float[8] w = {{1,2,3,4,5,6,7,8}}> {{
              m = ReduceMean <axes = {axes}> (x)
              d = Sub (x, m)
              q = Mul (d, d)
              v = ReduceMean <axes = {axes}> (q)
              s = Add (v, e)
              r = Sqrt (s)
              n = Div (d, r)
              y = Mul (n, w) }}"""
        )
    )
    assert (site.spec.statistics, site.spec.affine.scale) == (statistics, True)


def test_a_vector_along_one_of_two_normalised_axes_is_written_out() -> None:
    """LayerNormalization takes a scale of exactly the normalised shape."""
    model = model_of(
        HEAD
        + """g (float[2, 3, 4] x) => (float[2, 3, 4] y) <float e = {0.001}, float[4] w = {1,2,3,4}, float[3,1] b = {5,6,7}> {
          m = ReduceMean <axes = [1, 2]> (x)
          d = Sub (x, m)
          q = Mul (d, d)
          v = ReduceMean <axes = [1, 2]> (q)
          s = Add (v, e)
          r = Sqrt (s)
          n = Div (d, r)
          t = Mul (n, w)
          y = Add (t, b) }"""
    )
    site = the_site(model)
    assert (site.spec.statistics, site.output.name) == (Trailing((-2, -1)), "y")
    arrays = operands(model, site)
    np.testing.assert_array_equal(arrays["scale"], np.broadcast_to([1, 2, 3, 4], (3, 4)))
    np.testing.assert_array_equal(arrays["bias"], np.broadcast_to([[5], [6], [7]], (3, 4)))


@pytest.mark.parametrize(
    ("square", "result"),
    [
        ("a = Abs (x)\nq = Mul (a, x)", "y = Div (x, r)"),
        ("a = Abs (x)\nq = Pow (a, three)", "y = Div (x, r)"),
        ("q = Abs (x)", "y = Div (x, r)"),
        ("a = Abs (x)\nq = Mul (a, a)", "y = Div (a, r)"),
    ],
    ids=["x times |x|", "a cube", "no square", "|x| is divided"],
)
def test_magnitudes_that_are_no_squares_of_x(square: str, result: str) -> None:
    """x·|x| keeps its sign, |x|³ and |x| are no squares; what divides |x| is the norm of |x|."""
    text = f"""g (float[2, 8] x) => (float[2, 8] y) <float e = {{0.001}}, float three = {{3.0}}> {{
      {square}
      v = ReduceMean <axes = [-1]> (q)
      s = Add (v, e)
      r = Sqrt (s)
      {result} }}"""
    model = model_of(HEAD + text)
    if result == "y = Div (a, r)":
        assert the_site(model).operands.x.name == "a"
    else:
        assert not [item for item in found(model) if isinstance(item, NormSite)]


@pytest.mark.parametrize("fourth", ["a = Abs (d)\nq = Pow (a, four)", "p = Mul (d, d)\na = Abs (p)\nq = Mul (a, a)"])
def test_the_fourth_power_of_a_magnitude_is_declined(fourth: str) -> None:
    text = f"""g (float[2, 8] x) => (float[2, 8] y) <float e = {{0.001}}, float four = {{4.0}}> {{
      m = ReduceMean <axes = [-1]> (x)
      d = Sub (x, m)
      {fourth}
      v = ReduceMean <axes = [-1]> (q)
      s = Add (v, e)
      r = Sqrt (s)
      y = Div (d, r) }}"""
    (declined,) = found(model_of(HEAD + text))
    assert isinstance(declined, Declined)
    assert declined.reason == "its deviations are raised to 4, not squared"
