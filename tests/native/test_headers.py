"""What needs onnxruntime's own headers, which no wheel has: that ours says the same, and that README's C++ runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest

import normfuse
from normfuse.emit.target import Form, Target
from normfuse.runtime.library import find_library
from tests.native.grid import needs_library

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = "onnxruntime_c_api.h"


def compiler_and_headers() -> tuple[str, Path]:
    """Return both, or skip the test with the reason."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    for folder in (os.environ.get("NORMFUSE_ORT_INCLUDE_DIR", ""), "/usr/include/onnxruntime"):
        if folder and (Path(folder) / HEADER).is_file():
            return compiler, Path(folder)
    pytest.skip(f"NORMFUSE_ORT_INCLUDE_DIR names no folder with {HEADER} (tools/onnxruntime_header.sh fetches one)")


def compiled(source: Path, *options: str) -> None:
    """Compile ``source``; fail with what the compiler says."""
    compiler, headers = compiler_and_headers()
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-isystem", str(headers), str(source), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


def test_our_header_says_the_same() -> None:
    """Every slot and field that we use lies where onnxruntime has it."""
    native = ROOT / "normfuse" / "native"
    compiled(native / "abi" / "abi_check.cc", "-Werror", f"-I{native}", "-fsyntax-only")


def test_a_slot_elsewhere_is_found(tmp_path: Path) -> None:
    """The comparison can fail: a gap that is one entry too short moves all that follow."""
    native = ROOT / "normfuse" / "native"
    text = (native / "abi" / "onnxruntime_abi.h").read_text(encoding="utf-8")
    assert "gap_29[22]" in text
    (tmp_path / "abi").mkdir()
    (tmp_path / "abi" / "onnxruntime_abi.h").write_text(text.replace("gap_29[22]", "gap_29[21]"), encoding="utf-8")
    with pytest.raises(AssertionError, match="a member lies elsewhere in onnxruntime's header"):
        compiled(native / "abi" / "abi_check.cc", f"-I{tmp_path}", "-fsyntax-only")


PROGRAM = """
#include <onnxruntime_cxx_api.h>
#include <cstdio>
int main(int, char** arguments) {
    const char* path_of_the_library = arguments[1];
    %s
    std::puts(session.GetOutputNameAllocated(0, Ort::AllocatorWithDefaultOptions()).get());
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the wheel's library is named as on Linux")
def test_the_snippet_of_the_readme_runs(tmp_path: Path) -> None:
    """Against the library in onnxruntime's wheel, with a model that does not load without ours."""
    needs_library()
    (snippet,) = re.findall(r"```cpp\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "main.cc").write_text(PROGRAM % snippet, encoding="utf-8")
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)
    compiled(
        tmp_path / "main.cc", "-o", str(tmp_path / "main"), str(runtime), f"-Wl,-rpath,{tmp_path},--disable-new-dtags"
    )
    ones = ", ".join(["1"] * 64)
    text = f"""<ir_version: 9, opset_import: ["": 17]> g (float[8,64] x) => (float[8,64] result)
        <float[64] s = {{{ones}}}> {{ result = LayerNormalization (x, s, s) }}"""
    model, _ = normfuse.fuse(onnx.parser.parse_model(text), Target(Form.CUSTOM))
    model.functions.clear()
    normfuse.save(model, tmp_path / "fused.onnx")
    library = find_library().path
    assert library is not None
    result = subprocess.run(
        [tmp_path / "main", str(library.resolve())], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "result\n"
