"""Where two graphs part: by rewrite, by value, and on a runtime alone."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Verdict
from normfuse.pipeline import replayer
from normfuse.report.schema import fusion_report
from normfuse.validate import validate
from tests.test_cli import call
from tests.validate.nets import blocks, folded, network


def spoilt(model: ir.Model, name: str) -> ir.Model:
    """Return ``model`` with the bias of one convolution moved."""
    for node in model.graph:
        bias = node.inputs[2] if node.name == name and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None:
            bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.01), name=bias.name)
    return model


@pytest.mark.parametrize("culprit", [0, 3, 5])
def test_first_rewrite(culprit: int) -> None:
    """One of six folds is wrong: log2(6) replays find it."""
    model = network(blocks(6))
    fused, report = normfuse.fuse(model)
    honest = replayer(model, dict(report.settings))
    replays = []

    def replay(ids: Collection[str]) -> ir.Model:
        replays.append(len(ids))
        return spoilt(honest(ids), f"/conv{culprit}")

    verdict = validate(
        model,
        spoilt(fused, f"/conv{culprit}"),
        providers=(),
        quick=True,
        locate=True,
        rewrites=report.rewrites,
        replay=replay,
    )
    location = verdict.location
    assert verdict.verdict is Verdict.DIVERGENT
    assert location is not None
    assert location.rewrite == report.rewrites[culprit].id
    assert location.before == (f"/conv{culprit}", f"/norm{culprit}")
    assert location.after == (f"/conv{culprit}",)
    assert location.tensor == f"norm{culprit}"
    assert len(replays) <= 4


def test_error_over_depth() -> None:
    report = validate(network(blocks(3)), folded(blocks(3)), providers=(), quick=True, locate=True)
    assert [point.name for point in report.curve] == ["norm0", "relu0", "norm1", "relu1", "norm2", "relu2"]
    assert all(point.error <= point.allowed for point in report.curve)
    assert report.location is not None
    assert report.location.words == "nothing to locate: no leg is divergent"


def test_what_the_report_does_not_explain() -> None:
    model = network(blocks(2))
    fused, report = normfuse.fuse(model)
    replay = replayer(model, dict(report.settings))
    verdict = validate(
        model, spoilt(fused, "/conv1"), providers=(), quick=True, locate=True, rewrites=report.rewrites, replay=replay
    )
    assert verdict.location is not None
    assert verdict.location.words == "replaying all rewrites of the report gives a model that is not divergent"
    assert verdict.location.tensor == "norm1"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All files are written, the failing inputs replay the verdict, and the value at fault is named."""
    pytest.importorskip("onnxruntime")
    source, wrong = tmp_path / "in.onnx", tmp_path / "wrong.onnx"
    onnx.save(network(blocks(2)), source)
    fused, report = normfuse.fuse(source)
    normfuse.save(spoilt(fused, "/conv1"), wrong)
    (tmp_path / "fusion.json").write_text(json.dumps(fusion_report(report)), encoding="utf-8")
    files = {name: tmp_path / f"out.{name}" for name in ("json", "junit", "html")}
    flags = [item for name, path in files.items() for item in (f"--{name}", path)]
    code = call("validate", source, wrong, "--quick", "--locate", "--report", tmp_path / "fusion.json", *flags)
    text = capsys.readouterr().out
    assert code == 1
    assert "first value beyond its budget: norm1" in text
    content = json.loads(files["json"].read_text())
    assert content["location"]["tensor"] == "norm1"
    assert [item["leg"] for item in content["latencies"]] == ["cpu"]
    assert "<failure" in files["junit"].read_text()
    assert "DIVERGENT" in files["html"].read_text()
    failing = tmp_path / "wrong.failing"
    assert sorted(path.suffix for path in failing.iterdir()) == [".npz"]
    assert call("validate", source, wrong, "--inputs", failing) == 1
    assert call("validate", source, source, "--inputs", failing) == 0


def test_a_file_that_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(blocks(1)), tmp_path / "in.onnx")
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    assert call("validate", tmp_path / "in.onnx", tmp_path / "in.onnx", "--report", tmp_path / "no.json") == 2
    assert "is no report of normfuse fuse" in capsys.readouterr().err
