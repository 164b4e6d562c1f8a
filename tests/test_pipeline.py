"""fuse and inspect as functions: what they take, what they leave alone, what they report, and replay by id."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Form, ModelIOError, Target, UnsupportedForm, Verdict
from tests.folding import BN, assert_same, build, count, fuse, normal, parameters, reasons


def two_norms() -> onnx.ModelProto:
    """Return a model with two folds and an unfoldable norm between operators nobody knows."""
    text = f"""g (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] u) {{
        c = Conv (x, W)  k = {BN}  r = Relu (k)
        d = Conv (r, V)  e = BatchNormalization (d, s, b, m, v)
        f = my.Strange (e)  y = BatchNormalization (f, s, b, m, v)  u = Relu (e) }}"""
    model = build(text, {"W": normal(4, 3, 1, 1), "V": normal(4, 4, 1, 1), **parameters(4)})
    model.opset_import.append(onnx.helper.make_opsetid("my", 1))
    return model


def test_takes_a_path_a_proto_and_a_model_and_changes_none(tmp_path: Path) -> None:
    proto = two_norms()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    file_before, proto_before = path.read_bytes(), proto.SerializeToString(deterministic=True)
    results = [normfuse.fuse(source)[0] for source in (path, str(path), proto, model)]
    texts = {ir.to_proto(result).SerializeToString(deterministic=True) for result in results}
    assert len(texts) == 1
    assert path.read_bytes() == file_before
    assert proto.SerializeToString(deterministic=True) == proto_before
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_unknown_operators_are_carried_through() -> None:
    fused, report = fuse(two_norms())
    assert [node.op_type for node in fused.graph] == ["Conv", "Relu", "Conv", "Strange", "BatchNormalization", "Relu"]
    assert reasons(report) == ["its input comes from Strange 'Strange → f', into which no norm folds"]
    assert fused.opset_imports == {"": 17, "my": 1}
    onnx.checker.check_model(ir.to_proto(fused))


def test_report_says_what_was_done() -> None:
    _, report = fuse(two_norms())
    assert [record.plan for record in report.norms] == ["fold into Conv → c", "fold into Conv → d", "keep"]
    assert [record.norm for record in report.norms] == ["batch"] * 3
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:k", "fold-batchnorm:e"]
    assert (report.nodes.before, report.nodes.after) == (8, 6)
    assert report.opset == 17


def test_a_part_of_the_rewrites_can_be_replayed() -> None:
    model = two_norms()
    _, report = fuse(model)
    for rewrite in report.rewrites:
        part, replay = fuse(model, only=[rewrite.id])
        assert [entry.id for entry in replay.rewrites] == [rewrite.id]
        assert count(part, "BatchNormalization") == 2
    nothing, replay = fuse(model, only=[])
    assert not replay.rewrites
    assert count(nothing, "BatchNormalization") == 3


def test_replaying_an_unknown_rewrite_is_an_error() -> None:
    with pytest.raises(UnsupportedForm, match="no such rewrite in this model: fold-batchnorm:nowhere"):
        fuse(two_norms(), only=["fold-batchnorm:nowhere"])


def test_a_rewrite_that_follows_from_another_is_not_replayed_alone() -> None:
    """The norm before the convolution folds into what the norm behind it left."""
    text = f"""g (float[2,4,6,6] x) => (float[2,4,6,6] y) {{
        r = Relu (x)  n = BatchNormalization (r, s, b, m, v)  c = Conv (n, W)  y = {BN} }}"""
    model = build(text, {"W": normal(4, 4, 1, 1), **parameters(4)})
    fused, report = fuse(model)
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:y", "fold-batchnorm:y#2"]
    assert_same(model, fused)
    alone, replay = fuse(model, only=["fold-batchnorm:y#2"])
    assert replay.notes == ("not replayed, since they follow from rewrites that were not selected: fold-batchnorm:y#2",)
    assert_same(model, alone)
    both, replay = fuse(model, only=["fold-batchnorm:y", "fold-batchnorm:y#2"])
    assert count(both, "BatchNormalization") == 0


def test_ids_in_branches_that_share_a_name() -> None:
    branch = "c = Conv (x, W)  p = BatchNormalization (c, s, b, m, v)"
    text = f"""g (float[2,3,6,6] x, bool t) => (float[2,4,6,6] y) {{ y = If (t) <
        then_branch = u () => (float[2,4,6,6] p) {{ {branch} }}, else_branch = w () => (float[2,4,6,6] p) {{ {branch} }}> }}"""
    model = build(text, {"W": normal(4, 3, 1, 1), **parameters(4)})
    _, report = fuse(model)
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:p", "fold-batchnorm:p#2"]
    _, second = fuse(model, only=["fold-batchnorm:p#2"])
    assert [rewrite.id for rewrite in second.rewrites] == ["fold-batchnorm:p#2"]


def test_inspect_says_what_fuse_would_do_and_changes_nothing(tmp_path: Path) -> None:
    model = two_norms()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    before = path.read_bytes()
    report = normfuse.inspect(path)
    assert report.norms == fuse(model)[1].norms
    assert path.read_bytes() == before


def test_validation_when_asked() -> None:
    model = build(
        f"g (float[2,3,6,6] x) => (float[2,4,6,6] y) {{ c = Conv (x, W)  y = {BN} }}",
        {"W": normal(4, 3, 1, 1), **parameters(4)},
    )
    _, report = fuse(model, validate=True)
    assert report.validation is not None
    assert report.validation.verdict is Verdict.EQUIVALENT
    assert report.json()["validation"] is not None


def test_an_opset_newer_than_known() -> None:
    newest = onnx.defs.onnx_opset_version()
    model = two_norms()
    model.opset_import[0].version = newest + 1
    with pytest.raises(
        ModelIOError, match=f"the model is of opset {newest + 1}; the installed onnx knows opsets up to"
    ):
        fuse(model)


def test_the_default_domain_under_its_other_name() -> None:
    model = two_norms()
    model.opset_import[0].domain = "ai.onnx"
    assert fuse(model)[1].opset == 17


def test_a_bad_skip_pattern() -> None:
    with pytest.raises(UnsupportedForm, match="is no regular expression"):
        fuse(two_norms(), skip="(")


@pytest.mark.parametrize("form", [Form.STANDARD, Form.PRIMITIVE])
def test_other_forms_mean_the_same_and_are_idempotent(form: Form) -> None:
    text = """g (float[N,6,5,4] x) => (float[N,6,5,4] y) {
        a = LayerNormalization <axis = -1> (x, ls, lb)  c = GroupNormalization <num_groups = 3> (a, s, b)
        d = InstanceNormalization (c, s, b)  y = BatchNormalization (d, s, b, m, v) }"""
    model = build(text, {"ls": normal(4), "lb": normal(4, seed=2), **parameters(6)}, opset=21, ir_version=10)
    fused, _ = fuse(model, target=Target(form))
    assert_same(model, fused)
    again, report = normfuse.fuse(fused, Target(form))
    assert not report.rewrites
    assert ir.to_proto(again).SerializeToString(deterministic=True) == ir.to_proto(fused).SerializeToString(
        deterministic=True
    )


def test_auto_leaves_other_norms_as_they_are() -> None:
    text = "g (float[N,6,5,4] x) => (float[N,6,5,4] y) { y = InstanceNormalization (x, s, b) }"
    rows = {name: row for name, row in parameters(6).items() if name in "sb"}
    fused, report = fuse(build(text, rows))
    assert [node.op_type for node in fused.graph] == ["InstanceNormalization"]
    assert not report.rewrites
    assert report.norms[0].norm == "instance"
