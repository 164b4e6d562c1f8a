"""The kernels of every instruction set, and not only those of the widest: each in a process that is told to use it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from normfuse.runtime.library import find_library
from tests.native.grid import needs_library

WIDEST_FIRST = {"x86_64": ("x86-64-v4", "x86-64-v3", "x86-64-v2"), "aarch64": ("aarch64",)}
CASES = "every_operator or shapes or gelu or absent or nan or large_mean"
"""Which tests of the operators are run again: all operators in all types, every loop and what is left of it."""


@pytest.mark.parametrize("name", WIDEST_FIRST.get(platform.machine(), ("generic",))[1:])
def test_narrower_instruction_sets(name: str) -> None:
    """What the variable asks for is what runs, and it computes the same."""
    needs_library()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["NORMFUSE_INSTRUCTION_SET"] = name
    asked = "from normfuse.runtime.library import find_library; print(find_library().instruction_set)"
    used = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    if used.stdout.strip() != name:
        pytest.skip(f"this processor has {find_library().instruction_set}, which is narrower than {name}")
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        CASES,
        "tests/native/test_operators.py",
    ]
    again = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout[-4000:]
    assert "skipped" not in again.stdout
