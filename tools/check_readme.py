"""Run the examples of README.md and compare what they print with what it shows.

A ```console block holds commands after "$ " and their output; a ```python block is run, and its output is the
```text block behind it, if there is one. Numbers may differ from machine to machine, so runs of digits count as equal;
blocks marked ```console last-line show a line that depends on the machine, and only their last line is compared; blocks
marked ```console no-check are for the reader only (they take long, write times, or are shortened).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def normal(text: str) -> str:
    """Return ``text`` with every number replaced, and spaces that align columns collapsed."""
    without_numbers = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
    return "\n".join(re.sub(r" {2,}", "  ", line).rstrip() for line in without_numbers.strip().splitlines())


def commands(block: str) -> list[tuple[str, str]]:
    """Split a console block into (command, shown output)."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return [(command, "\n".join(shown)) for command, shown in found]


def run(arguments: list[str], folder: Path) -> str:
    """Run a command in ``folder`` with this environment's programs; return what it prints."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def main() -> None:
    """Run all blocks of README.md in one temporary folder, in order."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    blocks = [(kind, note.strip(), body) for kind, note, body in BLOCK.findall((ROOT / "README.md").read_text())]
    failures = checked = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (kind, note, body) in enumerate(blocks):
            pairs: list[tuple[str, str, str]] = []
            if kind == "console" and note != "no-check":
                pairs = [(command, shown, run(shlex.split(command), folder)) for command, shown in commands(body)]
            elif kind == "python":
                following = blocks[index + 1] if index + 1 < len(blocks) else ("", "", "")
                shown = following[2] if following[0] == "text" else ""
                pairs = [("python", shown, run([sys.executable, "-c", body], folder))]
            for command, expected, output in pairs:
                checked += 1
                shown, printed = (text.splitlines()[-1] if note == "last-line" else text for text in (expected, output))
                if normal(shown) != normal(printed):
                    failures += 1
                    print(f"README.md: {command}\n--- shown\n{shown}\n--- printed\n{printed}")
    print(f"README.md: {checked} examples run, {failures} differ")
    sys.exit(1 if failures or not checked else 0)


if __name__ == "__main__":
    main()
