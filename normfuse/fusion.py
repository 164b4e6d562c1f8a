"""The passes on one graph, in their order: find the norms, fold and move what folds, write the rest in the target's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import TypeVar

import onnx_ir as ir

from normfuse.emit import advice
from normfuse.emit.target import Form, Provider, Target
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor, describe
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.ledger import Ledger
from normfuse.passes.drop_neutral import neutral_nodes
from normfuse.passes.fold_batchnorm import Fold, fold_backward, fold_forward
from normfuse.passes.fold_norm_affine import fold_norm_affine
from normfuse.passes.fold_quantized import fold_quantized
from normfuse.passes.fold_weight_norms import WeightNorm, weight_norms
from normfuse.passes.join_layouts import join_layouts
from normfuse.passes.lower_norms import current_sites, lower_norms
from normfuse.passes.merge_branches import Merge, merge_branches
from normfuse.passes.move_affine import move_norms
from normfuse.recognise import find_norms, nodes_of
from normfuse.recognise.affine_chain import Norms
from normfuse.recognise.other import OtherSite, find_other
from normfuse.report.records import NormRecord, Rewrite
from normfuse.runtime.library import find_cuda_library, find_library
from normfuse.spec import kind

_MOST_ROUNDS = 3
"""How often a norm is written: twice at most in what was tried, and then nothing is left to do."""

Decided = TypeVar("Decided", Fold, Merge, WeightNorm)


def make_weights(graph: ir.Graph, constants: Constants, editor: Editor, ledger: Ledger) -> None:
    """Make weights of normalised ones, before anything folds into them."""
    folds = _settle(weight_norms(graph, constants), ledger)
    ledger.name(fold.root for fold in folds)
    for fold in folds:
        identifier = ledger.identify("fold-weight-norm", fold.root)
        if not ledger.wants(identifier, fold.nodes):
            continue
        removed = tuple(describe(node) for node in fold.nodes)
        editor.apply(fold.replacement(), at=fold.root)
        ledger.rewrites.append(Rewrite(identifier, "fold-weight-norm", removed, (), f"weight of {describe(fold.into)}"))


def fuse_graph(
    graph: ir.Graph, opset: int, target: Target, constants: Constants, editor: Editor, ledger: Ledger
) -> list[tuple[NormRecord, ir.Node]]:
    """Find the norms of one graph, fold what folds, write the rest in the target's form. Returns what was found."""

    def reading() -> Reading:
        return Reading(opset, constants, Ranks(constants), ledger.options.lift_flagged)

    outcomes = find_norms(graph, reading())
    if _drop_neutral(graph, nodes_of(outcomes), reading(), editor, ledger):
        outcomes = find_norms(graph, reading())
    others = [(_record_other(site), site.root) for site in find_other(graph, reading(), nodes_of(outcomes))]
    norms = {outcome.root if isinstance(outcome, NormSite) else outcome.at: outcome for outcome in outcomes}
    ledger.name(norms)
    sites = [site for site in outcomes if isinstance(site, NormSite)]
    found = [(_record(site), site.root) for site in sites] + others
    for site in sites:
        if site.flag is not None and not ledger.skips(site.root):
            ledger.notes.setdefault(f"'{describe(site.root)}' counts as a norm, as asked, although {site.flag}")
    for outcome in outcomes:
        if isinstance(outcome, Declined):
            ledger.decline(outcome.at, outcome.reason)
    for node in norms:
        if ledger.skips(node):
            ledger.decline(node, "left alone as asked: its name matches --skip")
    has_norms = target.form is not Form.PRIMITIVE
    _fold(fold_quantized(graph, norms, reading()), editor, ledger)
    _fold(fold_backward(graph, _staying(norms), reading()), editor, ledger)
    moved = True
    while moved:  # a norm that moved may leave branches behind that merge now
        _merge(graph, norms, reading, editor, ledger)
        _fold(fold_forward(graph, _staying(norms), reading()), editor, ledger)
        moved = _move(graph, norms, reading, editor, ledger, has_norms=has_norms)
        moved |= _join_layouts(graph, norms, reading, editor, ledger)
    sites = [site for site in _staying(norms).values() if isinstance(site, NormSite) and not ledger.skips(site.root)]
    if ledger.options.fold_norm_affine:
        known = set(graph)
        _fold_affines(graph, sites, target, reading(), editor, ledger)
        written = _written_since(known, graph, reading, ledger)
        again = {site.root for site in written}
        sites = [site for site in sites if site.root.graph is not None and site.root not in again] + written
    _lower(graph, sites, target, reading, editor, ledger)
    return found


def _drop_neutral(graph: ir.Graph, leave: Set[ir.Node], reading: Reading, editor: Editor, ledger: Ledger) -> bool:
    """Take away arithmetic that changes nothing; return whether there was any."""
    dropped = False
    for neutral in neutral_nodes(graph, leave, reading):
        node = neutral.node
        ledger.name([node])
        identifier = ledger.identify("drop-neutral", node)
        if not ledger.wants(identifier, (node,)):
            continue
        removed = (describe(node),)
        neutral.carry_out(editor)
        ledger.rewrites.append(Rewrite(identifier, "drop-neutral", removed, (), ""))
        dropped = True
    return dropped


