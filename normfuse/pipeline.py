"""fuse and inspect: a model is read, changed pass by pass, and reported on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from normfuse import io
from normfuse.emit.target import Form, Target, parse_form, parse_provider
from normfuse.errors import ModelIOError, NormfuseError, UnsupportedForm
from normfuse.fusion import fuse_graph, make_weights
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor
from normfuse.graph.reading import bodies, default_opset
from normfuse.graph.shapes import inferred_shapes
from normfuse.graph.tensors import byte_size
from normfuse.ledger import Ledger, Options
from normfuse.memory import uncollected
from normfuse.passes.convert_opset import convert_opset
from normfuse.passes.functions import inline_functions
from normfuse.passes.prepare import assume_inference, check_opset, freeze_inputs
from normfuse.passes.work import Meter
from normfuse.report.records import Change, FusionReport, NormRecord, Rewrite

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model


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
    ledger = Ledger(options)
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
    for graph, _ in list(bodies(model)):
        make_weights(graph, constants, editor, ledger)
    with inferred_shapes(model, input_types=target.form is Form.PRIMITIVE):
        meter = Meter()
        work_before = meter.measure(model)
        for graph, opset in list(bodies(model)):
            found.extend(fuse_graph(graph, opset, target, constants, editor, ledger))
        work_after = meter.measure(model)
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
        causes = ["what several nodes shared has a copy each", "a form has constants of its own"]
        if any(rewrite.kind == "fold-weight-norm" for rewrite in ledger.rewrites):
            causes.insert(0, "a weight that was computed is stored beside what else reads its parts")
        notes.append(f"the weights grew by {size_after - size_before} bytes: {', or '.join(causes)}")
    return FusionReport(
        opset=default_opset(model),
        norms=tuple(records),
        declined=tuple(ledger.records()),
        rewrites=tuple(ledger.rewrites),
        nodes=Change(nodes_before, nodes_after),
        size=Change(size_before, size_after),
        notes=tuple(notes),
        settings=_settings(target, options),
        work_before=work_before,
        work_after=work_after,
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


def _convert(model: ir.Model, opset: int | None, ledger: Ledger) -> list[str]:
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
