"""``validate``: one model against another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfuse.cli.codes import code_of
from normfuse.cli.options import Quiet, Verbose
from normfuse.cli.output import (
    progress,
    refuse_to_overwrite,
    refuse_to_write_nowhere,
    say,
    set_up,
    show,
    warn,
    write_text,
)
from normfuse.errors import ModelIOError

if TYPE_CHECKING:
    from normfuse.report.records import Rewrite


def validate(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="The model whose function is the truth.")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The model that should compute the same.")],
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider", help="Where both run: cpu (default), cuda, tensorrt, …, cpu@PYTHON; may be repeated."
        ),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE.npz|FOLDER", help="Your own inputs, by name.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FUSION.json", help="fuse's report, to find the rewrite at fault."),
    ] = None,
    locate: Annotated[
        bool, typer.Option("--locate", help="Find the rewrite and the value where the models part.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer input families.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the verdict as JSON.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write it as JUnit XML.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Verify one model against another."""
    set_up(verbose, quiet)
    from normfuse.report import schema
    from normfuse.report.page import page
    from normfuse.report.verdict_table import validation
    from normfuse.validate import validate as compare
    from normfuse.validate.given import write_inputs

    for model in (reference, candidate, report, inputs):
        if model is not None:
            refuse_to_overwrite(model, json_file, junit_file, html_file)
    refuse_to_write_nowhere(json_file, junit_file, html_file)
    if report is not None and not locate:
        warn("--report is read for --locate, which was not asked for")
    rewrites: tuple[Rewrite, ...] = ()
    replay = None
    if report is not None:
        from normfuse.pipeline import replayer

        rewrites, settings = _read_rewrites(report)
        replay = replayer(reference, settings)
    progress("evaluating both models")
    verdict = compare(
        reference,
        candidate,
        providers=provider,
        inputs=inputs,
        quick=quick,
        locate=locate or html_file is not None,
        rewrites=rewrites if locate else (),
        replay=replay if locate else None,
    )
    if verdict.location is not None and not locate:  # the page wants the curve, nobody asked where
        verdict = replace(verdict, location=None if verdict.verdict.value == "EQUIVALENT" else verdict.location)
    if json_file is not None:
        write_text(json_file, json.dumps(schema.validation(verdict), indent=2, ensure_ascii=False) + "\n")
    if junit_file is not None:
        write_text(junit_file, verdict.junit())
    if html_file is not None:
        from normfuse.pipeline import inspect as read_norms

        norms = schema.inspection(read_norms(reference))["norms"]
        write_text(html_file, page(verdict, norms, (str(reference), str(candidate))))
    show(validation(verdict))
    if verdict.failing is not None and inputs is None:
        folder = candidate.with_name(f"{candidate.stem}.failing")
        write_inputs(folder, verdict.failing.feeds)
        say(f"failing inputs ({verdict.failing.family}): {folder}; replay them with --inputs {folder}")
    raise typer.Exit(code_of(verdict.verdict))


def _read_rewrites(path: Path) -> tuple[tuple[Rewrite, ...], dict[str, object]]:
    """Return the rewrites of a fusion report, and what was asked for when it was made."""
    from normfuse.report.records import Rewrite

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rewrites = tuple(
            Rewrite(item["id"], item["kind"], tuple(item["nodes"]), tuple(item["into"]), item.get("note", ""))
            for item in content["rewrites"]
        )
        return rewrites, dict(content.get("settings") or {})
    except OSError as error:
        raise ModelIOError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise ModelIOError(f"{path}: is no report of normfuse fuse: it is not JSON") from None
    except (KeyError, TypeError) as error:
        raise ModelIOError(f"{path}: is no report of normfuse fuse: it has no {error}") from None
