"""Sessions as they should be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import normfuse
from normfuse.runtime import session as module
from normfuse.runtime.library import VARIABLE
from tests.native.grid import Node, expected, feeds, model, needs_library

NODE = Node("GroupNorm", (2, 6, 5, 5), 3)
CONTENT = model([NODE], "float32")
VALUES = feeds(CONTENT, "float32")


def assert_right(session: Any) -> None:
    np.testing.assert_allclose(session.run(None, VALUES)[0], expected(NODE, "float32", VALUES)[0], atol=1e-5)


def test_paths_bytes_protos_and_ir_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(CONTENT, path)
    for source in (path, str(path), CONTENT.SerializeToString(), CONTENT, ir.from_proto(CONTENT)):
        assert_right(normfuse.session(source))


def test_without_the_library_the_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    assert_right(normfuse.session(CONTENT))


def test_the_kernel_runs_where_there_is_one() -> None:
    needs_library()
    alone = model([NODE], "float32", functions=False)
    assert_right(normfuse.session(alone))


def test_options_can_be_used_again() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for _ in range(2):
        assert_right(normfuse.session(CONTENT, session_options=options))


def test_a_provider_that_is_not_used_is_said() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.warns(RuntimeWarning, match="the session does not use CUDAExecutionProvider; it runs on CPU") as caught:
        normfuse.session(CONTENT, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert caught[-1].filename == __file__


ADD_NORM = """
<ir_version: 9, opset_import: ["" : 17]>
add_norm (float[1, 2, 8] x, float[1, 2, 8] r) => (float[1, 2, 8] y)
<float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] bias = {0, 0, 0, 0, 0, 0, 0, 0}>
{ t = Add (x, r)  y = LayerNormalization <axis = -1> (t, scale, bias) }
"""


@pytest.mark.parametrize(
    ("version", "operators"), [("1.27.0", ["SkipLayerNormalization"]), ("1.28.0", ["Add", "LayerNormalization"])]
)
def test_the_slow_fusion_is_off_where_it_is_slow(
    version: str, operators: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The session sees ``version`` as onnxruntime's; what it fuses is read from the optimized model."""
    monkeypatch.setattr(module, "version_of", lambda _: tuple(map(int, version.split(".")[:2])))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    normfuse.session(onnx.parser.parse_model(ADD_NORM), session_options=options)
    written = onnx.load(tmp_path / "optimized.onnx")
    assert [node.op_type for node in written.graph.node] == operators
