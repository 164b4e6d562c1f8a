"""The command line as a user meets it: output, exit codes, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from normfuse import ModelIOError, cli, io
from normfuse.cli.output import voice
from tests.folding import BN, build, normal, parameters

TEXT = f"g (float[2,3,6,6] x) => (float[2,4,6,6] y) {{ c = Conv (x, W)  y = {BN} }}"


def example(path: Path) -> Path:
    """Write a small model with a foldable norm."""
    model = build(TEXT, {"W": normal(4, 3, 1, 1), **parameters(4)})
    model.graph.node[0].name, model.graph.node[1].name = "/conv", "/bn"
    onnx.save(model, path)
    return path


def call(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    sys_argv, sys.argv = sys.argv, ["normfuse", *map(str, arguments)]
    voice.verbose = voice.quiet = False
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = sys_argv
    raise RuntimeError("main always exits")


def test_fuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, report = example(tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "report.json"
    assert call("fuse", source, "-o", out, "--report", report) == 0
    text = capsys.readouterr().out
    assert "1 fold of batch norms; 2 → 1 nodes" in text
    assert "verdict: EQUIVALENT" in text
    assert f"wrote {out}" in text
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv"]
    content = json.loads(report.read_text())
    assert content["schema"] == 1
    assert content["rewrites"][0] == {
        "id": "fold-batchnorm:y", "kind": "fold-batchnorm", "nodes": ["/conv", "/bn"], "into": ["/conv"], "note": "",
    }  # fmt: skip
    assert content["nodes"] == {"before": 2, "after": 1}
    assert content["bytes"]["before"] == 48 + 64
    assert content["bytes"]["after"] == 48 + 16
    assert content["validation"]["verdict"] == "EQUIVALENT"


@pytest.mark.parametrize("form", ["auto", "standard", "custom", "primitive"])
def test_fuse_at_another_opset(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "g (float[N,4,6,6] x) => (float[N,4,1,6] y) { n = GroupNormalization <num_groups=2> (x, s, b) y = ReduceMax (n, a) }"
    source, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    arrays = {"s": normal(4), "b": normal(4), "a": np.asarray([2])}
    onnx.save(build(text, arrays, opset=21), source)
    assert call("fuse", source, "-o", out, "--opset", 13, "--form", form, "--report", report) == 0
    assert "opset 21 → 13: rewrote 1 GroupNormalization, 1 ReduceMax" in capsys.readouterr().out
    written = onnx.load(out)
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [13]
    onnx.checker.check_model(written, full_check=True)
    content = json.loads(report.read_text())
    assert content["opset"] == 13
    assert content["rewrites"][0]["id"] == "convert-opset:21-13"
    assert content["validation"]["verdict"] == "EQUIVALENT"


def test_an_opset_without_equivalent_names_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    text = 'g (float[3,3] x) => (float[3] y) { [turn] y = Einsum <equation="ii->i"> (x) }'
    onnx.save(build(text, {}, opset=17), source)
    assert call("fuse", source, "-o", out, "--opset", 11) == 2
    assert capsys.readouterr().err == "error: Einsum at node 'turn' has no equivalent at opset 11\n"
    assert call("fuse", source, "-o", out, "--opset", 99) == 2
    assert "opset 99 cannot be written; known: 7 to" in capsys.readouterr().err
    assert not out.exists()


def test_a_report_comes_with_its_model_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise ModelIOError("out.onnx: cannot be written: No space left on device")

    source = example(tmp_path / "in.onnx")
    monkeypatch.setattr(io, "save", full)
    assert call("fuse", source, "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json", "--no-validate") == 2
    assert capsys.readouterr().err == "error: out.onnx: cannot be written: No space left on device\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize("where", ["nowhere/r.json", "/dev/null"])
def test_a_report_that_cannot_be_written_leaves_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    source = example(tmp_path / "in.onnx")
    assert call("fuse", source, "-o", tmp_path / "out.onnx", "--report", tmp_path / where, "--no-validate") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / where}: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.onnx"]


def test_inspect_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", example(tmp_path / "in.onnx"), "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["norms"] == [
        {
            "norm": "batch", "statistics": {"kind": "stored"}, "epsilon": 1e-05,
            "affine": {"scale": True, "bias": True, "axes": "channel"}, "centred": True, "channel_axis": 1,
            "compute_type": "input", "activation": "none", "spelling": "BatchNormalization-15", "nodes": ["/bn"],
            "plan": "fold into /conv",
        }
    ]  # fmt: skip
    assert content["declined"] == []
    assert content["opset"] == 17


def test_inspect_names_norms_of_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,4,6,6] x) => (float[2,4,6,6] y) <float e = {1e-12}> {
        l = LRN <size = 3> (x)  n = ReduceL2 <axes = [1]> (l)  c = Clip (n, e)  y = Div (l, c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    assert call("inspect", tmp_path / "in.onnx", "--json") == 0
    norms = json.loads(capsys.readouterr().out)["norms"]
    rest = dict.fromkeys(("epsilon", "affine", "centred", "channel_axis", "compute_type", "activation")) | {
        "plan": "keep"
    }
    assert norms == [
        {"norm": "local_response", "statistics": {"kind": "neighbours", "size": 3}, "spelling": "LRN", "nodes": ["LRN → l"], **rest},
        {"norm": "lp", "statistics": {"kind": "lp", "p": 2, "axes": [-3]}, "spelling": "Div", "nodes": ["Div → y"], **rest},
    ]  # fmt: skip
    assert call("inspect", tmp_path / "in.onnx") == 0
    assert "1 local_response norm, 1 lp norm at opset 17" in capsys.readouterr().out


def test_lift_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,4,3,3] x) => (float[2,4,3,3] y) {
        y = MeanVarianceNormalization <axes = [2, 3]> (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    assert call("fuse", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--form", "standard") == 0
    assert "outside the root (--lift-flagged lifts it)" in capsys.readouterr().out
    assert call("fuse", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--form", "standard", "--lift-flagged") == 0
    assert "counts as a norm, as asked, although its epsilon, 1e-9, is added" in capsys.readouterr().out
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["InstanceNormalization"]


def test_inspect_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", example(tmp_path / "in.onnx")) == 0
    text = capsys.readouterr().out
    assert "1 batch norm at opset 17" in text
    assert "fold into /conv" in text


def test_nothing_to_do_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    assert call("fuse", example(tmp_path / "in.onnx"), "-o", once, "-q") == 0
    assert call("fuse", once, "-o", twice) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert twice.read_bytes() == once.read_bytes()


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fuse", example(tmp_path / "in.onnx"), "-o", tmp_path / "out.onnx", "-q", "--no-validate") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


USAGE = [
    (["fuse", "IN", "-o", "OUT", "--form", "standrd"], "unknown form 'standrd'; did you mean 'standard'?"),
    (["fuse", "IN", "-o", "OUT", "--provider", "cdua"], "unknown provider 'cdua'; did you mean 'cuda'?"),
    (["fuse", "IN", "-o", "IN"], "is the input; name another file to write"),
    (["fuse", "IN", "-o", "OUT", "--report", "IN"], "is the input; name another file to write"),
    (["fuse", "IN", "-o", "OUT", "--report", "OUT"], "is already another output; name another file to write"),
    (["validate", "IN", "IN", "--json", "IN"], "is the input; name another file to write"),
    (["fuse", "missing.onnx", "-o", "OUT"], "missing.onnx: no such file"),
    (["fuse", "IN", "-o", "."], ".: is a folder; name a file to write"),
    (["fuse", "IN", "-o", "nowhere/out.onnx"], "no such folder"),
    (["fuse", "IN", "-o", "OUT", "--skip", "("], "is no regular expression"),
    (["inspect", "missing.onnx"], "missing.onnx: no such file"),
    (["validate", "IN", "IN", "--html", "."], ".: is a folder; name a file to write"),
    (["validate", "IN", "IN", "--json", "nowhere/x.json"], "nowhere/x.json: no such folder: nowhere"),
    (["validate", "IN", "IN", "--report", "IN", "--locate"], "in.onnx: is no report of normfuse fuse: it is not JSON"),
    (
        ["validate", "IN", "IN", "--report", "missing.json", "--locate"],
        "missing.json: cannot be read: No such file or directory",
    ),
    (["validate", "IN", "IN", "--inputs", "missing.npz"], "inputs 'missing.npz' do not exist"),
    (["validate", "IN", "missing.onnx"], "candidate: missing.onnx: no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[" ".join(case[0]) for case in USAGE])
def test_bad_usage_is_exit_2_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    example(tmp_path / "in.onnx")
    names = {"IN": "in.onnx", "OUT": "out.onnx"}
    assert call(*[names.get(argument, argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.onnx"]


def test_unknown_flags_and_missing_arguments_are_exit_2(tmp_path: Path) -> None:
    source = example(tmp_path / "in.onnx")
    assert call("fuse", source, "-o", tmp_path / "out.onnx", "--frobnicate") == 2
    assert call("fuse", source) == 2
    assert call("fused", source) == 2


def test_a_divergent_result_is_exit_1_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fold with a deliberately wrong shift never reaches the disk."""
    from normfuse.affine import ChannelAffine
    from normfuse.passes import fold_batchnorm

    honest = fold_batchnorm.compose

    def wrong(*arguments: object) -> ChannelAffine:
        affine = honest(*arguments)  # type: ignore[arg-type]
        return ChannelAffine(affine.scale * 1.001, affine.shift)

    monkeypatch.setattr(fold_batchnorm, "compose", wrong)
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    assert call("fuse", example(tmp_path / "in.onnx"), "-o", out, "--report", report) == 1
    assert not out.exists()
    assert "the result differs from the original; " in capsys.readouterr().err
    assert json.loads(report.read_text())["validation"]["verdict"] == "DIVERGENT"


