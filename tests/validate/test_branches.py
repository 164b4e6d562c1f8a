"""A change in a body that the inputs do not enter is found all the same, or the report says that nothing judged it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from normfuse.report.verdict import ValidationReport, Verdict
from normfuse.validate import validate


def check(reference: str, candidate: str) -> ValidationReport:
    """Validate two graphs given as ONNX text, on the oracle alone."""
    return validate(parsed(reference), parsed(candidate), providers=())


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>{text}')


HEAD = "g (float[2,3,4,4] x, bool flag) => (float[2,3,4,4] y) <float[3] s = {1.0, 2.0, 3.0}, float[3] b = {0.5, -1.0, 2.0}>"
NEVER = "t = ReduceMax <keepdims = 0> (x)  limit = Constant <value_float = 1e30> ()  c = Greater (t, limit)"


def by_flag(epsilon: float) -> str:
    return f"""{HEAD} {{ y = If (flag) <
        then_branch = a () => (float[2,3,4,4] p) {{ p = Relu (x) }},
        else_branch = e () => (float[2,3,4,4] q) {{ q = InstanceNormalization <epsilon = {epsilon}> (x, s, b) }}> }}"""


def by_never(inner: str) -> str:
    return f"""{HEAD} {{ {NEVER}  y = If (c) <
        then_branch = a () => (float[2,3,4,4] p) {{ {inner} }},
        else_branch = e () => (float[2,3,4,4] q) {{ q = Relu (x) }}> }}"""


def nested(inner: str) -> str:
    return by_never(f"""d = Not (c)  p = If (d) <
        then_branch = a2 () => (float[2,3,4,4] p2) {{ {inner} }},
        else_branch = e2 () => (float[2,3,4,4] q2) {{ q2 = Sqrt (x) }}>""")


def loop(trips: str, inner: str) -> str:
    return f"""g (float[2,3,4,4] x, int64 n) => (float[2,3,4,4] y) <float[3] s = {{1.0, 2.0, 3.0}}, float[3] b = {{0.5, -1.0, 2.0}}> {{
        {trips}  go = Constant <value = bool {{1}}> ()
        y = Loop (m, go, x) <body = l (int64 i, bool k, float[2,3,4,4] v) => (bool k2, float[2,3,4,4] w)
            {{ k2 = Identity (k)  {inner} }}> }}"""


NORM, OTHER = (f"p = InstanceNormalization <epsilon = {e}> (x, s, b)" for e in ("1e-5", "1e-3"))
DEEP, DEEPER = (f"p2 = InstanceNormalization <epsilon = {e}> (x, s, b)" for e in ("1e-5", "1e-3"))
STEP, STEPS = (f"w = InstanceNormalization <epsilon = {e}> (v, s, b)" for e in ("1e-5", "1e-3"))
NONE = "zero = Constant <value = int64 {0}> ()  m = Mul (n, zero)"
# Only the second trip shows that what is carried was dropped.
CARRIED, DROPPED = "h = Relu (v)  w = Add (h, x)", "h = Relu (x)  w = Add (h, x)"
ONCE = "one = Constant <value = int64 {1}> ()  m = Min (n, one)"
ENDLESS = "many = Constant <value = int64 {10000000}> ()  m = Max (n, many)"


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (by_flag(1e-5), by_flag(1e-3)),
        (by_never(NORM), by_never(OTHER)),
        (nested(DEEP), nested(DEEPER)),
        (loop("m = Identity (n)", STEP), loop("m = Identity (n)", STEPS)),
        (loop(NONE, STEP), loop(NONE, STEPS)),
        (loop(ONCE, CARRIED), loop(ONCE, DROPPED)),
        (loop(ENDLESS, STEP), loop(ENDLESS, STEPS)),
    ],
    ids=["flag", "never taken", "nested", "trips", "no trip", "second trip", "endless"],
)
def test_change_in_a_body(reference: str, candidate: str) -> None:
    report = check(reference, candidate)
    assert report.verdict is Verdict.DIVERGENT
    assert check(reference, reference).verdict is Verdict.EQUIVALENT


def test_a_right_change_in_a_body_never_entered_is_judged_and_passes() -> None:
    written = """m = ReduceMean <axes = [2, 3]> (x)  d = Sub (x, m)  d2 = Mul (d, d)  v = ReduceMean <axes = [2, 3]> (d2)
        e = Constant <value_float = 1e-5> ()  ve = Add (v, e)  sd = Sqrt (ve)  n = Div (d, sd)
        shape = Constant <value = int64[3] {3, 1, 1}> ()  s3 = Reshape (s, shape)  b3 = Reshape (b, shape)
        ns = Mul (n, s3)  p = Add (ns, b3)"""
    report = check(by_never(NORM), by_never(written))
    assert report.verdict is Verdict.EQUIVALENT
    assert any("then_branch of If 'y' forced" in item.subject for item in report.checks)


def test_body_that_cannot_be_entered_leaves_the_verdict_open() -> None:
    """The branch fits no input of this graph: its Reshape fails."""
    broken = "wrong = Constant <value = int64[1] {7}> ()  r = Reshape (x, wrong)  p0 = Expand (r, wrong)  p = OP (p0)"
    report = check(by_never(broken.replace("OP", "Relu")), by_never(broken.replace("OP", "Sqrt")))
    assert report.verdict is Verdict.NOT_RUN
    assert "no input enters then_branch of If 'y' (changed), and it cannot be forced" in report.unreached[0]


def test_body_that_a_constant_rules_out_does_not_matter() -> None:
    text = """g (float[2] x) => (float[2] y) {{ c = Constant <value = bool {{1}}> ()  y = If (c) <
        then_branch = a () => (float[2] p) {{ p = Relu (x) }},
        else_branch = e () => (float[2] q) {{ w = Constant <value = int64[1] {{7}}> ()  r = Reshape (x, w)  q = {op} (r) }}> }}"""
    assert check(text.format(op="Sqrt"), text.format(op="Relu")).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("kind", ["bool", "float", "int64"])
def test_wrong_mask_path(kind: str) -> None:
    cast = "" if kind == "float" else "Cast <to = 1>"
    read = "m = Identity (attention_mask)" if kind == "float" else f"m = {cast} (attention_mask)"
    text = f"g (float[2,6] x, {kind}[2,6] attention_mask) => (float[2,6] y) {{ {read}  y = OP }}"
    assert check(text.replace("OP", "Mul (x, m)"), text.replace("OP", "Identity (x)")).verdict is Verdict.DIVERGENT


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("epsilons", [(1e-5, 1e-3), (1e-5, 1e-6), (1e-12, 1e-5)])
def test_wrong_epsilon_behind_other_layers(dtype: str, epsilons: tuple[float, float]) -> None:
    """In float16 as well, and where the norm's input is of ordinary size whatever the graph is fed."""

    def graph(epsilon: float) -> onnx.ModelProto:
        text = f"""g ({dtype}[2,3,8,8] x, {dtype}[3] s, {dtype}[3] b) => ({dtype}[2,3,8,8] y) {{
            h = InstanceNormalization (x, s, b)  r = Relu (h)  y = InstanceNormalization <epsilon = {epsilon}> (r, s, b) }}"""
        model = parsed(text)
        kind = np.float16 if dtype == "float16" else np.float32
        for name, values in (("s", [1.0, 2.0, -3.0]), ("b", [0.5, -1.0, 2.0])):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, kind), name))
        del model.graph.input[1:]
        return model

    assert validate(graph(epsilons[0]), graph(epsilons[1]), providers=()).verdict is Verdict.DIVERGENT
    assert validate(graph(epsilons[0]), graph(epsilons[0]), providers=()).verdict is Verdict.EQUIVALENT
