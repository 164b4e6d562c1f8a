"""The public door: its names, and that opening it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import normfuse

HEAVY = ["torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "rich.table", "sympy"]


def test_names() -> None:
    assert sorted(normfuse.__all__) == [
        "ExportError", "Form", "FusionReport", "MissingDependency", "ModelIOError", "NormSpec", "NormfuseError",
        "Provider", "Target", "UnsupportedForm", "ValidationError", "ValidationReport", "Verdict", "export", "fuse",
        "inspect", "load", "save", "session", "validate",
    ]  # fmt: skip
    for name in normfuse.__all__:
        assert getattr(normfuse, name) is not None
    assert set(dir(normfuse)) >= set(normfuse.__all__)


def loaded_after(statement: str) -> set[str]:
    """Return which heavy modules a fresh interpreter holds after ``statement``."""
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast_list(result.stdout.strip().splitlines()[-1]))


def ast_list(text: str) -> list[str]:
    """Read a printed list of strings."""
    import ast

    value = ast.literal_eval(text)
    assert isinstance(value, list)
    return value


def test_importing_loads_nothing_heavy() -> None:
    assert loaded_after("import normfuse") == set()


def test_help_loads_nothing_heavy() -> None:
    help_ = "sys.argv = ['normfuse', '--help']\nimport normfuse.cli\ntry: normfuse.cli.main()\nexcept SystemExit: pass"
    assert loaded_after(help_) == set()


def test_fusing_needs_neither_torch_nor_onnxruntime() -> None:
    assert (
        loaded_after("import normfuse; normfuse.fuse, normfuse.load, normfuse.inspect") & {"torch", "onnxruntime"}
        == set()
    )
