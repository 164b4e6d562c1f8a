"""Input families: reproducible, of the right types and sizes; the user's own, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from normfuse.errors import ValidationError
from normfuse.validate.families import AIMS, ORDINARY, synthesise
from normfuse.validate.given import read_user_inputs
from normfuse.validate.inputs import Sizes, input_specs, resolve
from tests.validate.nets import info, model

NET = ir.from_proto(
    model(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Cast", ["positions"], ["p64"], to=7),
            helper.make_node("Gather", ["short", "p64"], ["more"]),
            helper.make_node("Add", ["rows", "more"], ["y"]),
        ],
        [
            info("ids", "int64", ["batch", "length"]),
            info("positions", "int32", ["batch", "length"]),
            info("attention_mask", "int64", ["batch", "length"]),
            info("x", "float16", ["batch", 3, "length", "length"]),
            info("flag", "bool", [5]),
        ],
        [info("y", "float32", ["batch", "length", 4])],
        {"table": np.zeros((50, 4), "f"), "short": np.zeros((7, 4), "f")},
    )
)
SPECS = input_specs(NET)


def test_sizes_types_and_bounds() -> None:
    feed = synthesise(SPECS, ORDINARY, Sizes(2, 30), 0)
    assert {name: (array.dtype.name, array.shape) for name, array in feed.items()} == {
        "ids": ("int64", (2, 30)),
        "positions": ("int32", (2, 30)),
        "attention_mask": ("int64", (2, 30)),
        "x": ("float16", (2, 3, 30, 30)),
        "flag": ("bool", (5,)),
    }
    assert 7 <= feed["ids"].max() < 50
    assert feed["positions"].max() < 7
    # Every row of a mask begins with ones and ends with a zero, wherever it is padded.
    mask = feed["attention_mask"]
    assert (mask[:, 0] == 1).all()
    assert (mask[:, -1] == 0).all()
    assert len(set(mask.sum(axis=1))) == 2


def test_families_are_reproducible_and_differ() -> None:
    aims = {aim.name: aim for aim in AIMS}
    one, again, other, large = (
        synthesise(SPECS, aim, Sizes(2, 30), index)["x"].astype(float)
        for aim, index in ((ORDINARY, 0), (ORDINARY, 0), (ORDINARY, 1), (aims["large mean"], 0))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert abs(one.mean()) < 0.1
    assert abs(large.mean() / large.std() - 100) < 5


def test_equal_symbols_get_equal_sizes() -> None:
    assert resolve(SPECS, Sizes(2, 8)) == {"batch": 2, "length": 8}


def files(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "one.npz", **arrays)
    return folder / "one.npz"


SIMPLE = input_specs(
    ir.from_proto(
        model(
            [helper.make_node("Add", ["a", "b"], ["y"])],
            [info("a", "float32", ["N", 3]), info("b", "float32", ["N", 3])],
            [info("y", "float32", ["N", 3])],
            {},
        )
    )
)
A = np.ones((2, 3), "f")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": A}, "one.npz lacks b; expected a: float[N, 3], b: float[N, 3]"),
        (
            {"a": A, "b": A, "c": A},
            "one.npz has c, which the model does not take; expected a: float[N, 3], b: float[N, 3]",
        ),
        ({"a": A, "b": A[:1]}, "one.npz: input 'b' has shape [1, 3]; expected float[N, 3], no axis empty"),
        ({"a": A, "b": A[:, :2]}, "one.npz: input 'b' has shape [2, 2]; expected float[N, 3], no axis empty"),
        ({"a": A[:0], "b": A[:0]}, "one.npz: input 'a' has shape [0, 3]; expected float[N, 3], no axis empty"),
        ({"a": A, "b": A.astype(int)}, "one.npz: input 'b' has type int64; expected float[N, 3]"),
        ({"a": A, "b": A.astype(float)}, "one.npz: input 'b' has type float64; expected float[N, 3]"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read_user_inputs(files(tmp_path, **arrays), SIMPLE)
    assert str(caught.value) == words


def test_files_and_folders(tmp_path: Path) -> None:
    assert len(read_user_inputs(files(tmp_path, a=A, b=2 * A), SIMPLE).feeds) == 1
    np.savez(tmp_path / "two.npz", a=A[:1], b=A[:1])
    assert [feed["a"].shape for feed in read_user_inputs(tmp_path, SIMPLE).feeds] == [(2, 3), (1, 3)]
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ValidationError, match=r"has neither \.npz files"):
        read_user_inputs(bare, SIMPLE)
    np.save(bare / "a.npy", A)
    np.save(bare / "b.npy", A)
    assert read_user_inputs(bare, SIMPLE).feeds[0]["b"].tolist() == A.tolist()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="do not exist"):
        read_user_inputs(tmp_path / "none.npz", SIMPLE)
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    with pytest.raises(ValidationError, match="cannot read"):
        read_user_inputs(tmp_path / "broken.npz", SIMPLE)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"hello", "as .npz: it was not written by numpy.save or numpy.savez"),
        ("a.npz", b"", "as .npz: it is empty"),
        ("a.npz", b"PK\x03\x04 and no more", "as .npz: File is not a zip file"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValidationError) as caught:
        read_user_inputs(tmp_path / name, SIMPLE)
    assert str(caught.value) == f"cannot read '{tmp_path / name}' {words}"


def test_a_single_array_has_no_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    with pytest.raises(ValidationError) as caught:
        read_user_inputs(tmp_path / "a.npy", SIMPLE)
    assert str(caught.value) == (
        f"'{tmp_path / 'a.npy'}' is a single array without a name: give an .npz, or its folder, with a file NAME.npy for "
        "each input"
    )
