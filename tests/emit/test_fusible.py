"""What auto and standard write where the opset has no operator: elementary operators that onnxruntime fuses into a kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import normfuse
from normfuse import io
from normfuse.emit.target import Form, Target
from tests.graphs import is_runnable, model_of, node_types, run

RMS = "Pow ReduceMean Add Sqrt Div Mul".split()
LAYER = "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add".split()
CODES = {"float": 1, "float16": 10, "bfloat16": 16, "double": 11}


def mean(opset: int, x: str) -> str:
    return f"ReduceMean <axes = [-1]> ({x})" if opset < 18 else f"ReduceMean ({x}, last)"


def rms(opset: int, dtype: str = "float", *, core: str = "", affine: str = "y = Mul (w, n)", size: int = 16) -> str:
    """Return an RMS norm as torch exports it: statistics in float32 for half types."""
    half = dtype in ("float16", "bfloat16")
    wide = "float" if half else dtype
    up, down = ("z = Cast <to = 1> (x)", f"Cast <to = {CODES[dtype]}>") if half else ("z = Identity (x)", "Identity")
    core = core or "i = Reciprocal (r)\nk = Mul (z, i)"
    return f"""<ir_version: 8, opset_import: ["": {opset}]> g ({dtype}[2,3,{size}] x) => ({dtype}[2,3,{size}] y)
        <{wide} two = {{2}}, {wide} e = {{0.001}}, int64[1] last = {{-1}},
         {wide}[{size}] {"v" if half else "w"} = {{{",".join(str(1 + i / 8) for i in range(size))}}}> {{
          {up}
          {f"w = Cast <to = {CODES[dtype]}> (v)" if half else ""}
          p = Pow (z, two)
          m = {mean(opset, "p")}
          s = Add (m, e)
          r = Sqrt (s)
          {core}
          n = {down} (k)
          {affine} }}"""


def layer(opset: int, *, x: str = "z = Relu (x)", dtype: str = "float", bias: str = "y = Add (g, w)") -> str:
    return f"""<ir_version: 8, opset_import: ["": {opset}]> g ({dtype}[2,3,4] x) => (float[2,3,4] y)
        <float e = {{0.001}}, int64[1] last = {{-1}}, float[4] w = {{1, 2, 3, 4}}> {{
          {x}
          m = {mean(opset, "z")}
          d = Sub (z, m)
          q = Mul (d, d)
          u = {mean(opset, "q")}
          s = Add (u, e)
          r = Sqrt (s)
          n = Div (d, r)
          g = Mul (n, w)
          {bias} }}"""


def fused(text: str, form: Form = Form.AUTO) -> ir.Model:
    model, _ = normfuse.fuse(ir.to_proto(model_of(text)), Target(form, native=False))
    again, report = normfuse.fuse(io.to_proto(model), Target(form, native=False))
    assert not report.rewrites
    assert node_types(again) == node_types(model)
    onnx.checker.check_model(io.to_proto(model), full_check=True)
    return model


def loaded(model: ir.Model, folder: Path) -> list[str]:
    """Return the operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "loaded.onnx"), 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    proto = io.to_proto(model).SerializeToString()
    onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node]


@pytest.mark.parametrize("form", [Form.AUTO, Form.STANDARD])
@pytest.mark.parametrize(
    ("text", "expected", "kernel"),
    [
        *((rms(opset), RMS, "SimplifiedLayerNormalization") for opset in (7, 11, 13, 17, 18, 22)),
        *((rms(18, half), ["Cast", *RMS, "Cast"], "SimplifiedLayerNormalization") for half in ("float16", "bfloat16")),
        # As it is fused already: it stays, Identities included.
        (rms(18, core="k = Div (z, r)"), ["Identity", *RMS[:-1], "Identity", "Mul"], "SimplifiedLayerNormalization"),
        *((layer(opset), ["Relu", *LAYER], "LayerNormalization") for opset in (7, 11, 13, 16)),
    ],
)
def test_it_is_fused(text: str, expected: list[str], kernel: str, form: Form, tmp_path: Path) -> None:
    model = fused(text, form)
    assert node_types(model) == expected
    ran = loaded(model, tmp_path)
    assert kernel in ran
    assert not {"ReduceMean", "Sqrt"} & set(ran)


@pytest.mark.parametrize(
    "text",
    [
        rms(18, "double"),
        rms(18, affine="y = Identity (n)"),
        layer(13, x="z = Cast <to = 1> (x)", dtype="float16"),
        layer(13, x="c = Cast <to = 1> (x)\nz = Identity (c)", dtype="bfloat16"),
        layer(13, x="c = Cast <to = 1> (x)\nz = Dropout (c)", dtype="bfloat16"),
        layer(13, bias="y = Identity (g)"),
        rms(23),
        layer(17),
    ],
)
def test_where_it_would_not_be_fused_nothing_is_written_for_it(text: str) -> None:
    """Nor is anything fused into a model that does not load."""
    for form in (Form.AUTO, Form.STANDARD):
        after = fused(text, form)
        assert not {"Pow", "Div"} <= set(node_types(after))
        assert is_runnable(after)


@pytest.mark.parametrize("text", [rms(18), rms(13), layer(13)])
def test_same_numbers(text: str) -> None:
    model = model_of(text)
    size = model.graph.inputs[0].shape
    assert size is not None
    x = (np.random.default_rng(1).standard_normal(size.numpy()) * 3 + 1).astype(np.float32)
    x[0] *= 1e-3  # epsilon counts
    after = fused(text)
    report = normfuse.validate(ir.to_proto(model), io.to_proto(after), providers=())
    assert report.verdict.value == "EQUIVALENT", report.table()
    # Values up to 8: 2^5 units of their last place.
    assert np.abs(run(model, {"x": x})[0] - run(after, {"x": x})[0]).max() <= 2.0**-15


def test_many_short_rows_stay_with_it_where_the_library_is() -> None:
    """A native layer norm beside one that onnxruntime fuses is worth its call for a few short rows, not for hundreds."""
    for rows, expected in (("2,3", ["Relu", "LayerNorm"]), ("2,300", ["Relu", *LAYER])):
        text = layer(13).replace("[2,3,4]", f"[{rows},4]")
        model, _ = normfuse.fuse(ir.to_proto(model_of(text)), Target(Form.AUTO, native=True))
        assert node_types(model) == expected
