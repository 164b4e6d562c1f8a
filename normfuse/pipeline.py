"""fuse: the passes in their order, on a model that is read first and changed after."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import onnx
import onnx_ir as ir

from normfuse import io
from normfuse.emit import advice
from normfuse.emit.target import Provider, Target, parse_form, parse_provider
from normfuse.errors import ModelIOError, NormfuseError, UnsupportedForm
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor, describe
from normfuse.graph.reading import bodies, default_opset, with_subgraphs
from normfuse.graph.shapes import inferred_shapes
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.graph.tensors import byte_size
from normfuse.memory import uncollected
from normfuse.passes.convert_opset import convert_opset
from normfuse.passes.fold_batchnorm import Fold, fold_backward, fold_forward
from normfuse.passes.fold_norm_affine import fold_norm_affine
from normfuse.passes.fold_quantized import fold_quantized
from normfuse.passes.fold_weight_norms import WeightNorm, weight_norms
from normfuse.passes.lower_norms import current_sites, lower_norms
from normfuse.passes.merge_branches import Merge, merge_branches
from normfuse.passes.move_affine import move_norms
from normfuse.passes.prepare import assume_inference, check_opset, freeze_inputs, inline_functions
from normfuse.recognise import find_norms, nodes_of
from normfuse.recognise.affine_chain import Norms
from normfuse.recognise.other import OtherSite, find_other
from normfuse.report.records import Change, DeclinedRecord, FusionReport, NormRecord, Rewrite
from normfuse.runtime.library import find_cuda_library, find_library
from normfuse.spec import kind

_MOST_ROUNDS = 3
"""How often a norm is written: twice at most in what was tried, and then nothing is left to do."""

Decided = TypeVar("Decided", Fold, Merge, WeightNorm)
Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for beside the target.

    skip: a regular expression; nodes whose name it matches are left as they are. only: replay these rewrites alone.
    """

    skip: str | None = None
    only: frozenset[str] | None = None
    assume_inference: bool = False
    freeze_inputs: bool = False
    lift_flagged: bool = False
    fold_norm_affine: bool = False
    duplicate_producers: bool = False


def read(source: Source) -> ir.Model:
    """Return ``source`` as a model that may be changed: loaded, converted, or cloned."""
    if isinstance(source, ir.Model):
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        return io.from_proto(source)
    if isinstance(source, str | os.PathLike):
        return io.load(source)
    raise ModelIOError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model; got {type(source).__name__}")


def fuse(
    model: Source,
    target: Target | None = None,
    *,
    skip: str | None = None,
    only: Collection[str] | None = None,
    assume_inference: bool = False,
    freeze_inputs: bool = False,
    lift_flagged: bool = False,
    fold_norm_affine: bool = False,
    duplicate_producers: bool = False,
    validate: bool = False,
) -> tuple[ir.Model, FusionReport]:
    """Return ``model`` with its BatchNormalization folded and its other norms in the form of ``target``, and a report.

    model: a path, an onnx.ModelProto or an onnx_ir.Model; never changed.
    skip: regular expression of node names to leave alone. only: ids of an earlier report's rewrites, to replay a part.
    assume_inference: treat training-mode BatchNormalization as inference. freeze_inputs: treat initializers that
    callers could override as constant. lift_flagged: also lift what is a norm in exact arithmetic and differs from it in
    floating point, such as a variance as E[x²] − E[x]². fold_norm_affine: fold the scale and bias of the other norms into
    the linear operators behind them, where nothing else reads the norm. duplicate_producers: let a batch norm fold into a
    copy of an operator that others read too, which costs more work. validate: verify the result against ``model``; the
    report holds the verdict, nothing is raised on a divergence.

    Raises ModelIOError for an unreadable model, UnsupportedForm for an unknown target or rewrite id, or where the opset
    of the target cannot say what the model does; the message names the node and its operator.
    """
    options = Options(
        skip, _ids(only), assume_inference, freeze_inputs, lift_flagged, fold_norm_affine, duplicate_producers
    )
    target = _target(target)
    candidate = read(model)
    report = fuse_in_place(candidate, target, options)
    if not validate:
        return candidate, report
    from normfuse.validate import validate as compare

    verdict = compare(baseline(model, options), candidate, providers=(target.provider,))
    return candidate, replace(report, validation=verdict)


def _ids(only: object) -> frozenset[str] | None:
    if only is None:
        return None
    if isinstance(only, str) or not isinstance(only, Iterable) or not all(isinstance(each, str) for each in only):
        raise UnsupportedForm(f"only takes the ids of rewrites, a collection of texts; got {only!r}")
    return frozenset(only)


