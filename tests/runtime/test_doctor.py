"""What the doctor says, with and without the library."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from normfuse.cli import app
from normfuse.runtime.doctor import diagnose
from normfuse.runtime.library import VARIABLE, find_library
from tests.native.grid import needs_library


def test_the_operators_run() -> None:
    needs_library()
    diagnosis = diagnose()
    assert diagnosis.operators is None
    lines = diagnosis.table().splitlines()
    assert lines[-2:] == [
        f"native operators: {find_library().path}, {find_library().instruction_set}",
        "onnxruntime runs them",
    ]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [
        "native operators: NORMFUSE_OPS_LIBRARY names no file: /no/such/file",
        "nodes of ai.normfuse run as the functions in their file",
    ]


def test_the_path() -> None:
    needs_library()
    result = CliRunner().invoke(app, ["ops-path"])
    assert result.stdout.strip() == str(find_library().path)


def test_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    result = CliRunner().invoke(app, ["ops-path"])
    assert str(result.exception) == "the native operators: NORMFUSE_OPS_LIBRARY names no file: /no/such/file"
