"""The algebra of terms, and random damage to norms: whatever is still found computes what it says."""

from __future__ import annotations

import random
import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from normfuse.graph.site import NormSite
from normfuse.recognise.primitive import find_decomposed
from normfuse.recognise.terms import Mean, Parameter, Term, Terms, X
from normfuse.reference import evaluate
from normfuse.spec import PerChannel, Trailing
from tests.graphs import reading_of
from tests.recognise.test_primitive import operands
from tests.spellings import Family, Spelling, graph_of, spellings


def test_squares_are_one_term() -> None:
    terms = Terms()
    mean = terms.mean(X, (-1,))
    assert mean is not None
    deviation, reversed_deviation = terms.add(X, mean, -1.0), terms.add(mean, X, -1.0)
    assert deviation is not None
    assert reversed_deviation is not None
    assert reversed_deviation == Term(-1.0, deviation.factors)
    square = terms.power(deviation, 2.0)
    assert square == terms.multiply(deviation, deviation) == terms.multiply(reversed_deviation, reversed_deviation)


def test_a_root_of_a_square_is_not_taken_back() -> None:
    terms = Terms()
    square = terms.power(X, 2.0)
    assert square is not None
    assert terms.power(square, 0.5) is None
    mean = terms.mean(square, (-1,))
    assert mean is not None
    assert terms.power(mean, 0.5) is not None
    assert terms.power(Term(-1.0, mean.factors), 0.5) is None


def test_a_quotient_of_equals_is_not_one() -> None:
    terms = Terms()
    inverse = terms.power(X, -1.0)
    assert inverse is not None
    assert terms.multiply(X, inverse) is None
    assert terms.add(X, X, -1.0) is None


def test_means_of_parameters_are_not_read() -> None:
    terms = Terms()
    product = terms.multiply(X, terms.of(Parameter(0)))
    assert product is not None
    assert terms.mean(product, (-1,)) is None


def test_means_one_axis_after_the_other() -> None:
    terms = Terms()
    first = terms.mean(X, (-1,))
    assert first is not None
    both = terms.mean(first, (-2,))
    assert both is not None
    assert terms.base(both.factors[0][0]) == Mean((-2, -1), X.factors)
    assert terms.mean(first, (-1,)) is None


SWAPS = {"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "Sqrt": "Reciprocal", "Reciprocal": "Sqrt"}
CUBE = (
    Family("layer", (6, 6, 6), (-1,), (6,), Trailing((-1,))),
    Family("layer, two axes", (6, 6, 6), (-2, -1), (6, 6), Trailing((-2, -1))),
    Family("rms", (6, 6, 6), (-1,), (6,), Trailing((-1,)), centred=False),
    Family("instance", (6, 6, 6, 6), (-2, -1), (6, 1, 1), PerChannel()),
)
"""All axes alike, so that what broadcasts along the wrong one still runs."""


def damaged(text: str, rng: random.Random) -> str:
    """Return ``text`` with one node changed: its operator, an operand, its axes, keepdims, or a constant."""
    lines = text.split("\n")
    body = [index for index, line in enumerate(lines) if re.match(r"t\d+ = ", line)]
    index = rng.choice(body)
    line = lines[index]
    kind = rng.choice(["operator", "operand", "axes", "keepdims", "constant", "swap"])
    if kind == "operator":
        op_type = re.search(r"= (\w+)", line)
        assert op_type is not None
        line = line.replace(f"= {op_type[1]} ", f"= {SWAPS.get(op_type[1], op_type[1])} ")
    elif kind == "operand":
        names = re.findall(r"\bt\d+\b|\bx\b|\bk\d+\b", line.split("(")[-1])
        earlier = ["x", *(lines[each].split(" ")[0] for each in body if each < index)]
        if names:
            line = line.split("(")[0] + "(" + line.split("(")[-1].replace(rng.choice(names), rng.choice(earlier), 1)
    elif kind == "axes":
        line = re.sub(r"axes = \[[^]]*\]", f"axes = [{rng.choice([-1, -2, 0, 1])}]", line)
    elif kind == "keepdims":
        line = line.replace("keepdims = 1", "keepdims = 0")
    elif kind == "swap":
        line = re.sub(r"\((\w+), (\w+)\)", r"(\2, \1)", line)
    else:
        numbers = list(re.finditer(r"float (k\d+) = \{([^}]*)\}", text))
        if numbers:
            number = rng.choice(numbers)
            value = rng.choice(["2", "0.5", "-0.5", "-1", "0.001", "7", "0.16666667"])
            return text.replace(number[0], f"float {number[1]} = {{{value}}}")
    lines[index] = line
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_in_damaged_norms_is_right(seed: int) -> None:
    rng = random.Random(seed)
    checked = 0
    for spelling in list(spellings(700, seed=10 + seed))[300:]:
        family = rng.choice(CUBE)
        damage: Spelling = Spelling(
            **{
                name: getattr(spelling, name)
                for name in spelling.__dataclass_fields__
                if name not in ("family", "dtype")
            },
            family=family,
        )
        text = damaged(graph_of(damage).text, rng)
        if rng.random() < 0.3:
            text = damaged(text, rng)
        checked += check_found(text, family)
    assert checked > 50, checked


def check_found(text: str, family: Family) -> int:
    """Compare every norm found in the graph with what onnxruntime computes there; return how many were compared."""
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        model = ir.from_proto(proto)
        sites = [site for site in find_decomposed(model.graph, reading_of(model), set()) if isinstance(site, NormSite)]
        wanted = list(dict.fromkeys(value.name for site in sites for value in (site.output, site.operands.x)))
        if not sites:
            return 0
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name != "x")
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(5).standard_normal(family.shape).astype(np.float32)
        x[0] *= 0.05
        results = dict(zip([name for name in wanted if name != "x"], session.run(None, {"x": x}), strict=True))
    except (onnx.parser.ParseError, onnx.shape_inference.InferenceError, *ORT_ERRORS):
        return 0
    results["x"] = x
    for site in sites:
        actual = results[site.output.name].astype(np.float64)
        expected = evaluate(site.spec, {"x": results[site.operands.x.name], **operands(model, site)})
        assert actual.shape == expected.shape, text
        both = np.isfinite(actual) & np.isfinite(expected)
        assert np.array_equal(np.isfinite(actual), np.isfinite(expected)), text
        # 2^12 units of float32: damage makes means cancel that the norms of networks do not.
        allowed = 2.0**-12 * max(1.0, float(np.abs(expected[both]).max(initial=0.0)))
        assert np.abs(actual - expected)[both].max(initial=0.0) <= allowed, (site.spec, text)
    return len(sites)


ORT_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)
