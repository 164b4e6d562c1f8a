"""The command line: parsing and printing only.

Exit codes: 0 done, 1 divergent, 2 bad input or usage, 3 could not be verified, 4 internal error, 130 interrupted.
Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from normfuse import __version__
from normfuse.cli import machine, make, validate
from normfuse.cli.codes import BAD_INPUT, INTERNAL, INTERRUPTED
from normfuse.cli.options import Quiet, Verbose
from normfuse.cli.output import set_up, silence, voice
from normfuse.errors import NormfuseError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Export, fuse and verify ONNX models with normalization layers.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"normfuse {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export, fuse and verify ONNX models with normalization layers."""
    set_up(verbose, quiet)


app.command()(make.inspect)
app.command()(make.fuse)
app.command()(make.export)
app.command()(validate.validate)
app.command()(machine.bench)
app.command()(machine.doctor)
app.command()(machine.ops_path)


def main() -> None:
    """Run the command line and exit with a code of the contract."""
    try:
        code = app(standalone_mode=False)
    except SystemExit:  # the parser's own way out where nobody reads its help
        silence()
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
    if voice.verbose:
        traceback.print_exc()
    first, *_ = message.splitlines() or [""]
    typer.echo(f"error: {first}" if not first.startswith("internal error") else first, err=True)
    sys.exit(code)
