"""Blocks of a report, lines of text and tables, laid out for whoever reads them.

A person at a terminal gets Rich's tables, fitted to the window, and colours; one who wants no
colour (``NO_COLOR``) none; a file or a pipe gets plain text whose lines are neither folded nor cut.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normfuse.report.verdict import Verdict

Blocks = Sequence[str | Text | Table]

STYLES = {Verdict.EQUIVALENT: "green", Verdict.DIVERGENT: "bold red", Verdict.NOT_RUN: "yellow"}
# Wider than any line: nothing is folded or cut where a program may read it.
_PLAIN_WIDTH = 100_000


def columns(*names: str, header: bool = True) -> Table:
    """Return a table without lines around it; cells fold rather than lose a part of a name."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def plain(blocks: Blocks) -> str:
    """Return ``blocks`` as text without escape sequences, the same wherever it is read."""
    buffer = io.StringIO()
    _print(Console(file=buffer, width=_PLAIN_WIDTH, color_system=None, force_terminal=False), blocks)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def styled(blocks: Blocks, stream: TextIO) -> str:
    """Return ``blocks`` as ``stream`` should get them: styled where it is a terminal, else :func:`plain`."""
    wants_none = bool(os.environ.get("NO_COLOR"))  # no-color.org; without a colour system Rich leaves out bold as well
    console = Console(file=stream, color_system=None if wants_none else "auto")
    if not console.is_terminal:
        return plain(blocks)
    with console.capture() as capture:
        _print(console, blocks)
    return capture.get()


def _print(console: Console, blocks: Blocks) -> None:
    """Print without what Rich reads into text: names of nodes hold brackets, colons and numbers."""
    for block in blocks:
        if isinstance(block, Table):
            console.print(block)
        else:
            console.print(block, soft_wrap=True, markup=False, highlight=False, emoji=False)
