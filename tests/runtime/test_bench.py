"""Latency, shares of time and the cost of norms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from normfuse.cli import app
from normfuse.errors import UnsupportedForm
from normfuse.runtime.bench import bench, random_inputs
from normfuse.runtime.profile import copy_seconds, read_profile

MODEL = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[batch, 4, 8, 8] x, bool flag, int64[3] ids) => (float[batch, 4, 8, 8] y, bool not_flag, int64[3] more)
<float[4] scale = {1, 2, 3, 4}, float[4] bias = {0, 0, 0, 0}>
{
  t = InstanceNormalization (x, scale, bias)
  y = Relu (t)
  not_flag = Not (flag)
  more = Add (ids, ids)
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_figures(path: Path) -> None:
    report = bench([path, path], threads=1, rounds=5)
    assert [each.model for each in report.latencies] == ["net.onnx", "net.onnx"]
    for each in report.latencies:
        assert 0 < each.low <= each.median <= each.high
        assert sum(share.share for share in each.profile.shares) == pytest.approx(1)
        (norm,) = each.profile.norms
        assert (norm.operator, norm.shape) == ("InstanceNormalization", (1, 4, 8, 8))
        assert norm.copies == pytest.approx(norm.seconds / copy_seconds(1024), rel=9)


def test_inputs_that_can_be_made_up(path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = random_inputs(session)
    assert inputs["x"].shape == (1, 4, 8, 8)
    assert inputs["flag"].dtype == np.bool_
    assert inputs["flag"]
    assert inputs["ids"].tolist() == [0, 0, 0]


def test_inputs_that_cannot(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> net (string[2] x) => (string[2] y) { y = Identity (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "text.onnx")
    with pytest.raises(
        UnsupportedForm, match=r"input 'x' is of type tensor\(string\), for which no values can be made up"
    ):
        bench([tmp_path / "text.onnx"])


def test_the_profile_by_hand(tmp_path: Path) -> None:
    """Two runs of a norm, one of another operator; what is no node does not count."""

    def event(name: str, operator: str, microseconds: int) -> dict[str, object]:
        arguments = {"op_name": operator, "output_type_shape": [{"float": [1, 256]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": arguments}

    events = [event("n", "LayerNormalization", 10), event("n", "LayerNormalization", 20), event("m", "MatMul", 70)]
    events.append({"cat": "Session", "name": "model_run", "dur": 500, "args": {}})
    (tmp_path / "profile.json").write_text(json.dumps(events))
    profile = read_profile(tmp_path / "profile.json")
    assert [(share.operator, share.nodes, share.share) for share in profile.shares] == [
        ("MatMul", 1, 0.7),
        ("LayerNormalization", 1, 0.3),
    ]
    (norm,) = profile.norms
    assert (norm.node, norm.shape) == ("n", (1, 256))
    assert norm.seconds == pytest.approx(15e-6)


def test_the_command(path: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(path), "--threads", "1", "--json", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    assert "threads: 1, 50 rounds" in result.stdout
    assert "InstanceNormalization × 1" in result.stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    assert (written["schema"], written["threads"]) == (1, 1)
    assert written["models"][0]["norms"][0]["operator"] == "InstanceNormalization"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "none.onnx")])
    assert str(result.exception).endswith("none.onnx: no such file")
