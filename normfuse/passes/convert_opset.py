"""Raise or lower a whole model to another opset, subgraphs and functions included.

Norms that the target lacks or spells anew are read and written again; every other operator goes by the rules of
:mod:`normfuse.passes.opset`. All is decided before anything changes: a refusal leaves the model as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir

from normfuse.emit import emit
from normfuse.emit.target import Form
from normfuse.emit.writing import OLDEST_OPSET, detach
from normfuse.errors import UnsupportedForm
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import OWN_DOMAIN, Editor, Replacement, describe
from normfuse.graph.reading import bodies, default_opset, is_standard
from normfuse.graph.site import Declined, Reading
from normfuse.passes.opset.annotations import inferred
from normfuse.passes.opset.converter import converted
from normfuse.passes.opset.expansion import expand, expandable
from normfuse.passes.opset.operation import Context, NoEquivalent, operation_of
from normfuse.passes.opset.rules import LOWERING, MISSING, RAISING
from normfuse.passes.opset.schema import check_written, has_room, is_valid, versions
from normfuse.passes.opset.steps import convert
from normfuse.passes.prepare import freeze_inputs
from normfuse.recognise import recognise

_DEFAULT_DOMAINS = ("", "ai.onnx")
_NORMS = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Norms that are written anew where the target lacks them or means something else by them."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a node. replacement: None where it stays as it is, and only ``caveats`` are to be said."""

    node: ir.Node
    replacement: Replacement | None
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: the nodes that were written anew, in words, and what else a user should know."""

    summary: str
    nodes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert_opset(model: ir.Model, opset: int) -> Conversion:
    """Make ``model`` a model of ``opset`` that computes the same, in place; return what was done.

    Inputs, outputs, names and metadata stay; the IR version rises where the opset needs it. Nothing happens where the
    model and its functions are of that opset already. Raises UnsupportedForm, naming the node, its operator and the
    reason, where the opset cannot say what the model does; the model is then as it was.
    """
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedForm(f"opset {opset} cannot be written; known: {OLDEST_OPSET} to {newest}")
    sources = {source for _, source in bodies(model)}
    if sources <= {opset}:
        return Conversion(f"opset {opset} already")
    source = default_opset(model)
    expanded: tuple[str, ...] = ()
    if expandable(model, source, opset):
        trial = model.clone()  # a body may hold what the opset cannot say; the model is then as it was
        expand(trial, source, opset)
        _convert(trial, opset)
        expanded = expand(model, source, opset)
    done = _convert(model, opset)
    remarks = tuple(f"{node}: written as its function body" for node in expanded)
    return replace(done, nodes=(*expanded, *done.nodes), notes=(*remarks, *done.notes))


def _convert(model: ir.Model, opset: int) -> Conversion:
    with inferred(model) as annotations:
        changes = _decide(model, opset)
        notes = [f"{describe(change.node)}: {caveat}" for change in changes for caveat in change.caveats]
        written = {change.node: change.replacement for change in changes if change.replacement is not None}
        nodes = tuple(describe(node) for node in written)
        _release_bodies(model, written)
        editor = Editor(model)
        for node, replacement in written.items():
            editor.apply(replacement, node)
            annotations.take_back(replacement)
    before = _set_opset(model, opset)
    notes.extend(_raise_ir_version(model, opset, added=bool(written)))
    notes.extend(editor.finish())
    return Conversion(_summary(before, opset, written), nodes, tuple(notes))


def _release_bodies(model: ir.Model, rewritten: Collection[ir.Node]) -> None:
    """Forget the bodies of ai.normfuse whose callers are all written anew: their names are for those of the new opset."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    called = {node.op_identifier() for graph in graphs for node in graph.all_nodes() if node not in rewritten}
    for identifier in [key for key in model.functions if key[0] == OWN_DOMAIN and key not in called]:
        del model.functions[identifier]


def _default_opset(imports: dict[str, int], otherwise: int) -> int:
    return next((imports[domain] for domain in _DEFAULT_DOMAINS if domain in imports), otherwise)


def _decide(model: ir.Model, opset: int) -> list[_Change]:
    """Return every change, in the order of the nodes. Raises UnsupportedForm at the first node that has none."""
    constants = Constants(model)
    ranks = Ranks(constants)
    functions = {function.graph for function in model.functions.values()}
    changes: list[_Change] = []
    try:
        for graph, source in bodies(model):
            if source == opset:
                continue
            reading = Reading(source, constants, ranks)
            for node in graph:
                if is_standard(node) or node.domain == OWN_DOMAIN:
                    changes.extend(_decided(node, reading, opset, in_function=graph in functions))
    except NoEquivalent as reason:
        for change in changes:
            if change.replacement is not None:
                detach(change.replacement.adds)
        raise UnsupportedForm(str(reason)) from None
    return changes


