"""The table of kernels is what the installed onnxruntime really has."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from normfuse.emit.kernels import KERNELS, has_kernel, is_worth_its_call
from normfuse.emit.target import Provider
from tests.graphs import is_runnable

PARAMETERS = {
    "InstanceNormalization": 2,
    "BatchNormalization": 4,
    "LayerNormalization": 2,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "com.microsoft.SkipLayerNormalization": 2,
    "com.microsoft.SkipSimplifiedLayerNormalization": 1,
    "com.microsoft.GroupNorm": 2,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float", "double"])
@pytest.mark.parametrize("operator", PARAMETERS)
def test_table(operator: str, dtype: str) -> None:
    names = [f"p{index}" for index in range(PARAMETERS[operator])]
    parameters = "".join(f", {dtype}[4] {name}" for name in names)
    skip = "x, " if "Skip" in operator else ""
    groups = "<groups = 2, activation = 0>" if "GroupNorm" in operator else ""
    shape = "[2,4,4,4]" if groups else "[2,4,4]"
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
        g ({dtype}{shape} x{parameters}) => ({dtype}{shape} y)
        {{ y = {operator} {groups} (x, {skip}{", ".join(names)}) }}""")
    value = model.graph.inputs[0].dtype
    assert value is not None
    assert is_runnable(model) is has_kernel(operator, value)


def test_every_row_is_probed() -> None:
    assert {operator for provider, operator in KERNELS if provider is Provider.CPU} <= set(PARAMETERS)


@pytest.mark.parametrize(
    ("lines", "length", "wins"), [(18, 64, False), (19, 64, True), (None, 8, True), (None, 7, False)]
)
def test_channels_that_lie_last_are_counted_by_position(lines: int | None, length: int, wins: bool) -> None:
    """An instance norm of (N, positions, C): a line is the channels of a position."""
    worth = is_worth_its_call(
        "instance", ir.DataType.FLOAT, Provider.CPU, joined=False, last=True, lines=lines, length=length
    )
    assert worth is wins
