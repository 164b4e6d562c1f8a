"""fuse and inspect as functions: what they take, what they leave alone, what they report, and replay by id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normfuse
from normfuse import Form, ModelIOError, NormfuseError, Provider, Target, UnsupportedForm, Verdict, fusion
from tests.folding import BN, Array, assert_same, build, count, fuse, normal, parameters, reasons


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
    assert reasons(report) == ["the rank of its input, from Strange 'Strange → f', is not known"]
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


def test_folds_into_one_operator_are_replayed_one_by_one() -> None:
    """Two norms fold into the convolution between them; the id of each is the norm's, whatever the other does."""
    text = f"""g (float[2,4,6,6] x) => (float[2,4,6,6] y) {{
        r = Relu (x)  n = BatchNormalization (r, s, b, m, v)  c = Conv (n, W)  y = {BN} }}"""
    model = build(text, {"W": normal(4, 4, 1, 1), **parameters(4)})
    fused, report = fuse(model)
    assert [rewrite.id for rewrite in report.rewrites] == ["fold-batchnorm:y", "fold-batchnorm:n"]
    assert_same(model, fused)
    cases = {
        "fold-batchnorm:y": ["Relu", "BatchNormalization", "Conv"],
        "fold-batchnorm:n": ["Relu", "Conv", "BatchNormalization"],
    }
    for identifier, left in cases.items():
        alone, replay = fuse(model, only=[identifier])
        assert [rewrite.id for rewrite in replay.rewrites] == [identifier]
        assert [node.op_type for node in alone.graph] == left
        assert_same(model, alone)


def test_a_norm_that_is_written_twice_is_one_rewrite() -> None:
    """Written out, the norm takes in the Dropout behind it: the second writing belongs to the first."""
    text = "g (float[N,4,6,5] x) => (float[N,4,6,5] y) { n = InstanceNormalization (x, s, b)  d = Dropout (n)  y = Relu (d) }"
    rows = {name: row for name, row in parameters(4).items() if name in "sb"}
    model = build(text, rows)
    fused, report = fuse(model, target=Target(Form.PRIMITIVE))
    (rewrite,) = report.rewrites
    assert (rewrite.id, rewrite.nodes) == ("emit:n", ("InstanceNormalization → n", "Dropout → d"))
    assert set(rewrite.into) == {node.name for node in fused.graph if node.op_type != "Relu"}
    assert report.norms[0].plan == f"emit {rewrite.into[-1]}"
    assert_same(model, fused)


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


ODD = [
    ((3,), {}, "a model is a path, an onnx.ModelProto or an onnx_ir.Model; got int"),
    ((None, "standard"), {}, "target takes a normfuse.Target, such as Target(Form.STANDARD); got 'standard'"),
    ((None,), {"skip": 3}, "--skip '3' is no regular expression"),
    ((None,), {"only": "fold-batchnorm:k"}, "only takes the ids of rewrites, a collection of texts; got 'fold"),
    ((None,), {"only": [3]}, "only takes the ids of rewrites, a collection of texts; got [3]"),
    (("a\0b",), {}, "no file has a name with a null character"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), ODD, ids=[case[2][:30] for case in ODD])
def test_odd_arguments_are_explained(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    first = two_norms() if arguments[0] is None else arguments[0]
    with pytest.raises(NormfuseError, match=re.escape(message)):
        normfuse.fuse(first, *arguments[1:], **options)


def test_targets_by_name() -> None:
    assert Target("standard", "cuda") == Target(Form.STANDARD, Provider.CUDA)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedForm, match="unknown form 'standrd'; did you mean 'standard'"):
        Target("standrd")  # type: ignore[arg-type]


