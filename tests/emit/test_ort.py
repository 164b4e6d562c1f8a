"""The ort form: onnxruntime's own operators, and only those that the provider has a kernel for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.emit import advice, emit
from normfuse.emit.target import Form, Provider
from normfuse.graph.editing import Editor, Replacement
from normfuse.graph.site import Declined, NormSite, Operands
from normfuse.recognise import find_norms
from normfuse.reference import evaluate
from normfuse.spec import Activation, AffineAxes, AffineLayout, NormSpec, Trailing
from tests.emit.test_standard import emitted, head
from tests.graphs import model_of, node_types, reading_of, run
from tests.test_round_trip import Case, placeholder, tolerance

ALONG = AffineLayout(True, True, AffineAxes.NORMALISED)
LAYER = NormSpec(Trailing((-1,)), 1e-3, affine=ALONG)
RMS = NormSpec(Trailing((-1,)), 1e-3, centred=False, affine=AffineLayout(True, False, AffineAxes.NORMALISED))
FLOAT, HALF, DOUBLE = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE


def written(
    spec: NormSpec, opset: int, dtype: ir.DataType = FLOAT, shape: tuple[int, ...] = (2, 3, 8)
) -> tuple[ir.Model, Declined | None]:
    """Return a norm of x + residual in the ort form, checked on onnxruntime."""
    case = Case("norm", spec, shape, residual=True)
    model, site, arrays = placeholder(case, dtype, opset, static=True)
    result = emit(site, Form.ORT, reading_of(model), opset)
    if isinstance(result, Declined):
        return model, result
    assert isinstance(result, Replacement)
    Editor(model).apply(result, site.root)
    feeds = {name: arrays[name].astype(dtype.numpy()) for name in ("x", "residual")}
    expected = evaluate(spec, arrays)
    (actual,) = run(model, feeds)
    assert np.abs(actual.astype(np.float64) - expected).max() <= 2 * tolerance(dtype, expected)
    return model, None


@pytest.mark.parametrize(
    ("spec", "opset", "dtype", "expected"),
    [
        (LAYER, 11, FLOAT, ["SkipLayerNormalization"]),
        (LAYER, 21, HALF, ["SkipLayerNormalization"]),
        (RMS, 17, FLOAT, ["SkipSimplifiedLayerNormalization"]),
        (NormSpec(Trailing((-1,)), 1e-3, affine=ALONG, activation=Activation.RELU), 17, FLOAT, ["SkipLayerNormalization", "Relu"]),
    ],
)  # fmt: skip
def test_residuals(spec: NormSpec, opset: int, dtype: ir.DataType, expected: list[str]) -> None:
    model, declined = written(spec, opset, dtype)
    assert declined is None
    assert node_types(model) == expected
    assert model.opset_imports["com.microsoft"] == 1
    (site,) = find_norms(model.graph, reading_of(model))
    assert isinstance(site, NormSite)
    assert site.operands.residual is not None


def test_four_axes_are_not_taken() -> None:
    model, declined = written(LAYER, 17, shape=(2, 3, 4, 8))
    assert declined is None
    assert node_types(model) == ["Add", "LayerNormalization"]


def test_a_type_without_a_kernel_is_declined() -> None:
    _, declined = written(LAYER, 17, DOUBLE)
    assert declined is not None
    assert (
        declined.reason == "onnxruntime's CPU provider has no kernel for com.microsoft SkipLayerNormalization of double"
    )


@pytest.mark.parametrize("shape", ["float[5]", "float[1,1,5]"])
def test_parameters_of_higher_rank_are_squeezed(shape: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[2,6,5] x, float[2,6,5] r, {shape} s) => (float[2,6,5] y)
        {{ a = Add (x, r) y = LayerNormalization (a, s, s) }}"""
    model = model_of(text)
    reading = reading_of(model)
    add, norm = list(model.graph)
    x, r = add.inputs
    _, s, b = norm.inputs
    assert x is not None
    site = NormSite(LAYER, Operands(x, s, b, residual=r), "Add·LayerNormalization", norm, (add, norm))
    result = emit(site, Form.ORT, reading, 17)
    assert isinstance(result, Replacement)
    Editor(model).apply(result, norm)
    assert node_types(model)[-1] == "SkipLayerNormalization"
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 6, 5)), "r": rng.standard_normal((2, 6, 5)), "s": rng.uniform(1, 2, 5)}
    expected = evaluate(LAYER, {"x": feeds["x"], "residual": feeds["r"], "scale": feeds["s"], "bias": feeds["s"]})
    feeds["s"] = feeds["s"].reshape([int(size) for size in shape[6:-1].split(",")])
    (actual,) = run(model, {name: array.astype(np.float32) for name, array in feeds.items()})
    # Fewer than 32 roundings of values below 8.
    assert np.abs(actual - expected).max() < 32 * 8 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("nodes", "opset", "expected"),
    [
        ("{ y = RMSNormalization (x, s5) }", 23, ["RMSNormalization"]),
        ("{ y = InstanceNormalization (x, s, b) }", 17, ["InstanceNormalization"]),
        ("{ y = BatchNormalization (x, s, b, s, b) }", 17, ["BatchNormalization"]),
        ("{ y = LayerNormalization (x, s5, b5) }", 17, ["LayerNormalization"]),
        ("{ y = LayerNormalization (x, s5, b5) }", 12, ["LayerNormalization"]),
        ("{ y = SimplifiedLayerNormalization (x, s5) }", 17, ["SimplifiedLayerNormalization"]),
    ],
)
def test_what_has_a_kernel_stays(nodes: str, opset: int, expected: list[str]) -> None:
    text = head(opset) + nodes
    before = ir.to_proto(model_of(text)).SerializeToString()
    model, declined = emitted(text, Form.ORT)
    assert not declined
    assert node_types(model) == expected
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("""<ir_version: 10, opset_import: ["": 23]> g (bfloat16[2,3,8] x, bfloat16[8] s) => (bfloat16[2,3,8] y)
            { y = RMSNormalization (x, s) }""", "RMSNormalization"),
        ("""<ir_version: 10, opset_import: ["": 23]> g (double[2,3,8] x, double[3] s) => (double[2,3,8] y)
            { y = InstanceNormalization (x, s, s) }""", "InstanceNormalization"),
    ],
)  # fmt: skip
def test_a_standard_operator_without_a_kernel_is_not_written(text: str, absent: str) -> None:
    from tests.graphs import is_runnable

    assert not is_runnable(model_of(text))
    model, declined = emitted(text, Form.ORT)
    assert not declined
    assert absent not in node_types(model)
    assert is_runnable(model)


