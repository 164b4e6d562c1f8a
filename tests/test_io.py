"""Loading and saving: what is kept, what is refused, and that no half-written file is ever left."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import normfuse
from normfuse import Form, ModelIOError, Target, io
from normfuse.passes.linear import FoldedTensor
from tests.folding import BN, build, fuse, normal, parameters

TEXT = f"g (float[2,3,6,6] x) => (float[2,4,6,6] y) {{ c = Conv (x, W)  y = {BN} }}"


def example() -> onnx.ModelProto:
    """Return a small model with a foldable norm."""
    return build(TEXT, {"W": normal(4, 3, 1, 1), **parameters(4)})


def external(folder: Path, location: str = "weights.bin", channels: int = 600) -> Path:
    """Write a model whose weight, 1.4 MB, lies in a file of its own."""
    weight = normal(channels, channels, 1, 1)
    text = f"g (float[1,{channels},3,3] x) => (float[1,{channels},3,3] y) {{ c = Conv (x, W)  y = {BN} }}"
    model = build(text, parameters(channels))
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(weight.nbytes))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    (folder / "weights.bin").write_bytes(weight.tobytes())
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    """Metadata, documentation, sparse initializers, quantization annotations, training information, other domains."""
    model = example()
    model.opset_import.append(helper.make_opsetid("my.domain", 3))
    model.metadata_props.add(key="author", value="me")
    model.doc_string, model.domain, model.model_version, model.producer_name = "doc", "dom", 7, "trainer"
    model.graph.doc_string = "graph doc"
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "S"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 3], np.int64), "S_indices"))
    sparse.dims.append(4)
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.training_info.add().algorithm.name = "adam"
    model.graph.node[1].doc_string = "the norm"
    onnx.save(model, tmp_path / "in.onnx")

    normfuse.save(normfuse.load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    again = onnx.load(tmp_path / "out.onnx")
    for field in (
        "metadata_props",
        "doc_string",
        "domain",
        "model_version",
        "producer_name",
        "opset_import",
        "ir_version",
    ):
        assert getattr(again, field) == getattr(model, field), field
    assert list(again.training_info) == list(model.training_info)
    for field in ("doc_string", "sparse_initializer", "quantization_annotation", "input", "output"):
        assert getattr(again.graph, field) == getattr(model.graph, field), field
    for node, kept in zip(model.graph.node, again.graph.node, strict=True):
        for field in ("op_type", "name", "input", "output", "attribute", "doc_string"):
            assert getattr(kept, field) == getattr(node, field), field


def test_fused_models_keep_it_too() -> None:
    model = example()
    model.metadata_props.add(key="author", value="me")
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    fused, _ = fuse(model)
    result = io.to_proto(fused)
    assert result.metadata_props == model.metadata_props
    assert result.graph.quantization_annotation == model.graph.quantization_annotation


def test_value_info_lists_the_initializers_that_it_listed() -> None:
    """onnx_ir would list every one."""
    model = build(TEXT, {"W": normal(4, 3, 1, 1), **parameters(4)})
    model.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [4]))
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 4, 6, 6]))
    loaded = io.from_proto(model)
    assert [info.name for info in io.to_proto(loaded).graph.value_info] == ["m", "c"]
    assert loaded.graph.initializers["W"].shape == ir.Shape([4, 3, 1, 1])
    fused, _ = fuse(model)
    assert [info.name for info in io.to_proto(fused).graph.value_info] == []
    assert [info.name for info in io.to_proto(loaded.clone()).graph.value_info] == ["m", "c"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        normfuse.save(fuse(example())[0], tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fusing_twice_changes_nothing(tmp_path: Path) -> None:
    once, _ = fuse(example())
    normfuse.save(once, tmp_path / "once.onnx")
    twice, report = normfuse.fuse(tmp_path / "once.onnx")
    normfuse.save(twice, tmp_path / "twice.onnx")
    assert not report.rewrites
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()


def bad_file(folder: Path, kind: str) -> Path:
    """Write one kind of unusable model."""
    path = folder / "bad.onnx"
    if kind == "not onnx":
        path.write_bytes(b"this is not a model " * 20)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(example().SerializeToString()[:-40])
    elif kind == "folder":
        path.mkdir()
    elif kind == "json":
        path = folder / "bad.json"
        path.write_text('{"schema": 1}')
    elif kind == "data missing":
        path = external(folder)
        (folder / "weights.bin").unlink()
    elif kind == "data short":
        path = external(folder)
        os.truncate(folder / "weights.bin", 1000)
    elif kind == "data outside":
        (folder / "inner").mkdir()
        path = external(folder / "inner", "../weights.bin")
    elif kind == "data absolute":
        path = external(folder, str(folder / "weights.bin"))
    elif kind == "cycle":
        model = example()
        model.graph.node[0].input[0] = "y"
        onnx.save(model, path)
    return path


BAD = [
    ("missing", "no such file"),
    ("not onnx", "not an ONNX model"),
    ("empty", "not an ONNX model"),
    ("truncated", "not an ONNX model, or a truncated one"),
    ("folder", "is a folder, not an ONNX file"),
    ("json", "not an ONNX model"),
    ("data missing", "external data of 'W' is missing: no file 'weights.bin' beside the model"),
    ("data short", "external data of 'W' ends at byte 1440000, but 'weights.bin' has 1000 bytes"),
    ("data outside", "external data of 'W' points outside the model's folder: '../weights.bin'"),
    ("data absolute", "external data of 'W' points outside the model's folder"),
    ("cycle", "has a cycle"),
]


@pytest.mark.parametrize(("kind", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_files_are_one_clear_line(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(ModelIOError) as caught:
        normfuse.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


def test_an_unsorted_graph_is_sorted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = example()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "unsorted.onnx")
    with caplog.at_level("INFO", "normfuse"):
        fused, _ = normfuse.fuse(tmp_path / "unsorted.onnx")
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert "was not sorted; sorted it" in caplog.text


def test_external_data_goes_to_a_new_file_and_the_old_one_goes(tmp_path: Path) -> None:
    source, target = external(tmp_path), tmp_path / "out.onnx"
    fused, _ = normfuse.fuse(source)
    assert isinstance(fused.graph.initializers["W_folded"].const_value, FoldedTensor)
    normfuse.save(fused, target)
    (first,) = tmp_path.glob("out.onnx.*.data")
    expected = np.asarray(fused.graph.initializers["W_folded"].const_value.numpy())
    loaded = normfuse.load(target).graph.initializers["W_folded"].const_value
    assert isinstance(loaded, ir.ExternalTensor)
    np.testing.assert_array_equal(loaded.numpy(), expected)

    normfuse.save(normfuse.load(source), target)
    (second,) = tmp_path.glob("out.onnx.*.data")
    assert first != second
    onnx.checker.check_model(target)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "model.onnx", "out.onnx", second.name, "weights.bin",
    ]  # fmt: skip


def test_saving_twice_gives_the_same_files(tmp_path: Path) -> None:
    source, target = external(tmp_path), tmp_path / "out.onnx"
    contents = []
    for _ in range(2):
        normfuse.save(normfuse.fuse(source)[0], target)
        contents.append({entry.name: entry.read_bytes() for entry in tmp_path.iterdir()})
    assert contents[0] == contents[1]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = external(tmp_path), tmp_path / "out.onnx"
    fused, _ = normfuse.fuse(source)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "_flush", full)
    with pytest.raises(ModelIOError, match=r"out\.onnx: cannot be written: No space left on device"):
        normfuse.save(fused, target)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_an_older_file_survives_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.onnx"
    normfuse.save(fuse(example())[0], target)
    before = target.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "_flush", full)
    with pytest.raises(ModelIOError):
        normfuse.save(io.from_proto(example()), target)
    assert target.read_bytes() == before


@pytest.mark.parametrize("where", ["folder", "missing/out.onnx"])
def test_unusable_output_paths(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelIOError, match=r"is a folder|no such folder"):
        normfuse.save(fuse(example())[0], tmp_path / where)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_lazily_folded_slices_equal_the_fold_at_once() -> None:
    """Written slice by slice or read at once: the same bytes, for every layout that takes more than one slice."""
    from io import BytesIO

    from normfuse.affine import columns, conv_inputs, conv_outputs, conv_transpose_outputs, rows

    layouts = [
        (conv_outputs((300, 40, 3, 3)), (300, 40, 3, 3)),
        (conv_transpose_outputs((80, 50, 5, 5), 4), (80, 50, 5, 5)),
        (conv_inputs((300, 40, 3, 3), 3), (300, 40, 3, 3)),
        (columns((400, 300)), (400, 300)),
        (rows((400, 300)), (400, 300)),
        (columns((2, 100_000)), (2, 100_000)),
    ]
    for layout, shape in layouts:
        weight = normal(*shape)
        scale = np.random.default_rng(3).standard_normal(layout.channels)
        view = weight.reshape(layout.shape).astype(np.float64) * scale.reshape(layout.outer, 1, layout.inner, 1)
        expected = view.astype(np.float32).reshape(shape)
        tensor = FoldedTensor(ir.tensor(weight), scale, layout)
        buffer = BytesIO()
        tensor.tofile(buffer)
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert buffer.getvalue() == expected.tobytes()


def test_two_that_save_at_once_leave_one_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the renames of one run, another starts: it waits, and neither removes the other's data file."""
    first, _ = normfuse.fuse(external(tmp_path))
    second = normfuse.load(external(tmp_path))
    target, other = tmp_path / "out.onnx", threading.Thread(target=lambda: normfuse.save(second, tmp_path / "out.onnx"))
    replace = os.replace

    def rename(source: Path | str, into: Path | str) -> None:
        replace(source, into)
        if Path(into).parent == tmp_path and Path(into).suffix == ".data" and not other.ident:
            other.start()
            other.join(0.5)

    monkeypatch.setattr(os, "replace", rename)
    normfuse.save(first, target)
    other.join()
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert f"'{data.name}'" in repr([tensor.location for _, tensor in io._external_tensors(normfuse.load(target))])


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "real" / "out.onnx")
    normfuse.save(normfuse.load(external(tmp_path)), link)
    assert link.is_symlink()
    assert normfuse.load(tmp_path / "real" / "out.onnx").graph.initializers["W"].const_value is not None


