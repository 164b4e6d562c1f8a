"""Real architectures that ship with onnx itself (IR 3, opset 9), their constant parameters replaced by random ones.

Their weights come from ConstantOfShape: all parameters of a norm are equal there, so that a fold along a wrong axis
would pass unnoticed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import normfuse
from normfuse import Verdict

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def with_random_parameters(name: str) -> onnx.ModelProto:
    """Return a light model with random weights, biases and statistics in place of its constant ones."""
    path = FOLDER / f"light_{name}.onnx"
    if not path.exists():
        pytest.skip(f"this onnx does not ship {path.name}")
    model = onnx.load(path)
    random = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    made = [node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]
    for node in made:
        shape = tuple(int(size) for size in shapes[node.input[0]])
        values = random.uniform(0.5, 2, shape) if node.output[0] in variances else random.standard_normal(shape)
        if len(shape) > 1:
            values = values / np.sqrt(np.prod(shape[1:]))
        tensor = numpy_helper.from_array(np.asarray(values, np.float32), node.output[0])
        model.graph.node.remove(node)
        model.graph.initializer.append(tensor)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


@pytest.mark.parametrize(("name", "norms", "left"), [
    ("resnet50", 53, 0), ("inception_v2", 69, 0), ("shufflenet", 49, 0), ("densenet121", 121, 62),
])  # fmt: skip
def test_light_models(name: str, norms: int, left: int) -> None:
    """Folded as far as they can be, equal to the oracle, and loaded and run by onnxruntime."""
    model = with_random_parameters(name)
    fused, report = normfuse.fuse(model)
    assert len(report.norms) == norms
    assert sum(node.op_type == "BatchNormalization" for node in fused.graph) == left
    assert len(report.declined) == left
    verdict = normfuse.validate(model, fused, quick=True)
    assert {leg.name: leg.verdict for leg in verdict.legs} == {"oracle": Verdict.EQUIVALENT, "cpu": Verdict.EQUIVALENT}