def _join_layouts(
    graph: ir.Graph, norms: Norms, reading: Callable[[], Reading], editor: Editor, ledger: Ledger
) -> bool:
    """Join pairs of Reshapes and of Transposes that belong to no norm, until there are none; return whether there were."""
    leave = set(nodes_of(tuple(_staying(norms).values())))
    joined = False
    while True:
        joints = join_layouts(graph, leave, reading())
        if not joints:
            return joined
        for joint in joints:
            last = joint.nodes[1]
            ledger.name([last])
            identifier = ledger.identify("join-layouts", last)
            if not ledger.wants(identifier, joint.nodes):
                leave.update(joint.nodes)
                continue
            removed = tuple(describe(node) for node in joint.nodes)
            added = tuple(describe(node) for node in joint.carry_out(editor))
            ledger.rewrites.append(Rewrite(identifier, "join-layouts", removed, added, ""))
            joined = True


def _move(
    graph: ir.Graph,
    norms: dict[ir.Node, NormSite | Declined],
    reading: Callable[[], Reading],
    editor: Editor,
    ledger: Ledger,
    *,
    has_norms: bool,
) -> bool:
    """Move what the folds left to linear operators that are farther away. Returns whether anything moved.

    What is left of a norm that moved in part is added to ``norms``. has_norms: whether a norm that stays is one operator.
    """

    def wanted(kind_: str, norm: ir.Node, nodes: tuple[ir.Node, ...]) -> str | None:
        if norm not in ledger.names:
            ledger.name([norm])
        identifier = ledger.identify(kind_, norm)
        return identifier if ledger.wants(identifier, nodes) else None

    free = {node: outcome for node, outcome in _staying(norms).items() if not ledger.skips(node)}
    duplicate = ledger.options.duplicate_producers
    moves = move_norms(graph, free, reading, editor, wanted, duplicate=duplicate, has_norms=has_norms)
    ledger.rewrites.extend(moves.rewrites)
    for node, plan in moves.plans.items():
        ledger.plans[node] = plan
        ledger.declined.pop(node, None)
    for outcome in moves.declined:
        ledger.decline(outcome.at, outcome.reason)
    norms.update(moves.left)
    ledger.name(node for node in moves.left if node.graph is not None)
    return bool(moves.rewrites)


def _staying(norms: Norms) -> dict[ir.Node, NormSite | Declined]:
    """Return those of ``norms`` that are still in a graph."""
    return {node: outcome for node, outcome in norms.items() if node.graph is not None}


def _settle(outcomes: Iterable[Decided | Declined], ledger: Ledger) -> list[Decided]:
    """Keep the reasons of what was declined; return what was decided."""
    decided = []
    for outcome in outcomes:
        if isinstance(outcome, Declined):
            ledger.decline(outcome.at, outcome.reason)
        else:
            decided.append(outcome)
    return decided


def _fold(outcomes: Iterable[Fold | Declined], editor: Editor, ledger: Ledger) -> None:
    for fold in _settle(outcomes, ledger):
        _carry_out(ledger.identify("fold-batchnorm", fold.norms[0]), fold, fold.into, editor, ledger)


def _merge(graph: ir.Graph, norms: Norms, reading: Callable[[], Reading], editor: Editor, ledger: Ledger) -> None:
    """Merge branches, fold the norm behind each sum, and go on where that makes it a branch of another sum."""
    left: set[ir.Node] = set()
    while True:
        outcomes = merge_branches((node for node in graph if node not in left), _staying(norms), reading())
        convolutions: list[ir.Node] = []
        for merge in _settle(outcomes, ledger):
            ledger.name([merge.root])
            added = _carry_out(ledger.identify("merge-branches", merge.root), merge, merge.root, editor, ledger)
            convolutions.extend(node for node in added if node.op_type == "Conv")
            if not added:
                left.add(merge.root)
        if not convolutions:
            return
        _fold(fold_backward(convolutions, _staying(norms), reading()), editor, ledger)


def _carry_out(
    identifier: str, change: Fold | Merge, at: ir.Node, editor: Editor, ledger: Ledger
) -> tuple[ir.Node, ...]:
    """Carry out ``change`` at ``at`` where it is wanted. Returns the nodes that it added: none where it is not."""
    if not ledger.wants(identifier, change.removes):
        for norm in change.norms:
            ledger.decline(norm, "its fold was not selected")
        return ()
    removed = tuple(describe(node) for node in change.removes)
    plan = f"fold into {describe(change.into)}"
    for norm in change.norms:
        ledger.plans[norm] = plan
        ledger.declined.pop(norm, None)
    if isinstance(change, Fold) and change.remark:
        ledger.notes.setdefault(change.remark)
    replacement = change.replacement()
    editor.apply(replacement, at=at)
    added = tuple(describe(node) for node in replacement.adds)
    ledger.rewrites.append(Rewrite(identifier, identifier.partition(":")[0], removed, added, change.note))
    return replacement.adds


