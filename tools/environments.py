"""What tools on models of other libraries share: an environment of their own to run in, and their command line.

Each runs itself again there; with --here it stays in the environment that it was started in.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("transformers==5.23.0", "diffusers==0.42.1", "monai==1.6.1")
WITHOUT_DEPENDENCIES = ("pytorchcv==0.0.74", "timm==1.0.31")  # their torchvision would bring a CUDA build of torch


def environment(folder: Path, extras: str, packages: Sequence[str], without_dependencies: Sequence[str] = ()) -> Path:
    """Make a virtual environment with normfuse[extras] and ``packages`` where there is none; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "-e", f"{ROOT}[{extras}]", *packages], check=True)
        if without_dependencies:
            subprocess.run([*pip, "--no-deps", *without_dependencies], check=True)
        (folder / ".ready").touch()
    return python


def of_real_models(folder: Path = ROOT / "build" / "real-models") -> Path:
    """Return the Python of an environment with the libraries that tools/architectures.py takes models from."""
    return environment(folder, "cpu,torch", LIBRARIES, WITHOUT_DEPENDENCIES)


def parser_of(documentation: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that runs on models by name: the names, and --here."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="run only models whose name contains one of these")
    parser.add_argument("--here", action="store_true", help="run in this environment")
    return parser


def chosen(models: Sequence[Callable[[], Any]], names: Sequence[str]) -> list[Callable[[], Any]]:
    """Return those of ``models`` whose name contains one of ``names``; all, where none is given."""
    return [build for build in models if not names or any(name in build.__name__ for name in names)]


def run_there(python: Path, script: str, arguments: Sequence[str], folder: str | None = None) -> int:
    """Run ``script`` in the environment of ``python`` with --here; return its exit status."""
    command = [str(python), str(Path(script).resolve()), *arguments, "--here"]
    return subprocess.run(command, cwd=folder, check=False).returncode
