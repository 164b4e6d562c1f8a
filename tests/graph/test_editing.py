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


def called(model: ir.Model, overload: str) -> Replacement:
    """Return the replacement of Mul and Add by a call of a function that squares."""
    _, mul, add, *_ = model.graph
    x = ir.Value(name="x")
    square = ir.node("Mul", [x, x])
    square.outputs[0].name = "y"
    body = ir.Graph([x], square.outputs, nodes=[square], opset_imports={"": 18})
    function = ir.Function("ai.normfuse", "Square", overload, graph=body, attributes=[])
    node = ir.node("Square", [mul.inputs[0]], domain="ai.normfuse", overload=overload)
    return Replacement(
        (mul, add), (node,), ((add.outputs[0], node.outputs[0]),), (), (function,), (("ai.normfuse", 1),)
    )  # fmt: skip


@pytest.mark.parametrize("version", [10, 8, 3])
def test_brings_functions_and_their_domain(version: int) -> None:
    model = example()
    model.ir_version = version
    editor = Editor(model)
    editor.apply(called(model, "key"), at=model.graph[1])
    notes = editor.finish()
    assert list(model.functions) == [("ai.normfuse", "Square", "")]
    assert model.graph[0].op_identifier() == ("ai.normfuse", "Square", "")
    assert model.opset_imports["ai.normfuse"] == 1
    assert model.ir_version == max(version, 8)
    assert notes == (() if version >= 8 else ("IR version 3 → 8: the operators of ai.normfuse are functions",))


@pytest.mark.parametrize(
    ("held", "expected"), [("Mul", ("Square",)), ("Add", ("Square_key", "Square"))], ids=["same body", "another body"]
)
def test_one_name_has_one_body(held: str, expected: tuple[str, ...]) -> None:
    model = example()
    replacement = called(model, "key")
    (function,) = replacement.functions
    (square,) = function
    body = ir.Graph([x := ir.Value(name="x")], [], nodes=[n := ir.node(held, [x, x])], opset_imports={"": 18})
    n.name, n.outputs[0].name = square.name, "y"
    body.outputs.append(n.outputs[0])
    body.name = function.graph.name
    model.functions[("ai.normfuse", "Square", "")] = ir.Function("ai.normfuse", "Square", graph=body, attributes=[])
    Editor(model).apply(replacement, at=model.graph[1])
    assert tuple(name for _, name, _ in model.functions) == expected
    assert model.graph[0].op_type == expected[0]


def test_bodies_that_nobody_calls_go() -> None:
    model = example()
    editor = Editor(model)
    editor.apply(called(model, "key"), at=model.graph[1])
    node = model.graph[0]
    relu = ir.node("Relu", [node.inputs[0]])
    editor.apply(Replacement((node,), (relu,), ((node.outputs[0], relu.outputs[0]),)), at=node)
    editor.finish()
    assert not model.functions
    assert "ai.normfuse" not in model.opset_imports
