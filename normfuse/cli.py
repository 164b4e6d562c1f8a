"""The command line: parsing and printing only.

Exit codes: 0 done, 1 divergent, 2 bad input or usage, 3 could not be verified, 4 internal error, 130 interrupted.
Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normfuse import __version__
from normfuse.errors import ModelIOError, NormfuseError, UnsupportedForm

if TYPE_CHECKING:
    from normfuse.emit.target import Target
    from normfuse.ledger import Options
    from normfuse.pipeline import Source
    from normfuse.report.records import Rewrite
    from normfuse.report.verdict import Verdict

DIVERGENT, BAD_INPUT, NOT_VERIFIED, INTERNAL, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Export, fuse and verify ONNX models with normalization layers.",
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")]
Out = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The ONNX file to write.")]
ProviderName = Annotated[str, typer.Option("--provider", help="Where the model will run: cpu or cuda.")]
ReportFile = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write the report as JSON.")]
NoValidate = Annotated[bool, typer.Option("--no-validate", help="Write the result without verifying it.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; show tracebacks.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]

_state = {"verbose": False, "quiet": False}


def _set_up(verbose: bool, quiet: bool) -> None:
    _state["verbose"], _state["quiet"] = _state["verbose"] or verbose, _state["quiet"] or quiet
    level = logging.DEBUG if _state["verbose"] else logging.INFO
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("normfuse").setLevel(logging.ERROR if _state["quiet"] else level)


def _say(text: str) -> None:
    if not _state["quiet"]:
        _print(text)


def _print(text: str) -> None:
    """Print, for a reader who may have gone (``| head``): then the work goes on, and the exit code stands."""
    try:
        typer.echo(text, nl=not text.endswith("\n"))
    except BrokenPipeError:
        _silence()


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"normfuse {__version__}")
        raise typer.Exit


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


def _asking(command: Callable[..., None]) -> Callable[..., None]:
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


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export, fuse and verify ONNX models with normalization layers."""
    _set_up(verbose, quiet)


