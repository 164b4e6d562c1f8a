"""Open the functions of a model whose norms cannot be read where they stand.

A norm operator that takes its parameters from the caller, whose constants only the caller knows; and a norm in
elementary operators, inside which no type is known, and whose parts may lie in several functions (torch.onnx of 2.1 to
2.5 writes one for each operator).
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common

from normfuse.errors import ModelIOError
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.reading import default_opset, has_parameters, is_standard
from normfuse.graph.site import Reading
from normfuse.recognise.primitive import find_decomposed
from normfuse.recognise.vocabulary import REDUCTIONS

NORM_OPS = frozenset(
    {
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
    }
)


def inline_functions(model: ir.Model) -> tuple[str, ...]:
    """Inline the functions whose norms cannot be read where they stand. Returns notes.

    A function of norm operators that brings its own constants keeps its place, and is fused where it stands; so do those
    of domain ai.normfuse, which are bodies of our own operators.
    """
    foreign = {key for key in model.functions if key[0] != "ai.normfuse"}
    dependent = {key for key in foreign if _depends_on_caller(model.functions[key])}
    if foreign and _norms_appear(model, foreign):
        dependent, why = foreign, "with parts of norms in elementary operators"
    elif dependent:
        why = "whose norms take their parameters from the caller"
    else:
        return ()
    # A function that calls such a function passes the constants on, so it is opened up as well.
    changed = True
    while changed:
        callers = {
            key
            for key, function in model.functions.items()
            if key not in dependent and any(node.op_identifier() in dependent for node in function.all_nodes())
        }
        dependent |= callers
        changed = bool(callers)
    try:
        _inline(model, dependent)
    except ir.passes.PassError as error:
        raise ModelIOError(f"functions cannot be inlined: {error.__cause__ or error}") from None
    names = ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in dependent))
    return (f"inlined functions {why}: {names}",)


def _inline(model: ir.Model, keys: Collection[ir.OperatorIdentifier]) -> None:
    common.InlinePass(criteria=lambda function: function.identifier() in keys)(model)


def _norms_appear(model: ir.Model, foreign: Collection[ir.OperatorIdentifier]) -> bool:
    """Whether a norm in elementary operators, or what looks like one, comes to light when all ``foreign`` are opened."""
    functions = [model.functions[key] for key in foreign]
    if not any(node.op_type in REDUCTIONS for function in functions for node in function.all_nodes()):
        return False
    opened = model.clone()
    try:
        _inline(opened, foreign)
    except ir.passes.PassError:
        return False
    return _written_out(opened) > _written_out(model)


def _written_out(model: ir.Model) -> int:
    """Return how many norms of the graphs of ``model`` are written in elementary operators."""
    constants = Constants(model)
    reading = Reading(default_opset(model), constants, Ranks(constants))
    return sum(len(find_decomposed(graph, reading, frozenset())) for graph in model.graphs())


def _depends_on_caller(function: ir.Function) -> bool:
    """Whether a norm of ``function`` takes its parameters, its attributes or its linear operator from outside."""
    inputs = set(function.inputs)
    for node in function.all_nodes():
        if not is_standard(node) or node.op_type not in NORM_OPS:
            continue
        if has_parameters(node) or any(value in inputs for value in node.inputs):
            return True
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if producer is not None and any(value in inputs for value in producer.inputs[1:]):
            return True
    return False
