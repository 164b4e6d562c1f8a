"""Functions of a model are opened where a norm in elementary operators is in them, or in several of them in parts."""

from __future__ import annotations

import onnx
import pytest

import normfuse
from normfuse import io
from normfuse.emit.target import Form, Target
from tests.graphs import node_types

REST = (
    "d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, last) s = Add (v, e) r = Sqrt (s) n = Div (d, r) y = Mul (n, w)"
)
NORM = f"m = ReduceMean (x, last) {REST}"
LAST = "last = Constant <value_ints = [-1]> ()"
NUMBER = "e = Constant <value_float = 0.001> ()"


def model(body: str, *functions: str) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 18, "my": 1]> g (float[2,6,8] x) => (float[2,6,8] y)
        <float[8] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{ {body} }}"""
    return onnx.parser.parse_model(
        text + "".join(f'\n<domain: "my", opset_import: ["": 18]> {each}' for each in functions)
    )


WRITTEN = {
    "all of it": (model("y = my.norm (x, w)", f"norm (x, w) => (y) {{ {LAST} {NUMBER} {NORM} }}"), 1),
    "called twice": (
        model("z = my.norm (x, w) y = my.norm (z, w)", f"norm (x, w) => (y) {{ {LAST} {NUMBER} {NORM} }}"),
        2,
    ),
    "epsilon as an attribute": (
        model(
            "y = my.norm <epsilon = 0.001> (x, w)",
            f"norm <epsilon> (x, w) => (y) {{ {LAST} e = Constant <value_float: float = @epsilon> () {NORM} }}",
        ),
        1,
    ),
    "epsilon as an input": (
        model(f"{NUMBER} y = my.norm (x, w, e)", f"norm (x, w, e) => (y) {{ {LAST} {NORM} }}"),
        1,
    ),
    "one function an operator": (
        model(
            f"{LAST} {NUMBER} m = my.mean (x, last) {REST.replace('ReduceMean', 'my.mean').replace('Sub', 'my.minus')}",
            "mean (x, axes) => (y) { y = ReduceMean <keepdims = 1> (x, axes) }",
            "minus (a, b) => (c) { c = Sub (a, b) }",
        ),
        1,
    ),
    "a function in a function": (
        model(
            "y = my.outer (x, w)",
            "outer (x, w) => (y) { z = my.norm (x, w) y = Relu (z) }",
            f"norm (x, w) => (y) {{ {LAST} {NUMBER} {NORM} }}",
        ),
        1,
    ),
}


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("name", list(WRITTEN))
def test_norms_in_functions_are_written(name: str, form: Form) -> None:
    before, count = WRITTEN[name]
    target = Target(form, native=False)
    after, report = normfuse.fuse(before, target)
    assert [record.norm for record in report.norms] == ["layer"] * count
    assert [note.split(":")[0] for note in report.notes[:1]] == [
        "inlined functions with parts of norms in elementary operators"
    ]
    assert not [key for key in after.functions if key[0] == "my"]
    if form is Form.STANDARD:
        assert node_types(after).count("LayerNormalization") == count
    verdict = normfuse.validate(before, after, providers=(), quick=True)
    assert verdict.verdict.value == "EQUIVALENT", verdict.table()
    again, report = normfuse.fuse(io.to_proto(after), target)
    assert not report.rewrites
    assert node_types(again) == node_types(after)


@pytest.mark.parametrize(
    "functions",
    [
        (f"norm (x, w) => (y) {{ {LAST} t = ReduceMean (x, last) y = Sub (x, t) }}",),
        (f"norm (x, w) => (y) {{ {LAST} t = ReduceSum (x, last) y = Div (x, t) }}",),
    ],
    ids=["mean", "share"],
)
def test_functions_without_norms_stay(functions: tuple[str, ...]) -> None:
    before = model("y = my.norm (x, w)", *functions)
    after, report = normfuse.fuse(before, Target(Form.STANDARD))
    assert not report.notes
    assert node_types(after) == ["norm"]
    assert [key[1] for key in after.functions] == ["norm"]