def _decided(node: ir.Node, reading: Reading, opset: int, *, in_function: bool) -> Iterator[_Change]:
    """Yield the change of ``node``, if any. Raises NoEquivalent with the whole message."""
    context = Context(node, opset, reading, in_function=in_function)
    try:
        if node.domain == OWN_DOMAIN:
            change = _norm(node, reading, opset, Form.CUSTOM)
        elif node.op_type in _NORMS and not _keeps(node.op_type, reading.opset, opset):
            change = _norm(node, reading, opset, Form.STANDARD)
        else:
            change = _operator(context)
    except NoEquivalent as reason:
        label = f"{node.op_type} at node '{describe(node)}' has no equivalent at opset {opset}"
        raise NoEquivalent(f"{label}: {reason}" if str(reason) else label) from None
    if change is not None:
        yield change


def _norm(node: ir.Node, reading: Reading, opset: int, form: Form) -> _Change | None:
    """Read a norm and write it again, in ai.normfuse with a body of the new opset; None where ``node`` is none."""
    site = recognise(node, reading)
    written = site if site is None or isinstance(site, Declined) else emit(site, form, reading, opset)
    if isinstance(written, Declined):
        raise NoEquivalent(written.reason)
    return None if written is None else _Change(node, _checked(written, opset))


def _operator(context: Context) -> _Change | None:
    """Write an operator by its rules, else as a constant, else as onnx's converter does; None where it stays."""
    node, opset = context.node, context.opset
    if not versions(node.op_type):
        return None  # an operator that onnx does not know stays what it is: no version can have changed it
    try:
        result = convert(context)
        if result == operation_of(node) and has_room(node, opset):
            return _Change(node, None, tuple(context.caveats)) if context.caveats else None
        return _Change(node, _checked(context.replacing(result), opset), tuple(context.caveats))
    except NoEquivalent:
        context.discard_all()
        rescued = _folded(context) or (None if _has_rule(node.op_type) else converted(context))
        if rescued is None:
            context.discard_all()
            if opset > context.source and _was_invalid(context):
                return None
            raise
    return _Change(node, _checked(context.replacing(rescued), opset))


def _checked(replacement: Replacement, opset: int) -> Replacement:
    """Return ``replacement`` where ``opset`` has every node of it. Raises NoEquivalent, with nothing left behind."""
    try:
        for node in replacement.adds:
            check_written(node, opset)
    except NoEquivalent:
        detach(replacement.adds)
        raise
    return replacement


def _folded(context: Context) -> tuple[ir.Value, ...] | None:
    """Return the result of a node of small constants as a constant."""
    node = context.node
    array = context.array(node.outputs[0]) if len(node.outputs) == 1 and node.inputs else None
    dtype = node.outputs[0].dtype
    return None if array is None or dtype is None else (context.constant("constant", array, dtype),)


def _keeps(op_type: str, source: int, target: int) -> bool:
    """Whether a norm means the same at both opsets and the target has it."""
    if not is_valid(op_type, target):
        return False
    own = [[version for version in versions(op_type) if version <= opset][-1:] for opset in (source, target)]
    return own[0] == own[1] or not own[0]


def _has_rule(op_type: str) -> bool:
    """Whether we know the operator: then a refusal is meant, and onnx's converter is not asked."""
    return op_type in MISSING or any(op_type == name for table in (RAISING, LOWERING) for name, _ in table)


def _was_invalid(context: Context) -> bool:
    """Whether the node breaks the rules of its own opset too, and is left as it is."""
    node = context.node
    own = context.at(context.source)
    try:
        result = convert(own)
    except NoEquivalent:
        return True
    own.discard_all()
    return result != operation_of(node)


def _set_opset(model: ir.Model, opset: int) -> int:
    before = _default_opset(model.opset_imports, 1)
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        for domain in _DEFAULT_DOMAINS:
            if domain in imports:
                imports[domain] = opset
    return before


def _raise_ir_version(model: ir.Model, opset: int, *, added: bool) -> list[str]:
    """Raise the IR version to what the opset came with; from 4 on initializers are no inputs."""
    needed = min((row[1] for row in onnx.helper.VERSION_TABLE if row[2] >= opset), default=model.ir_version)
    if added:
        needed = max(needed, 4)
    if model.ir_version >= needed:
        return []
    notes = list(freeze_inputs(model)) if model.ir_version < 4 <= needed else []
    if model.ir_version < needed:
        notes.append(f"IR version {model.ir_version} → {needed}")
        model.ir_version = needed
    return notes


def _summary(before: int, opset: int, written: Iterable[ir.Node]) -> str:
    counts = Counter(node.op_type for node in written)
    rewritten = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"opset {before} → {opset}: {f'rewrote {rewritten}' if rewritten else 'no node changed'}"