def _fold_affines(
    graph: ir.Graph, sites: list[NormSite], target: Target, reading: Reading, editor: Editor, ledger: Ledger
) -> None:
    for outcome in fold_norm_affine(current_sites(graph, sites, reading), target, reading):
        if isinstance(outcome, Declined):
            ledger.decline(outcome.at, outcome.reason)
            ledger.stays[outcome.at] = f"'{describe(outcome.at)}': {outcome.reason}"
            continue
        root, removes = outcome.site.root, outcome.replacement.removes
        identifier = ledger.identify("fold-norm-affine", root)
        # A bias in front of a norm can be part of it, and have gone with an earlier fold.
        if not ledger.wants(identifier, removes) or any(node.graph is None for node in removes):
            outcome.drop()
            continue
        ledger.plans[root] = f"fold into {', '.join(describe(node) for node in outcome.into)}"
        ledger.declined.pop(root, None)
        removed = tuple(describe(node) for node in removes)
        editor.apply(outcome.replacement, at=root)
        added = tuple(describe(node) for node in outcome.replacement.adds)
        ledger.rewrites.append(Rewrite(identifier, "fold-norm-affine", removed, added, outcome.note))


def _lower(
    graph: ir.Graph,
    sites: list[NormSite],
    target: Target,
    reading: Callable[[], Reading],
    editor: Editor,
    ledger: Ledger,
) -> None:
    """Write ``sites`` in the target's form; what that wrote again, where it reads as a norm with a better spelling.

    So fusing the result changes nothing. A norm that is written twice is one rewrite, from the first nodes to the last.
    """
    roots = {ledger.names[site.root]: site.root for site in sites}
    for _ in range(_MOST_ROUNDS):
        known = set(graph) if sites else set()
        if not sites or not _lower_once(graph, sites, roots, target, reading(), editor, ledger):
            return
        sites = _written_since(known, graph, reading, ledger)


def _written_since(
    known: set[ir.Node], graph: ir.Graph, reading: Callable[[], Reading], ledger: Ledger
) -> list[NormSite]:
    """Return the norms of ``graph`` that are not made of ``known`` nodes alone, named as those that were written as them."""
    if known.issuperset(graph):
        return []
    found = find_norms(graph, reading())
    sites = [site for site in found if isinstance(site, NormSite) and not known.issuperset(site.interior)]
    writers = {
        name: rewrite.id
        for rewrite in ledger.rewrites
        if rewrite.kind in ("emit", "fold-norm-affine")
        for name in rewrite.into
    }
    for site in sites:
        written = [writers[name] for name in map(describe, site.interior) if name in writers]
        if written:
            ledger.names[site.root] = written[0].partition(":")[2]
        else:
            ledger.name([site.root])
    return sites


def _lower_once(
    graph: ir.Graph,
    sites: list[NormSite],
    first: Mapping[str, ir.Node],
    target: Target,
    reading: Reading,
    editor: Editor,
    ledger: Ledger,
) -> bool:
    """Write ``sites`` in the target's form. Returns whether anything was written.

    first: the root of each norm before any was written, by name.
    """
    for site in sites:
        text = advice(site, target.form, reading, reading.opset, target.provider)
        if text is not None:
            ledger.notes.setdefault(text)

    def wanted(identifier: str) -> bool:
        ledger.ids.add(identifier)
        return ledger.options.only is None or identifier in ledger.options.only

    roots = {f"emit:{name}": first.get(name, site.root) for site in sites for name in [ledger.names[site.root]]}
    rewrites, declined = lower_norms(
        graph,
        sites,
        target.form,
        reading,
        editor,
        wanted,
        target.provider,
        ledger.names,
        ledger.skips,
        native=_counts_on_native(target),
    )
    for outcome in declined:
        ledger.decline(outcome.at, outcome.reason)
    for rewrite in rewrites:
        root = roots[rewrite.id]
        if root in ledger.stays:  # written anew, but not as was asked
            ledger.notes.setdefault(ledger.stays[root])
        ledger.plans[root] = f"emit {rewrite.into[-1]}" if rewrite.into else "keep"
        ledger.declined.pop(root, None)
        ledger.record(rewrite)
    return bool(rewrites)


def _counts_on_native(target: Target) -> bool:
    """Whether the native operators may be written: they are asked for, or found here."""
    if target.native is not None:
        return target.native
    return (find_cuda_library() if target.provider is Provider.CUDA else find_library()).is_usable


def _record(site: NormSite) -> NormRecord:
    nodes = tuple(describe(node) for node in site.interior)
    return NormRecord(kind(site.spec), site.spec, site.spelling, nodes, "keep")


def _record_other(site: OtherSite) -> NormRecord:
    return NormRecord(kind(site.spec), site.spec, site.root.op_type, (describe(site.root),), "keep")