def test_group_norm_is_declined_by_name() -> None:
    text = head(21) + "{ y = GroupNormalization <num_groups = 2> (x, s, b) }"
    model, declined = emitted(text, Form.ORT)
    assert [entry.reason for entry in declined] == [
        "onnxruntime's CPU provider has no kernel for com.microsoft GroupNorm"
    ]
    assert node_types(model) == ["GroupNormalization"]


def test_cuda_has_no_kernel_for_float64() -> None:
    case = Case("norm", LAYER, (2, 3, 8), residual=True)
    model, site, _ = placeholder(case, ir.DataType.DOUBLE, 17, static=True)
    result = emit(site, Form.ORT, reading_of(model), 17, Provider.CUDA)
    assert isinstance(result, Declined)
    assert result.reason == "no kernel for com.microsoft SkipLayerNormalization is known of onnxruntime's CUDA provider"
    model, site, _ = placeholder(case, FLOAT, 17, static=True)
    assert not isinstance(emit(site, Form.ORT, reading_of(model), 17, Provider.CUDA), Declined)


@pytest.mark.parametrize(
    ("form", "dtype", "part"),
    [(Form.ORT, FLOAT, "4-8 times slower"), (Form.ORT, HALF, "large magnitudes"), (Form.STANDARD, FLOAT, None)],
)
def test_advice(form: Form, dtype: ir.DataType, part: str | None) -> None:
    case = Case("norm", LAYER, (2, 3, 8), residual=True)
    model, site, _ = placeholder(case, dtype, 17, static=True)
    text = advice(site, form, reading_of(model), 17, Provider.CPU)
    assert (text is None) if part is None else (text is not None and part in text)