def test_a_device_is_no_place_for_a_model() -> None:
    with pytest.raises(ModelIOError, match="/dev/null: is no regular file; name a file to write"):
        normfuse.save(io.from_proto(example()), "/dev/null")


@pytest.mark.parametrize("form", list(Form))
def test_fusing_a_saved_model_again_changes_no_byte(tmp_path: Path, form: Form) -> None:
    """Functions with the types of their values, shared names, external data: all of it comes back as it was written."""
    text = """g (float[N,6,5,4] x) => (float[N,6,5,4] y) {
        a = LayerNormalization <axis = -1> (x, ls, lb)  c = GroupNormalization <num_groups = 3> (a, s, b)
        d = InstanceNormalization (c, s, b)  e = Conv (d, W)  y = BatchNormalization (e, s, b, m, v) }"""
    arrays = {"ls": normal(4), "lb": normal(4, seed=2), "W": normal(6, 6, 1, 1), **parameters(6)}
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    for opset, ir_version in ((17, 8), (21, 10)):
        usable = (
            text if opset == 21 else text.replace("c = GroupNormalization <num_groups = 3> (a, s, b)", "c = Relu (a)")
        )
        model = build(usable, arrays, opset=opset, ir_version=ir_version)
        normfuse.save(normfuse.fuse(model, Target(form))[0], once)
        again, report = normfuse.fuse(once, Target(form))
        normfuse.save(again, twice)
        assert not report.rewrites
        assert twice.read_bytes() == once.read_bytes()
