"""``bench``, ``doctor`` and ``ops-path``: how fast models are, and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normfuse import __version__
from normfuse.cli.options import ProviderName, Quiet, Verbose
from normfuse.cli.output import json_beside, progress, refuse_to_overwrite, say, set_up
from normfuse.errors import ModelIOError, NormfuseError


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
    set_up(verbose, quiet)
    from normfuse.emit.target import parse_provider
    from normfuse.runtime.bench import bench as measure

    for model in models:
        refuse_to_overwrite(model, json_file)
        if not model.is_file():
            raise ModelIOError(f"{model}: no such file")
    progress("measuring")
    report = measure(models, f"{parse_provider(provider).name}ExecutionProvider", threads=threads)
    with json_beside(json_file, report.json()):
        say(report.table())


def doctor(verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Say what is installed, and whether the native operators run."""
    set_up(verbose, quiet)
    from normfuse.runtime.doctor import diagnose

    say(f"normfuse {__version__}\n{diagnose().table()}")


def ops_path(provider: ProviderName = "cpu", verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Print the path of the library of native operators."""
    set_up(verbose, quiet)
    from normfuse.emit.target import Provider, parse_provider
    from normfuse.runtime.library import find_cuda_library, find_library

    library = find_cuda_library() if parse_provider(provider) is Provider.CUDA else find_library()
    if not library.is_usable:
        raise NormfuseError(f"the native operators: {library.problem}")
    typer.echo(library.path)
