"""Finding the library, and doing without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normfuse.runtime.library import VARIABLE, find_library
from tests.native.grid import needs_library


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    library = find_library()
    assert not library.is_usable
    assert library.problem == "NORMFUSE_OPS_LIBRARY names no file: /no/such/file"


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not a library")
    monkeypatch.setenv(VARIABLE, str(path))
    library = find_library()
    assert not library.is_usable
    assert library.problem is not None
    assert library.problem.startswith("does not load: ")


def test_the_built_library_says_its_instruction_set() -> None:
    needs_library()
    library = find_library()
    assert library.path is not None
    assert library.path.name.startswith("libnormfuse_ops")
    assert library.instruction_set in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "generic")


def test_a_narrower_instruction_set_can_be_asked_for() -> None:
    needs_library()
    widest = find_library().instruction_set
    assert widest is not None
    if not widest.startswith("x86-64"):
        pytest.skip(f"there is one instruction set only: {widest}")
    code = "from normfuse.runtime.library import find_library; print(find_library().instruction_set)"
    for wanted, got in (("x86-64-v2", "x86-64-v2"), ("no such", widest)):
        result = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NORMFUSE_INSTRUCTION_SET": wanted},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == got
