"""Shapes that a file does not state: there while the model is read, gone after."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from normfuse.graph.shapes import inferred_shapes

HEAD = '<ir_version: 8, opset_import: ["": 17, "my": 1]>\n'
MEAN = """g (float[N, 4, 6] x) => (float[N, 4, 6] y) <int64[3] s = {0, 4, 6}> {
    r = Relu (x)
    v = Reshape (r, s)
    m = ReduceMean <axes = [-1]> (v)
    y = Sub (v, m) }"""


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def shapes(built: ir.Model) -> dict[str, list[object] | None]:
    return {
        str(value.name): None if value.shape is None else [getattr(size, "value", size) for size in value.shape]
        for node in built.graph
        for value in node.outputs
    }


def test_shapes_and_types_are_there_for_the_time_of_reading() -> None:
    built = model(MEAN)
    before = ir.to_proto(built).SerializeToString(deterministic=True)
    with inferred_shapes(built):
        assert shapes(built) == {"r": ["N", 4, 6], "v": ["N", 4, 6], "m": ["N", 4, 1], "y": ["N", 4, 6]}
        assert {value.dtype for node in built.graph for value in node.outputs} == {ir.DataType.FLOAT}
    assert ir.to_proto(built).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w)  b = BatchNormalization (c, s, s, s, s)  y = Relu (b)",
        "r = Relu (x)  p = GlobalAveragePool (r)  c = Conv (p, w)  g = Sigmoid (c)  y = Mul (g, r)",
    ],
)
def test_nothing_is_inferred_where_no_norm_needs_it(body: str) -> None:
    built = model(f"g (float[1, 2, 3, 3] x, float[2, 2, 1, 1] w, float[2] s) => (float[1, 2, 3, 3] y) {{ {body} }}")
    with inferred_shapes(built):
        assert shapes(built) == {node.outputs[0].name: None for node in built.graph} | {"y": [1, 2, 3, 3]}


def test_the_type_of_what_a_batch_norm_reads_is_inferred_where_asked() -> None:
    """It need not be that of its parameters."""
    built = model("g (float[1, 2, 3, 3] x, float[2] s) => (y) { c = Relu (x)  y = BatchNormalization (c, s, s, s, s) }")
    read = built.graph[1].inputs[0]
    assert read is not None
    found = []
    for asked in (False, True):
        with inferred_shapes(built, input_types=asked):
            found.append(read.dtype)
    assert found == [None, ir.DataType.FLOAT]


def test_what_is_stated_stays_and_an_unknown_operator_is_no_obstacle() -> None:
    built = model(MEAN.replace("Relu (x)", "my.Strange (x)"))
    (strange, *_) = built.graph
    strange.outputs[0].shape = ir.Shape(["M", 4, 6])
    with inferred_shapes(built):
        assert shapes(built)["r"] == ["M", 4, 6]
    assert shapes(built) == {"r": ["M", 4, 6], "v": None, "m": None, "y": ["N", 4, 6]}


@pytest.mark.parametrize(
    ("norm", "opset"),
    [
        ("GroupNormalization <num_groups = 2> (x, s, s)", 21),
        ("SimplifiedLayerNormalization (x, q)", 17),
        ("MeanVarianceNormalization (x)", 17),
    ],
)
def test_norms_that_inference_has_no_rule_for(norm: str, opset: int) -> None:
    """What is behind them is known all the same, and the node stays what it is."""
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,6,5] x) => (y)
        <float[4] s = {{1, 2, 3, 4}}, float[5] q = {{1, 2, 3, 4, 5}}>
        {{ a = Relu (x)  n = {norm}  r = Relu (n)  y = InstanceNormalization (r, s, s) }}"""
    model = ir.from_onnx_text(text)
    behind = model.graph[2].outputs[0]
    with inferred_shapes(model):
        assert (str(behind.shape), behind.dtype) == ("[N,4,6,5]", ir.DataType.FLOAT)
    assert behind.shape is None
    assert model.graph[1].op_type == norm.split()[0]
