"""The arguments that several commands take, and what a user wishes of fuse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from normfuse.emit.target import Target
    from normfuse.ledger import Options

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")]
Out = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The ONNX file to write.")]
ProviderName = Annotated[str, typer.Option("--provider", help="Where the model will run: cpu or cuda.")]
ReportFile = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write the report as JSON.")]
NoValidate = Annotated[bool, typer.Option("--no-validate", help="Write the result without verifying it.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; show tracebacks.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user asks of fuse, whichever command carries it out."""

    target: Target
    options: Options


def _wishes(
    form: Annotated[
        str, typer.Option("--form", help="How norms are written: auto, standard, custom, ort or primitive.")
    ] = "auto",
    provider: ProviderName = "cpu",
    opset: Annotated[
        int | None,
        typer.Option("--opset", metavar="N", help="The opset to write: the model's own, or 23 where it is exported."),
    ] = None,
    skip: Annotated[
        str | None, typer.Option("--skip", metavar="NODE_REGEX", help="Leave nodes with such names alone.")
    ] = None,
    freeze_inputs: Annotated[
        bool, typer.Option("--freeze-inputs", help="Treat initializers that callers could override as constant.")
    ] = False,
    assume_inference: Annotated[
        bool, typer.Option("--assume-inference", help="Treat training-mode batch norms as inference: changes results.")
    ] = False,
    lift_flagged: Annotated[
        bool,
        typer.Option("--lift-flagged", help="Also lift what is a norm in exact arithmetic only: changes rounding."),
    ] = False,
    fold_norm_affine: Annotated[
        bool,
        typer.Option("--fold-norm-affine", help="Fold scale and bias of layer, RMS, group norms into what reads them."),
    ] = False,
    duplicate_producers: Annotated[
        bool,
        typer.Option(
            "--duplicate-producers", help="Fold batch norms into copies of operators that others read: more work."
        ),
    ] = False,
) -> Wishes:
    from normfuse.emit.target import Target, parse_form, parse_provider
    from normfuse.ledger import Options

    target = Target(parse_form(form), parse_provider(provider), opset)
    return Wishes(
        target,
        Options(skip, None, assume_inference, freeze_inputs, lift_flagged, fold_norm_affine, duplicate_producers),
    )


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of :func:`_wishes`; what they say reaches it as its parameter ``wishes``."""
    shared = inspect.signature(_wishes, eval_str=True).parameters
    own = dict(inspect.signature(command, eval_str=True).parameters)
    own.pop("wishes")

    @functools.wraps(command)
    def run(**given: Any) -> None:
        wishes = _wishes(**{name: given.pop(name) for name in shared})
        command(**given, wishes=wishes)

    parameters = sorted([*own.values(), *shared.values()], key=lambda each: each.default is not each.empty)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
