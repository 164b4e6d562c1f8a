"""``inspect``, ``fuse`` and ``export``: what a model holds, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfuse.cli.codes import DIVERGENT, code_of
from normfuse.cli.options import Model, NoValidate, Out, Quiet, ReportFile, Verbose, Wishes, asking
from normfuse.cli.output import json_beside, progress, put, refuse_to_overwrite, say, set_up, show, warn

if TYPE_CHECKING:
    from normfuse.pipeline import Source


@asking
def inspect(
    model: Model,
    wishes: Wishes,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the norms of a model, and their plan."""
    set_up(verbose, quiet)
    from normfuse.pipeline import fuse_in_place, read
    from normfuse.report import schema, table

    report = fuse_in_place(read(model), wishes.target, wishes.options)
    if as_json:
        put(json.dumps(schema.inspection(report), indent=2, ensure_ascii=False))
    else:
        show(table.inspection(report))


@asking
def fuse(
    model: Model,
    output: Out,
    wishes: Wishes,
    report: ReportFile = None,
    no_validate: NoValidate = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Fold and rewrite norms, verify, and save."""
    set_up(verbose, quiet)
    refuse_to_overwrite(model, output, report)
    fuse_and_save(model, output, wishes, report, validate=not no_validate)


def fuse_and_save(reference: Source, output: Path, wishes: Wishes, report_file: Path | None, *, validate: bool) -> None:
    """Fuse ``reference``, verify the result against it, and only then write ``output``."""
    from dataclasses import replace

    from normfuse import io
    from normfuse.pipeline import baseline, fuse_in_place, read
    from normfuse.report import schema, table

    candidate = read(reference)
    progress("fusing")
    report = fuse_in_place(candidate, wishes.target, wishes.options)
    if validate and report.rewrites:
        progress("verifying the result against the original")
        from normfuse.validate import validate as compare

        verdict = compare(baseline(reference, wishes.options), candidate, providers=(wishes.target.provider,))
        report = replace(report, validation=verdict)
    code = code_of(report.validation.verdict) if report.validation is not None else 0
    with json_beside(report_file, schema.fusion_report(report)):
        if code == 0:
            io.save(candidate, output)
    show(table.fusion_report(report))
    if code == 0:
        say(f"wrote {output}" + ("" if report.rewrites or not validate else " (nothing changed, nothing to verify)"))
    else:
        word = "the result differs from the original" if code == DIVERGENT else "the result could not be verified"
        typer.echo(f"error: {word}; {output} was not written", err=True)
        raise typer.Exit(code)


@asking
def export(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function without arguments that returns the module.")
    ],
    output: Out,
    wishes: Wishes,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="A .safetensors file or a saved state dict.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=1x3x224x224[:float32]", help="One input; may be repeated."),
    ] = None,
    dynamic: Annotated[
        list[str] | None, typer.Option("--dynamic", metavar="NAME:0=batch", help="A dynamic axis; may be repeated.")
    ] = None,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Save the model as exported.")] = False,
    report: ReportFile = None,
    no_validate: NoValidate = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export a torch module as inference, then fuse and verify it."""
    set_up(verbose, quiet)
    import warnings

    from normfuse import io
    from normfuse.export import closest_opset
    from normfuse.export import export as write
    from normfuse.export.factory import parse_dynamic, parse_input, prepare
    from normfuse.passes.convert_opset import convert_opset

    refuse_to_overwrite(weights, output, report)
    opset = wishes.target.opset
    specs = [parse_input(text) for text in inputs or ()]
    axes = parse_dynamic(dynamic or ())
    prepared = prepare(factory, inputs=specs, weights=weights, folder=Path.cwd())
    with warnings.catch_warnings():
        warnings.showwarning = warn  # type: ignore[assignment]
        model = write(
            prepared.module,
            prepared.inputs,
            input_names=prepared.input_names,
            dynamic=axes,
            opset=closest_opset(opset),
            progress=progress,
        )
    if no_fuse:
        if opset is not None:
            convert_opset(model, opset)
        io.save(model, output)
        say(f"wrote {output}")
        return
    fuse_and_save(model, output, wishes, report, validate=not no_validate)
