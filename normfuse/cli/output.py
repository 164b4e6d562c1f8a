"""What every command shares: how it speaks, and how it writes files beside its result."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from normfuse.errors import ModelIOError, UnsupportedForm

if TYPE_CHECKING:
    from normfuse.report.terminal import Blocks


@dataclass(slots=True)
class Voice:
    """How much is said: set once by the flags of a run."""

    verbose: bool = False
    quiet: bool = False


voice = Voice()


def set_up(verbose: bool, quiet: bool) -> None:
    """Take in the flags ``-v`` and ``-q``, which stand before a command or behind it."""
    voice.verbose, voice.quiet = voice.verbose or verbose, voice.quiet or quiet
    level = logging.DEBUG if voice.verbose else logging.INFO
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("normfuse").setLevel(logging.ERROR if voice.quiet else level)


def say(text: str) -> None:
    """Print a result, unless nothing but errors is wanted."""
    if not voice.quiet:
        put(text)


def show(blocks: Blocks) -> None:
    """Print a report, for a terminal with colours."""
    from normfuse.report.terminal import styled

    say(styled(blocks, sys.stdout))


def put(text: str) -> None:
    """Print, for a reader who may have gone (``| head``): then the work goes on, and the exit code stands."""
    try:
        typer.echo(text, nl=not text.endswith("\n"), color=True)  # what is no terminal was given no colours
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Let what is still printed go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: Warning | str, *_: object) -> None:
    """Print a warning on the error stream."""
    typer.echo(f"warning: {message}", err=True)


def progress(text: str) -> None:
    """Say what is going on, where a person is looking."""
    if not voice.quiet and sys.stderr.isatty():
        typer.echo(f"{text} …", err=True)


def refuse_to_overwrite(model: Path | None, *outputs: Path | None) -> None:
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


def json_beside(path: Path | None, content: object) -> contextlib.AbstractContextManager[None]:
    """See :func:`text_beside`."""
    return text_beside(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def refuse_to_write_nowhere(*outputs: Path | None) -> None:
    """Refuse a folder, a device, and a file in a folder that is not there: before the work, not after it."""
    for path in outputs:
        if path is None:
            continue
        if path.exists() and not path.is_file():
            raise ModelIOError(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}; name a file to write")
        if not path.resolve().parent.is_dir():
            raise ModelIOError(f"{path}: no such folder: {path.parent}")


def write_text(path: Path, text: str) -> None:
    with text_beside(path, text):
        pass


@contextlib.contextmanager
def text_beside(path: Path | None, text: str) -> Iterator[None]:
    """Write ``text`` to ``path`` where the work inside succeeds: written before, renamed after, absent else."""
    if path is None:
        yield
        return
    target = path.resolve()
    refuse_to_write_nowhere(path)
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        staged.write_text(text, encoding="utf-8")
        yield
        os.replace(staged, target)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        staged.unlink(missing_ok=True)
