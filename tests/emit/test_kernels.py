"""The table of kernels is what the installed onnxruntime really has."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from normfuse.emit.kernels import has_kernel
from tests.graphs import is_runnable

PARAMETERS = {
    "InstanceNormalization": 2,
    "BatchNormalization": 4,
    "LayerNormalization": 2,
    "RMSNormalization": 1,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float", "double"])
@pytest.mark.parametrize("operator", PARAMETERS)
def test_table(operator: str, dtype: str) -> None:
    names = [f"p{index}" for index in range(PARAMETERS[operator])]
    parameters = "".join(f", {dtype}[4] {name}" for name in names)
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 23]> g ({dtype}[2,4,4] x{parameters}) =>
        ({dtype}[2,4,4] y) {{ y = {operator} (x, {", ".join(names)}) }}""")
    value = model.graph.inputs[0].dtype
    assert value is not None
    assert is_runnable(model) is has_kernel(operator, value)