def test_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other, verdict = example(tmp_path / "in.onnx"), tmp_path / "other.onnx", tmp_path / "verdict.json"
    model = onnx.load(source)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0] *= np.float32(1.001)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(model, other)
    assert call("validate", source, source) == 0
    assert "verdict: EQUIVALENT" in capsys.readouterr().out
    assert call("validate", source, other, "--json", verdict) == 1
    assert "verdict: DIVERGENT" in capsys.readouterr().out
    assert json.loads(verdict.read_text())["verdict"] == "DIVERGENT"


def test_version_and_module_entry() -> None:
    result = subprocess.run([sys.executable, "-m", "normfuse", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == "normfuse 0.1.0\n"


def test_internal_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from normfuse import pipeline

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(pipeline, "fuse_in_place", broken)
    assert call("fuse", example(tmp_path / "in.onnx"), "-o", tmp_path / "out.onnx") == 4
    assert capsys.readouterr().err == "internal error: RuntimeError: boom (-v shows the traceback)\n"
    assert not (tmp_path / "out.onnx").exists()


def test_interruption_is_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from normfuse import pipeline

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fuse_in_place", interrupted)
    assert call("fuse", example(tmp_path / "in.onnx"), "-o", tmp_path / "out.onnx") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("arguments", [["inspect", "in.onnx"], ["inspect", "in.onnx", "--json"], ["--help"]])
def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path: Path, arguments: list[str]) -> None:
    example(tmp_path / "in.onnx")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "normfuse", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_divergence_is_told_by_its_code_where_nobody_reads(tmp_path: Path) -> None:
    source, other = example(tmp_path / "in.onnx"), tmp_path / "other.onnx"
    model = onnx.load(source)
    model.graph.node[1].attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT, f=0.5)
    onnx.save(model, other)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "normfuse", "validate", str(source), str(other)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("flags", [(), ("--no-fuse",)], ids=["fused", "as exported"])
def test_export_goes_beyond_the_opsets_that_torch_writes(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "small_net.py").write_text("from torch import nn\n\ndef net():\n    return nn.LayerNorm(6).eval()\n")
    monkeypatch.chdir(tmp_path)
    assert call("export", "small_net:net", "-o", "out.onnx", "--input", "x=2x6", "--opset", 11, *flags) == 0
    written = onnx.load("out.onnx")
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [11]
    onnx.checker.check_model(written, full_check=True)
    assert ("verdict: EQUIVALENT" in capsys.readouterr().out) is not bool(flags)