def broken(kind: str) -> onnx.ModelProto:
    """Return a model that onnx.checker refuses, in a place that fuse has to read."""
    model = two_norms()
    if kind == "short data":
        model.graph.initializer[0].raw_data = b"abc"
    elif kind == "attribute type":
        model.graph.node[1].attribute.add(name="epsilon", type=onnx.AttributeProto.INT, i=3)
    elif kind == "no output":
        del model.graph.node[1].output[:]
        model.graph.node[2].input[0] = "c"
    elif kind == "no version":
        model.opset_import[0].version = 0
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short data", "not a valid ONNX model: TensorProto (tensor name: W) raw_data size (3 bytes) is too small"),
        ("attribute type", "not a valid ONNX model: Mismatched attribute type in ' : epsilon'"),
        ("no output", "not a valid ONNX model: Node with schema(::BatchNormalization:15) has output size 0"),
        ("no version", "the model is of opset 0: versions begin with 1"),
    ],
)
def test_a_broken_model_is_one_clear_line(kind: str, message: str) -> None:
    with pytest.raises(ModelIOError, match=re.escape(message)) as raised:
        fuse(broken(kind))
    assert "\n" not in str(raised.value)


def test_a_defect_of_ours_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(fusion, "find_norms", defect)
    with pytest.raises(TypeError, match="ours"):
        fuse(two_norms())


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
    fused, report = fuse(build(text, rows), target=Target(native=False))
    assert [node.op_type for node in fused.graph] == ["InstanceNormalization"]
    assert not report.rewrites
    assert report.norms[0].norm == "instance"


def random_chain(random: np.random.Generator) -> onnx.ModelProto:
    """Return a chain of convolutions, norms, constants and activations in random order, with a side branch here and there."""
    arrays: dict[str, Array] = {"k": normal(4, 1, 1, seed=9)}
    lines, outputs, x = [], [], "x"
    for index in range(int(random.integers(3, 9))):
        y, kind = f"t{index}", random.choice(["Conv", "BatchNormalization", "Mul", "Relu", "Identity", "If"])
        if kind == "Conv":
            arrays[f"W{index}"] = normal(4, 4, 1, 1, seed=index)
            lines.append(f"{y} = Conv ({x}, W{index})")
        elif kind == "BatchNormalization":
            arrays |= {f"{name}{index}": row for name, row in parameters(4, seed=index).items()}
            lines.append(f"{y} = BatchNormalization ({x}, s{index}, b{index}, m{index}, v{index})")
        elif kind == "If":
            arrays |= {f"{name}{index}": row for name, row in parameters(4, seed=index).items()}
            arrays["W"] = normal(4, 4, 1, 1, seed=7)
            body = f"c = Conv ({x}, W)  r = BatchNormalization (c, s{index}, b{index}, m{index}, v{index})"
            branch = f"() => (float[2,4,6,6] r) {{ {body} }}"
            lines.append(f"{y} = If (t) <then_branch = p {branch}, else_branch = q {branch}>")
        else:
            lines.append(f"{y} = {kind} ({x}{', k' if kind == 'Mul' else ''})")
        if random.random() < 0.15:
            outputs.append(y)
        x = y
    results = ", ".join(f"float[2,4,6,6] {name}" for name in dict.fromkeys([*outputs, x]))
    return build(f"g (float[2,4,6,6] x, bool t) => ({results}) {{ {'  '.join(lines)} }}", arrays)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_part_of_the_rewrites_can_be_replayed(seed: int) -> None:
    """Property: ids are told apart, and any part of them gives just those rewrites, in a model that means the same.

    A move may need another one before it, which is then said.
    """
    random = np.random.default_rng(seed)
    model = random_chain(random)
    _, report = fuse(model)
    ids = [rewrite.id for rewrite in report.rewrites]
    assert len(set(ids)) == len(ids)
    part = [identifier for identifier in ids if random.random() < 0.5]
    fused, replay = fuse(model, only=part)
    replayed = [rewrite.id for rewrite in replay.rewrites]
    missing = [identifier for identifier in part if identifier not in replayed]
    assert set(replayed) == set(part) - set(missing)
    assert all(identifier.startswith("move-") for identifier in missing)
    assert not missing or any(", ".join(sorted(missing)) in note for note in replay.notes)
    assert_same(model, fused)
    again, rest = normfuse.fuse(fused)
    assert len(rest.rewrites) <= len(ids) - len(replayed)
    assert_same(model, again)