def _target(target: object) -> Target:
    if target is None:
        return Target()
    if not isinstance(target, Target):
        raise UnsupportedForm(f"target takes a normfuse.Target, such as Target(Form.STANDARD); got {target!r}")
    return target


def baseline(model: Source, options: Options) -> Path | onnx.ModelProto | ir.Model:
    """Return what the result is verified against: ``model``, or its inference reading where that was asked for."""
    if not options.assume_inference:
        return Path(model) if isinstance(model, str | os.PathLike) else model
    reference = read(model)
    assume_inference(reference)
    return reference


@dataclass
class _Ledger:
    """What has been found and done so far, in order."""

    options: Options
    pattern: re.Pattern[str] | None
    rewrites: list[Rewrite] = field(default_factory=list)
    declined: dict[ir.Node, str] = field(default_factory=dict)
    plans: dict[ir.Node, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    names: dict[ir.Node, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    written: dict[str, int] = field(default_factory=dict)
    stays: dict[ir.Node, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def name(self, norms: Iterable[ir.Node]) -> None:
        """Name each norm, or sum of branches, after the value that it produces, before anything is changed.

        Branches may reuse a name: the second norm of a name is ``name#2``, in the order of the model.
        """
        for norm in norms:
            if norm in self.names:
                continue
            base = str(norm.outputs[0].name)
            self.seen[base] += 1
            self.names[norm] = base if self.seen[base] == 1 else f"{base}#{self.seen[base]}"

    def identify(self, kind_: str, norm: ir.Node) -> str:
        """Return the id of a rewrite, made of its kind and its (first) norm or sum: other rewrites do not matter."""
        identifier = f"{kind_}:{self.names[norm]}"
        self.ids.add(identifier)
        return identifier

    def wants(self, identifier: str, nodes: Iterable[ir.Node]) -> bool:
        """Whether a rewrite was selected, and touches no node that the user wants left alone."""
        if self.options.only is not None and identifier not in self.options.only:
            return False
        return not any(self.skips(node) for node in nodes)

    def skips(self, node: ir.Node) -> bool:
        """Whether --skip names ``node``."""
        return self.pattern is not None and bool(node.name) and self.pattern.search(node.name or "") is not None

    def decline(self, node: ir.Node, reason: str) -> None:
        """Keep the first reason for each node: it is the one closest to the norm."""
        self.declined.setdefault(node, reason)

    def record(self, rewrite: Rewrite) -> None:
        """Add a rewrite; a norm that is written once more keeps its first nodes, and takes in further ones."""
        index = self.written.setdefault(rewrite.id, len(self.rewrites))
        if index == len(self.rewrites):
            self.rewrites.append(rewrite)
        else:
            earlier = self.rewrites[index]
            further = tuple(name for name in rewrite.nodes if name not in earlier.into)
            self.rewrites[index] = replace(earlier, nodes=earlier.nodes + further, into=rewrite.into)

    def records(self) -> list[DeclinedRecord]:
        """Return what was declined, in the order in which it was met."""
        return [DeclinedRecord(describe(node), _operator(node), reason) for node, reason in self.declined.items()]


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


@uncollected
def fuse_in_place(model: ir.Model, target: Target, options: Options) -> FusionReport:
    """Do the work of :func:`fuse` on ``model`` itself.

    Models are not checked beforehand, which would take longer than all the rest: where something fails on one that is
    no valid ONNX, the checker says why. Any other failure is a defect of ours, and stays what it is.
    """
    try:
        return _fuse_in_place(model, target, options)
    except NormfuseError:
        raise
    except Exception as error:
        objection = io.objection(model)
        if objection is None:
            raise
        raise ModelIOError(f"not a valid ONNX model: {objection}") from error


def _fuse_in_place(model: ir.Model, target: Target, options: Options) -> FusionReport:
    check_opset(model)
    if options.only is not None:
        _check_ids(model, target, options)
    sizes: dict[ir.Value, int] = {}
    nodes_before, size_before = measure(model, sizes)
    ledger = _Ledger(options, _compile(options.skip))
    notes = _convert(model, target.opset, ledger)
    notes.extend(inline_functions(model))
    if options.assume_inference:
        notes.extend(assume_inference(model))
    if options.freeze_inputs:
        notes.extend(freeze_inputs(model))
    editor = Editor(model)
    constants = Constants(model)
    records: list[NormRecord] = []
    found: list[tuple[NormRecord, ir.Node]] = []
    for graph in list(with_subgraphs(model.graph)):
        _fold_weight_norms(graph, constants, editor, ledger)
    with inferred_shapes(model):
        for graph, opset in list(bodies(model)):
            found.extend(_fuse_graph(graph, opset, target, constants, editor, ledger))
    for record, root in found:
        records.append(replace(record, plan=ledger.plans.get(root, "keep")))
    if dependent := sorted((options.only or frozenset()) - ledger.ids):
        notes.append(f"not replayed, since they follow from rewrites that were not selected: {', '.join(dependent)}")
    if ledger.rewrites and model.ir_version < 4:
        notes.extend(freeze_inputs(model))
    notes.extend(editor.finish())
    notes.extend(ledger.notes)
    nodes_after, size_after = measure(model, sizes)
    if size_after > size_before:
        notes.append(
            f"the weights grew by {size_after - size_before} bytes: "
            "what several nodes shared has a copy each, or a form has constants of its own"
        )
    return FusionReport(
        opset=default_opset(model),
        norms=tuple(records),
        declined=tuple(ledger.records()),
        rewrites=tuple(ledger.rewrites),
        nodes=Change(nodes_before, nodes_after),
        size=Change(size_before, size_after),
        notes=tuple(notes),
        settings=_settings(target, options),
    )


def _settings(target: Target, options: Options) -> tuple[tuple[str, object], ...]:
    asked = {item.name: getattr(options, item.name) for item in fields(options) if item.name != "only"}
    chosen = {
        "form": target.form.value,
        "provider": target.provider.value,
        "opset": target.opset,
        "native": target.native,
    }
    return (*chosen.items(), *asked.items())


def replayer(source: Source, settings: Mapping[str, object]) -> Callable[[Collection[str]], ir.Model]:
    """Return what makes a part of the rewrites of an earlier report of ``source``: rewrite ids to the model with these.

    settings: of that report. Raises UnsupportedForm where they are not those of a report.
    """
    known = {item.name for item in fields(Options)} - {"only"}
    asked = {name: value for name, value in settings.items() if name in known}
    if not {"form", "provider"} <= set(settings):
        raise UnsupportedForm("the fusion report does not say how it was made (no settings): make it anew")
    target = Target(
        parse_form(settings["form"]),
        parse_provider(settings["provider"]),
        settings.get("opset"),  # type: ignore[arg-type]
        settings.get("native"),  # type: ignore[arg-type]
    )

    def replay(ids: Collection[str]) -> ir.Model:
        model = read(source)
        fuse_in_place(model, target, Options(only=frozenset(ids), **asked))  # type: ignore[arg-type]
        return model

    return replay


def _convert(model: ir.Model, opset: int | None, ledger: _Ledger) -> list[str]:
    """Bring ``model`` to ``opset``, a rewrite like others; return notes."""
    if opset is None or {own for _, own in bodies(model)} <= {opset}:
        return []
    identifier = f"convert-opset:{default_opset(model)}-{opset}"
    ledger.ids.add(identifier)
    if not ledger.wants(identifier, ()):
        return []
    converted = convert_opset(model, opset)
    ledger.rewrites.append(Rewrite(identifier, "convert-opset", converted.nodes, (), converted.summary))
    return [converted.summary, *converted.notes]


def _check_ids(model: ir.Model, target: Target, options: Options) -> None:
    """Raise UnsupportedForm where a wanted id is none of those that the whole run has."""
    whole = fuse_in_place(model.clone(), target, replace(options, only=None))
    unknown = (options.only or frozenset()) - {rewrite.id for rewrite in whole.rewrites}
    if unknown:
        raise UnsupportedForm(f"no such rewrite in this model: {', '.join(sorted(unknown))}")


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UnsupportedForm(f"--skip '{pattern}' is no regular expression: {error}") from None


def measure(model: ir.Model, sizes: dict[ir.Value, int]) -> tuple[int, int]:
    """Return the number of nodes, and the bytes of all initializers, subgraphs and functions included.

    sizes: the bytes of initializers that are already known; those that are not are added.
    """
    count = size = 0
    for graph, _ in bodies(model):
        count += len(graph)
        for value in graph.initializers.data.values():
            known = sizes.get(value)
            if known is None:
                known = sizes[value] = 0 if value.const_value is None else byte_size(value.const_value)
            size += known
    return count, size


def _fold_weight_norms(graph: ir.Graph, constants: Constants, editor: Editor, ledger: _Ledger) -> None:
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


def _fuse_graph(
    graph: ir.Graph, opset: int, target: Target, constants: Constants, editor: Editor, ledger: _Ledger
) -> list[tuple[NormRecord, ir.Node]]:
    """Find the norms of one graph, fold what folds, write the rest in the target's form. Returns what was found."""

    def reading() -> Reading:
        return Reading(opset, constants, Ranks(constants), ledger.options.lift_flagged)

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
    _fold(fold_quantized(graph, norms, reading()), editor, ledger)
    _fold(fold_backward(graph, _staying(norms), reading()), editor, ledger)
    moved = True
    while moved:  # a norm that moved may leave branches behind that merge now
        _merge(graph, norms, reading, editor, ledger)
        _fold(fold_forward(graph, _staying(norms), reading()), editor, ledger)
        moved = _move(graph, _staying(norms), reading, editor, ledger)
    sites = [site for site in _staying(norms).values() if isinstance(site, NormSite) and not ledger.skips(site.root)]
    if ledger.options.fold_norm_affine:
        _fold_affines(graph, sites, target, reading(), editor, ledger)
        sites = [site for site in sites if site.root.graph is not None]
    _lower(graph, sites, target, reading, editor, ledger)
    return found


def _move(
    graph: ir.Graph,
    norms: Norms,
    reading: Callable[[], Reading],
    editor: Editor,
    ledger: _Ledger,
) -> bool:
    """Move what the folds left to linear operators that are farther away. Returns whether anything moved."""

    def wanted(kind_: str, norm: ir.Node, nodes: tuple[ir.Node, ...]) -> str | None:
        if norm not in ledger.names:
            ledger.name([norm])
        identifier = ledger.identify(kind_, norm)
        return identifier if ledger.wants(identifier, nodes) else None

    free = {node: outcome for node, outcome in norms.items() if not ledger.skips(node)}
    moves = move_norms(graph, free, reading, editor, wanted, duplicate=ledger.options.duplicate_producers)
    ledger.rewrites.extend(moves.rewrites)
    for node, plan in moves.plans.items():
        ledger.plans[node] = plan
        ledger.declined.pop(node, None)
    for outcome in moves.declined:
        ledger.decline(outcome.at, outcome.reason)
    return bool(moves.rewrites)


def _staying(norms: Norms) -> dict[ir.Node, NormSite | Declined]:
    """Return those of ``norms`` that are still in a graph."""
    return {node: outcome for node, outcome in norms.items() if node.graph is not None}


def _settle(outcomes: Iterable[Decided | Declined], ledger: _Ledger) -> list[Decided]:
    """Keep the reasons of what was declined; return what was decided."""
    decided = []
    for outcome in outcomes:
        if isinstance(outcome, Declined):
            ledger.decline(outcome.at, outcome.reason)
        else:
            decided.append(outcome)
    return decided


def _fold(outcomes: Iterable[Fold | Declined], editor: Editor, ledger: _Ledger) -> None:
    for fold in _settle(outcomes, ledger):
        _carry_out(ledger.identify("fold-batchnorm", fold.norms[0]), fold, fold.into, editor, ledger)


def _merge(graph: ir.Graph, norms: Norms, reading: Callable[[], Reading], editor: Editor, ledger: _Ledger) -> None:
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
    identifier: str, change: Fold | Merge, at: ir.Node, editor: Editor, ledger: _Ledger
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
    graph: ir.Graph, sites: list[NormSite], target: Target, reading: Reading, editor: Editor, ledger: _Ledger
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
    ledger: _Ledger,
) -> None:
    """Write ``sites`` in the target's form; what that wrote again, where it reads as a norm with a better spelling.

    So fusing the result changes nothing. A norm that is written twice is one rewrite, from the first nodes to the last.
    """
    roots = {ledger.names[site.root]: site.root for site in sites}
    for _ in range(_MOST_ROUNDS):
        known = set(graph) if sites else set()
        if not sites or not _lower_once(graph, sites, roots, target, reading(), editor, ledger):
            return
        found = find_norms(graph, reading())
        sites = [site for site in found if isinstance(site, NormSite) and not known.issuperset(site.interior)]
        writers = {name: rewrite.id for rewrite in ledger.rewrites if rewrite.kind == "emit" for name in rewrite.into}
        for site in sites:
            written = [writers[name] for name in map(describe, site.interior) if name in writers]
            if written:
                ledger.names[site.root] = written[0].removeprefix("emit:")
            else:
                ledger.name([site.root])


def _lower_once(
    graph: ir.Graph,
    sites: list[NormSite],
    first: Mapping[str, ir.Node],
    target: Target,
    reading: Reading,
    editor: Editor,
    ledger: _Ledger,
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


def inspect(
    model: Source,
    target: Target | None = None,
    *,
    skip: str | None = None,
    assume_inference: bool = False,
    freeze_inputs: bool = False,
    lift_flagged: bool = False,
    fold_norm_affine: bool = False,
    duplicate_producers: bool = False,
) -> FusionReport:
    """Return every norm of ``model`` with what :func:`fuse` would do with it, or why not; ``model`` stays as it is.

    Parameters and errors are those of :func:`fuse`. The report's rewrites are those that fuse would make.
    """
    options = Options(skip, None, assume_inference, freeze_inputs, lift_flagged, fold_norm_affine, duplicate_producers)
    return fuse_in_place(read(model), _target(target), options)
