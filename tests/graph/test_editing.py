"""The one place that changes a graph: its objections, its names, what it cleans up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.graph.editing import Editor, Replacement, initializer, refusal
from tests.folding import build, normal


def example() -> ir.Model:
    """Return x → Mul(A) → Add(B) → y, with a dead-end constant expression behind B."""
    text = "g (float[2] x) => (float[2] y) { b = Neg (B)  m = Mul (x, A)  y = Add (m, b) }"
    return ir.from_proto(build(text, {"A": normal(2), "B": normal(2, seed=2)}))


def to_relu(model: ir.Model, value: ir.Value | None = None) -> Replacement:
    """Return the replacement of Mul and Add by one Relu."""
    _, mul, add, *_ = model.graph
    relu = ir.Node("", "Relu", [mul.inputs[0]])
    extra = () if value is None else (value,)
    return Replacement((mul, add), (relu,), ((add.outputs[0], relu.outputs[0]),), extra)


def test_replaces_and_cleans_up() -> None:
    model = example()
    _, mul, _ = model.graph
    Editor(model).apply(to_relu(model), at=mul)
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert not model.graph.initializers
    assert model.graph.outputs[0].name == "y"
    assert model.graph.outputs[0].shape == ir.Shape([2])
    assert [node.name for node in model.graph] == ["Mul → m/Relu"]


def test_objects_to_losing_a_value_that_something_reads() -> None:
    model = example()
    _, mul, add, *_ = model.graph
    model.graph.append(ir.Node("", "Relu", [mul.outputs[0]], name="other"))
    replacement = to_relu(model)
    objection = refusal(replacement)
    assert objection is not None
    assert objection.reason == "the result of Mul 'Mul → m' is also used by 'other'"
    with pytest.raises(ValueError, match="is also used by 'other'"):
        Editor(model).apply(replacement, at=add)
    assert [node.op_type for node in model.graph] == ["Neg", "Mul", "Add", "Relu"]


def test_new_initializers_get_new_names() -> None:
    model = example()
    _, mul, add, *_ = model.graph
    new = initializer("y", ir.tensor(np.ones(2, np.float32)))
    shifted = ir.Node("", "Add", [mul.inputs[0], new])
    Editor(model).apply(Replacement((mul, add), (shifted,), ((add.outputs[0], shifted.outputs[0]),), (new,)), at=mul)
    assert list(model.graph.initializers) == ["y_1"]
    assert [value.name for value in shifted.inputs if value is not None] == ["x", "y_1"]


def test_unique_names_count_up() -> None:
    editor = Editor(example())
    assert [editor.unique("m"), editor.unique("m"), editor.unique("fresh"), editor.unique("fresh")] == [
        "m_1", "m_2", "fresh", "fresh_1",
    ]  # fmt: skip
