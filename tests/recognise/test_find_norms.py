"""Which recogniser has a node: norms as operators, in primitive operators, as arithmetic on constants, side by side."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import normfuse
from normfuse import Form, Target
from normfuse.graph.site import Declined, NormSite
from normfuse.recognise import find_norms
from normfuse.spec import Batch, PerChannel, Stored, Trailing, kind
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