@app.command("inspect")
@_asking
def show(
    model: Model,
    wishes: Wishes,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the norms of a model, and their plan."""
    _set_up(verbose, quiet)
    from normfuse.pipeline import fuse_in_place, read
    from normfuse.report import schema, table

    report = fuse_in_place(read(model), wishes.target, wishes.options)
    if as_json:
        _print(json.dumps(schema.inspection(report), indent=2, ensure_ascii=False))
    else:
        _say(table.inspection(report))


@app.command()
@_asking
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
    _set_up(verbose, quiet)
    _refuse_to_overwrite(model, output, report)
    _fuse_and_save(model, output, wishes, report, validate=not no_validate)


def _refuse_to_overwrite(model: Path | None, *outputs: Path | None) -> None:
    """Refuse to write over an input, or two outputs to one file."""
    taken = {} if model is None else {model.resolve(): "is the input"}
    for output in outputs:
        if output is None:
            continue
        same = model is not None and output.exists() and model.exists() and os.path.samefile(output, model)
        reason = "is the input" if same else taken.get(output.resolve())
        if reason is not None:
            raise UnsupportedForm(f"{output}: {reason}; name another file to write")
        taken[output.resolve()] = "is already another output"


def _fuse_and_save(
    reference: Source, output: Path, wishes: Wishes, report_file: Path | None, *, validate: bool
) -> None:
    """Fuse ``reference``, verify the result against it, and only then write ``output``."""
    from dataclasses import replace

    from normfuse import io
    from normfuse.pipeline import baseline, fuse_in_place, read
    from normfuse.report import schema, table

    candidate = read(reference)
    _progress("fusing")
    report = fuse_in_place(candidate, wishes.target, wishes.options)
    if validate and report.rewrites:
        _progress("verifying the result against the original")
        from normfuse.validate import validate as compare

        verdict = compare(baseline(reference, wishes.options), candidate, providers=(wishes.target.provider,))
        report = replace(report, validation=verdict)
    code = _code(report.validation.verdict) if report.validation is not None else 0
    with _json_beside(report_file, schema.fusion_report(report)):
        if code == 0:
            io.save(candidate, output)
    _say(table.fusion_report(report))
    if code == 0:
        _say(f"wrote {output}" + ("" if report.rewrites or not validate else " (nothing changed, nothing to verify)"))
    else:
        word = "the result differs from the original" if code == DIVERGENT else "the result could not be verified"
        typer.echo(f"error: {word}; {output} was not written", err=True)
        raise typer.Exit(code)


@app.command()
@_asking
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
    _set_up(verbose, quiet)
    import warnings

    from normfuse import io
    from normfuse.export import closest_opset
    from normfuse.export import export as write
    from normfuse.export.factory import parse_dynamic, parse_input, prepare
    from normfuse.passes.convert_opset import convert_opset

    _refuse_to_overwrite(weights, output, report)
    opset = wishes.target.opset
    specs = [parse_input(text) for text in inputs or ()]
    axes = parse_dynamic(dynamic or ())
    prepared = prepare(factory, inputs=specs, weights=weights, folder=Path.cwd())
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        model = write(
            prepared.module,
            prepared.inputs,
            input_names=prepared.input_names,
            dynamic=axes,
            opset=closest_opset(opset),
            progress=_progress,
        )
    if no_fuse:
        if opset is not None:
            convert_opset(model, opset)
        io.save(model, output)
        _say(f"wrote {output}")
        return
    _fuse_and_save(model, output, wishes, report, validate=not no_validate)


def _warn(message: Warning | str, *_: object) -> None:
    typer.echo(f"warning: {message}", err=True)


def _progress(text: str) -> None:
    """Say what is going on, where a person is looking."""
    if not _state["quiet"] and sys.stderr.isatty():
        typer.echo(f"{text} …", err=True)


def _code(verdict: Verdict) -> int:
    return {"EQUIVALENT": 0, "DIVERGENT": DIVERGENT, "NOT_RUN": NOT_VERIFIED}[verdict.value]


def _json_beside(path: Path | None, content: object) -> contextlib.AbstractContextManager[None]:
    """See :func:`_text_beside`."""
    return _text_beside(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    with _text_beside(path, text):
        pass


@contextlib.contextmanager
def _text_beside(path: Path | None, text: str) -> Iterator[None]:
    """Write ``text`` to ``path`` where the work inside succeeds: written before, renamed after, absent else."""
    if path is None:
        yield
        return
    target = path.resolve()
    if path.exists() and not path.is_file():
        raise ModelIOError(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}; name a file to write")
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        staged.write_text(text, encoding="utf-8")
        yield
        os.replace(staged, target)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        staged.unlink(missing_ok=True)


@app.command()
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
    _set_up(verbose, quiet)
    from normfuse.report import schema, table
    from normfuse.report.page import page
    from normfuse.validate import validate as compare
    from normfuse.validate.given import write_inputs

    for model in (reference, candidate, report, inputs):
        if model is not None:
            _refuse_to_overwrite(model, json_file, junit_file, html_file)
    rewrites: tuple[Rewrite, ...] = ()
    replay = None
    if report is not None:
        from normfuse.pipeline import replayer

        rewrites, settings = _read_rewrites(report)
        replay = replayer(reference, settings)
    _progress("evaluating both models")
    verdict = compare(
        reference,
        candidate,
        providers=provider,
        inputs=inputs,
        quick=quick,
        locate=locate or html_file is not None,
        rewrites=rewrites if locate else (),
        replay=replay,
    )
    if json_file is not None:
        _write_text(json_file, json.dumps(schema.validation(verdict), indent=2, ensure_ascii=False) + "\n")
    if junit_file is not None:
        _write_text(junit_file, verdict.junit())
    if html_file is not None:
        from normfuse.pipeline import inspect as read_norms

        norms = schema.inspection(read_norms(reference))["norms"]
        _write_text(html_file, page(verdict, norms, (str(reference), str(candidate))))
    _say(table.validation(verdict))
    if verdict.failing is not None and inputs is None:
        folder = candidate.with_name(f"{candidate.stem}.failing")
        write_inputs(folder, verdict.failing.feeds)
        _say(f"failing inputs ({verdict.failing.family}): {folder}; replay them with --inputs {folder}")
    raise typer.Exit(_code(verdict.verdict))


def _read_rewrites(path: Path) -> tuple[tuple[Rewrite, ...], dict[str, object]]:
    """Return the rewrites of a fusion report, and what was asked for when it was made."""
    from normfuse.errors import ModelIOError
    from normfuse.report.records import Rewrite

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rewrites = tuple(
            Rewrite(item["id"], item["kind"], tuple(item["nodes"]), tuple(item["into"]), item.get("note", ""))
            for item in content["rewrites"]
        )
        return rewrites, dict(content.get("settings") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelIOError(f"{path}: is no report of normfuse fuse ({type(error).__name__}: {error})") from None


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL [OTHER]...", help="ONNX files, compared with the first.")
    ],
    provider: ProviderName = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0 leaves it to onnxruntime.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure how long models take, and where the time goes."""
    _set_up(verbose, quiet)
    from normfuse.emit.target import parse_provider
    from normfuse.runtime.bench import bench as measure

    for model in models:
        _refuse_to_overwrite(model, json_file)
        if not model.is_file():
            raise ModelIOError(f"{model}: no such file")
    _progress("measuring")
    report = measure(models, f"{parse_provider(provider).name}ExecutionProvider", threads=threads)
    with _json_beside(json_file, report.json()):
        _say(report.table())


@app.command()
def doctor(verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Say what is installed, and whether the native operators run."""
    _set_up(verbose, quiet)
    from normfuse.runtime.doctor import diagnose

    _say(f"normfuse {__version__}\n{diagnose().table()}")


@app.command("ops-path")
def ops_path(provider: ProviderName = "cpu", verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Print the path of the library of native operators."""
    _set_up(verbose, quiet)
    from normfuse.emit.target import Provider, parse_provider
    from normfuse.runtime.library import find_cuda_library, find_library

    library = find_cuda_library() if parse_provider(provider) is Provider.CUDA else find_library()
    if not library.is_usable:
        raise NormfuseError(f"the native operators: {library.problem}")
    typer.echo(library.path)


def main() -> None:
    """Run the command line and exit with a code of the contract."""
    try:
        code = app(standalone_mode=False)
    except SystemExit:  # the parser's own way out where nobody reads its help
        _silence()
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except NormfuseError as error:
        _fail(str(error), BAD_INPUT)
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the command line's parser prints itself
        if callable(show):
            show()
            sys.exit(BAD_INPUT)
        _fail(f"internal error: {type(error).__name__}: {error} (-v shows the traceback)", INTERNAL)
    else:
        if code == INTERRUPTED:  # the parser of the command line turns an interruption into its code
            typer.echo("interrupted", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    if _state["verbose"]:
        traceback.print_exc()
    first, *_ = message.splitlines() or [""]
    typer.echo(f"error: {first}" if not first.startswith("internal error") else first, err=True)
    sys.exit(code)
